#include "mutate.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "image/names.h"
#include "image/show.h"

namespace stasis::fuzz {
namespace {

namespace pb = google::protobuf;

struct File {
  std::string name;
  uint32_t length = 0;  // of a raw file
  Bytes content;
};

uint32_t word_at(ByteView bytes, size_t at) {
  uint32_t word = 0;
  std::memcpy(&word, bytes.data() + at, sizeof word);
  return word;
}

std::vector<File> take_apart(ByteView input) {
  std::vector<File> files;
  while (const auto* end = static_cast<const uint8_t*>(std::memchr(input.data(), 0, input.size()))) {
    File file;
    file.name.assign(input.data(), end);
    input = input.subspan(file.name.size() + 1);
    if (input.size() < sizeof file.length) break;
    file.length = word_at(input, 0);
    input = input.subspan(sizeof file.length);
    const auto parsed = image::parse_name(file.name);
    if (!parsed || !parsed->kind->raw()) {
      const auto content = input.first(std::min<size_t>(file.length, input.size()));
      file.content.assign(content.begin(), content.end());
      input = input.subspan(content.size());
    }
    files.push_back(std::move(file));
    if (input.empty()) break;
  }
  return files;
}

Input put_together(const std::vector<File>& files) {
  Input input;
  for (const File& file : files) {
    input.insert(input.end(), file.name.begin(), file.name.end());
    input.push_back(0);
    const auto parsed = image::parse_name(file.name);
    const bool raw = parsed && parsed->kind->raw();
    const Bytes length = bytes_of(raw ? file.length : static_cast<uint32_t>(file.content.size()));
    input.insert(input.end(), length.begin(), length.end());
    input.insert(input.end(), file.content.begin(), file.content.end());
  }
  return input;
}

/// The records of an image and whatever follows the last that can be read.
struct Records {
  Bytes magics;
  std::vector<std::unique_ptr<pb::Message>> all;
  Bytes rest;
};

class Mutation {
 public:
  Mutation(std::mt19937_64& random, std::vector<File>& files) : random_(random), files_(files) {}

  bool run() {
    if (files_.empty()) return false;
    File& file = files_[below(files_.size())];
    const auto parsed = image::parse_name(file.name);
    if (!parsed) return false;
    if (below(20) == 0) return change_files(file, *parsed);
    if (parsed->kind->raw()) {
      file.length = static_cast<uint32_t>(number(file.length));
      return true;
    }
    Records records = read(file, *parsed->kind);
    if (records.all.empty()) return false;
    if (below(8) == 0)
      change_records(records);
    else
      change_message(*records.all[below(records.all.size())]);
    write(file, records);
    return true;
  }

 private:
  size_t below(size_t limit) { return static_cast<size_t>(random_() % std::max<size_t>(limit, 1)); }

  uint64_t number(uint64_t before) {
    constexpr uint64_t edges[] = {0,          1,          2,          4095,           4096,
                                  0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffff, ~uint64_t{0}};
    switch (below(7)) {
      case 0:
        return edges[below(std::size(edges))];
      case 1:
        return before + 1;
      case 2:
        return before - 1;
      case 3:
        return before ^ uint64_t { 1 } << below(64);
      case 4:
        return before + page_size * (1 + below(64));
      case 5:
        return below(64);
      default:
        return random_();
    }
  }

  bool change_files(File& file, const image::ParsedName& parsed) {
    switch (below(3)) {
      case 0:
        files_.erase(files_.begin() + (&file - files_.data()));
        return true;
      case 1: {
        const File& other = files_[below(files_.size())];
        const auto theirs = image::parse_name(other.name);
        if (!theirs || theirs->kind != parsed.kind) return false;
        file.content = Bytes(other.content);
        return true;
      }
      default:
        if (!parsed.id) return false;
        file.name = image::file_name(parsed.kind->pattern, number(*parsed.id));
        return true;
    }
  }

