// Certificates for tests of TLS, made when they are needed.
#pragma once

#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <filesystem>
#include <memory>
#include <string>

namespace stasis::memory {

class Authority {
 public:
  /// Its own certificate goes to `file`.
  explicit Authority(const std::filesystem::path& file) : file_(file.string()), key_(new_key()) {
    certificate_ = make("authority of " + file_, key_.get(), nullptr);
    add(certificate_.get(), NID_basic_constraints, "critical,CA:TRUE");
    sign(certificate_.get());
    write(file_, [&](FILE* out) { return PEM_write_X509(out, certificate_.get()); });
  }
  const std::string& file() const { return file_; }

  /// A certificate for a host of that name.
  void issue(const std::string& name, const std::string& certificate_file, const std::string& key_file) const {
    const Key key = new_key();
    const Certificate issued = make(name, key.get(), X509_get_subject_name(certificate_.get()));
    add(issued.get(), NID_subject_alt_name, "DNS:" + name);
    sign(issued.get());
    write(certificate_file, [&](FILE* out) { return PEM_write_X509(out, issued.get()); });
    write(key_file,
          [&](FILE* out) { return PEM_write_PrivateKey(out, key.get(), nullptr, nullptr, 0, nullptr, nullptr); });
  }

  /// A list that revokes one certificate.
  void revoke(const std::string& certificate_file, const std::string& list_file) const {
    const std::unique_ptr<FILE, int (*)(FILE*)> in(fopen(certificate_file.c_str(), "r"), fclose);
    const Certificate revoked(PEM_read_X509(in.get(), nullptr, nullptr, nullptr), X509_free);
    const std::unique_ptr<X509_CRL, decltype(&X509_CRL_free)> list(X509_CRL_new(), X509_CRL_free);
    X509_CRL_set_version(list.get(), 1);
    X509_CRL_set_issuer_name(list.get(), X509_get_subject_name(certificate_.get()));
    const std::unique_ptr<ASN1_TIME, decltype(&ASN1_TIME_free)> now(ASN1_TIME_set(nullptr, time(nullptr) - 60),
                                                                    ASN1_TIME_free);
    const std::unique_ptr<ASN1_TIME, decltype(&ASN1_TIME_free)> later(ASN1_TIME_set(nullptr, time(nullptr) + 3600),
                                                                      ASN1_TIME_free);
    X509_CRL_set1_lastUpdate(list.get(), now.get());
    X509_CRL_set1_nextUpdate(list.get(), later.get());
    X509_REVOKED* entry = X509_REVOKED_new();
    X509_REVOKED_set_serialNumber(entry, X509_get_serialNumber(revoked.get()));
    X509_REVOKED_set_revocationDate(entry, now.get());
    X509_CRL_add0_revoked(list.get(), entry);
    X509_CRL_sign(list.get(), key_.get(), EVP_sha256());
    write(list_file, [&](FILE* out) { return PEM_write_X509_CRL(out, list.get()); });
  }

 private:
  using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
  using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

  static Key new_key() { return {EVP_EC_gen("P-256"), EVP_PKEY_free}; }

  Certificate make(const std::string& name, EVP_PKEY* key, const X509_NAME* issuer) const {
    static long serial = 0;
    Certificate made(X509_new(), X509_free);
    X509_set_version(made.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(made.get()), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(made.get()), -3600);
    X509_gmtime_adj(X509_getm_notAfter(made.get()), 3600);
    X509_NAME* subject = X509_get_subject_name(made.get());
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, reinterpret_cast<const uint8_t*>(name.c_str()), -1, -1, 0);
    X509_set_issuer_name(made.get(), issuer == nullptr ? subject : issuer);
    X509_set_pubkey(made.get(), key);
    return made;
  }

  static void add(X509* certificate, int what, const std::string& value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, what, value.c_str());
    X509_add_ext(certificate, extension, -1);
    X509_EXTENSION_free(extension);
  }

  void sign(X509* certificate) const { EXPECT_GT(X509_sign(certificate, key_.get(), EVP_sha256()), 0); }

  template <typename Write>
  static void write(const std::string& file, Write content) {
    const std::unique_ptr<FILE, int (*)(FILE*)> out(fopen(file.c_str(), "w"), fclose);
    ASSERT_TRUE(out);
    ASSERT_EQ(content(out.get()), 1);
  }

  std::string file_;
  Key key_;
  Certificate certificate_{nullptr, X509_free};
};

}  // namespace stasis::memory
