#include "resource/io_uring.h"

#include <fmt/format.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <bit>

#include "resource/anonymous_room.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr uint32_t most_entries = 32768, most_files = 32768, most_buffers = 16384;  // of the kernel

plan::Call register_with(int fd, int what, plan::In argument, size_t count) {
  return call(SYS_io_uring_register, fd, what, std::move(argument), count);
}

plan::Call register_numbers(int fd, const std::vector<int32_t>& numbers) {
  plan::In in;
  for (const int32_t number : numbers) {
    const auto bytes = bytes_of(number);
    in.bytes.insert(in.bytes.end(), bytes.begin(), bytes.end());
  }
  return register_with(fd, IORING_REGISTER_FILES, std::move(in), numbers.size());
}

class IoUringRoom final : public AnonymousRoom<io_uring_file_entry, &image::FileRecord::has_iou,
                                               &image::FileRecord::iou, &image::FileRecord::mutable_iou> {
 public:
  IoUringRoom() : AnonymousRoom("anon_inode:[io_uring]", IO_URING) {}
  std::string_view kind() const override { return "io_uring"; }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    return model::KindState{TRY_IN("look at " + probe.subject, capture_io_uring(context, probe))};
  }
  Status finish_capture(CaptureContext& context) const override { return find_registered(context); }

  /// Buffers are pinned: their pages have to be those that stay.
  bool starts_last(const model::KindState& state) const override { return !state.as<IoUring>()->buffers.empty(); }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& ring = *placement.description->state.as<IoUring>();
      io_uring_params parameters{};
      parameters.sq_entries = ring.sq_entries, parameters.flags = ring.setup_flags;
      parameters.cq_entries = ring.cq_entries;
      plan::In state = plan::struct_in(ring.stands);
      for (const auto* content : {&ring.sqes, &ring.cqes, &ring.sq_array})
        state.bytes.insert(state.bytes.end(), content->begin(), content->end());
      plan::Perform perform{ring.describe(), "", {}, {}, {}};
      perform.calls.push_back(call(plan::Call::setup_io_uring, plan::InOut{bytes_of(parameters)}, std::move(state)));
      place(placement, perform);
      if (!ring.files.empty() && placement.description->carries.empty())
        perform.calls.push_back(register_numbers(placement.fd, std::vector<int32_t>(ring.files.size(), -1)));
      sink.add(std::move(perform));
    }
    return {};
  }

  Status complete(const model::Application&, std::span<const plan::Placement> placements, const plan::OpenNumbers& open,
                  plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& ring = *placement.description->state.as<IoUring>();
      if (placement.description->carries.empty()) continue;
      plan::Perform perform{"what is registered with an " + ring.describe(), "", {}, {}, {}};
      std::vector<int32_t> numbers;
      for (const ObjectId file : ring.files) numbers.push_back(file.value == 0 ? -1 : open(file).value());
      if (!numbers.empty()) perform.calls.push_back(register_numbers(placement.fd, numbers));
      if (ring.eventfd.value != 0) {
        perform.calls.push_back(
            register_with(placement.fd, ring.eventfd_async ? IORING_REGISTER_EVENTFD_ASYNC : IORING_REGISTER_EVENTFD,
                          plan::struct_in(int32_t{open(ring.eventfd).value()}), 1));
      }
      perform.completes.push_back({placement.fd, placement.description->id});
      sink.add(std::move(perform));
    }
    return {};
  }

  void start(const model::Application&, const model::OpenDescription& description, int fd,
             plan::Sink& sink) const override {
    const auto& ring = *description.state.as<IoUring>();
    plan::Perform perform{"buffers of an " + ring.describe(), "", {}, {}, {}};
    plan::In vectors;
    for (const auto& buffer : ring.buffers) {
      const auto bytes = bytes_of(iovec{reinterpret_cast<void*>(buffer.address), buffer.size});
      vectors.bytes.insert(vectors.bytes.end(), bytes.begin(), bytes.end());
    }
    perform.calls.push_back(register_with(fd, IORING_REGISTER_BUFFERS, std::move(vectors), ring.buffers.size()));
    perform.starts.push_back({fd, description.id});
    sink.add(std::move(perform));
  }

  Status finish_decode(model::Application& application) const override {
    for (const auto& [id, description] : application.descriptions) {
      if (description.state.as<IoUring>() == nullptr) continue;
      for (const ObjectId carried : description.carries) {
        const auto found = application.descriptions.find(carried);
        if (found == application.descriptions.end() || found->second.state.as<IoUring>() != nullptr) {
          return fail(Error::invalid("decode io_uring", fmt::format("file {} cannot be registered with one", carried),
                                     fmt::format("files.img, file {}, field iou.files", id)));
        }
      }
    }
    for (const auto& [id, space] : application.address_spaces) {
      for (const auto& mapping : space.mappings) {
        if (mapping.backing != model::Backing::io_uring) continue;
        const auto file = application.descriptions.find(mapping.file);
        if (file == application.descriptions.end() || file->second.state.as<IoUring>() == nullptr) {
          return fail(Error::invalid("decode io_uring",
                                     fmt::format("the queues mapped at {:#x} are of none", mapping.range.begin),
                                     fmt::format("mm of address space {}, field shmid", id)));
        }
      }
    }
    return {};
  }

 protected:
  Status write(const model::Application&, const model::OpenDescription& description,
               io_uring_file_entry& entry) const override {
    const auto& ring = *description.state.as<IoUring>();
    const auto& stands = ring.stands;
    entry.set_setup_flags(ring.setup_flags), entry.set_sq_entries(ring.sq_entries);
    entry.set_cq_entries(ring.cq_entries);
    entry.set_sq_head(stands.sq_head), entry.set_sq_tail(stands.sq_tail), entry.set_sq_dropped(stands.sq_dropped);
    entry.set_sq_flags(stands.sq_flags), entry.set_cq_head(stands.cq_head), entry.set_cq_tail(stands.cq_tail);
    entry.set_cq_overflow(stands.cq_overflow), entry.set_cq_flags(stands.cq_flags);
    entry.set_sqes(ring.sqes.data(), ring.sqes.size()), entry.set_cqes(ring.cqes.data(), ring.cqes.size());
    entry.set_sq_array(ring.sq_array.data(), ring.sq_array.size());
    for (const auto& buffer : ring.buffers) {
      auto& added = *entry.add_buffers();
      added.set_address(buffer.address), added.set_size(buffer.size);
    }
    for (const ObjectId file : ring.files) entry.add_files(file.value);
    if (ring.eventfd.value != 0) entry.set_eventfd(ring.eventfd.value), entry.set_eventfd_async(ring.eventfd_async);
    return {};
  }

  Status read(const image::FileRecord& record, const io_uring_file_entry& entry, model::Application&,
              model::OpenDescription& description) const override {
    auto ring = std::make_shared<IoUring>();
    TRY(read_setup(record, entry, *ring));
    TRY(read_queues(record, entry, *ring));
    if (entry.buffers_size() > static_cast<int>(most_buffers) || entry.files_size() > static_cast<int>(most_files))
      return bad_entry(kind(), record, "iou.files", "no io_uring has so many files or buffers");
    for (const auto& buffer : entry.buffers()) ring->buffers.push_back({buffer.address(), buffer.size()});
    std::set<ObjectId> carried;
    for (const uint32_t file : entry.files()) carried.insert(ring->files.emplace_back(ObjectId{file}));
    ring->eventfd = ObjectId{entry.eventfd()}, ring->eventfd_async = entry.eventfd_async();
    carried.insert(ring->eventfd);
    carried.erase(ObjectId{});
    description.carries.assign(carried.begin(), carried.end());
    description.state = {std::move(ring)};
    return {};
  }

 private:
  Status read_setup(const image::FileRecord& record, const io_uring_file_entry& entry, IoUring& ring) const {
    ring.setup_flags = entry.setup_flags();
    ring.sq_entries = entry.sq_entries(), ring.cq_entries = entry.cq_entries();
    if ((ring.setup_flags & ~uring::known_flags) != 0)
      return bad_entry(kind(), record, "iou.setup_flags", fmt::format("{:#x} are not known", ring.setup_flags));
    if (!std::has_single_bit(ring.sq_entries) || ring.sq_entries > most_entries)
      return bad_entry(kind(), record, "iou.sq_entries", fmt::format("no queue has {} entries", ring.sq_entries));
    const bool chosen = (ring.setup_flags & uring::cq_size) != 0;
    if (!std::has_single_bit(ring.cq_entries) || ring.cq_entries > 2 * most_entries ||
        ring.cq_entries < ring.sq_entries || (!chosen && ring.cq_entries != 2 * ring.sq_entries))
      return bad_entry(kind(), record, "iou.cq_entries", fmt::format("not beside {} others", ring.sq_entries));
    return {};
  }

  Status read_queues(const image::FileRecord& record, const io_uring_file_entry& entry, IoUring& ring) const {
    auto& stands = ring.stands;
    stands.sq_head = entry.sq_head(), stands.sq_tail = entry.sq_tail(), stands.sq_dropped = entry.sq_dropped();
    stands.sq_flags = entry.sq_flags(), stands.cq_head = entry.cq_head(), stands.cq_tail = entry.cq_tail();
    stands.cq_overflow = entry.cq_overflow(), stands.cq_flags = entry.cq_flags();
    if (stands.sq_tail - stands.sq_head > ring.sq_entries)
      return bad_entry(kind(), record, "iou.sq_tail", "more wait than there is room for");
    if (stands.cq_tail - stands.cq_head > ring.cq_entries || stands.cq_tail > stands.sq_head)
      return bad_entry(kind(), record, "iou.cq_tail", "more wait than there is room for, or were begun");
    stands.sqes_size = static_cast<uint32_t>(ring.sq_entries * uring::entry_size(ring.setup_flags));
    stands.cqes_size = static_cast<uint32_t>(ring.cq_entries * uring::completion_size(ring.setup_flags));
    stands.array_size = static_cast<uint32_t>(uring::array_size(ring.setup_flags, ring.sq_entries));
    if (entry.sqes().size() != stands.sqes_size || entry.cqes().size() != stands.cqes_size ||
        entry.sq_array().size() != stands.array_size)
      return bad_entry(kind(), record, "iou.sqes", "the queues' content is not as large as they are");
    ring.sqes.assign(entry.sqes().begin(), entry.sqes().end());
    ring.cqes.assign(entry.cqes().begin(), entry.cqes().end());
    ring.sq_array.assign(entry.sq_array().begin(), entry.sq_array().end());
    return {};
  }
};

}  // namespace

bool IoUring::equals(const model::KindValue& other) const {
  const auto* ring = dynamic_cast<const IoUring*>(&other);
  const auto all = [](const IoUring& r) {
    return std::tie(r.setup_flags, r.sq_entries, r.cq_entries, r.sqes, r.cqes, r.sq_array, r.buffers, r.files,
                    r.eventfd, r.eventfd_async, r.stands);
  };
  return ring != nullptr && all(*this) == all(*ring);
}

std::string IoUring::describe() const {
  return fmt::format("io_uring of {} entries, {} files, {} buffers", sq_entries, files.size(), buffers.size());
}

const FileRoom& io_uring_room() {
  static const IoUringRoom room;
  return room;
}

}  // namespace stasis::resource
