// BPF maps (bpf(2)) whose elements can be listed and set again: hashes, arrays and tries.
//
// Of maps that have a value for each processor all are read and set; the machine must have as many at the restore.
// Which elements of an LRU hash were used last nobody tells: what goes first is chosen anew, and such a hash that is
// nearly full may lose some elements while it is filled, as it may at any time (kernel/bpf/bpf_lru_list.c).
//
// Content is read through a duplicate of the descriptor, which changes nothing. What programs, other maps or files of
// bpffs share with the tree is not found again by a restore: the map that it makes is the tree's own, as with CRIU.
#include "resource/bpf_map.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <map>

#include "kernel/bpf.h"
#include "kernel/fdinfo.h"
#include "kernel/process.h"
#include "resource/anonymous_room.h"
#include "resource/kernel_access.h"

namespace stasis::resource {
namespace {

using plan::call;

constexpr uint64_t largest_content = 64 << 20;  ///< keys and values
constexpr size_t longest_name = BPF_OBJ_NAME_LEN - 1;
constexpr uint32_t any_node = ~0u;  // NUMA_NO_NODE

struct MapType {
  uint32_t number;
  std::string_view name;
  bool per_processor = false;
};
constexpr MapType known_types[] = {
    {BPF_MAP_TYPE_HASH, "hash"},
    {BPF_MAP_TYPE_ARRAY, "array"},
    {BPF_MAP_TYPE_PERCPU_HASH, "per-CPU hash", true},
    {BPF_MAP_TYPE_PERCPU_ARRAY, "per-CPU array", true},
    {BPF_MAP_TYPE_LRU_HASH, "LRU hash"},
    {BPF_MAP_TYPE_LRU_PERCPU_HASH, "LRU per-CPU hash", true},
    {BPF_MAP_TYPE_LPM_TRIE, "LPM trie"},
};
/// Those that are refused: what they hold are objects of the kernel, places in rings, or cannot be looked at at all.
constexpr MapType other_types[] = {
    {BPF_MAP_TYPE_PROG_ARRAY, "array of programs"},
    {BPF_MAP_TYPE_PERF_EVENT_ARRAY, "array of perf events"},
    {BPF_MAP_TYPE_STACK_TRACE, "map of stack traces"},
    {BPF_MAP_TYPE_CGROUP_ARRAY, "array of cgroups"},
    {BPF_MAP_TYPE_ARRAY_OF_MAPS, "array of maps"},
    {BPF_MAP_TYPE_HASH_OF_MAPS, "hash of maps"},
    {BPF_MAP_TYPE_DEVMAP, "map of devices"},
    {BPF_MAP_TYPE_DEVMAP_HASH, "map of devices"},
    {BPF_MAP_TYPE_SOCKMAP, "map of sockets"},
    {BPF_MAP_TYPE_SOCKHASH, "map of sockets"},
    {BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, "map of sockets"},
    {BPF_MAP_TYPE_XSKMAP, "map of XDP sockets"},
    {BPF_MAP_TYPE_CPUMAP, "map of CPUs"},
    {BPF_MAP_TYPE_QUEUE, "queue, which shows only its first element"},
    {BPF_MAP_TYPE_STACK, "stack, which shows only its top element"},
    {BPF_MAP_TYPE_RINGBUF, "ring buffer"},
    {BPF_MAP_TYPE_USER_RINGBUF, "ring buffer"},
    {BPF_MAP_TYPE_BLOOM_FILTER, "Bloom filter, which shows no elements"},
    {BPF_MAP_TYPE_STRUCT_OPS, "table of functions (struct_ops)"},
};

const MapType* type_of(std::span<const MapType> types, uint32_t number) {
  const auto found = std::ranges::find(types, number, &MapType::number);
  return found == types.end() ? nullptr : &*found;
}
bool is_known(uint32_t type) { return type_of(known_types, type) != nullptr; }
bool is_per_processor(uint32_t type) {
  const auto* known = type_of(known_types, type);
  return known != nullptr && known->per_processor;
}

/// Of one processor in what system calls take and give (kernel/bpf/syscall.c, bpf_map_value_size).
uint64_t stride(uint32_t value_size) { return (uint64_t{value_size} + 7) / 8 * 8; }

/// The last in a list like "0-3,8-11".
Result<uint32_t> last_in(const std::string& path) {
  const std::string text = TRY(kernel::read_file(path));
  const size_t last = text.find_last_of(",-") == std::string::npos ? 0 : text.find_last_of(",-") + 1;
  uint32_t number = 0;
  if (std::from_chars(text.data() + last, text.data() + text.size(), number).ec != std::errc())
    return fail(Error::unsupported("read " + path, "it is not a list of numbers"));
  return number;
}
/// That there may ever be.
Result<uint32_t> possible_processors() { return TRY(last_in("/sys/devices/system/cpu/possible")) + 1; }

/// NUMA nodes with memory; 0 where the kernel knows of no nodes (CONFIG_NUMA).
uint32_t last_node() {
  const auto last = last_in("/sys/devices/system/node/has_memory");
  return last ? *last : 0;
}

struct BpfMap final : model::KindValue {
  uint32_t type = 0, key_size = 0, value_size = 0, max_entries = 0, flags = 0;
  uint32_t id = 0;      ///< the kernel's own; not compared
  uint64_t memory = 0;  ///< likewise
  bool frozen = false;
  uint32_t numa_node = 0;  ///< that its memory is on, if `flags` have BPF_F_NUMA_NODE
  std::string name;
  uint32_t count = 0;
  Bytes keys, values;       ///< of `count` elements, ascending keys
  uint32_t processors = 1;  ///< that have a value of their own of each element

