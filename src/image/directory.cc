#include "image/directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "image/encryption.h"
#include "image/names.h"
#include "image/page_sink.h"
#include "inventory.pb.h"

namespace stasis::image {
namespace {

constexpr const char* inventory_file = "inventory.img";
constexpr const char* inventory_draft = "inventory.img.tmp";

struct OpenFile {
  UniqueFd fd;
  uint64_t size = 0;
};

/// What can be done about an error of open(2), if that is known.
Error advised(Error error) {
  switch (error.errno_value()) {
    case ENOENT:
      return std::move(error).advise("create the directory, or name another one with -D");
    case ENOTDIR:
      return std::move(error).advise("name the directory that the images are in with -D");
    case EACCES:
      return std::move(error).advise("run as its owner or as root, or change its permissions");
    default:
      return error;
  }
}

Result<OpenFile> open_at(int directory, const std::string& name, int flags, std::string_view operation) {
  // O_NONBLOCK: a FIFO in place of an image must not hang us; it has no effect on regular files.
  UniqueFd fd(openat(directory, name.c_str(), flags | O_CLOEXEC | O_NONBLOCK, 0600));
  if (!fd.valid()) {
    auto error = Error::system(std::string(operation), errno, name);
    return fail(error.errno_value() == EACCES ? advised(std::move(error)) : std::move(error));
  }
  struct stat status{};
  if (fstat(fd.get(), &status) < 0) return fail_errno("fstat", name);
  if (!S_ISREG(status.st_mode)) return fail(Error::invalid(std::string(operation), "not a regular file", name));
  return OpenFile{std::move(fd), static_cast<uint64_t>(status.st_size)};
}

Bytes magics_of(const FileKind& kind) {
  Bytes bytes;
  if (kind.raw()) return bytes;
  if (kind.has_common_magic) bytes = bytes_of(kind.service ? service_magic : common_magic);
  const Bytes own = bytes_of(kind.magic);
  bytes.insert(bytes.end(), own.begin(), own.end());
  return bytes;
}

bool is_encrypted_kind(const FileKind& kind) { return !kind.service && kind.pattern != "inventory"; }

Result<Writer> start_in(UniqueFd fd, const std::string& name, const FileKind& kind, const Encryption* encryption) {
  Writer writer(std::move(fd), name, is_encrypted_kind(kind) ? encryption : nullptr);
  TRY(writer.append_raw(magics_of(kind)));
  return writer;
}

Result<Writer> start_file(int directory, const std::string& name, const FileKind& kind, const Encryption* encryption) {
  // Images of earlier dumps have been removed, and what is made here is a regular file.
  UniqueFd fresh(openat(directory, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (fresh.valid()) return start_in(std::move(fresh), name, kind, encryption);
  auto file = TRY(open_at(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, "create image"));
  return start_in(std::move(file.fd), name, kind, encryption);
}

Result<ParsedName> parse_or_fail(std::string_view file) {
  if (auto parsed = parse_name(file)) return *parsed;
  return fail(Error::internal("create image", fmt::format("'{}' is no name of an image file", file)));
}

Status remove(int directory, const char* name) {
  if (unlinkat(directory, name, 0) < 0 && errno != ENOENT) return fail_errno("remove image of an earlier dump", name);
  return {};
}

/// As the Writer will write it.
Bytes serialised(const google::protobuf::Message& record) {
  Bytes bytes(record.ByteSizeLong());
  record.SerializePartialToArray(bytes.data(), static_cast<int>(bytes.size()));
  return bytes;
}

/// Reads the magics at the beginning of the file.
Status check_magics(Reader& reader, const FileKind& kind) {
  const Bytes expected = magics_of(kind);
  if (expected.empty()) return {};
  if (reader.remaining() < expected.size())
    return fail(Error::invalid("read image", "shorter than its magic number", reader.name()));
  const Bytes found = TRY(reader.raw(expected.size()));
  if (found == expected) return {};
  const auto word = [&](size_t at) {
    uint32_t value = 0;
    std::memcpy(&value, found.data() + at, sizeof value);
    return value;
  };
  return fail(Error::invalid(
      "read image",
      found.size() == 4
          ? fmt::format("magic number {:#010x}, expected {} ({:#010x})", word(0), kind.magic_name, kind.magic)
          : fmt::format("magic numbers {:#010x} {:#010x}, expected those of {} ({:#010x} {:#010x})", word(0), word(4),
                        kind.magic_name, kind.service ? service_magic : common_magic, kind.magic),
      reader.name()));
}

}  // namespace

Result<Directory> Directory::open(const std::string& path) {
  Directory directory;
  directory.path_ = path;
  directory.fd_ = UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.fd_.valid()) return fail(advised(Error::system("open image directory", errno, path)));
  return directory;
}

Result<Directory> Directory::unlock(const std::string& path, std::shared_ptr<const KeyRing> keys) {
  auto directory = TRY(open(path));
  directory.keys_ = std::move(keys);
  if (!directory.has(inventory_file)) return directory;  // who wants to read it says what is missing
  auto reader = TRY(directory.read(inventory_file));
  uint32_t length = 0;
  TRY(reader.raw({reinterpret_cast<uint8_t*>(&length), sizeof length}));
  const Bytes record = TRY(reader.raw(length));
  inventory_entry inventory;
  TRY(parse_record(record, inventory, inventory_file));
  const bool has_keys = directory.keys_ && !directory.keys_->empty();
  if (!inventory.has_encryption() && !has_keys) return directory;
  if (!inventory.has_encryption()) {
    return fail(Error::conflict("read encrypted images",
                                "a key was given, but they are not encrypted: they may not be those that were dumped",
                                path + "/" + inventory_file)
                    .advise("leave out --identity and --key-file if that is as it should be"));
  }
  const KeyRing none;
  auto encryption = TRY(Encryption::open(inventory.encryption(), has_keys ? *directory.keys_ : none, inventory_file));
  directory.encryption_ = encryption;
  TRY(encryption->load_manifest(directory, record));
  return directory;
}

Result<Directory> Directory::holding(std::string_view file) const {
  Directory here;
  here.path_ = path_;
  here.keys_ = keys_;
  here.encryption_ = encryption_;
  here.fd_ = UniqueFd(openat(fd_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!here.fd_.valid()) return fail_errno("open image directory", path_);
  for (size_t slash = 0; (slash = file.find('/')) != std::string_view::npos; file.remove_prefix(slash + 1)) {
    auto next = TRY(unlock(here.path_ + "/" + std::string(file.substr(0, slash)), keys_));
    if (here.encryption_ && (!next.encryption_ || !next.encryption_->is_parent_of(*here.encryption_)))
      return fail(Error::conflict("open the parent images",
                                  "they are not those that the encrypted images were made for", next.path_));
    here = std::move(next);
  }
  return here;
}

Status Directory::encrypt(const KeyRing& recipients) {
  encryption_ = TRY(Encryption::create(recipients));
  return {};
}

bool Directory::has(std::string_view file) const {
  struct stat status{};
  return fstatat(fd_.get(), std::string(file).c_str(), &status, 0) == 0;
}

Result<Writer> Directory::create(std::string_view file) const {
  return start_file(fd_.get(), std::string(file), *TRY(parse_or_fail(file)).kind, encryption_.get());
}

Result<Writer> create_in(const Directory& directory, UniqueFd fd, std::string_view file) {
  return start_in(std::move(fd), std::string(file), *TRY(parse_or_fail(file)).kind, directory.encryption().get());
}

Result<Reader> Directory::read(std::string_view file) const {
  std::string name(file);
  const auto parsed = parse_name(file);
  if (!parsed) return fail(Error::invalid("read image", "not a name of an image file", std::move(name)));
  Reader reader(TRY(bytes_of(file)), std::move(name), 0);
  TRY(check_magics(reader, *parsed->kind));
  return reader;
}

Result<std::optional<Reader>> Directory::find(std::string_view file) const {
  auto reader = read(file);
  if (!reader && reader.error().errno_value() == ENOENT) return std::nullopt;
  return TRY(std::move(reader));
}

Result<std::unique_ptr<FileBytes>> Directory::bytes_of(std::string_view file) const {
  const std::string name(file);
  auto opened = TRY(open_at(fd_.get(), name, O_RDONLY, "open image"));
  const auto parsed = parse_name(file);
  // The blocks of a pages file are sealed one by one (page-blocks-N.img).
  const bool sealed = encryption_ && parsed && is_encrypted_kind(*parsed->kind) && !parsed->kind->raw();
  if (!sealed) return plain_bytes(std::move(opened.fd), opened.size, name);
  return open_sealed(std::move(opened.fd), opened.size, TRY(encryption_->cipher_of(name)), name);
}

Result<std::pair<const FileKind*, Reader>> Directory::identify(std::string_view file) const {
  if (const auto parsed = parse_name(file)) return std::pair(parsed->kind, TRY(read(file)));
  if (encryption_)  // the key follows from the name
    return fail(Error::invalid("read image", "an encrypted image must have its own name", std::string(file)));
  std::string name(file);
  auto [fd, size] = TRY(open_at(fd_.get(), name, O_RDONLY, "open image"));
  uint32_t words[2] = {};
  if (pread(fd.get(), words, sizeof words, 0) < 0) return fail_errno("read image", name);
  const bool prefixed = words[0] == common_magic || words[0] == service_magic;
  const FileKind* kind = find_kind(words[prefixed ? 1 : 0]);
  const uint64_t start = prefixed ? sizeof words : sizeof words[0];
  if (!kind || size < start) return fail(Error::invalid("read image", "neither its name nor its magic is known", name));
  return std::pair(kind, Reader(std::move(fd), std::move(name), size, start));
}

Result<std::vector<std::string>> Directory::list() const {
  // A descriptor of its own: reading entries moves its position.
  const int copy = openat(fd_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) return fail_errno("open image directory", path_);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(copy), closedir);
  if (!stream) {
    const int saved = errno;
    ::close(copy);
    return fail(Error::system("list image directory", saved, path_));
  }
  std::vector<std::string> names;
  while (const dirent* entry = readdir(stream.get()))
    if (std::string_view(entry->d_name).ends_with(".img")) names.emplace_back(entry->d_name);
  std::ranges::sort(names);
  return names;
}

Status Directory::begin(const std::function<bool(std::string_view file)>& concerned) const {
  // The inventory first: from here on the directory is no checkpoint.
  TRY(remove(fd_.get(), inventory_file));
  TRY(remove(fd_.get(), inventory_draft));
  for (const std::string& name : TRY(list())) {
    if (parse_name(name) && (!concerned || concerned(name))) TRY(remove(fd_.get(), name.c_str()));
  }
  return {};
}

Status Directory::commit(const google::protobuf::Message& inventory) const {
  const auto parsed = parse_name(inventory_file);
  if (!parsed) return fail(Error::internal("complete checkpoint", "the inventory is no kind of image"));
  if (encryption_) TRY(write_manifest(*this, serialised(inventory)));
  auto writer = TRY(start_file(fd_.get(), inventory_draft, *parsed->kind, nullptr));
  TRY(writer.append(inventory));
  TRY(writer.finish());
  if (renameat(fd_.get(), inventory_draft, fd_.get(), inventory_file) < 0) return fail_errno("rename", inventory_file);
  return {};
}

}  // namespace stasis::image
