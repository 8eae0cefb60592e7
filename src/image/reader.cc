#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "image/directory.h"

namespace stasis::image {
namespace {

namespace pb = google::protobuf;

constexpr uint64_t buffer_size = 64 << 10;
/// The parser's own limit. file_entry → socket → options → … is the deepest nesting of the format: 5.
constexpr int nesting_limit = 100;

/// Finds what the parser choked on: the path of the field whose bytes make no sense. Same limits as the parser.
class Autopsy {
 public:
  explicit Autopsy(ByteView bytes) : input_(bytes.data(), static_cast<int>(bytes.size())) {}

  std::string field(const pb::Descriptor* type) {
    walk(type, 0);
    return path_.empty() ? std::string("its beginning") : "field " + path_;
  }

 private:
  bool walk(const pb::Descriptor* type, int depth) {
    if (depth > nesting_limit) return false;
    const std::string outer = path_;
    while (input_.BytesUntilLimit() != 0) {
      const uint32_t tag = input_.ReadTag();
      if (tag == 0) return input_.ConsumedEntireMessage();
      const auto* field = type->FindFieldByNumber(static_cast<int>(tag >> 3));
      path_ = (outer.empty() ? "" : outer + ".") + (field ? field->name() : fmt::format("#{}", tag >> 3));
      // To the parser a field of another type is unknown; to whoever looks for the damage it is the place.
      if (field && !fits(tag & 7, *field)) return false;
      if (!value(tag & 7, field, depth)) return false;
    }
    path_ = outer;
    return true;
  }

  static bool fits(uint32_t wire_type, const pb::FieldDescriptor& field) {
    using Format = pb::internal::WireFormat;
    return wire_type == static_cast<uint32_t>(Format::WireTypeForFieldType(field.type())) ||
           (field.is_packable() && wire_type == 2);
  }

  bool value(uint32_t wire_type, const pb::FieldDescriptor* field, int depth) {
    uint64_t ignored = 0;
    uint32_t short_ignored = 0;
    switch (wire_type) {
      case 0:
        return input_.ReadVarint64(&ignored);
      case 1:
        return input_.ReadLittleEndian64(&ignored);
      case 5:
        return input_.ReadLittleEndian32(&short_ignored);
      case 2:
        break;
      default:
        return false;
    }
    uint32_t length = 0;
    if (!input_.ReadVarint32(&length) || length > INT32_MAX) return false;
    if (!field || field->type() != pb::FieldDescriptor::TYPE_MESSAGE) return input_.Skip(static_cast<int>(length));
    if (input_.BytesUntilLimit() >= 0 && length > static_cast<uint32_t>(input_.BytesUntilLimit())) return false;
    const auto limit = input_.PushLimit(static_cast<int>(length));
    const bool good = walk(field->message_type(), depth + 1);
    input_.PopLimit(limit);
    return good;
  }