  uint64_t bytes_of_value() const { return is_per_processor(type) ? stride(value_size) * processors : value_size; }

  std::string_view kind() const override { return "bpf map"; }
  bool equals(const model::KindValue& other) const override {
    const auto* map = dynamic_cast<const BpfMap*>(&other);
    const auto all = [](const BpfMap& m) {
      return std::tie(m.type, m.key_size, m.value_size, m.max_entries, m.flags, m.frozen, m.numa_node, m.name, m.count,
                      m.keys, m.values, m.processors);
    };
    return map != nullptr && all(*this) == all(*map);
  }
  std::string describe() const override {
    const auto* known = type_of(known_types, type);
    return fmt::format("bpf {} '{}' with {} of {} elements", known == nullptr ? "map" : known->name, name, count,
                       max_entries);
  }
};

uint64_t most_content(const BpfMap& map) { return (map.key_size + map.bytes_of_value()) * map.max_entries; }

/// Reads all elements. Hashes have no order: keys are sorted.
Status read_elements(int fd, BpfMap& map, const std::string& subject) {
  std::map<Bytes, Bytes> elements;
  Bytes key(map.key_size), next(map.key_size), value(map.bytes_of_value());
  for (bool first = true;; first = false) {
    bpf_attr attributes{};
    attributes.map_fd = static_cast<uint32_t>(fd);
    attributes.key = first ? 0 : reinterpret_cast<uint64_t>(key.data());
    attributes.next_key = reinterpret_cast<uint64_t>(next.data());
    if (kernel::bpf::call(BPF_MAP_GET_NEXT_KEY, attributes) != 0) {
      if (errno == ENOENT) break;
      return fail_errno("BPF_MAP_GET_NEXT_KEY", subject);
    }
    key.swap(next);
    attributes.key = reinterpret_cast<uint64_t>(key.data());
    attributes.value = reinterpret_cast<uint64_t>(value.data());
    if (kernel::bpf::call(BPF_MAP_LOOKUP_ELEM, attributes) != 0) {
      if (errno == ENOENT) continue;  // a program has removed it meanwhile
      return fail_errno("BPF_MAP_LOOKUP_ELEM", subject);
    }
    elements[key] = value;
    if (elements.size() > map.max_entries)
      return fail(Error::conflict("read a bpf map", "it changes all the time", subject));
  }
  map.count = static_cast<uint32_t>(elements.size());
  for (const auto& [element, content] : elements) {
    map.keys.insert(map.keys.end(), element.begin(), element.end());
    map.values.insert(map.values.end(), content.begin(), content.end());
  }
  return {};
}

/// BPF_MAP_UPDATE_BATCH of everything: attributes that point to keys and values behind them.
plan::Call fill(const BpfMap& map, int fd) {
  bpf_attr attributes{};
  attributes.batch.count = map.count;
  attributes.batch.map_fd = static_cast<uint32_t>(fd);
  plan::In in{bytes_of(attributes.batch)};
  const size_t size = in.bytes.size();
  const auto append = [&in](size_t pointer, const Bytes& bytes) {
    in.bytes.resize((in.bytes.size() + 7) / 8 * 8);
    in.pointers.emplace_back(pointer, in.bytes.size());
    in.bytes.insert(in.bytes.end(), bytes.begin(), bytes.end());
  };
  append(offsetof(bpf_attr, batch.keys), map.keys);
  append(offsetof(bpf_attr, batch.values), map.values);
  return call(SYS_bpf, BPF_MAP_UPDATE_BATCH, std::move(in), size);
}

class BpfMapRoom final : public AnonymousRoom<bpfmap_file_entry, &image::FileRecord::has_bpf, &image::FileRecord::bpf,
                                              &image::FileRecord::mutable_bpf> {
 public:
  BpfMapRoom() : AnonymousRoom("anon_inode:bpf-map", BPFMAP) {}
  std::string_view kind() const override { return "bpf map"; }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    const auto info = TRY_IN("look at " + probe.subject, kernel::parse_bpf_map(probe.info));
    auto map = std::make_shared<BpfMap>();
    map->type = info.type, map->key_size = info.key_size, map->value_size = info.value_size;
    map->max_entries = info.max_entries, map->flags = info.flags, map->id = info.id;
    map->memory = info.memory, map->frozen = info.frozen;
    bpf_map_info more{};
    bpf_attr attributes{};
    attributes.info.bpf_fd = static_cast<uint32_t>(TRY(probe.duplicate()));
    attributes.info.info_len = sizeof more;
    attributes.info.info = reinterpret_cast<uint64_t>(&more);
    if (kernel::bpf::call(BPF_OBJ_GET_INFO_BY_FD, attributes) != 0) {
      context.diagnostics.refuse(probe.subject,
                                 fmt::format("the kernel does not tell about it: {}", std::strerror(errno)),
                                 "dump with CAP_SYS_ADMIN or CAP_BPF");
      return model::KindState{std::move(map)};
    }
    map->name.assign(more.name, strnlen(more.name, sizeof more.name));
    if (is_per_processor(map->type)) map->processors = TRY(possible_processors());
    if (bound_to_node(*map) && last_node() != 0 && !TRY(find_node(context, probe, *map))) {
      return model::KindState{std::move(map)};
    }
    if (const auto problem = problem_of(context, *map, more, probe.flags); !problem.empty()) {
      context.diagnostics.refuse(probe.subject, problem, "close it before the dump, or make it another way");
    } else {
      TRY(read_elements(TRY(probe.duplicate()), *map, probe.subject));
    }
    return model::KindState{std::move(map)};
  }

