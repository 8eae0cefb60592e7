#include "memory/tls_stream.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include <fmt/format.h>

namespace stasis::memory {
namespace {

constexpr const char* usual_authorities = "/etc/pki/CA/cacert.pem";
constexpr const char* usual_revoked = "/etc/pki/CA/cacrl.pem";
constexpr const char* usual_certificate = "/etc/pki/criu/cert.pem";
constexpr const char* usual_key = "/etc/pki/criu/private/key.pem";
constexpr size_t record_size = 16 << 10;  ///< the most that one record of TLS carries
constexpr size_t send_at = 256 << 10;     ///< so many bytes of records are sent in one go

/// What OpenSSL says of the last failure in this thread: the innermost of its layers.
std::string reason() {
  const unsigned long code = ERR_peek_error();
  ERR_clear_error();
  if (code == 0) return "for a reason that OpenSSL does not tell";
  // Codes of the system (a missing file) have texts of their own.
  if (ERR_SYSTEM_ERROR(code)) return std::strerror(ERR_GET_REASON(code));
  const char* text = ERR_reason_error_string(code);
  return text == nullptr ? fmt::format("OpenSSL error {:#x}", code) : text;
}

std::unexpected<Error> unusable(std::string operation, const std::string& file, std::string_view option) {
  return fail(
      Error::invalid(std::move(operation), reason(), file).advise(fmt::format("name another file with {}", option)));
}

std::string either(const std::string& given, const char* usual) { return given.empty() ? usual : given; }

/// The socket as OpenSSL sees it: its own would raise SIGPIPE, and send every small record by itself.
struct Socket {
  UniqueFd fd;
  std::string peer;
  std::optional<Error> error = std::nullopt;
  Bytes unsent = {};

  bool send() {
    for (ByteView left = unsent; !left.empty();) {
      const iovec part{const_cast<uint8_t*>(left.data()), left.size()};
      auto sent = send_some(fd.get(), {&part, 1}, peer);
      if (!sent) {
        error = std::move(sent).error();
        return false;
      }
      left = left.subspan(*sent);
    }
    unsent.clear();
    return true;
  }
};

Socket& socket_of(BIO* bio) { return *static_cast<Socket*>(BIO_get_data(bio)); }

int bio_read(BIO* bio, char* buffer, int size) {
  Socket& socket = socket_of(bio);
  if (!socket.send()) return -1;
  auto got =
      receive_some(socket.fd.get(), {reinterpret_cast<uint8_t*>(buffer), static_cast<size_t>(size)}, socket.peer);
  if (got) return static_cast<int>(*got);
  socket.error = std::move(got).error();
  return -1;
}

int bio_write(BIO* bio, const char* bytes, int size) {
  Socket& socket = socket_of(bio);
  socket.unsent.insert(socket.unsent.end(), bytes, bytes + size);
  return socket.unsent.size() < send_at || socket.send() ? size : -1;
}

long bio_control(BIO* bio, int command, long, void*) {
  return command == BIO_CTRL_FLUSH && socket_of(bio).send() ? 1 : 0;
}

const BIO_METHOD* socket_method() {
  static const BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "stream socket");
    BIO_meth_set_read(made, bio_read);
    BIO_meth_set_write(made, bio_write);
    BIO_meth_set_ctrl(made, bio_control);
    return made;
  }();
  return method;
}

