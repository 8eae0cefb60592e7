// files.img and the side images of file kinds (pipes-data, remap-fpath, ghost-file-N …).
#pragma once

#include <deque>
#include <any>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <google/protobuf/arena.h>

#include "fdinfo.pb.h"
#include "image/directory.h"
#include "image/names.h"

namespace stasis::image {

using FileRecord = file_entry;

class FileRecords {
 public:
  explicit FileRecords(const Directory& directory) : directory_(directory) {}
  const Directory& directory() const { return directory_; }

  std::deque<FileRecord> files;  ///< to be written to files.img. Records are expensive to move

  /// True when asked for the first time: whether what several records share must be written or read now.
  bool first_time(std::string_view kind, uint64_t id) const { return shared_.emplace(kind, id).second; }

  uint64_t pages_written = 0;  ///< of contents that rooms store in pages files (a memfd's)

  // -- encoding: side images are opened on first use and closed by finish()
  /// "pipes-data" → the writer of pipes-data.img.
  Result<Writer*> side(std::string_view pattern);
  Result<Writer*> side(std::string_view pattern, uint64_t id);
  /// Writes files.img and completes the side images.
  Status finish();

  // -- decoding
  /// Reads files.img.
  Status load();
  /// What it holds, in its order; valid while this object lives.
  std::span<const FileRecord* const> loaded() const { return loaded_; }
  /// The record of files.img with this id; nullptr if there is none.
  const FileRecord* find(uint32_t id) const;
  /// All records of a side image that has only records; empty if there is no such file. Read once, valid while this
  /// object lives.
  template <typename Message>
  Result<std::span<const Message>> all(std::string_view pattern) const {
    auto side = sides_.find(pattern);  // asked for each of thousands of files
    if (side == sides_.end()) side = sides_.emplace(pattern, std::any()).first;
    std::any& known = side->second;
    if (!known.has_value()) {
      std::vector<Message> records;
      auto reader = TRY(directory_.find(file_name(pattern)));
      for (Message record; reader && TRY(reader->next(record));) records.push_back(record);
      known = std::make_shared<const std::vector<Message>>(std::move(records));
    }
    const auto* records = std::any_cast<std::shared_ptr<const std::vector<Message>>>(&known);
    if (!records) return fail(Error::internal("read image", std::string(pattern) + " is read as two kinds of records"));
    return std::span<const Message>(**records);
  }

  /// What `make` makes of the records when it is first asked for, under a name of its own.
  template <typename Value, typename Make>
  Result<const Value*> made_once(const std::string& name, Make make) const {
    std::any& known = sides_[name];
    if (!known.has_value()) known = std::make_shared<const Value>(TRY(make()));
    const auto* value = std::any_cast<std::shared_ptr<const Value>>(&known);
    if (!value) return fail(Error::internal("read image", name + " is read as two kinds of values"));
    return value->get();
  }

 private:
  Result<Writer*> open_side(const std::string& name);

  const Directory& directory_;
  std::map<std::string, Writer> writers_;
  mutable std::set<std::pair<std::string, uint64_t>> shared_;
  /// Thousands of records of several parts each: they come from one piece of memory and go with it.
  google::protobuf::Arena arena_;
  std::vector<const FileRecord*> loaded_;
  std::vector<const FileRecord*> by_id_;  ///< ascending; the first of each id comes first
  mutable std::map<std::string, std::any, std::less<>> sides_;
};

}  // namespace stasis::image
