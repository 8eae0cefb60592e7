#include <cstring>
#include <optional>

#include "image/directory.h"
#include "image/encryption.h"

namespace stasis::image {
namespace {

constexpr size_t buffer_size = 64 << 10;

Status write_fully(int fd, ByteView bytes, const std::string& name) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      auto error = Error::system("write image", errno, name);
      if (error.errno_value() != ENOSPC && error.errno_value() != EDQUOT) return fail(std::move(error));
      return fail(std::move(error).advise("free space there, or name another image directory with -D"));
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

}  // namespace

struct Writer::State {
  UniqueFd fd;
  std::string name;
  Bytes buffer;
  const Encryption* encryption = nullptr;
  std::optional<SealedOutput> sealed = std::nullopt;

  /// The last block must be known as such: what is left for it stays in the buffer.
  Status flush(bool at_end) {
    if (encryption == nullptr) {
      TRY(write_fully(fd.get(), buffer, name));
      buffer.clear();
      return {};
    }
    if (!sealed) {
      TRY(encryption->begin_file(name));
      sealed.emplace(TRY(encryption->cipher_of(name)));
      TRY(write_fully(fd.get(), SealedOutput::header(), name));
    }
    size_t done = 0;
    for (; buffer.size() - done > SealedOutput::block_size; done += SealedOutput::block_size)
      TRY(write_fully(fd.get(), sealed->block(ByteView(buffer).subspan(done, SealedOutput::block_size), false), name));
    if (at_end) {
      TRY(write_fully(fd.get(), sealed->block(ByteView(buffer).subspan(done), true), name));
      done = buffer.size();
    }
    buffer.erase(buffer.begin(), buffer.begin() + static_cast<ptrdiff_t>(done));
    return {};
  }
};

Writer::Writer(UniqueFd fd, std::string name, const Encryption* encryption)
    : state_(std::make_unique<State>(std::move(fd), std::move(name), Bytes{}, encryption)) {}
Writer::~Writer() = default;
Writer::Writer(Writer&&) noexcept = default;
Writer& Writer::operator=(Writer&&) noexcept = default;

const std::string& Writer::name() const { return state_->name; }

Status Writer::append(const google::protobuf::Message& record) {
  if (!record.IsInitialized())
    return fail(Error::internal("write image " + state_->name, "record lacks " + record.InitializationErrorString()));
  const size_t length = record.ByteSizeLong();
  if (length > record_limit)
    return fail(
        Error::unsupported("write image", fmt::format("a record of {} bytes is too long", length), state_->name));
  Bytes& buffer = state_->buffer;
  const size_t start = buffer.size();
  const auto prefix = static_cast<uint32_t>(length);
  buffer.resize(start + sizeof prefix + length);
  std::memcpy(buffer.data() + start, &prefix, sizeof prefix);
  if (!record.SerializePartialToArray(buffer.data() + start + sizeof prefix, static_cast<int>(length)))
    return fail(Error::internal("write image " + state_->name, "record cannot be serialised"));
  return buffer.size() >= buffer_size ? state_->flush(false) : Status{};
}

Status Writer::append_raw(ByteView bytes) {
  Bytes& buffer = state_->buffer;
  if (buffer.size() + bytes.size() < buffer_size || state_->encryption != nullptr) {
    buffer.insert(buffer.end(), bytes.begin(), bytes.end());
    return buffer.size() < buffer_size ? Status{} : state_->flush(false);
  }
  TRY(state_->flush(false));
  return write_fully(state_->fd.get(), bytes, state_->name);
}

Status Writer::finish() {
  TRY(state_->flush(true));
  // close(2) is where a network file system reports that the data never arrived.
  if (::close(state_->fd.release()) < 0) return fail_errno("close image", state_->name);
  return {};
}

}  // namespace stasis::image
