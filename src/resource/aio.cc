#include "resource/aio.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "memory/pages.h"

namespace stasis::resource {
namespace {

constexpr uint32_t magic = 0xa10a10a1, event_size = 32;

struct RingHeader {  // struct aio_ring
  uint32_t id, slots, head, tail, magic, compatible, incompatible, length;
};

/// The ring has whole pages (fs/aio.c, aio_setup_ring).
uint64_t length_of(uint32_t slots) { return (uint64_t{slots} * event_size + sizeof(RingHeader)); }

/// With so many the kernel makes a ring of that size: twice as many, and two, as long as there are not many more
/// processors than that.
uint32_t requests_for(uint32_t slots) { return slots / 2 - 1; }

uint32_t unread(const model::AioContext& context) {
  return (context.tail + context.slots - context.head) % context.slots;
}

bool fits(const model::AioContext& context, AddressRange ring) {
  return context.slots >= 4 && length_of(context.slots) <= ring.size() &&
         length_of(context.slots) > ring.size() - page_size && context.head < context.slots &&
         context.tail < context.slots;
}

}  // namespace

Result<model::AioContext> look_at_aio(pid_t witness, AddressRange ring) {
  Bytes bytes(ring.size());
  memory::ProcessPages pages(witness);
  TRY(pages.read(ring.begin, bytes));
  RingHeader header{};
  std::memcpy(&header, bytes.data(), sizeof header);
  model::AioContext context{ring.begin, 0, header.slots, header.head, header.tail, {}};
  if (header.magic != magic || header.length != sizeof header || !fits(context, ring))
    return fail(Error::unsupported("look at an AIO context", "its ring is of an unknown kind, or spoilt"));
  context.requests = requests_for(context.slots);
  for (uint32_t i = 0; i < unread(context); ++i) {
    const auto* event = bytes.data() + sizeof header + uint64_t{(context.head + i) % context.slots} * event_size;
    context.events.insert(context.events.end(), event, event + event_size);
  }
  return context;
}

namespace {

Result<uint64_t> find_context(const kernel::KernelMemory& memory, pid_t witness, uint64_t ring) {
  const uint64_t space = TRY(memory.get(TRY(memory.task(witness)), "task_struct", "mm"));
  const uint64_t table = TRY(memory.get(space, "mm_struct", "ioctx_table"));
  const uint64_t count = TRY(memory.get(table, "kioctx_table", "nr"));
  const uint64_t contexts = TRY(memory.address(table, "kioctx_table", "table"));
  for (uint64_t index = 0; index < count; ++index) {
    const uint64_t context = TRY(memory.word(contexts + index * sizeof(uint64_t)));
    if (context != 0 && TRY(memory.get(context, "kioctx", "user_id")) == ring) return context;
  }
  return fail(Error::conflict("look at an AIO context", "the kernel has none with this ring"));
}

}  // namespace

/// All places in the ring but one are given away; those that are left are counted for all processors together, which
/// hand them out from stocks of their own. Each place is taken until its event has been (fs/aio.c,
/// refill_reqs_available). Nothing is submitted meanwhile, and what completes moves on in the order in which it is read
/// here, so that what is counted twice or not at all counts as under way.
Result<bool> is_under_way(const kernel::KernelMemory& memory, const kernel::PerCpu& per_cpu, pid_t witness,
                          uint64_t ring) {
  const uint64_t context = TRY(find_context(memory, witness, ring));
  const uint64_t slots = TRY(memory.get(context, "kioctx", "nr_events"));
  uint64_t accounted_for = 1 + TRY(memory.get(context, "kioctx", "reqs_available"));
  for (const uint64_t stock : per_cpu.copies(TRY(memory.get(context, "kioctx", "cpu"))))
    accounted_for += TRY(memory.get(stock, "kioctx_cpu", "reqs_available"));
  accounted_for += TRY(memory.get(context, "kioctx", "completed_events"));
  return accounted_for < slots;
}

void encode_aio(const model::AddressSpace& space, mm_entry& mm) {
  for (const auto& context : space.aio) {
    auto& entry = *mm.add_aios();
    const auto mapping =
        std::ranges::find(space.mappings, context.ring, [](const model::Mapping& m) { return m.range.begin; });
    entry.set_id(context.ring), entry.set_nr_req(context.requests);
    entry.set_ring_len(mapping == space.mappings.end() ? 0 : static_cast<uint32_t>(mapping->range.size()));
    entry.set_head(context.head), entry.set_tail(context.tail);
    entry.set_events(context.events.data(), context.events.size());
  }
}

Status decode_aio(const mm_entry& mm, const std::string& file, model::AddressSpace& space) {
  for (int i = 0; i < mm.aios_size(); ++i) {
    const auto& entry = mm.aios(i);
    const auto reject = [&](std::string_view field, std::string cause) {
      return fail(
          Error::invalid("read memory", std::move(cause), fmt::format("{}, field aios[{}].{}", file, i, field)));
    };
    if (!entry.has_tail())
      return fail(Error::unsupported("read memory", "AIO contexts of criu's images cannot be restored",
                                     fmt::format("{}, field aios", file)));
    const auto mapping =
        std::ranges::find(space.mappings, entry.id(), [](const model::Mapping& m) { return m.range.begin; });
    const bool is_ring = mapping != space.mappings.end() && mapping->backing == model::Backing::aio_ring;
    const bool fresh = std::ranges::find(space.aio, entry.id(), &model::AioContext::ring) == space.aio.end();
    if (!is_ring || !fresh) return reject("id", fmt::format("{:#x} is no ring, or one that occurs twice", entry.id()));
    if (entry.ring_len() != mapping->range.size()) return reject("ring_len", "it is not the size of its mapping");
    const auto slots = static_cast<uint32_t>((mapping->range.size() - sizeof(RingHeader)) / event_size);
    model::AioContext context{entry.id(), entry.nr_req(), slots, entry.head(), entry.tail(), {}};
    if (!fits(context, mapping->range)) return reject("tail", "head and tail are not in the ring");
    if (context.requests != requests_for(slots)) return reject("nr_req", "the ring is not as large as so many need");
    if (entry.events().size() != uint64_t{unread(context)} * event_size)
      return reject("events", "they are not those between head and tail");
    context.events.assign(entry.events().begin(), entry.events().end());
    space.aio.push_back(std::move(context));
  }
  const auto rings = std::ranges::count(space.mappings, model::Backing::aio_ring, &model::Mapping::backing);
  if (static_cast<size_t>(rings) != space.aio.size())
    return fail(Error::invalid("read memory", "a ring has no context", fmt::format("{}, field aios", file)));
  return {};
}

}  // namespace stasis::resource
