#include "plan/shape.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <optional>
#include <ranges>
#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "model/pid_namespaces.h"
#include "plan/bare_tree.h"
#include "plan/nested_numbers.h"

namespace stasis::plan {
namespace {

using Color = uint64_t;
using Index = uint32_t;
constexpr Index none = ~0u;

/// Depends on the order of its arguments.
template <typename... Parts>
Color mix(Parts... parts) {
  const uint64_t words[] = {static_cast<uint64_t>(parts)...};
  return XXH3_64bits(words, sizeof words);
}

/// Two are only there in trees whose pid namespaces cannot be told from parents, the last where there are terminals:
/// what a tree without them looks like, and so its hash, does not depend on them.
enum Link : uint8_t { parent, session, group, pid_space, childrens_space, foreground, all_links };
constexpr uint8_t plain_links = 3, links_with_spaces = 5;

/// A process, or an id without one.
struct GraphNode {
  Color label = 0;
  std::array<Index, all_links> to{none, none, none, none, none, none};
  std::array<std::vector<Index>, all_links> from;
};

class Graph {
 public:
  explicit Graph(const model::Application& tree) {
    for (const auto& task : tree.tasks) add(task.pid, label_of(tree, task));
    for (const auto& [pid, leader] : tree.dead_leaders) add(pid, mix(dead_leader, leader.nested_pids.size()));
    const model::PidNamespaces spaces(tree);
    for (const auto& task : tree.tasks) {
      if (task.pid != tree.root) connect(task.pid, parent, task.parent);
      connect(task.pid, session, task.session);
      connect(task.pid, group, task.group);
      const Pid around = task.pid_namespace == task.pid ? task.outer_namespace : task.pid_namespace;
      const bool entered = around.value != 0 && around != spaces.of(task.parent);
      if (entered) connect(task.pid, pid_space, around);
      const Pid childrens = task.childrens_namespace();
      const bool have_another = childrens.value != 0 && childrens != model::empty_namespace;
      if (have_another) connect(task.pid, childrens_space, childrens);
      if (entered || have_another) links_ = links_with_spaces;
    }
    for (const auto& [number, terminal] : tree.terminals) {
      if (terminal.session.value == 0) continue;
      connect(terminal.session, foreground, terminal.foreground);
      links_ = all_links;
    }
  }
  uint8_t links() const { return links_; }
  const std::vector<GraphNode>& nodes() const { return nodes_; }
  const std::vector<Pid>& ids() const { return ids_; }

 private:
  enum Kind : uint8_t { process, dead_leader, outside, has_terminal, has_empty_namespace };

  static Color label_of(const model::Application& tree, const model::Task& task) {
    const bool zombie = task.state == model::TaskState::zombie;
    const bool stopped = task.state == model::TaskState::stopped;
    // A zombie has no threads: the two are told apart by their number.
    const int status = task.leader_has_ended() ? 1 + *task.threads.front().exit_status : task.exit_status;
    Color label = mix(process, zombie, stopped, status, task.child_subreaper, task.threads.size(),
                      task.pid == tree.root, task.pid == tree.root && tree.root_is_namespace_init);
    if (tree.terminals.contains(task.controlling_terminal)) label = mix(label, has_terminal);
    if (task.childrens_namespace() == model::empty_namespace) label = mix(label, has_empty_namespace);
    return task.nested_pids.empty() ? label : mix(label, task.nested_pids.size(), task.pid == task.pid_namespace);
  }
  Index add(Pid id, Color label) {
    const auto [found, fresh] = index_.try_emplace(id, static_cast<Index>(nodes_.size()));
    if (fresh) {
      nodes_.push_back({.label = label});
      ids_.push_back(id);
    }
    return found->second;
  }
  void connect(Pid from, Link link, Pid to) {
    const Index source = index_.at(from), target = add(to, mix(to.value == 0 ? outside : dead_leader));
    nodes_[source].to[link] = target;
    nodes_[target].from[link].push_back(source);
  }

