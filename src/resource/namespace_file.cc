// Files of nsfs stand for namespaces, and keep them alive. Two sorts can be found again at a restore: the namespaces
// that stasis itself is in, as the tree was in those of the dump; and the pid namespace that the tree has of its own.
#include "resource/namespace_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <array>

#include "model/pid_namespaces.h"
#include "resource/descriptors.h"
#include "resource/inventory.h"

namespace stasis::resource {
namespace {

struct Kind {
  std::string_view name;  ///< in /proc/PID/ns, and in links
  uint32_t flag;          ///< CLONE_NEW*
};
constexpr std::array kinds{Kind{"cgroup", CLONE_NEWCGROUP}, Kind{"ipc", CLONE_NEWIPC}, Kind{"mnt", CLONE_NEWNS},
                           Kind{"net", CLONE_NEWNET},       Kind{"pid", CLONE_NEWPID}, Kind{"time", CLONE_NEWTIME},
                           Kind{"user", CLONE_NEWUSER},     Kind{"uts", CLONE_NEWUTS}};

/// "net:[4026531840]"
const Kind* kind_of(std::string_view link) {
  const size_t colon = link.find(':');
  if (colon == std::string_view::npos || !link.substr(colon).starts_with(":[") || !link.ends_with(']')) return nullptr;
  const auto found = std::ranges::find(kinds, link.substr(0, colon), &Kind::name);
  return found == kinds.end() ? nullptr : &*found;
}

struct NamespaceFile final : model::KindValue {
  std::string_view name;
  bool of_tree = false;  ///< the pid namespace that begins with the root

  std::string_view kind() const override { return "namespace"; }
  bool equals(const model::KindValue& other) const override {
    const auto* same = dynamic_cast<const NamespaceFile*>(&other);
    return same != nullptr && name == same->name && of_tree == same->of_tree;
  }
  std::string describe() const override {
    return fmt::format("{} namespace of {}", name, of_tree ? "the tree" : "stasis");
  }
};

class NamespaceFileRoom final : public FileRoom {
 public:
  std::string_view kind() const override { return "namespace"; }
  bool recognises(const DescriptorProbe& probe) const override {
    return S_ISREG(probe.stat.st_mode) && kind_of(probe.link) != nullptr;
  }

  Result<model::KindState> capture(CaptureContext& context, const DescriptorProbe& probe) const override {
    auto file = std::make_shared<NamespaceFile>();
    file->name = kind_of(probe.link)->name;
    const auto is_that_of = [&](const std::string& process) {
      struct stat about{};
      return stat(fmt::format("/proc/{}/ns/{}", process, file->name).c_str(), &about) == 0 &&
             about.st_ino == probe.stat.st_ino && about.st_dev == probe.stat.st_dev;
    };
    const auto& application = context.application;
    const auto* root = application.find(application.root);
    const bool own = application.root_is_namespace_init && file->name == "pid" && root != nullptr;
    if (!is_that_of("self")) {
      file->of_tree = own && is_that_of(fmt::format("{}", context.witness(*root)));
      if (!file->of_tree) {
        context.diagnostics.refuse(probe.subject, "it stands for a namespace that stasis is not in",
                                   "close it before the dump, or run stasis in that namespace");
      }
    }
    return model::KindState{std::move(file)};
  }

  Status encode(const model::Application& application, const model::OpenDescription& description,
                image::FileRecords& records) const override {
    const auto& file = *description.state.as<NamespaceFile>();
    task_kobj_ids_entry ids = make_inventory(application).root_ids();
    if (file.of_tree) set_namespaces(application, *application.find(application.root), ids);
    image::FileRecord record;
    record.set_type(NS), record.set_id(description.id.value);
    auto& entry = *record.mutable_nsf();
    entry.set_id(description.id.value), entry.set_flags(description.flags);
    entry.set_ns_id(namespace_id(ids, file.name));
    entry.set_ns_cflag(std::ranges::find(kinds, file.name, &Kind::name)->flag);
    records.files.push_back(std::move(record));
    return {};
  }

  bool decodes(const image::FileRecords&, const image::FileRecord& record) const override {
    return record.type() == NS;
  }

  Result<model::OpenDescription> decode(const image::FileRecords& records, const image::FileRecord& record,
                                        model::Application&) const override {
    const std::string subject = fmt::format("files.img, file {}, field nsf.", record.id());
    const auto kind = std::ranges::find(kinds, record.nsf().ns_cflag(), &Kind::flag);
    if (!record.has_nsf() || kind == kinds.end())
      return fail(Error::invalid("decode namespace file", "it is no kind of namespaces", subject + "ns_cflag"));
    const auto* inventory = TRY(records.made_once<inventory_entry>(
        "inventory of namespaces", [&] { return read_inventory(records.directory()); }));
    auto file = std::make_shared<NamespaceFile>();
    file->name = kind->name;
    file->of_tree = namespace_id(inventory->root_ids(), kind->name) != record.nsf().ns_id();
    if (file->of_tree && kind->name != "pid") {
      return fail(Error::unsupported("decode namespace file",
                                     fmt::format("it stands for a {} namespace of the tree's own", kind->name),
                                     subject + "ns_id")
                      .advise("restore it with criu, which wrote these images"));
    }
    model::OpenDescription description;
    description.id = ObjectId{record.id()}, description.flags = record.nsf().flags();
    description.state = {std::move(file)};
    return description;
  }

  /// What begins with the root is there if, and only if, the tree has a pid namespace of its own.
  Status finish_decode(model::Application& application) const override {
    for (const auto& [id, description] : application.descriptions) {
      const auto* file = description.state.as<NamespaceFile>();
      if (file == nullptr || !file->of_tree || application.root_is_namespace_init) continue;
      return fail(Error::invalid("decode namespace file", "it stands for a pid namespace that the tree does not have",
                                 fmt::format("files.img, file {}, field nsf.ns_id", id)));
    }
    return {};
  }

  Status make(const model::Application& application, std::span<const plan::Placement> placements,
              plan::Sink& sink) const override {
    for (const auto& placement : placements) {
      const auto& description = *placement.description;
      const auto& file = *description.state.as<NamespaceFile>();
      if (file.of_tree && model::PidNamespaces(application).of(sink.pid()).value != 0) {
        return fail(Error::unsupported("plan a namespace file", "who holds it lives in a pid namespace below",
                                       fmt::format("{} in task {}", file.describe(), sink.pid())));
      }
      const auto path = file.of_tree ? fmt::format("/proc/self/ns/{}", file.name)
                                     : fmt::format("{}ns/{}", plan::supervisor_directory, file.name);
      sink.add(plan::Open{path, reopen_flags(description.flags), 0, placement.fd, description.id});
    }
    return {};
  }
  bool reopenable() const override { return true; }
};

}  // namespace

const FileRoom& namespace_file_room() {
  static const NamespaceFileRoom room;
  return room;
}

}  // namespace stasis::resource