  static Records read(const File& file, const image::FileKind& kind) {
    Records records;
    const size_t magics = kind.has_common_magic ? 8 : 4;
    ByteView left = file.content;
    if (left.size() < magics) return records;
    records.magics.assign(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(magics));
    left = left.subspan(magics);
    while (left.size() >= 4 && word_at(left, 0) <= left.size() - 4) {
      auto record = image::new_record(records.all.empty() && !kind.head.empty() ? kind.head : kind.message);
      const uint32_t length = word_at(left, 0);
      if (!record || !record->ParsePartialFromArray(left.data() + 4, static_cast<int>(length))) break;
      records.all.push_back(std::move(record));
      left = left.subspan(4 + length);
      if (kind.payload != image::Payload::none) break;
    }
    records.rest.assign(left.begin(), left.end());
    return records;
  }

  static void write(File& file, const Records& records) {
    file.content = records.magics;
    for (const auto& record : records.all) {
      const std::string text = record->SerializePartialAsString();
      const Bytes length = bytes_of(static_cast<uint32_t>(text.size()));
      file.content.insert(file.content.end(), length.begin(), length.end());
      file.content.insert(file.content.end(), text.begin(), text.end());
    }
    file.content.insert(file.content.end(), records.rest.begin(), records.rest.end());
  }

  void change_records(Records& records) {
    const size_t one = below(records.all.size()), other = below(records.all.size());
    switch (below(3)) {
      case 0:
        records.all.erase(records.all.begin() + static_cast<std::ptrdiff_t>(one));
        break;
      case 1:
        std::swap(records.all[one], records.all[other]);
        break;
      default:
        records.all.emplace_back(records.all[one]->New());
        records.all.back()->CopyFrom(*records.all[one]);
    }
  }

  void change_message(pb::Message& message) {
    const auto& reflection = *message.GetReflection();
    std::vector<const pb::FieldDescriptor*> present;
    reflection.ListFields(message, &present);
    const auto* type = message.GetDescriptor();
    const bool any = present.empty() || below(8) == 0;
    if (any && type->field_count() == 0) return;
    const auto* field = any ? type->field(static_cast<int>(below(static_cast<size_t>(type->field_count()))))
                            : present[below(present.size())];
    if (below(16) == 0) {
      reflection.ClearField(&message, field);
    } else if (field->is_repeated()) {
      change_repeated(message, field);
    } else if (field->cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE) {
      change_message(*reflection.MutableMessage(&message, field));
    } else {
      change_value(message, field);
    }
  }

  void change_repeated(pb::Message& message, const pb::FieldDescriptor* field) {
    const auto& reflection = *message.GetReflection();
    const int count = reflection.FieldSize(message, field);
    const bool messages = field->cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE;
    const int one = static_cast<int>(below(static_cast<size_t>(count)));
    if (count > 1 && below(4) == 0) return reflection.SwapElements(&message, field, one, count - 1);
    if (count > 0 && below(6) == 0) return reflection.RemoveLast(&message, field);
    if (messages && (count == 0 || below(6) == 0)) {
      pb::Message& added = *reflection.AddMessage(&message, field);
      if (count > 0) added.CopyFrom(reflection.GetRepeatedMessage(message, field, one));
      return change_message(added);
    }
    if (messages) return change_message(*reflection.MutableRepeatedMessage(&message, field, one));
    if (field->cpp_type() == pb::FieldDescriptor::CPPTYPE_UINT32) {
      if (count == 0 || below(6) == 0) return reflection.AddUInt32(&message, field, static_cast<uint32_t>(number(0)));
      const uint32_t before = reflection.GetRepeatedUInt32(message, field, one);
      reflection.SetRepeatedUInt32(&message, field, one, static_cast<uint32_t>(number(before)));
    } else if (field->cpp_type() == pb::FieldDescriptor::CPPTYPE_UINT64) {
      if (count == 0 || below(6) == 0) return reflection.AddUInt64(&message, field, number(0));
      reflection.SetRepeatedUInt64(&message, field, one, number(reflection.GetRepeatedUInt64(message, field, one)));
    }
  }

