// Any record survives the way to disk and back, and no damage to an image does more than cause an error.
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <filesystem>
#include <fstream>

#include "image/directory.h"
#include "image/names.h"
#include "image/show.h"

namespace stasis::image {
namespace {

namespace pb = google::protobuf;

uint64_t number() {
  return *rc::gen::oneOf(rc::gen::just<uint64_t>(0), rc::gen::just(~uint64_t{0}), rc::gen::arbitrary<uint64_t>());
}

void fill(pb::Message& message, int depth);

void fill_value(pb::Message& message, const pb::FieldDescriptor* field, int depth) {
  const auto& reflection = *message.GetReflection();
  const bool list = field->is_repeated();
  using Field = pb::FieldDescriptor;
#define STASIS_SET(type, value) \
  (list ? reflection.Add##type(&message, field, value) : reflection.Set##type(&message, field, value))
  switch (field->cpp_type()) {
    case Field::CPPTYPE_INT32:
      STASIS_SET(Int32, static_cast<int32_t>(number()));
      break;
    case Field::CPPTYPE_INT64:
      STASIS_SET(Int64, static_cast<int64_t>(number()));
      break;
    case Field::CPPTYPE_UINT32:
      STASIS_SET(UInt32, static_cast<uint32_t>(number()));
      break;
    case Field::CPPTYPE_UINT64:
      STASIS_SET(UInt64, number());
      break;
    case Field::CPPTYPE_BOOL:
      STASIS_SET(Bool, number() & 1);
      break;
    case Field::CPPTYPE_DOUBLE:
      STASIS_SET(Double, 1.5);
      break;
    case Field::CPPTYPE_FLOAT:
      STASIS_SET(Float, 1.5F);
      break;
    case Field::CPPTYPE_ENUM:
      STASIS_SET(Enum, field->enum_type()->value(
                           static_cast<int>(number() % static_cast<uint64_t>(field->enum_type()->value_count()))));
      break;
    case Field::CPPTYPE_STRING:
      STASIS_SET(String, *rc::gen::arbitrary<std::string>());
      break;
    case Field::CPPTYPE_MESSAGE:
      fill(list ? *reflection.AddMessage(&message, field) : *reflection.MutableMessage(&message, field), depth + 1);
      break;
  }
#undef STASIS_SET
}

void fill(pb::Message& message, int depth) {
  const auto* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const auto* field = type->field(i);
    const bool deep = depth > 3;
    const int count = field->is_required()   ? 1
                      : deep                 ? 0
                      : field->is_repeated() ? *rc::gen::inRange(0, 4)
                                             : *rc::gen::inRange(0, 2);
    for (int n = 0; n < count; ++n) fill_value(message, field, depth);
  }
}

class Images {
 public:
  Images() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stasis-property-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~Images() { std::filesystem::remove_all(path_); }
  Directory open() const { return std::move(*Directory::open(path_.string())); }
  std::filesystem::path file(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

const FileKind& any_kind() {
  static const std::vector<const FileKind*> with_records = [] {
    std::vector<const FileKind*> kinds;
    for (const FileKind& kind : file_kinds())
      if (!kind.raw()) kinds.push_back(&kind);
    return kinds;
  }();
  return **rc::gen::elementOf(with_records);
}

std::vector<std::unique_ptr<pb::Message>> write_any(const Directory& directory, const FileKind& kind,
                                                    const std::string& name) {
  std::vector<std::unique_ptr<pb::Message>> records;
  auto writer = directory.create(name);
  RC_ASSERT(writer.has_value());
  const int count = *rc::gen::inRange(0, 5);
  for (int i = 0; i < count; ++i) {
    auto record = new_record(i == 0 && !kind.head.empty() ? kind.head : kind.message);
    fill(*record, 0);
    RC_ASSERT(writer->append(*record).has_value());
    records.push_back(std::move(record));
  }
  RC_ASSERT(writer->finish().has_value());
  return records;
}

RC_GTEST_PROP(Records, SurviveTheWayToDiskAndBack, ()) {
  const Images images;
  const Directory directory = images.open();
  const FileKind& kind = any_kind();
  const std::string name = file_name(kind.pattern, *rc::gen::arbitrary<uint32_t>());
  const auto written = write_any(directory, kind, name);
  auto reader = directory.read(name);
  RC_ASSERT(reader.has_value());
  for (const auto& expected : written) {
    const std::unique_ptr<pb::Message> found(expected->New());
    const auto more = reader->next(*found);
    RC_ASSERT(more.has_value());
    RC_ASSERT(*more);
    RC_ASSERT(pb::util::MessageDifferencer::Equals(*expected, *found));
  }
  RC_ASSERT(reader->remaining() == 0u);
}

RC_GTEST_PROP(Records, AnyCanBeShown, ()) {
  const FileKind& kind = any_kind();
  auto record = new_record(kind.message);
  fill(*record, 0);
  const Images images;
  const Directory directory = images.open();
  const std::string name = file_name(kind.pattern, 1);
  auto writer = directory.create(name);
  RC_ASSERT(writer->append(*record).has_value());
  RC_ASSERT(writer->finish().has_value());
  const auto text = show_file(directory, name);  // a payload may be missing: then it is an error
  if (!text) RC_ASSERT(!text.error().message().empty());
}

RC_GTEST_PROP(Records, DamageIsAnErrorThatNamesTheFile, ()) {
  const Images images;
  const Directory directory = images.open();
  const FileKind& kind = any_kind();
  const std::string name = file_name(kind.pattern, 7);
  write_any(directory, kind, name);
  auto size = std::filesystem::file_size(images.file(name));
  if (*rc::gen::arbitrary<bool>()) {
    size = *rc::gen::inRange<uintmax_t>(0, size + 1);
    std::filesystem::resize_file(images.file(name), size);
  }
  const int flips = *rc::gen::inRange(0, 8);
  std::fstream stream(images.file(name), std::ios::binary | std::ios::in | std::ios::out);
  for (int i = 0; i < flips && size > 0; ++i) {
    const auto at = static_cast<std::streamoff>(*rc::gen::inRange<uintmax_t>(0, size));
    stream.seekg(at);
    const int byte = stream.get();
    stream.seekp(at);
    stream.put(static_cast<char>(byte ^ 1 << *rc::gen::inRange(0, 8)));
  }
  stream.close();
  const auto text = show_file(directory, name);
  if (!text) RC_ASSERT(text.error().message().find(name) != std::string::npos);
}

}  // namespace
}  // namespace stasis::image
