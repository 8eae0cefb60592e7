// Options of criu(8) about connections that pages go through: --address, --port, --ps-socket, --tls….
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "cli/background.h"
#include "cli/session.h"
#include "image/directory.h"
#include "memory/tls_stream.h"
#include "memory/transfer_stream.h"

namespace CLI {
class App;
}

namespace stasis::cli {

struct TransferOptions {
  memory::Endpoint endpoint;
  int socket = -1;  ///< --ps-socket; -1: none, they connect by address
  bool tls = false;
  memory::TlsFiles tls_files;
  bool verify_name = true;
};

void add_transfer_options(CLI::App&, TransferOptions&);

/// A connection to whoever listens there.
Result<std::unique_ptr<memory::Stream>> connect(const TransferOptions&, const Session&);

/// The side that listens. What is wrong with keys and addresses is said before anybody is awaited.
class Host {
 public:
  static Result<Host> open(const TransferOptions&, const Session&);
  /// The first who comes. There will be no second. An error also if we are to end before.
  Result<std::unique_ptr<memory::Stream>> await(const Session&, const Ending* ending = nullptr);

 private:
  TransferOptions options_;
  std::optional<memory::TlsContext> tls_;
  std::optional<memory::Listener> listener_;
};

/// The client has its last answer. Where its socket is ours alone, criu's clients wait for the end.
void end_connection(memory::Stream&, const TransferOptions&, const Session&);

// -- commands that use a page server

struct PageServerOptions {
  bool use = false;  ///< --page-server
  TransferOptions transfer;
};
/// --page-server, which does what is described, and where it is.
void add_page_server_options(CLI::App&, PageServerOptions&,
                             const char* description = "Send pages to a page server instead of writing them");
/// Makes the pages of the directory, which must stay where it is, go to the page server, if that is wanted. Before the
/// tree is stopped.
Status use_page_server(const PageServerOptions&, image::Directory&, const Session&);
/// When they are all sent.
Status complete_page_server(const image::Directory&);

}  // namespace stasis::cli
