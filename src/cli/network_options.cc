#include "cli/network_options.h"

#include <CLI/CLI.hpp>
#include <map>

namespace stasis::cli {

void add_network_options_of_dump(CLI::App& command, resource::NetworkPolicy& policy) {
  using enum resource::NetworkLockMethod;
  static const std::map<std::string, resource::NetworkLockMethod> methods = {
      {"nftables", nftables}, {"iptables", iptables}, {"skip", skip}};
  command.add_flag("--tcp-established", policy.tcp_established, "Allow TCP connections, which go on after the restore");
  command.add_flag("--tcp-close", policy.tcp_close, "Allow TCP connections, which are restored closed");
  command.add_flag("--skip-in-flight", policy.skip_in_flight, "Leave out TCP connections that wait to be accepted");
  command
      .add_option("--network-lock", policy.lock,
                  "What drops the packets of TCP connections until the restore: nftables, iptables or skip (nothing)")
      ->transform(CLI::CheckedTransformer(methods))
      ->type_name("METHOD");
}

void add_network_options_of_restore(CLI::App& command, NetworkRestoreOptions& options) {
  command.add_flag("--tcp-established", options.tcp_established, "Let TCP connections go on");
  command.add_flag("--tcp-close", options.tcp_close, "Restore TCP connections closed");
}

}  // namespace stasis::cli
