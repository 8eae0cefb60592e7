// epoll(7).
//
// The kernel keeps for each target the open file description and the number it was added under (fs/eventpoll.c,
// epoll_filefd), and fdinfo shows the numbers. A number may have been closed or given to something else since; the
// target lives on as long as anybody has it open. kcmp(2) tells which description it is.
//
// What is ready is not saved: it is found out again when a target is added. So a target that was reported to an
// edge-triggered wait already, and still is as it was, is reported once more.
#include "resource/epoll.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <map>
#include <set>

#include "kernel/fdinfo.h"
#include "kernel/process.h"
#include "model/places.h"
#include "resource/anonymous_room.h"

namespace stasis::resource {
namespace {

using plan::call;

/// struct epoll_params of linux/eventpoll.h (Linux 6.9): how it polls network devices.
struct BusyPoll {
  uint32_t microseconds = 0;
  uint16_t budget = 0;
  uint8_t preferred = 0, zero = 0;
  friend bool operator==(const BusyPoll&, const BusyPoll&) = default;
};
constexpr unsigned long set_busy_poll = _IOW(0x8A, 1, BusyPoll), get_busy_poll = _IOR(0x8A, 2, BusyPoll);

constexpr uint32_t number_limit = 1u << 30;  ///< fs.nr_open: no kernel allows a descriptor above it

/// What it waits for is known to all (model::OpenDescription::watches).
struct Epoll final : model::KindValue {
  BusyPoll busy_poll;
  ObjectId table;  ///< one that it is in, or that has what it is in flight in; 0: there is none; not compared
  /// Until it is known what the targets are.
  struct Found {
    pid_t witness = 0;
    int fd = -1;
    std::string subject;
    std::vector<kernel::EpollTarget> targets;
  } found;

  std::string_view kind() const override { return "epoll"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const Epoll*>(&other);
    return same != nullptr && busy_poll == same->busy_poll;
  }
  std::string describe() const override { return "epoll"; }
};

ObjectId behind(const model::DescriptorTable& table, int fd) {
  const auto slot = table.slots.find(fd);
  return slot == table.slots.end() ? ObjectId{} : slot->second.description;
}

/// Finds the descriptions behind the targets.
class TargetSearch {
 public:
  explicit TargetSearch(CaptureContext& context) : context_(context) {}

  Result<std::vector<model::Watch>> find_all(const Epoll& epoll) {
    std::vector<model::Watch> watches;
    std::map<int, uint32_t> seen;
    for (const auto& target : epoll.found.targets) {
      const kernel::EpollSlot slot{epoll.found.fd, target.fd, seen[target.fd]++};
      const auto id = TRY_IN("find the targets of an epoll", find(epoll, target, slot));
      if (!id) {
        context_.diagnostics.refuse(
            epoll.found.subject,
            fmt::format("it waits for something that was added as descriptor {}, and that only somebody outside of the "
                        "tree, or a message that is under way, has open now",
                        target.fd),
            "dump that process as well, or have the descriptor removed from the epoll (EPOLL_CTL_DEL) before it is "
            "passed on");
        continue;
      }
      watches.push_back({*id, target.fd, target.events, target.data});
    }
    std::ranges::sort(watches);
    return watches;
  }

 private:
  /// Mostly the number still leads to the target. To be sure of that the kernel is asked, which looks through all
  /// targets; for a socket, which can be opened only once, its inode is enough.
  Result<std::optional<ObjectId>> find(const Epoll& epoll, const kernel::EpollTarget& target,
                                       const kernel::EpollSlot& slot) {
    const auto table = context_.application.descriptor_tables.find(epoll.table);
    const ObjectId id =
        table == context_.application.descriptor_tables.end() ? ObjectId{} : behind(table->second, target.fd);
    if (id.value != 0) {
      if (is_that_socket(context_.identities.at(id), target)) return id;
      const pid_t pid = epoll.found.witness;
      if (TRY(kernel::kcmp_epoll(pid, target.fd, pid, slot)) == std::strong_ordering::equal) return id;
    }
    TRY(sort_descriptions());
    const auto known = TRY(sorted_.find([&](size_t index) -> Result<std::strong_ordering> {
      const auto& other = places_[index];
      const auto order = TRY(kernel::kcmp_epoll(other.witness, other.fd, epoll.found.witness, slot));
      return 0 <=> order;  // the target to the other one
    }));
    if (!known) return std::nullopt;
    return places_[*known].description;
  }

