#include "image/page_sink.h"

#include <map>

#include "image/directory.h"

namespace stasis::image {
namespace {

std::map<int, std::shared_ptr<PageStore>>& stores() {
  static std::map<int, std::shared_ptr<PageStore>> all;  // by the directory's descriptor
  return all;
}

}  // namespace

void store_pages_in(const Directory& directory, std::shared_ptr<PageStore> store) {
  stores()[directory.fd()] = std::move(store);
}

std::shared_ptr<PageStore> page_store(const Directory& directory) {
  const auto found = stores().find(directory.fd());
  return found == stores().end() ? nullptr : found->second;
}

}  // namespace stasis::image
