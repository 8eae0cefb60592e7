// Options about connections with the network, as criu(8) spells them.
#pragma once

#include "resource/network_facts.h"

namespace CLI {
class App;
}

namespace stasis::cli {

void add_network_options_of_dump(CLI::App&, resource::NetworkPolicy&);

struct NetworkRestoreOptions {
  bool tcp_established = false, tcp_close = false;
};
void add_network_options_of_restore(CLI::App&, NetworkRestoreOptions&);

}  // namespace stasis::cli
