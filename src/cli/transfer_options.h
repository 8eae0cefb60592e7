// Options of criu(8) about connections that pages go through: --address, --port, --ps-socket, --tls….
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
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
  /// The first who comes. There will be no second.
  Result<std::unique_ptr<memory::Stream>> await(const Session&);

 private:
  TransferOptions options_;
  std::optional<memory::TlsContext> tls_;
  std::optional<memory::Listener> listener_;
};

// -- dump and pre-dump

struct PageServerOptions {
  bool use = false;  ///< --page-server
  TransferOptions transfer;
};
/// --page-server, and where it is.
void add_page_server_options(CLI::App&, PageServerOptions&);
/// Makes the pages of the directory, which must stay where it is, go to the page server, if that is wanted. Before the
/// tree is stopped.
Status use_page_server(const PageServerOptions&, image::Directory&, const Session&);
/// When they are all sent.
Status complete_page_server(const image::Directory&);

}  // namespace stasis::cli
