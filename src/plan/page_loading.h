// Where stored pages go: lists of pages cut to mappings, and the commands that read them from the images.
#pragma once

#include <string>
#include <vector>

#include "plan/emission.h"

namespace stasis::plan {

/// The pages of an address space or segment; empty if none are stored.
const std::vector<PageLocation>& stored_pages(const Emission&, ObjectId);

/// The parts of `pages` (ascending) that lie in `where`, cut to it.
std::vector<PageLocation> pages_within(const std::vector<PageLocation>& pages, AddressRange where);
bool any_within(const std::vector<PageLocation>& pages, AddressRange where);

/// Collects runs and writes as few LOAD_PAGES as the pages files allow: consecutive bytes of one file make one command.
/// Opens each file relative to the image directory and closes it again; pages in blocks are stasis' to decode.
class PageLoader {
 public:
  PageLoader(Emission& out, Pid pid) : out_(out), pid_(pid) {}
  ~PageLoader() { finish(); }
  PageLoader(const PageLoader&) = delete;
  PageLoader& operator=(const PageLoader&) = delete;

  /// The bytes of `location` go to address `at`.
  void load(const PageLocation& location, uint64_t at);

 private:
  void open();
  void flush();
  void finish();

  Emission& out_;
  Pid pid_;
  std::string file_;
  bool through_stasis_ = false;
  int fd_ = -1;
  uint64_t offset_ = 0, next_offset_ = 0;
  std::vector<uint64_t> runs_;
};

constexpr uint64_t populate_from = 64 * page_size;  ///< smaller runs gain nothing from being populated at once

/// Allocates the pages of a long stretch with one call, which costs less than a fault for each while they are filled.
void populate(Sink&, AddressRange);

}  // namespace stasis::plan
