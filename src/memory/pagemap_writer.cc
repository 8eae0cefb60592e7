#include "memory/pagemap_writer.h"

#include "pagemap.pb.h"

namespace stasis::memory {

Result<PagemapWriter> PagemapWriter::begin(image::Writer writer, uint32_t pages_id) {
  pagemap_head head;
  head.set_pages_id(pages_id);
  TRY(writer.append(head));
  return PagemapWriter(std::move(writer));
}

Status PagemapWriter::add(const image::PageEntry& entry) {
  if (last_ && last_->range.end == entry.range.begin && last_->flags == entry.flags &&
      last_->shared_with_parent == entry.shared_with_parent) {
    last_->range.end = entry.range.end;
    return {};
  }
  TRY(write_last());
  last_ = entry;
  return {};
}

Status PagemapWriter::write_last() {
  if (!last_) return {};
  const uint64_t pages = last_->range.size() / page_size;
  pagemap_entry record;
  record.set_vaddr(last_->range.begin);
  record.set_compat_nr_pages(static_cast<uint32_t>(pages));
  record.set_nr_pages(pages);
  record.set_flags(last_->flags);
  if (last_->shared_with_parent) record.set_shared_with_parent(true);
  return writer_.append(record);
}

Status PagemapWriter::finish() {
  TRY(write_last());
  return writer_.finish();
}

}  // namespace stasis::memory