  pb::io::CodedInputStream input_;
  std::string path_;
};

/// What is wrong with the record, or nothing. Descriptors are asked for only when there is something to say: the first
/// question has them built, which takes longer than reading most images.
std::optional<std::string> parse(ByteView bytes, pb::Message& record) {
  const auto type = [&] { return record.GetDescriptor()->name(); };
  if (bytes.size() > record_limit) return fmt::format("a {} of {} bytes is too long", type(), bytes.size());
  // "Partial": a complete parse would print about missing fields itself.
  if (!record.ParsePartialFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return fmt::format("not a {}: {} cannot be read", type(), Autopsy(bytes).field(record.GetDescriptor()));
  if (record.IsInitialized()) return std::nullopt;
  std::vector<std::string> missing;
  record.FindInitializationErrors(&missing);
  return fmt::format("{} lacks the field {}", type(), missing.front());
}

}  // namespace

Status parse_record(ByteView bytes, pb::Message& record, const std::string& where) {
  if (auto problem = parse(bytes, record)) return fail(Error::invalid("read image", std::move(*problem), where));
  return {};
}

namespace {

/// A file as it is.
class PlainBytes final : public FileBytes {
 public:
  PlainBytes(UniqueFd fd, uint64_t size, std::string name) : fd_(std::move(fd)), size_(size), name_(std::move(name)) {}
  uint64_t size() const override { return size_; }
  Result<bool> read(uint64_t offset, std::span<uint8_t> buffer) const override {
    while (!buffer.empty()) {
      const ssize_t count = pread(fd_.get(), buffer.data(), buffer.size(), static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return fail_errno("read image", name_);
      if (count == 0) return false;
      buffer = buffer.subspan(static_cast<size_t>(count));
      offset += static_cast<uint64_t>(count);
    }
    return true;
  }

 private:
  UniqueFd fd_;
  uint64_t size_;
  std::string name_;
};

}  // namespace

std::unique_ptr<FileBytes> plain_bytes(UniqueFd fd, uint64_t size, std::string name) {
  return std::make_unique<PlainBytes>(std::move(fd), size, std::move(name));
}

Reader::Reader(UniqueFd fd, std::string name, uint64_t size, uint64_t position)
    : Reader(plain_bytes(std::move(fd), size, name), name, position) {}

Reader::Reader(std::unique_ptr<FileBytes> bytes, std::string name, uint64_t position)
    : bytes_(std::move(bytes)),
      name_(std::move(name)),
      size_(bytes_->size()),
      position_(position),
      record_offset_(position) {}

std::string Reader::where() const { return where(index_ == 0 ? 0 : index_ - 1, record_offset_); }

std::string Reader::where(uint64_t index, uint64_t offset) const {
  return fmt::format("{}, record {} at offset {}", name_, index, offset);
}

std::unexpected<Error> Reader::reject(std::string cause) const {
  return fail(Error::invalid("read image", std::move(cause), where()));
}

Status Reader::fetch(std::span<uint8_t> buffer) {
  if (buffer.size() > remaining()) return reject("the file is cut off");
  while (!buffer.empty()) {
    const bool inside = position_ >= buffer_offset_ && position_ - buffer_offset_ < buffer_.size();
    if (inside) {
      const uint64_t skip = position_ - buffer_offset_;
      const auto count = std::min<uint64_t>(buffer.size(), buffer_.size() - skip);
      std::memcpy(buffer.data(), buffer_.data() + skip, count);
      buffer = buffer.subspan(count);
      position_ += count;
      continue;
    }
    buffer_.resize(std::min(buffer_size, remaining()));
    buffer_offset_ = position_;
    auto read = bytes_->read(position_, buffer_);
    if (read && *read) continue;
    buffer_.clear();
    if (!read) return fail(std::move(read).error());
    return reject("the file became shorter while it was read");
  }
  return {};
}

Result<uint32_t> Reader::next_length() {
  record_offset_ = position_;
  ++index_;
  uint32_t length = 0;
  TRY(fetch({reinterpret_cast<uint8_t*>(&length), sizeof length}));
  if (length > remaining())
    return reject(fmt::format("its length {} goes beyond the end of the file ({} bytes left)", length, remaining()));
  if (length > record_limit) return reject(fmt::format("its length {} is beyond reason", length));
  return length;
}

Result<bool> Reader::next(pb::Message& record) {
  if (position_ == size_) return false;
  const uint32_t length = TRY(next_length());
  std::optional<std::string> problem;
  if (const uint64_t skip = position_ - buffer_offset_;
      position_ >= buffer_offset_ && skip + length <= buffer_.size()) {
    problem = parse(ByteView(buffer_).subspan(skip, length), record);
    position_ += length;
  } else {
    Bytes bytes(length);
    TRY(fetch(bytes));
    problem = parse(bytes, record);
  }
  if (problem) return reject(std::move(*problem));
  return true;
}

Result<std::vector<Reader::Place>> Reader::next_piece() {
  constexpr uint64_t piece = 1 << 20;
  std::vector<Place> places;
  piece_.clear();
  for (const uint64_t begin = position_; position_ != size_ && position_ - begin < piece;) {
    const uint32_t length = TRY(next_length());
    places.push_back({index_ - 1, record_offset_, piece_.size(), length});
    piece_.resize(piece_.size() + length);
    TRY(fetch(std::span(piece_).last(length)));
  }
  return places;
}

Status Reader::parse_piece(const Place& place, pb::Message& record) const {
  auto problem = parse(ByteView(piece_).subspan(place.begin, place.length), record);
  if (!problem) return {};
  return fail(Error::invalid("read image", std::move(*problem), where(place.index, place.offset)));
}

Result<Bytes> Reader::raw(uint64_t length) {
  if (length > remaining())
    return reject(fmt::format("{} bytes should follow, but the file has only {} more", length, remaining()));
  Bytes bytes(length);
  TRY(fetch(bytes));
  return bytes;
}

Status Reader::raw(std::span<uint8_t> buffer) { return fetch(buffer); }

Status Reader::skip(uint64_t length) {
  if (length > remaining())
    return reject(fmt::format("{} bytes should follow, but the file has only {} more", length, remaining()));
  position_ += length;
  return {};
}

Status Reader::single(pb::Message& record) {
  if (!TRY(next(record))) return fail(Error::invalid("read image", "the file has no record", name_));
  if (position_ != size_)
    return reject(fmt::format("{} bytes follow, but the file should have one record", remaining()));
  return {};
}

}  // namespace stasis::image