  void validate(const model::Application&, const model::OpenDescription& description,
                Diagnostics& diagnostics) const override {
    const auto& map = *description.state.as<BpfMap>();
    if (bound_to_node(map) && map.numa_node != any_node && map.numa_node > last_node()) {
      diagnostics.refuse(map.describe(),
                         fmt::format("its memory is bound to NUMA node {}, which is not here", map.numa_node),
                         "restore on a machine that has this node");
    }
    const auto here = is_per_processor(map.type) && map.count != 0 ? possible_processors() : map.processors;
    if (here && *here == map.processors) return;
    diagnostics.refuse(
        map.describe(),
        here ? fmt::format("it has values of {} processors, and here there may be {}", map.processors, *here)
             : here.error().message(),
        "restore on a machine with as many processors");
  }

  Status make(const model::Application&, std::span<const plan::Placement> placements, plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& map = *placement.description->state.as<BpfMap>();
      bpf_attr attributes{};
      attributes.map_type = map.type, attributes.key_size = map.key_size, attributes.value_size = map.value_size;
      attributes.max_entries = map.max_entries, attributes.map_flags = map.flags;
      attributes.numa_node = map.numa_node;
      std::memcpy(attributes.map_name, map.name.data(), std::min(map.name.size(), longest_name));
      plan::Perform perform{map.describe(), "", {}, {}, {}};
      perform.calls.push_back(call(SYS_bpf, BPF_MAP_CREATE, plan::struct_in(attributes), sizeof attributes));
      place(placement, perform);
      if (map.count != 0) perform.calls.push_back(fill(map, placement.fd));
      bpf_attr itself{};
      itself.map_fd = static_cast<uint32_t>(placement.fd);
      if (map.frozen) perform.calls.push_back(call(SYS_bpf, BPF_MAP_FREEZE, plan::struct_in(itself), sizeof itself));
      // Unlike other descriptors it is made with close-on-exec (kernel/bpf/syscall.c, bpf_map_new_fd).
      perform.calls.push_back(call(SYS_fcntl, placement.fd, F_SETFD, 0));
      sink.add(std::move(perform));
    }
    return {};
  }

  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    TRY(AnonymousRoom::encode(application, description, records));
    const auto& map = *description.state.as<BpfMap>();
    bpfmap_data_entry entry;
    entry.set_map_id(map.id), entry.set_count(map.count);
    entry.set_keys_bytes(static_cast<uint32_t>(map.keys.size()));
    entry.set_values_bytes(static_cast<uint32_t>(map.values.size()));
    auto* writer = TRY(records.side("bpfmap-data"));
    TRY(writer->append(entry));
    TRY(writer->append_raw(map.keys));
    return writer->append_raw(map.values);
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application& application) const override {
    auto description = TRY(AnonymousRoom::decode(records, record, application));
    auto map = std::make_shared<BpfMap>(*description.state.as<BpfMap>());
    TRY(read_content(records, record, *map));
    description.state = {std::move(map)};
    return description;
  }

 protected:
  Status write(const model::Application&, const model::OpenDescription& description,
               bpfmap_file_entry& entry) const override {
    const auto& map = *description.state.as<BpfMap>();
    entry.set_pos(0), entry.set_map_type(map.type), entry.set_key_size(map.key_size);
    entry.set_value_size(map.value_size), entry.set_map_id(map.id), entry.set_max_entries(map.max_entries);
    entry.set_map_flags(map.flags), entry.set_memlock(map.memory), entry.set_frozen(map.frozen);
    entry.set_map_name(map.name), entry.set_ifindex(0);
    if (map.numa_node != 0) entry.set_numa_node(map.numa_node);
    return {};
  }

  Status read(const image::FileRecord& record, const bpfmap_file_entry& entry, model::Application&,
              model::OpenDescription& description) const override {
    auto map = std::make_shared<BpfMap>();
    map->type = entry.map_type(), map->key_size = entry.key_size(), map->value_size = entry.value_size();
    map->max_entries = entry.max_entries(), map->flags = entry.map_flags(), map->id = entry.map_id();
    map->memory = entry.memlock(), map->frozen = entry.frozen(), map->name = entry.map_name();
    map->numa_node = entry.numa_node();
    if (!is_known(map->type))
      return bad_entry(kind(), record, "bpf.map_type", fmt::format("maps of type {} cannot be made again", map->type));
    if (entry.ifindex() != 0) return bad_entry(kind(), record, "bpf.ifindex", "it is of a network device");
    if (map->key_size == 0 || map->value_size == 0 || map->max_entries == 0 || map->key_size > largest_content ||
        map->value_size > largest_content || map->max_entries > largest_content || most_content(*map) > largest_content)
      return bad_entry(kind(), record, "bpf.max_entries", "the map is empty, or too large");
    if (map->numa_node != 0 && !bound_to_node(*map))
      return bad_entry(kind(), record, "bpf.numa_node", "its memory is bound to no node");
    if (map->name.size() > longest_name) return bad_entry(kind(), record, "bpf.map_name", "no name is so long");
    description.state = {std::move(map)};
    return {};
  }

 private:
  static bool bound_to_node(const BpfMap& map) { return (map.flags & BPF_F_NUMA_NODE) != 0; }

  /// Which of several it is. False: nobody tells, which has been said.
  static Result<bool> find_node(CaptureContext& context, const DescriptorProbe& probe, BpfMap& map) {
    const auto& memory = context.kept<KernelAccess>().memory;
    if (!memory) {
      context.diagnostics.refuse(probe.subject,
                                 told_by_memory_alone("to which NUMA node its memory is bound", memory.error()),
                                 "close it before the dump, or make it another way");
      return false;
    }
    const uint64_t object = TRY(memory->private_data(TRY(probe.duplicate())));
    map.numa_node = static_cast<uint32_t>(TRY(memory->get(object, "bpf_map", "numa_node")));
    return true;
  }

  /// Why it cannot be made again; empty: it can.
  static std::string problem_of(CaptureContext& context, const BpfMap& map, const bpf_map_info& info, uint32_t flags) {
    if (!is_known(map.type)) {
      const auto* other = type_of(other_types, map.type);
      return other != nullptr ? fmt::format("as a BPF map it is a {}", other->name)
                              : fmt::format("it is a BPF map of type {}", map.type);
    }
    if (info.btf_id != 0 || info.btf_vmlinux_value_type_id != 0)
      return "its keys and values have types (BTF), which the kernel does not give back";
    if (info.ifindex != 0) return "it is of a network device";
    if ((flags & O_ACCMODE) != O_RDWR) return "it is open for reading or for writing only";
    if (most_content(map) > largest_content) return fmt::format("it may hold more than {} MiB", largest_content >> 20);
    bool fresh = false;
    context.object(fmt::format("bpf map {}", map.id), fresh);
    return fresh ? "" : "it was opened several times (BPF_OBJ_GET, BPF_MAP_GET_FD_BY_ID)";
  }

  struct Content {
    uint32_t count = 0;
    Bytes keys, values;
  };
  static Status read_content(const image::FileRecords& records, const image::FileRecord& record, BpfMap& map) {
    using All = std::map<uint32_t, Content>;
    const auto* all = TRY(records.made_once<All>("contents of bpf maps", [&]() -> Result<All> {
      All contents;
      auto reader = TRY(records.directory().find(image::file_name("bpfmap-data")));
      for (bpfmap_data_entry entry; reader && TRY(reader->next(entry));) {
        auto& content = contents[entry.map_id()];
        content.count = entry.count();
        content.keys = TRY(reader->raw(entry.keys_bytes()));
        content.values = TRY(reader->raw(entry.values_bytes()));
      }
      return contents;
    }));
    const auto found = all->find(map.id);
    if (found == all->end()) return {};
    const auto& content = found->second;
    if (is_per_processor(map.type) && content.count != 0)
      map.processors = static_cast<uint32_t>(content.values.size() / content.count / stride(map.value_size));
    if (content.count > map.max_entries || content.keys.size() != uint64_t{content.count} * map.key_size ||
        content.values.size() != content.count * map.bytes_of_value()) {
      return bad_entry("bpf map", record, "bpf.map_id",
                       fmt::format("bpfmap-data.img has another number of bytes than {} elements take", content.count));
    }
    map.count = content.count, map.keys = content.keys, map.values = content.values;
    return {};
  }
};

}  // namespace

const FileRoom& bpf_map_room() {
  static const BpfMapRoom room;
  return room;
}

}  // namespace stasis::resource
