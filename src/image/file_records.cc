#include "image/file_records.h"

#include <algorithm>

#include "image/names.h"

namespace stasis::image {

Result<Writer*> FileRecords::open_side(const std::string& name) {
  if (const auto known = writers_.find(name); known != writers_.end()) return &known->second;
  auto writer = TRY(directory_.create(name));
  return &writers_.emplace(name, std::move(writer)).first->second;
}

Result<Writer*> FileRecords::side(std::string_view pattern) { return open_side(file_name(pattern)); }

Result<Writer*> FileRecords::side(std::string_view pattern, uint64_t id) { return open_side(file_name(pattern, id)); }

Status FileRecords::finish() {
  std::ranges::sort(files, {}, [](const FileRecord& record) { return record.id(); });
  auto writer = TRY(directory_.create(file_name("files")));
  for (const FileRecord& record : files) TRY(writer.append(record));
  TRY(writer.finish());
  for (auto& [name, side] : writers_) TRY(side.finish());
  writers_.clear();
  return {};
}

Status FileRecords::load() {
  loaded_.clear();
  by_id_.clear();
  auto reader = TRY(directory_.find(file_name("files")));
  if (reader) loaded_ = TRY(reader->rest<FileRecord>(arena_));
  by_id_ = loaded_;
  if (!std::ranges::is_sorted(by_id_, {}, &FileRecord::id)) std::ranges::stable_sort(by_id_, {}, &FileRecord::id);
  return {};
}

const FileRecord* FileRecords::find(uint32_t id) const {
  const auto found = std::ranges::lower_bound(by_id_, id, {}, &FileRecord::id);
  return found == by_id_.end() || (*found)->id() != id ? nullptr : *found;
}

}  // namespace stasis::image
