// A stream under TLS (OpenSSL), both sides authenticated by certificates.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/transfer_stream.h"

struct ssl_ctx_st;

namespace stasis::memory {

/// Files in PEM. What is not named lies where criu(8) has it, if it lies there.
struct TlsFiles {
  std::string authorities;  ///< the only trusted ones; empty: those of the system and /etc/pki/CA/cacert.pem
  std::string revoked;      ///< empty: /etc/pki/CA/cacrl.pem
  std::string certificate;  ///< empty: /etc/pki/criu/cert.pem
  std::string key;          ///< empty: /etc/pki/criu/private/key.pem
};

enum class TlsSide : uint8_t { client, server };

class TlsContext {
 public:
  /// Reads the files: what is wrong with them is said before anybody is connected.
  static Result<TlsContext> load(TlsSide, const TlsFiles&);
  /// Shakes hands. The peer needs a certificate of an authority that is trusted; `name`, if it is not empty, has to be
  /// in it. A client whose own certificate is refused learns that from its first read (TLS 1.3).
  Result<std::unique_ptr<Stream>> wrap(UniqueFd socket, const std::string& name) const;

 private:
  TlsContext(TlsSide side, std::shared_ptr<ssl_ctx_st> context) : side_(side), context_(std::move(context)) {}
  TlsSide side_;
  std::shared_ptr<ssl_ctx_st> context_;
};

}  // namespace stasis::memory
