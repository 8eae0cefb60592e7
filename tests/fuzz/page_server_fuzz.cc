// Whatever a client sends to the page server: either all of it is stored, and can be read, or nothing is left.
#include <unistd.h>

#include <cstdlib>

#include "../unit/memory/memory_stream.h"
#include "bundle.h"
#include "image/page_sink.h"
#include "memory/increments.h"
#include "memory/local_pages.h"
#include "memory/page_receiver.h"
#include "memory/pages.h"

namespace {

using namespace stasis;

void must(const Status& status) {
  if (!status) std::abort();
}

/// Parent images of task 7, for streams that refer to them.
void make_parent(const image::Directory& directory) {
  const auto path = directory.path() + "/parent";
  std::filesystem::create_directory(path);
  const auto parent = image::Directory::open(path);
  if (!parent) std::abort();
  auto sink = memory::LocalPages(*parent).open({"7", 1}, false);
  if (!sink) std::abort();
  Bytes pages(16 * page_size, 1);
  const image::PageEntry entry{{0x1000, 0x1000 + pages.size()}};
  const iovec part{pages.data(), pages.size()};
  must((*sink)->add({&entry, 1}, {&part, 1}));
  must((*sink)->finish());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Bundle bundle;
  static const image::Directory directory = [] {
    auto made = bundle.unpack({});
    make_parent(made);
    return made;
  }();
  must(memory::PageReceiver::clear(directory));
  memory::MemoryStream stream(Bytes(data, data + size), 1 + size % 5000);
  const auto received = memory::PageReceiver(directory).receive(stream);
  const auto stored = memory::list_pagemaps(directory);
  if (!stored) std::abort();
  if (!received) {
    if (!stored->empty() || received.error().message().empty()) std::abort();
    return 0;
  }
  const auto files = directory.list();
  for (const auto& suffix : *stored) {  // what came in blocks is judged by those who read it
    const bool is_plain = std::ranges::find(*files, "pages-65537.img") != files->end();
    if (is_plain && !memory::read_pagemap(directory, suffix)) std::abort();
  }
  return 0;
}