  std::map<Pid, Index> index_;
  std::vector<GraphNode> nodes_;
  std::vector<Pid> ids_;
  uint8_t links_ = plain_links;
};

class Canonizer {
 public:
  Canonizer(const Graph& graph, const ShapeLimits& limits)
      : nodes_(graph.nodes()),
        links_(graph.links()),
        trials_left_(limits.trials),
        part_(nodes_.size()),
        place_(nodes_.size()) {}

  /// All nodes in canonical order.
  Result<std::vector<Index>> run() {
    std::vector<Index> all;
    for (Index node = 0; node < nodes_.size(); ++node) all.push_back(node);
    color_by_descent();
    auto order = settle(all);
    if (gave_up_) {
      return fail(Error::unsupported("bring the tree into canonical form",
                                     "too many of its processes look alike for the bound of the search"));
    }
    return order;
  }

 private:
  /// From the leaves up, then from the root down: what the tree alone tells.
  void color_by_descent() {
    std::vector<Index> order;
    for (Index node = 0; node < nodes_.size(); ++node) {
      if (nodes_[node].to[parent] == none) order.push_back(node);  // the root; dead leaders
    }
    for (size_t next = 0; next < order.size(); ++next) {
      const auto& children = nodes_[order[next]].from[parent];
      order.insert(order.end(), children.begin(), children.end());
    }
    colors_.resize(nodes_.size());
    for (const Index node : std::views::reverse(order)) {
      Color below = 0;
      for (const Index child : nodes_[node].from[parent]) below += mix(colors_[child]);
      colors_[node] = mix(nodes_[node].label, below);
    }
    for (const Index node : order) {
      if (nodes_[node].to[parent] != none) colors_[node] = mix(colors_[nodes_[node].to[parent]], colors_[node]);
    }
  }

  size_t count_colors(const std::vector<Index>& members) const {
    std::vector<Color> seen;
    seen.reserve(members.size());
    for (const Index node : members) seen.push_back(colors_[node]);
    std::ranges::sort(seen);
    return static_cast<size_t>(std::ranges::unique(seen).begin() - seen.begin());
  }

  /// Until neighbours tell no more nodes apart.
  void refine(const std::vector<Index>& members) {
    std::vector<Color> next(members.size());
    for (size_t colors = count_colors(members), before = 0; colors > before && colors < members.size();) {
      for (size_t i = 0; i < members.size(); ++i) next[i] = seen_from(members[i]);
      for (size_t i = 0; i < members.size(); ++i) colors_[members[i]] = next[i];
      before = std::exchange(colors, count_colors(members));
    }
  }
  Color seen_from(Index index) const {
    const auto& node = nodes_[index];
    std::array<Color, size_t{2} * all_links> around{};
    for (uint8_t link = 0; link < links_; ++link) {
      if (node.to[link] != none) around[link] = colors_[node.to[link]];
      for (const Index from : node.from[link]) around[links_ + link] += mix(colors_[from]);
    }
    return mix(colors_[index], XXH3_64bits(around.data(), size_t{2} * links_ * sizeof(Color)));
  }

  /// The members in canonical order. Links that leave them lead to settled nodes.
  std::vector<Index> settle(std::vector<Index> members) {
    refine(members);
    std::ranges::sort(members, {}, [&](Index node) { return colors_[node]; });
    std::vector<Index> order, rest;
    for (size_t i = 0; i < members.size(); ++i) {
      const bool like_last = i > 0 && colors_[members[i - 1]] == colors_[members[i]];
      const bool like_next = i + 1 < members.size() && colors_[members[i + 1]] == colors_[members[i]];
      (like_last || like_next ? rest : order).push_back(members[i]);
    }
    auto parts = parts_of(rest);
    if (order.empty() && parts.size() == 1) return settle_by_trial(members);
    std::vector<Settled> settled;
    for (auto& part : parts) settled.push_back(with_description(settle(std::move(part))));
    std::ranges::stable_sort(settled, {}, &Settled::description);
    for (const auto& part : settled) order.insert(order.end(), part.order.begin(), part.order.end());
    return order;
  }

