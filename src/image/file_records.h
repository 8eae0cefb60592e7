// files.img and the side images of file kinds (pipes-data, remap-fpath, ghost-file-N …).
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fdinfo.pb.h"
#include "image/directory.h"

namespace stasis::image {

using FileRecord = file_entry;

class FileRecords {
 public:
  explicit FileRecords(const Directory& directory) : directory_(directory) {}
  const Directory& directory() const { return directory_; }

  std::vector<FileRecord> files;       ///< files.img, by ascending id

  // -- encoding: side images are opened on first use and closed by finish()
  /// "pipes-data" → the writer of pipes-data.img.
  Result<Writer*> side(std::string_view pattern);
  Result<Writer*> side(std::string_view pattern, uint64_t id);
  /// Writes files.img and completes the side images.
  Status finish();

  // -- decoding
  /// Reads files.img.
  Status load();
  /// All records of a side image that has only records; empty if there is no such file.
  template <typename Message>
  Result<std::vector<Message>> all(std::string_view pattern) const {
    std::vector<Message> records;
    const std::string name = std::string(pattern) + ".img";
    if (!directory_.has(name)) return records;
    auto reader = TRY(directory_.read(name));
    for (Message record; TRY(reader.next(record));) records.push_back(record);
    return records;
  }

 private:
  Result<Writer*> open_side(const std::string& name);

  const Directory& directory_;
  std::map<std::string, Writer> writers_;
};

}  // namespace stasis::image
