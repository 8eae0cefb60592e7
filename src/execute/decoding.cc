#include "execute/decoding.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "base/parallel.h"
#include "kernel/huge_pages.h"
#include "kernel/process.h"

namespace stasis::execute {
namespace {

constexpr uint64_t piece_size = 1 << 20;

}  // namespace

/// One command.
struct Decoding::Job {
  const Request* request = nullptr;
  Pid pid;
  std::string file;
  uint64_t offset = 0, length = 0;
  std::span<const uint64_t> runs;  ///< of memory; empty: a descriptor
  int fd = -1;
  std::string path;
  uint64_t position = 0;

  // -- from its beginning on
  const Source* source = nullptr;
  pid_t host_pid = 0;
  UniqueFd target;         ///< the file that is filled; invalid: memory is
  uint64_t huge_page = 0;  ///< the size of its pages, if it has such; 0: it can be written to
  uint64_t given = 0;      ///< to workers, of length
  uint64_t filled = 0;
};

/// What a thread keeps from piece to piece.
struct Decoding::Worker {
  const Source* source = nullptr;
  std::optional<memory::BlockFile::Reader> reader;
  Bytes buffer;

  Status read(const Source& from, uint64_t offset, std::span<uint8_t> into) {
    if (from.bytes) {
      if (TRY(from.bytes->read(offset, into))) return {};
      return fail(Error::invalid("decode an image", "the file became shorter while it was read"));
    }
    if (source != &from) reader = TRY(from.blocks->reader());
    source = &from;
    return reader->read(offset, into);
  }
};

namespace {

Status write_memory(pid_t host_pid, std::span<const uint64_t> runs, uint64_t skip, std::span<const uint8_t> bytes) {
  std::vector<iovec> remote;
  uint64_t sum = 0;
  const auto flush = [&]() -> Status {
    const iovec local{const_cast<uint8_t*>(bytes.data()), sum};
    const ssize_t written = process_vm_writev(host_pid, &local, 1, remote.data(), remote.size(), 0);
    if (written < 0) return fail_errno("write memory", fmt::format("task {}", host_pid));
    if (static_cast<uint64_t>(written) != sum)
      return fail(Error::system("write memory", EFAULT, fmt::format("task {}", host_pid)));
    bytes = bytes.subspan(sum);
    sum = 0;
    remote.clear();
    return {};
  };
  for (size_t i = 0; i + 1 < runs.size() && sum < bytes.size(); i += 2) {
    if (skip >= runs[i + 1]) {
      skip -= runs[i + 1];
      continue;
    }
    const uint64_t part = std::min(runs[i + 1] - skip, bytes.size() - sum);
    remote.push_back({reinterpret_cast<void*>(runs[i] + skip), part});
    sum += part;
    skip = 0;
    if (remote.size() == IOV_MAX) TRY(flush());
  }
  return sum == 0 ? Status{} : flush();
}

Status write_file(int fd, uint64_t position, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(position));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return fail_errno("write a restored file");
    bytes = bytes.subspan(static_cast<size_t>(written));
    position += static_cast<uint64_t>(written);
  }
  return {};
}

/// The pages are promised to whoever maps them shared and without MAP_NORESERVE (mm/hugetlb.c, hugetlb_reserve_pages):
/// for want of them mmap(2) fails, and nobody gets SIGBUS.
Status write_huge_pages(int fd, uint64_t page, uint64_t position, std::span<const uint8_t> bytes) {
  const uint64_t begin = position / page * page, end = (position + bytes.size() + page - 1) / page * page;
  void* const memory = mmap(nullptr, end - begin, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(begin));
  if (memory == MAP_FAILED) {
    auto error = Error::system("map a restored file of huge pages", errno);
    return fail(std::move(error).advise("let the system have more of them (vm.nr_hugepages)"));
  }
  std::ranges::copy(bytes, static_cast<uint8_t*>(memory) + (position - begin));
  munmap(memory, end - begin);
  return {};
}

}  // namespace

Decoding::Decoding(const plan::Program& program, const Lowered& lowered, const image::Directory& images,
                   RequestScene scene, memory::ConsumedPages* consumed)
    : program_(program), lowered_(lowered), images_(images), scene_(std::move(scene)), consumed_(consumed) {
  for (const auto& request : lowered_.decodings.all) {
    auto job = std::make_unique<Job>();
    job->request = &request;
    const auto& command = program_.commands[request.command];
    job->pid = command.pid;
    if (const auto* pages = std::get_if<plan::DecodePages>(&command.action)) {
      job->file = pages->file, job->offset = pages->offset, job->runs = pages->runs;
      for (size_t i = 1; i < pages->runs.size(); i += 2) job->length += pages->runs[i];
    } else if (const auto* file = std::get_if<plan::DecodeFile>(&command.action)) {
      job->file = file->file, job->offset = file->offset, job->length = file->length;
      job->fd = file->fd, job->path = file->path, job->position = file->position;
    }
    if (consumed_ != nullptr) consumed_->expect(job->file, {job->offset, job->offset + job->length});
    unasked_.push_back(job.get());
    jobs_.push_back(std::move(job));
  }
  unfinished_ = jobs_.size();
  if (jobs_.empty()) return;
  uint64_t total = 0;
  for (const auto& job : jobs_) total += job->length;
  const auto useful = static_cast<unsigned>(std::min<uint64_t>(total / piece_size + 1, processor_count()));
  for (unsigned i = 0; i < useful; ++i) threads_.emplace_back([this] { work(); });
}

