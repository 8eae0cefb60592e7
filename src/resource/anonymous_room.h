// What the rooms of anonymous inodes have in common: kernel objects that only descriptors lead to (eventfd, timerfd …).
// What the kernel tells of them is a few lines of /proc/PID/fdinfo/FD (Documentation/filesystems/proc.rst, 3.8).
#pragma once

#include <string>
#include <string_view>

#include "resource/descriptors.h"
#include "resource/file_room.h"

namespace stasis::resource {

/// Adds calls: the descriptor that the last one has made goes to its number, and its status flags become those of the
/// description.
void place(const plan::Placement&, plan::Perform&);

/// An entry of files.img that nothing can be made of.
std::unexpected<Error> bad_entry(std::string_view kind, const image::FileRecord&, std::string_view field,
                                 std::string problem);

/// `Entry` is the kind's message; `Has`, `Get` and `Add` are its accessors in file_entry.
template <typename Entry, bool (image::FileRecord::*Has)() const, const Entry& (image::FileRecord::*Get)() const,
          Entry* (image::FileRecord::*Add)()>
class AnonymousRoom : public FileRoom {
 public:
  bool recognises(const DescriptorProbe& probe) const override {
    return (probe.stat.st_mode & S_IFMT) == 0 && probe.link == link_;
  }

  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    image::FileRecord record;
    record.set_type(type_), record.set_id(description.id.value);
    Entry& entry = *(record.*Add)();
    entry.set_id(description.id.value), entry.set_flags(description.flags);
    encode_owner(description.owner, *entry.mutable_fown());
    TRY(write(application, description, entry));
    records.files.push_back(std::move(record));
    return {};
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == type_;
  }

  Result<model::OpenDescription> decode(const image::FileRecords&, const image::FileRecord& record,
                                        model::Application& application) const override {
    if (!(record.*Has)()) return bad_entry(kind(), record, "type", "there is no record of that kind in it");
    const Entry& entry = (record.*Get)();
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = entry.flags();
    description.owner = decode_owner(entry.fown());
    TRY(read(record, entry, application, description));
    description.starts_last = starts_last(description.state);
    return description;
  }

 protected:
  AnonymousRoom(std::string_view link, fd_types type) : link_(link), type_(type) {}

  /// The kind's own fields; id, flags and owner are there.
  virtual Status write(const model::Application&, const model::OpenDescription&, Entry&) const = 0;
  /// Sets the state (and what the description waits for) from the kind's own fields.
  virtual Status read(const image::FileRecord&, const Entry&, model::Application&, model::OpenDescription&) const = 0;

 private:
  std::string_view link_;
  fd_types type_;
};

}  // namespace stasis::resource
