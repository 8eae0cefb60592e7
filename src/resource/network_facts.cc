#include "resource/network_facts.h"

#include <fmt/format.h>

#include "resource/inventory.h"

namespace stasis::resource {

Status commit(const model::Application& application, const image::Directory& directory, const NetworkFacts& network,
              const std::string& round) {
  TRY(write_clocks(directory));
  auto inventory = make_inventory(application);
  set_storage(directory, inventory);
  TRY(set_images(directory, inventory));
  set_round(inventory, round);
  inventory.set_network_lock_method(static_cast<uint32_t>(network.lock.method));
  if (!network.lock.run_id.empty()) inventory.set_dump_criu_run_id(network.lock.run_id);
  if (network.tcp_closed) inventory.set_tcp_close(true);
  return directory.commit(inventory);
}

Result<NetworkFacts> read_network_facts(const image::Directory& directory) {
  const auto inventory = TRY(read_inventory(directory));
  const auto reject = [](std::string_view field, std::string cause) {
    return fail(Error::invalid("read checkpoint", std::move(cause), fmt::format("inventory.img, field {}", field)));
  };
  NetworkFacts network;
  if (inventory.network_lock_method() > static_cast<uint32_t>(NetworkLockMethod::skip))
    return reject("network_lock_method", fmt::format("{} is unknown", inventory.network_lock_method()));
  network.lock.method = static_cast<NetworkLockMethod>(inventory.network_lock_method());
  network.lock.run_id = inventory.dump_criu_run_id();
  constexpr size_t longest = 64;
  const bool is_word = network.lock.run_id.find_first_not_of("0123456789abcdefABCDEF-") == std::string::npos;
  if (network.lock.run_id.size() > longest || !is_word) return reject("dump_criu_run_id", "it is no id of a run");
  network.tcp_closed = inventory.tcp_close();
  return network;
}

}  // namespace stasis::resource