Decoding::~Decoding() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_all();
  for (auto& thread : threads_) thread.join();
}

std::optional<Error> Decoding::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

void Decoding::wake_all() {
  if (!jobs_.empty()) scene_.wake(lowered_.decodings.asked);
}

void Decoding::work() {
  Worker worker;
  while (const auto piece = take()) {
    if (auto status = fill(worker, *piece); !status) {
      give_up(std::move(status).error(), *piece->job);
      return;
    }
    finish(*piece);
  }
}

std::optional<Decoding::Piece> Decoding::take() {
  for (;;) {
    const uint32_t seen = scene_.value(lowered_.decodings.asked);
    Job* asked = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (stopping_ || error_ || unfinished_ == 0 || scene_.has_failed()) return std::nullopt;
      asked = next_request();
      if (asked == nullptr && !open_.empty()) return next_piece(*open_.front());
    }
    if (asked == nullptr) {
      scene_.sleep_on(lowered_.decodings.asked, seen);
    } else if (auto begun = begin(*asked); !begun) {
      give_up(std::move(begun).error(), *asked);
    } else {
      const std::lock_guard lock(mutex_);
      open_.push_back(asked);
    }
  }
}

Decoding::Job* Decoding::next_request() {
  const auto asked =
      std::ranges::find_if(unasked_, [&](const Job* job) { return scene_.value(job->request->asked) != 0; });
  if (asked == unasked_.end()) return nullptr;
  Job* job = *asked;
  unasked_.erase(asked);
  return job;
}

Decoding::Piece Decoding::next_piece(Job& job) {
  const uint64_t at = job.offset + job.given;
  const uint64_t left = job.length - job.given;
  const auto& blocks = job.source->blocks;
  const Piece piece{&job, at, blocks ? blocks->piece_length(at, piece_size, left) : std::min(piece_size, left)};
  job.given += piece.length;
  if (job.given == job.length) open_.pop_front();
  return piece;
}

Status Decoding::begin(Job& job) {
  job.source = TRY(source_of(job.file));
  const uint64_t size = job.source->size();
  if (job.length == 0 || job.offset > size || job.length > size - job.offset) {
    return fail(Error::invalid("decode an image",
                               fmt::format("{} bytes at {} are beyond its end", job.length, job.offset), job.file));
  }
  if (job.pid.value == 0) {
    // The file has just been made, by us. The supervisor has no memory to be filled, and no descriptors that last.
    if (job.path.empty()) return fail(Error::internal("decode " + job.file, "nothing that the supervisor could fill"));
    job.target = UniqueFd(open(job.path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
    return job.target.valid() ? Status{} : fail_errno("open", job.path);
  }
  job.host_pid = TRY(scene_.host_pid(job.pid));
  if (job.fd < 0) return {};
  const auto process = TRY(kernel::pidfd_open(job.host_pid));
  job.target = TRY(kernel::pidfd_getfd(process.get(), job.fd));
  if (const uint32_t order = kernel::huge_page_order(job.target.get())) job.huge_page = uint64_t{1} << order;
  return {};
}

Result<const Decoding::Source*> Decoding::source_of(const std::string& name) {
  const std::lock_guard lock(files_mutex_);
  Source& source = files_[name];
  if (source.blocks || source.bytes) return &source;
  if (memory::BlockFile::is_one(images_, name))
    source.blocks = TRY(memory::BlockFile::open(images_, name));
  else
    source.bytes = TRY(images_.bytes_of(name));
  return &source;
}

Status Decoding::fill(Worker& worker, const Piece& piece) {
  const Job& job = *piece.job;
  const uint64_t skip = piece.offset - job.offset;
  worker.buffer.resize(std::max<size_t>(worker.buffer.size(), piece.length));
  const std::span<uint8_t> bytes(worker.buffer.data(), piece.length);
  TRY(worker.read(*job.source, piece.offset, bytes));
  if (!job.target.valid()) return write_memory(job.host_pid, job.runs, skip, bytes);
  return job.huge_page != 0 ? write_huge_pages(job.target.get(), job.huge_page, job.position + skip, bytes)
                            : write_file(job.target.get(), job.position + skip, bytes);
}

void Decoding::finish(const Piece& piece) {
  Job& job = *piece.job;
  if (consumed_ != nullptr && !scene_.has_failed())
    consumed_->done(job.file, {piece.offset, piece.offset + piece.length});
  ++scene_.served;
  const std::lock_guard lock(mutex_);
  job.filled += piece.length;
  if (job.filled < job.length) return;
  job.target.reset();
  scene_.post(job.request->done);
  if (--unfinished_ == 0) wake_all();
}

void Decoding::give_up(Error error, const Job& job) {
  {
    const std::lock_guard lock(mutex_);
    if (!error_ && !scene_.has_failed()) {  // otherwise it is but a consequence
      const auto& action = program_.commands[job.request->command].action;
      error_ = std::move(error).within(
          fmt::format("command {} {} of task {}", job.request->command, plan::name_of(action), job.pid));
    }
  }
  scene_.cancel();
  wake_all();
}

}  // namespace stasis::execute