  void change_value(pb::Message& message, const pb::FieldDescriptor* field) {
    const auto& reflection = *message.GetReflection();
    using Field = pb::FieldDescriptor;
    switch (field->cpp_type()) {
      case Field::CPPTYPE_INT32:
        return reflection.SetInt32(
            &message, field, static_cast<int32_t>(number(static_cast<uint64_t>(reflection.GetInt32(message, field)))));
      case Field::CPPTYPE_INT64:
        return reflection.SetInt64(
            &message, field, static_cast<int64_t>(number(static_cast<uint64_t>(reflection.GetInt64(message, field)))));
      case Field::CPPTYPE_UINT32:
        return reflection.SetUInt32(&message, field,
                                    static_cast<uint32_t>(number(reflection.GetUInt32(message, field))));
      case Field::CPPTYPE_UINT64:
        return reflection.SetUInt64(&message, field, number(reflection.GetUInt64(message, field)));
      case Field::CPPTYPE_BOOL:
        return reflection.SetBool(&message, field, !reflection.GetBool(message, field));
      case Field::CPPTYPE_ENUM: {
        const auto* type = field->enum_type();
        return reflection.SetEnum(&message, field,
                                  type->value(static_cast<int>(below(static_cast<size_t>(type->value_count())))));
      }
      case Field::CPPTYPE_STRING: {
        std::string text = reflection.GetString(message, field);
        Input bytes(text.begin(), text.end());
        if (bytes.empty()) bytes.assign(1 + below(200), static_cast<uint8_t>(random_()));
        damage(bytes, random_);
        return reflection.SetString(&message, field, std::string(bytes.begin(), bytes.end()));
      }
      default:
        return;
    }
  }

  std::mt19937_64& random_;
  std::vector<File>& files_;
};

}  // namespace

bool mutate_bundle(Input& input, std::mt19937_64& random) {
  auto files = take_apart(input);
  bool changed = false;
  for (size_t times = 1 + random() % 3; times > 0; --times) changed = Mutation(random, files).run() || changed;
  if (changed) input = put_together(files);
  return changed;
}

void damage(Input& input, std::mt19937_64& random) {
  const auto below = [&](size_t limit) { return static_cast<size_t>(random() % std::max<size_t>(limit, 1)); };
  const size_t times = 1 + below(8);
  for (size_t i = 0; i < times && !input.empty(); ++i) {
    const size_t at = below(input.size());
    const size_t length = std::min<size_t>(1 + below(16), input.size() - at);
    const auto begin = input.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = begin + static_cast<std::ptrdiff_t>(length);
    switch (below(7)) {
      case 0:
        input[at] ^= static_cast<uint8_t>(1U << below(8));
        break;
      case 1:
        input[at] = static_cast<uint8_t>(random());
        break;
      case 2:
        input.erase(begin, end);
        break;
      case 3:
        input.insert(begin, length, static_cast<uint8_t>(random()));
        break;
      case 4:
        std::fill(begin, end, below(2) != 0 ? 0xff : 0);
        break;
      case 5:
        input.insert(begin, length, uint8_t{input[below(input.size())]});
        break;
      default:
        if (below(20) == 0) input.resize(at);
    }
  }
}

}  // namespace stasis::fuzz

/// For libFuzzer, which finds it by its name.
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size) __attribute__((weak));
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  std::mt19937_64 random(seed);
  if (random() % 4 == 0 && LLVMFuzzerMutate) return LLVMFuzzerMutate(data, size, max_size);
  stasis::fuzz::Input input(data, data + size);
  if (!stasis::fuzz::mutate_bundle(input, random) || input.size() > max_size)
    return LLVMFuzzerMutate ? LLVMFuzzerMutate(data, size, max_size) : size;
  std::memcpy(data, input.data(), input.size());
  return input.size();
}