  struct Settled {
    std::vector<Index> order;
    std::vector<Color> description;  ///< equal: one can stand for the other
  };
  Settled with_description(std::vector<Index> order) {
    Settled settled{std::move(order), {}};
    mark(settled.order);
    for (const Index node : settled.order) {
      settled.description.push_back(nodes_[node].label);
      for (const Index to : nodes_[node].to)
        settled.description.push_back(to == none ? 0 : part_[to] == stamp_ ? place_[to] : colors_[to]);
    }
    return settled;
  }
  void mark(const std::vector<Index>& order) {
    ++stamp_;
    for (size_t i = 0; i < order.size(); ++i) {
      part_[order[i]] = stamp_;
      place_[order[i]] = i + 1;
    }
  }

  /// Connected by links, in any direction.
  std::vector<std::vector<Index>> parts_of(const std::vector<Index>& members) {
    const uint64_t open = ++stamp_;
    for (const Index node : members) part_[node] = open;
    std::vector<std::vector<Index>> parts;
    for (const Index first : members) {
      if (part_[first] != open) continue;
      auto& part = parts.emplace_back();
      const auto take = [&](Index node) {
        if (node == none || part_[node] != open) return;
        part_[node] = 0;
        part.push_back(node);
      };
      take(first);
      for (size_t next = 0; next < part.size(); ++next) {
        const auto& node = nodes_[part[next]];
        for (const Index to : node.to) take(to);
        for (const auto& from : node.from) std::ranges::for_each(from, take);
      }
    }
    return parts;
  }

  /// Nobody has a colour of his own: each of the smallest class gets one in turn.
  std::vector<Index> settle_by_trial(const std::vector<Index>& members) {
    std::vector<Index> candidates;
    for (size_t begin = 0, end = 0; begin < members.size(); begin = end) {
      while (end < members.size() && colors_[members[end]] == colors_[members[begin]]) ++end;
      if (candidates.empty() || end - begin < candidates.size())
        candidates.assign(members.begin() + static_cast<ptrdiff_t>(begin),
                          members.begin() + static_cast<ptrdiff_t>(end));
    }
    std::vector<Color> before;
    for (const Index node : members) before.push_back(colors_[node]);
    std::optional<Settled> least;
    for (const Index candidate : candidates) {
      if (gave_up_ || trials_left_-- == 0) {
        gave_up_ = true;
        return members;
      }
      colors_[candidate] = mix(colors_[candidate], 1);
      auto settled = settle(members);
      for (size_t i = 0; i < members.size(); ++i) colors_[members[i]] = before[i];
      auto described = with_description(std::move(settled));
      if (!least || described.description < least->description) least = std::move(described);
    }
    return std::move(least->order);
  }

  const std::vector<GraphNode>& nodes_;
  uint8_t links_;
  std::vector<Color> colors_;
  size_t trials_left_;
  bool gave_up_ = false;
  uint64_t stamp_ = 0;
  std::vector<uint64_t> part_, place_;  // scratch: part_ is valid where it equals stamp_
};

class Renaming {
 public:
  Renaming(const model::Application& tree, const std::vector<Pid>& ids_in_order) : tree_(tree), tasks_(tree) {
    for (size_t i = 0; i < ids_in_order.size(); ++i) rank_[ids_in_order[i]] = i;
    for (const auto& task : tree.tasks) {
      if (task.pid != tree.root) children_[task.parent].push_back(task.pid);
    }
    next_ = tree.root_is_namespace_init ? 1 : 2;
    names_[0] = 0;
    walk();
    for (const Pid id : ids_in_order) name(id.value);  // dead leaders
    for (const auto* task : walked_) name_threads(*task);
  }
  std::map<pid_t, pid_t> take() { return std::move(names_); }

 private:
  void walk() {
    std::vector<Pid> open{tree_.root};
    while (!open.empty()) {
      const Pid pid = open.back();
      open.pop_back();
      name(pid.value);
      walked_.push_back(tasks_.find(pid));
      auto& below = children_[pid];
      std::ranges::sort(below, std::ranges::greater(), [&](Pid child) { return rank_.at(child); });
      open.insert(open.end(), below.begin(), below.end());
    }
  }
  void name_threads(const model::Task& task) {
    std::set<Tid> tids;
    for (const auto& thread : task.threads) tids.insert(thread.tid);
    for (const Tid tid : tids) name(tid.value);
  }
  void name(pid_t id) {
    if (names_.try_emplace(id, next_).second) ++next_;
  }