  static bool is_that_socket(const CaptureContext::Identity& identity, const kernel::EpollTarget& target) {
    constexpr uint32_t minor_bits = 20;  // the kernel's own dev_t
    const dev_t device = makedev(target.device >> minor_bits, target.device & ((1u << minor_bits) - 1));
    return identity.type == S_IFSOCK && identity.inode == target.inode && identity.device == device;
  }

  /// One descriptor of each description of the tree, in the kernel's order: for the few that are not where they were.
  Status sort_descriptions() {
    if (!places_.empty()) return {};
    std::set<ObjectId> seen;
    for (const auto& task : context_.application.tasks) {
      const auto table = context_.application.descriptor_tables.find(task.descriptors);
      if (table == context_.application.descriptor_tables.end()) continue;
      for (const auto& [fd, slot] : table->second.slots) {
        if (seen.insert(slot.description).second) places_.push_back({slot.description, context_.witness(task), fd});
      }
    }
    for (size_t index = 0; index < places_.size(); ++index) {
      TRY(sorted_.first_like(index, [this](size_t a, size_t b) {
        return kernel::kcmp(places_[a].witness, places_[b].witness, kernel::KcmpType::file, places_[a].fd,
                            places_[b].fd);
      }));
    }
    return {};
  }

  struct Place {
    ObjectId description;
    pid_t witness;
    int fd;
  };
  CaptureContext& context_;
  std::vector<Place> places_;
  kernel::OrderedObjects sorted_;
};

class EpollRoom final : public AnonymousRoom<eventpoll_file_entry, &image::FileRecord::has_epfd,
                                             &image::FileRecord::epfd, &image::FileRecord::mutable_epfd> {
 public:
  EpollRoom() : AnonymousRoom("anon_inode:[eventpoll]", EVENTPOLL) {}
  std::string_view kind() const override { return "epoll"; }
  bool can_be_inherited(const model::OpenDescription&) const override { return true; }

  Result<model::KindState> capture(CaptureContext&, const DescriptorProbe& probe) const override {
    auto state = std::make_shared<Epoll>();
    auto& found = state->found;
    found.witness = probe.witness, found.fd = probe.fd, found.subject = probe.subject;
    found.targets = TRY_IN("look at " + probe.subject, kernel::parse_epoll(probe.info));
    // What the kernel does not have cannot have been set.
    if (ioctl(TRY(probe.duplicate()), get_busy_poll, &state->busy_poll) != 0) state->busy_poll = {};
    return model::KindState{std::move(state)};
  }

  Status finish_capture(CaptureContext& context) const override {
    const auto& all = context.application.descriptions;
    if (std::ranges::none_of(all, [](const auto& entry) { return entry.second.state.template as<Epoll>() != nullptr; }))
      return {};
    std::map<pid_t, ObjectId> tables;  ///< by witness of a task
    for (const auto& task : context.application.tasks) {
      if (task.state != model::TaskState::zombie) tables[context.witness(task)] = task.descriptors;
    }
    TargetSearch search(context);
    for (auto& [id, description] : context.application.descriptions) {
      const auto* epoll = description.state.as<Epoll>();
      if (epoll == nullptr) continue;
      auto placed = std::make_shared<Epoll>(*epoll);
      if (const auto table = tables.find(epoll->found.witness); table != tables.end()) placed->table = table->second;
      description.watches = TRY(search.find_all(*placed));
      placed->found = {};
      description.state = {std::move(placed)};
    }
    return {};
  }

  Status finish_decode(model::Application& application) const override {
    std::map<ObjectId, ObjectId> tables;  ///< one that a description is in, or what carries it
    for (const auto& [id, table] : application.descriptor_tables) {
      for (const auto& [fd, slot] : table.slots) tables.emplace(slot.description, id);
    }
    const auto held = tables;
    for (const auto& [id, table] : held) {
      for (const ObjectId carried : application.descriptions.at(id).carries) tables.emplace(carried, table);
    }
    for (auto& [id, description] : application.descriptions) {
      if (description.state.as<Epoll>() == nullptr) continue;
      auto placed = std::make_shared<Epoll>(*description.state.as<Epoll>());
      const auto table = tables.find(id);
      if (table != tables.end()) placed->table = table->second;
      static const model::DescriptorTable none;
      TRY(finish_watches(description, table == tables.end() ? none : application.descriptor_tables.at(table->second),
                         held));
      description.state = {std::move(placed)};
    }
    return {};
  }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      plan::Perform perform{"epoll", "", {}, {}, {call(SYS_epoll_create1, 0)}};
      place(placement, perform);
      if (const auto& busy = placement.description->state.as<Epoll>()->busy_poll; busy != BusyPoll{})
        perform.calls.push_back(call(SYS_ioctl, placement.fd, set_busy_poll, plan::struct_in(busy)));
      sink.add(std::move(perform));
    }
    return {};
  }