class TlsStream final : public Stream {
 public:
  TlsStream(std::shared_ptr<SSL_CTX> context, UniqueFd socket)
      : Stream(peer_of(socket.get())),
        context_(std::move(context)),
        socket_{std::move(socket), peer()},
        ssl_(SSL_new(context_.get()), SSL_free) {
    BIO* bio = BIO_new(socket_method());
    BIO_set_data(bio, &socket_);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl_.get(), bio, bio);
  }

  Status handshake(TlsSide side, const std::string& name) {
    TRY(expect(name));
    const int done = side == TlsSide::client ? SSL_connect(ssl_.get()) : SSL_accept(ssl_.get());
    if (done == 1) return {};
    socket_.send();  // what OpenSSL has told the other side of it
    const long verdict = SSL_get_verify_result(ssl_.get());
    if (verdict == X509_V_OK) return failed("agree on TLS", done);
    ERR_clear_error();
    return fail(Error::conflict(
                    "agree on TLS",
                    fmt::format("the other side's certificate is refused: {}", X509_verify_cert_error_string(verdict)),
                    peer())
                    .advise(verdict == X509_V_ERR_HOSTNAME_MISMATCH || verdict == X509_V_ERR_IP_ADDRESS_MISMATCH
                                ? "name it with --address as its certificate does, or allow any name with "
                                  "--tls-no-cn-verify"
                                : "both sides need certificates of an authority that the other one trusts "
                                  "(--tls-cacert)"));
  }

  using Stream::write;
  /// Each part begins a record: criu's page server takes records of pages for pages from their first byte to their
  /// last.
  Status write(std::span<const iovec> parts) override {
    for (const iovec& part : parts) {
      for (size_t at = 0; at < part.iov_len; at += record_size)
        TRY(write_record({static_cast<const uint8_t*>(part.iov_base) + at, std::min(record_size, part.iov_len - at)}));
    }
    return flush("send");
  }
  int descriptor() const override { return socket_.fd.get(); }
  bool has_buffered() const override { return Stream::has_buffered() || SSL_pending(ssl_.get()) > 0; }

 protected:
  Result<size_t> read_some(std::span<uint8_t> buffer) override {
    size_t got = 0;
    const int done = SSL_read_ex(ssl_.get(), buffer.data(), buffer.size(), &got);
    if (done == 1) return got;
    if (SSL_get_error(ssl_.get(), done) == SSL_ERROR_ZERO_RETURN) return 0;
    return failed("receive", done);
  }
  Status say_end() override {
    const int done = SSL_shutdown(ssl_.get());
    return done < 0 ? failed("end the connection", done) : flush("end the connection");
  }

 private:
  Status expect(const std::string& name) {
    if (name.empty()) return {};
    in6_addr ignored{};
    const bool is_number =
        inet_pton(AF_INET, name.c_str(), &ignored) == 1 || inet_pton(AF_INET6, name.c_str(), &ignored) == 1;
    const int set = is_number ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl_.get()), name.c_str())
                              : SSL_set1_host(ssl_.get(), name.c_str());
    if (set != 1) return fail(Error::invalid("expect a name in the certificate", reason(), name));
    if (!is_number) SSL_set_tlsext_host_name(ssl_.get(), name.c_str());
    return {};
  }

  Status write_record(ByteView record) {
    size_t written = 0;
    const int done = SSL_write_ex(ssl_.get(), record.data(), record.size(), &written);  // all of it, or an error
    return done == 1 ? Status{} : failed("send", done);
  }
  Status flush(std::string operation) { return socket_.send() ? Status{} : failed(std::move(operation), -1); }

  std::unexpected<Error> failed(std::string operation, int done) {
    if (socket_.error) {
      ERR_clear_error();
      return fail(std::move(*std::exchange(socket_.error, std::nullopt)));
    }
    // An end of the connection that TLS has not announced may have been made by somebody in between.
    const bool is_cut = SSL_get_error(ssl_.get(), done) == SSL_ERROR_SYSCALL ||
                        ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING;
    if (is_cut) {
      ERR_clear_error();
      return fail(Error::conflict(std::move(operation), "the connection was cut off", peer()));
    }
    return fail(Error::conflict(std::move(operation), reason(), peer()));
  }

  std::shared_ptr<SSL_CTX> context_;
  Socket socket_;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_;
};

Status trust(SSL_CTX* context, const TlsFiles& files) {
  X509_STORE* store = SSL_CTX_get_cert_store(context);
  const std::string authorities = either(files.authorities, usual_authorities);
  const bool is_there = access(authorities.c_str(), R_OK) == 0;
  if (files.authorities.empty()) SSL_CTX_set_default_verify_paths(context);
  if ((is_there || !files.authorities.empty()) && X509_STORE_load_file(store, authorities.c_str()) != 1)
    return unusable("read the certificates of authorities", authorities, "--tls-cacert");
  const std::string revoked = either(files.revoked, usual_revoked);
  if (files.revoked.empty() && access(revoked.c_str(), R_OK) != 0) return {};
  X509_LOOKUP* lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());
  if (lookup == nullptr || X509_load_crl_file(lookup, revoked.c_str(), X509_FILETYPE_PEM) < 1)
    return unusable("read the list of revoked certificates", revoked, "--tls-cacrl");
  X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
  return {};
}

Status identify(SSL_CTX* context, const TlsFiles& files) {
  const std::string certificate = either(files.certificate, usual_certificate);
  if (SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) != 1)
    return unusable("read the certificate", certificate, "--tls-cert");
  const std::string key = either(files.key, usual_key);
  if (SSL_CTX_use_PrivateKey_file(context, key.c_str(), SSL_FILETYPE_PEM) != 1)
    return unusable("read the private key", key, "--tls-key");
  if (SSL_CTX_check_private_key(context) != 1) return unusable("use the private key", key, "--tls-key");
  return {};
}

}  // namespace

Result<TlsContext> TlsContext::load(TlsSide side, const TlsFiles& files) {
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(side == TlsSide::client ? TLS_client_method() : TLS_server_method()),
                                   SSL_CTX_free);
  if (!context) return fail(Error::internal("prepare TLS", reason()));
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  // Nobody resumes a session; and criu takes a ticket for an end of what there is to read.
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_TICKET);
  SSL_CTX_set_num_tickets(context.get(), 0);
  TRY(trust(context.get(), files));
  TRY(identify(context.get(), files));
  return TlsContext(side, std::move(context));
}

Result<std::unique_ptr<Stream>> TlsContext::wrap(UniqueFd socket, const std::string& name) const {
  auto stream = std::make_unique<TlsStream>(context_, std::move(socket));
  TRY(stream->handshake(side_, name));
  return stream;
}

}  // namespace stasis::memory
