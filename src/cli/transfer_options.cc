#include "cli/transfer_options.h"

#include <fcntl.h>

#include <CLI/CLI.hpp>

#include "base/patience.h"
#include "cli/options.h"
#include "image/page_sink.h"
#include "memory/remote_pages.h"

namespace stasis::cli {
namespace {

Result<std::optional<memory::TlsContext>> tls_of(const TransferOptions& options, memory::TlsSide side) {
  if (!options.tls) return std::nullopt;
  return TRY(memory::TlsContext::load(side, options.tls_files));
}

/// Ours from here on, and nobody's who is started by us.
Result<UniqueFd> take_socket(const TransferOptions& options) {
  UniqueFd fd(options.socket);
  if (fcntl(fd.get(), F_SETFD, FD_CLOEXEC) == 0) return fd;
  const int error = errno;
  return fail(Error::system("use --ps-socket", error, fmt::format("descriptor {}", fd.release())));
}

Result<std::unique_ptr<memory::Stream>> wrap(UniqueFd socket, const std::optional<memory::TlsContext>& tls,
                                             const std::string& name) {
  TRY(memory::prepare_connection(socket.get(), patience));
  if (!tls) return memory::plain_stream(std::move(socket));
  return tls->wrap(std::move(socket), name);
}

}  // namespace

void add_transfer_options(CLI::App& app, TransferOptions& options) {
  app.add_option("--address", options.endpoint.address, "Address or name of the page server")->type_name("ADDRESS");
  app.add_option("--port", options.endpoint.port, "Port of the page server")->type_name("NUMBER");
  app.add_option("--ps-socket", options.socket, "Use this descriptor, a connected socket, instead")
      ->type_name("FD")
      ->check(CLI::NonNegativeNumber);
  add_switch(app, "--tls", options.tls, "Encrypt the connection; both sides need certificates");
  app.add_option("--tls-cacert", options.tls_files.authorities, "Trust the certificates of these authorities alone")
      ->type_name("FILE");
  app.add_option("--tls-cacrl", options.tls_files.revoked, "Certificates that these have revoked")->type_name("FILE");
  app.add_option("--tls-cert", options.tls_files.certificate, "Our certificate (default: /etc/pki/criu/cert.pem)")
      ->type_name("FILE");
  app.add_option("--tls-key", options.tls_files.key, "Its private key (default: /etc/pki/criu/private/key.pem)")
      ->type_name("FILE");
  app.add_flag_callback("--no-tls-no-cn-verify", [&options] { options.verify_name = true; })->group("");
  app.add_flag_callback(
      "--tls-no-cn-verify", [&options] { options.verify_name = false; },
      "Do not compare --address with the name in the server's certificate");
}

Result<std::unique_ptr<memory::Stream>> connect(const TransferOptions& options, const Session& session) {
  const auto tls = TRY(tls_of(options, memory::TlsSide::client));
  const auto& address = options.endpoint.address;
  if (options.tls && options.verify_name && address.empty()) {
    return fail(Error::invalid("connect to the page server", "its name cannot be compared with its certificate")
                    .advise("give --address, or --tls-no-cn-verify"));
  }
  if (options.socket < 0 && options.endpoint.port == 0)
    return fail(Error::invalid("connect to the page server", "nobody says where it is")
                    .advise("give --address and --port, or --ps-socket"));
  auto socket = options.socket >= 0 ? TRY(take_socket(options)) : TRY(memory::connect_to(options.endpoint, patience));
  auto stream = TRY(wrap(std::move(socket), tls, options.verify_name ? address : ""));
  session.log().info("Connected to {}{}", stream->peer(), options.tls ? " under TLS" : "");
  return stream;
}

Result<Host> Host::open(const TransferOptions& options, const Session& session) {
  Host host;
  host.options_ = options;
  host.tls_ = TRY(tls_of(options, memory::TlsSide::server));
  if (options.socket >= 0) return host;
  host.listener_ = TRY(memory::Listener::open(options.endpoint));
  session.log().info("Listening on {}", memory::to_text(host.listener_->endpoint()));
  return host;
}

Result<std::unique_ptr<memory::Stream>> Host::await(const Session& session, const Ending* ending) {
  if (listener_ && ending != nullptr) TRY(ending->wait_for(listener_->descriptor()));
  auto socket = listener_ ? TRY(listener_->accept()) : TRY(take_socket(options_));
  listener_.reset();
  auto stream = TRY(wrap(std::move(socket), tls_, ""));
  // Whoever has come this far may be silent for as long as its tree or its scripts take.
  TRY(memory::prepare_connection(stream->descriptor(), memory::no_limit));
  session.log().info("{} has come{}", stream->peer(), options_.tls ? " under TLS" : "");
  return stream;
}

void end_connection(memory::Stream& stream, const TransferOptions& options, const Session& session) {
  if (options.socket >= 0) return;
  if (const auto ended = stream.finish(); !ended) session.log().warn("{}", ended.error().message());
}

void add_page_server_options(CLI::App& app, PageServerOptions& options, const char* description) {
  add_switch(app, "--page-server", options.use, description);
  add_transfer_options(app, options.transfer);
}

Status use_page_server(const PageServerOptions& options, image::Directory& images, const Session& session) {
  if (!options.use) return {};
  using enum memory::RemotePages::Ending;
  auto stream = TRY(connect(options.transfer, session));
  images.store_pages_in(TRY(
      memory::RemotePages::begin(std::move(stream), images, options.transfer.socket >= 0 ? close_by_force : close)));
  return {};
}

Status complete_page_server(const image::Directory& images) {
  const auto& store = images.page_store();
  return store ? store->complete() : Status{};
}

}  // namespace stasis::cli