 protected:
  Status write(const model::Application& application, const model::OpenDescription& description,
               eventpoll_file_entry& entry) const override {
    const auto& epoll = *description.state.as<Epoll>();
    if (const auto& busy = epoll.busy_poll; busy != BusyPoll{}) {
      auto& into = *entry.mutable_busy_poll();
      into.set_microseconds(busy.microseconds), into.set_budget(busy.budget), into.set_preferred(busy.preferred != 0);
    }
    const auto table = application.descriptor_tables.find(epoll.table);
    for (const auto& watch : description.watches) {
      auto& target = *entry.add_tfd();
      target.set_id(description.id.value), target.set_events(watch.events), target.set_data(watch.data);
      target.set_target(watch.target.value);
      const int leads_there = table == application.descriptor_tables.end() ? watch.fd : number_of(table->second, watch);
      target.set_tfd(static_cast<uint32_t>(leads_there));
      if (leads_there != watch.fd) target.set_added_under(static_cast<uint32_t>(watch.fd));
    }
    return {};
  }

  Status read(const image::FileRecord& record, const eventpoll_file_entry& entry, model::Application&,
              model::OpenDescription& description) const override {
    for (const auto& target : entry.tfd()) {
      const uint32_t number = target.has_added_under() ? target.added_under() : target.tfd();
      if (number >= number_limit || target.tfd() >= number_limit)
        return bad_entry(kind(), record, "epfd.tfd", fmt::format("{} is no descriptor", number));
      if (plan::has_fired(target.events()) && (target.events() & EPOLLONESHOT) == 0)
        return bad_entry(kind(), record, "epfd.events", fmt::format("{:#x} cannot come about", target.events()));
      description.watches.push_back(
          {ObjectId{target.target()}, static_cast<int>(number), target.events(), target.data()});
    }
    auto state = std::make_shared<Epoll>();
    const auto& busy = entry.busy_poll();
    if (busy.microseconds() > INT32_MAX || busy.budget() > UINT16_MAX)
      return bad_entry(kind(), record, "epfd.busy_poll", "no epoll polls for so long, or so much");
    state->busy_poll = {busy.microseconds(), static_cast<uint16_t>(busy.budget()),
                        busy.preferred() ? uint8_t{1} : uint8_t{0}};
    description.state = {std::move(state)};
    return {};
  }

 private:
  /// Images that do not name the targets mean what the numbers lead to where the epoll is.
  static Status finish_watches(model::OpenDescription& epoll, const model::DescriptorTable& table,
                               const std::map<ObjectId, ObjectId>& held) {
    const auto reject = [&](std::string problem) {
      return fail(Error::invalid("decode epoll", std::move(problem),
                                 fmt::format("files.img, file {}, field epfd.tfd", epoll.id)));
    };
    for (auto& watch : epoll.watches) {
      if (watch.target.value == 0) watch.target = behind(table, watch.fd);
      if (!held.contains(watch.target) || watch.target == epoll.id)
        return reject(fmt::format("what it waits for as descriptor {} is not open in any task", watch.fd));
    }
    std::ranges::sort(epoll.watches);
    const auto same = [](const auto& a, const auto& b) { return a.target == b.target && a.fd == b.fd; };
    if (std::ranges::adjacent_find(epoll.watches, same) != epoll.watches.end())
      return reject("it waits for the same descriptor twice");
    return {};
  }

  /// A number that leads to the target, for readers of the image who go by it: the one it was added under if possible.
  static int number_of(const model::DescriptorTable& table, const model::Watch& watch) {
    if (behind(table, watch.fd) == watch.target) return watch.fd;
    return model::number_of(table, watch.target).value_or(watch.fd);
  }
};

}  // namespace

const FileRoom& epoll_room() {
  static const EpollRoom room;
  return room;
}

}  // namespace stasis::resource