  const model::Application& tree_;
  const model::TaskIndex tasks_;
  std::map<Pid, size_t> rank_;
  std::map<Pid, std::vector<Pid>> children_;
  std::vector<const model::Task*> walked_;
  std::map<pid_t, pid_t> names_;
  pid_t next_ = 0;
};

}  // namespace

std::map<pid_t, pid_t> inverted(const std::map<pid_t, pid_t>& renaming) {
  std::map<pid_t, pid_t> back;
  for (const auto& [id, name] : renaming) back[name] = id;
  return back;
}

namespace {

/// Those that control sessions get indices in the order of these.
template <typename Other>
void rename_terminals(const model::Application& tree, model::Application& made, Other other) {
  std::map<Pid, Pid> foregrounds;
  for (const auto& [number, terminal] : tree.terminals) {
    if (terminal.session.value != 0) foregrounds[other(terminal.session)] = other(terminal.foreground);
  }
  std::map<Pid, uint64_t> numbers;
  for (const auto& [session, group] : foregrounds) {
    const uint64_t number = model::terminal_with_index(static_cast<uint32_t>(numbers.size()));
    numbers[session] = number;
    made.terminals[number] = {.session = session, .foreground = group, .slave_opened = true};
  }
  for (size_t i = 0; i < tree.tasks.size(); ++i) {
    if (tree.terminals.contains(tree.tasks[i].controlling_terminal))
      made.tasks[i].controlling_terminal = numbers.at(made.tasks[i].session);
  }
}

}  // namespace

model::Application renamed(const model::Application& tree, const std::map<pid_t, pid_t>& renaming) {
  const auto other = [&](auto id) {
    const auto found = renaming.find(id.value);
    return found == renaming.end() ? id : decltype(id){found->second};
  };
  model::Application made;
  made.root = other(tree.root);
  made.root_is_namespace_init = tree.root_is_namespace_init;
  made.shell_job = tree.shell_job;
  for (const auto& task : tree.tasks) {
    auto& copy = made.tasks.emplace_back();
    copy.pid = other(task.pid);
    copy.parent = task.pid == tree.root ? Pid{0} : other(task.parent);
    copy.group = other(task.group);
    copy.session = other(task.session);
    copy.state = task.state;
    copy.stop_signal = task.state == model::TaskState::stopped ? SIGSTOP : 0;
    copy.exit_status = task.exit_status;
    copy.child_subreaper = task.child_subreaper;
    copy.pid_namespace = other(task.pid_namespace), copy.outer_namespace = other(task.outer_namespace);
    for (const auto& thread : task.threads) {
      auto& made_thread = copy.threads.emplace_back();
      made_thread.tid = other(thread.tid);
      made_thread.exit_status = thread.exit_status;
      made_thread.childrens_namespace = other(thread.childrens_namespace);
    }
    std::ranges::sort(copy.threads, {}, [&](const auto& t) { return std::pair(t.tid != leader_of(copy.pid), t.tid); });
  }
  for (const auto& [pid, leader] : tree.dead_leaders)
    made.dead_leaders[other(pid)].pid_namespace = other(leader.pid_namespace);
  number_nested(made);
  rename_terminals(tree, made, other);
  return made;
}

Result<Shape> canonical_form(const model::Application& tree, const ShapeLimits& limits) {
  const Graph graph(tree);
  std::vector<Pid> ids;
  for (const Index node : TRY(Canonizer(graph, limits).run())) ids.push_back(graph.ids()[node]);
  Shape shape;
  shape.renaming = Renaming(tree, ids).take();
  shape.tree = renamed(tree, shape.renaming);
  std::ranges::sort(shape.tree.tasks, {}, &model::Task::pid);  // a walk: parents before their children
  const auto text = tree_to_json(shape.tree);
  const auto hash = XXH3_128bits(text.data(), text.size());
  shape.hash = fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  return shape;
}

}  // namespace stasis::plan
