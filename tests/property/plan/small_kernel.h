// A kernel of an init and up to seven other processes, and every state that it can reach: the measure of what is
// restorable.
//
// It is a third opinion, beside the planner's theorem and the verifier's model, and as plain as can be: states are
// words, operations are a few lines each (kernel/fork.c, kernel/sys.c, kernel/exit.c, kernel/pid.c), and all of them
// are tried in all states. Two things keep the states few, and lose none:
//
// - Pids are names. Only one state of all those that differ by a renaming of pids is kept, and only the lowest number
//   that is free is given to a child.
// - Subreaper flags are not kept. Whoever lives may set and clear its own flag at any time, nothing forbids it, and
//   the only thing that depends on flags is where a dying process's children go: to any living ancestor, then, for
//   whom the flags of the others have been cleared before. In the end everybody has the flag or not, as wanted.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <unordered_set>
#include <vector>

namespace stasis::plan::small {

inline constexpr int most_pids = 7;  ///< beside 0, which is the init

struct Process {
  bool exists = false, zombie = false;
  int parent = 0, session = 0, group = 0;
  int space = 0;  ///< the init of its pid namespace; of one that is gone: of that of a session or group with its number
  int above = 0;  ///< of an init: that of the namespace which its own lies in
};

/// Of the init, in session and group 0, and of those with the pids from 1.
using State = std::array<Process, most_pids + 1>;

inline State only_init() {
  State state;
  state[0].exists = true;
  return state;
}

/// A number for each pid. One that does not exist is its own parent.
using Word = std::array<uint16_t, most_pids>;

struct HashOfWord {
  size_t operator()(const Word& word) const {
    uint64_t hash = 0;
    for (const uint16_t part : word) hash = (hash ^ part) * 0x9e3779b97f4a7c15, hash ^= hash >> 32;
    return hash;
  }
};
using States = std::unordered_set<Word, HashOfWord>;

inline Word word_of(const State& state) {
  Word word;
  for (int p = 1; p <= most_pids; ++p) {
    const auto& process = state[p];
    const int bits =
        process.exists ? process.parent | process.session << 3 | process.group << 6 | (process.zombie ? 1 << 9 : 0) : p;
    word[p - 1] = static_cast<uint16_t>(bits | process.space << 10 | process.above << 13);
  }
  return word;
}
inline State state_of(const Word& word) {
  State state = only_init();
  for (int p = 1; p <= most_pids; ++p) {
    const int bits = word[p - 1], parent = bits & 7;
    if (parent != p) state[p] = {true, (bits >> 9 & 1) != 0, parent, bits >> 3 & 7, bits >> 6 & 7};
    state[p].space = bits >> 10 & 7, state[p].above = bits >> 13 & 7;
  }
  return state;
}

/// A number is free if nobody has it as its pid, session or group (kernel/pid.c, __change_pid).
inline bool is_free(const State& state, int number) {
  return std::ranges::none_of(state,
                              [&](const Process& process) {
                                return process.exists && (process.session == number || process.group == number);
                              }) &&
         !state[number].exists;
}
inline int count_processes(const State& state) {
  return static_cast<int>(std::ranges::count(state, true, &Process::exists)) - 1;
}
using Renaming = std::array<int, most_pids + 1>;

inline State renamed(const State& state, const Renaming& name) {
  State made = only_init();
  for (int p = 1; p <= most_pids; ++p) {
    const auto& process = state[p];
    if (process.exists)
      made[name[p]] = {true, process.zombie, name[process.parent], name[process.session], name[process.group]};
    made[name[p]].space = name[process.space], made[name[p]].above = name[process.above];
  }
  return made;
}

/// The same for all states that differ by a renaming. Processes are told apart by what can be seen of them and their
/// neighbours; among those who look alike, every order is tried.
class Canonical {
 public:
  explicit Canonical(const State& state) : state_(state) {
    colour();
    for (int p = 1; p <= most_pids; ++p) order_[p - 1] = p;
    std::ranges::sort(order_, {}, [&](int p) { return colours_[p]; });
    arrange(0);
  }
  Word word() const { return least_; }

 private:
  static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15;
    return x ^ x >> 29;
  }
  void colour() {
    colours_[0] = 1;
    for (int p = 1; p <= most_pids; ++p) {
      const auto& process = state_[p];
      // A number that nobody has comes last, and there is nothing to tell it from others of its kind.
      colours_[p] = is_free(state_, p)
                        ? last
                        : (process.exists ? 2 : 0) + (process.zombie ? 4 : 0) + (process.session == p ? 8 : 0) +
                              (process.group == p ? 16 : 0) + (process.space == p ? 32 : 0);
    }
    for (int round = 0; round < 3; ++round) {
      auto next = colours_;
      for (int p = 1; p <= most_pids; ++p) {
        const auto& process = state_[p];
        if (process.space != 0)
          next[p] += mix(colours_[process.space] + 7), next[process.space] += mix(colours_[p] + 8);
        if (process.above != 0)
          next[p] += mix(colours_[process.above] + 9), next[process.above] += mix(colours_[p] + 10);
        if (!process.exists) continue;
        next[p] +=
            mix(colours_[process.parent] + 1) + mix(colours_[process.session] + 2) + mix(colours_[process.group] + 3);
        next[process.parent] += mix(colours_[p] + 4);
        next[process.session] += mix(colours_[p] + 5);
        next[process.group] += mix(colours_[p] + 6);
      }
      for (int p = 1; p <= most_pids; ++p) colours_[p] = next[p] == last ? last : mix(next[p]) >> 1;
    }
  }
  void arrange(int index) {
    if (index == most_pids || colours_[order_[index]] == last) {
      Renaming name{};
      for (int i = 0; i < most_pids; ++i) name[order_[i]] = i + 1;
      least_ = std::min(least_, word_of(renamed(state_, name)));
      return;
    }
    for (int other = index; other < most_pids && colours_[order_[other]] == colours_[order_[index]]; ++other) {
      std::swap(order_[index], order_[other]);
      arrange(index + 1);
      std::swap(order_[index], order_[other]);
    }
  }

  static Word worst() {
    Word word;
    word.fill(0xffff);
    return word;
  }

  static constexpr uint64_t last = ~uint64_t{0};
  const State& state_;
  std::array<uint64_t, most_pids + 1> colours_{};
  std::array<int, most_pids> order_{};
  Word least_ = worst();
};

inline Word canonical(const State& state) { return Canonical(state).word(); }

/// What is played with.
struct Rules {
  int pids = most_pids;                ///< so many beside the init, helpers included
  bool groups = true, zombies = true;  ///< without: nobody calls setpgid; who ends is waited for at once
  bool spaces = false;                 ///< pid namespaces nested in the init's own
};

/// A namespace is named by its init.
inline bool is_init(const State& state, int p) { return state[p].exists && state[p].space == p; }
inline bool contains(const State& state, int outer, int inner) {
  for (int at = inner;; at = state[at].above) {
    if (at == outer) return true;
    if (at == 0) return false;
  }
}

/// Calls `visit` with every state that one operation leads to.
template <typename Visit>
class Step {
 public:
  Step(const State& now, const Rules& rules, Visit& visit) : now_(now), rules_(rules), visit_(visit) {}

  void run() {
    for (int p = 0; p <= rules_.pids; ++p) {
      if (!now_[p].exists) continue;
      if (now_[p].zombie) {
        reap(p);
      } else {
        fork(p);
        if (p != 0) set_sid(p);
        if (p != 0) exit(p);
      }
      if (p != 0 && rules_.groups) set_pgid(p);
    }
  }

 private:
  template <typename Change>
  void with(Change change) {
    State next = now_;
    change(next);
    visit_(next);
  }
  bool anybody(auto holds) const {
    return std::ranges::any_of(now_, [&](const Process& q) { return q.exists && holds(q); });
  }

  /// Also as a sibling (CLONE_PARENT), which an init has not. In its own pid namespace, or in one below that it can
  /// enter for a moment (setns), or in a new one, which lies in its own: as long as it has entered another it cannot
  /// begin one (kernel/pid_namespace.c, copy_pid_ns).
  void fork(int p) {
    int child = 1;
    while (child <= rules_.pids && !is_free(now_, child)) ++child;
    if (child > rules_.pids) return;
    const auto bear = [&](int parent, int space) {
      const int above = space == child ? now_[p].space : 0;
      with([&](State& next) { next[child] = {true, false, parent, now_[p].session, now_[p].group, space, above}; });
    };
    const bool has_siblings = !is_init(now_, p);
    for (int space = 0; space <= rules_.pids; ++space) {
      const bool lives = is_init(now_, space) && !now_[space].zombie;
      if (!lives || !contains(now_, now_[p].space, space)) continue;
      bear(p, space);
      if (has_siblings) bear(now_[p].parent, space);
    }
    if (!rules_.spaces) return;
    bear(p, child);
    if (has_siblings) bear(now_[p].parent, child);
  }
  /// Refused to leaders, and as long as there is a group of that number, whoever is in it.
  void set_sid(int p) {
    if (now_[p].session == p || anybody([&](const Process& q) { return q.group == p; })) return;
    with([&](State& next) { next[p].session = next[p].group = p; });
  }
  /// By itself or, for a zombie too, by its parent in the same session. A group of another number must have a member in
  /// the session, whether one who leads it, and whether alive, does not matter; and the number must be known in the pid
  /// namespace of whoever calls.
  void set_pgid(int p) {
    const auto& process = now_[p];
    if (process.session == p) return;
    const bool by_parent = now_[process.parent].session == process.session;
    for (int group = 0; group <= rules_.pids; ++group) {
      const bool may_join =
          group == p || anybody([&](const Process& q) { return q.group == group && q.session == process.session; });
      const auto knows = [&](int by) { return contains(now_, now_[by].space, now_[group].space); };
      if (may_join && group != process.group && ((!process.zombie && knows(p)) || (by_parent && knows(process.parent))))
        with([&](State& next) { next[p].group = group; });
    }
  }
  /// Children, zombies among them, go to whichever ancestor is the nearest subreaper then, in the same pid namespace;
  /// or to its init. The end of an init is that of all in its namespace, here when they are gone already; it waits
  /// until no number is in use there.
  void exit(int p) {
    const bool has_children = anybody([&](const Process& q) { return q.parent == p; });
    if (is_init(now_, p) && has_others(p)) return;
    for (int reaper = now_[p].parent;; reaper = now_[reaper].parent) {
      const bool is_last = reaper == 0 || now_[reaper].space != now_[p].space;
      const int taker = is_last ? now_[p].space : reaper;
      with([&](State& next) {
        for (int child = 1; child <= rules_.pids; ++child)
          if (next[child].exists && next[child].parent == p) next[child].parent = taker;
        next[p].zombie = true;
        if (!rules_.zombies) bury(next, p);
      });
      if (is_last || !has_children) return;
    }
  }
  bool has_others(int init) const {
    for (int id = 1; id <= rules_.pids; ++id)
      if (id != init && !is_free(now_, id) && contains(now_, init, now_[id].space)) return true;
    return false;
  }
  /// Its number keeps its place as long as it is in use; one of an init only where others may see it.
  static void bury(State& state, int p) {
    state[p] = {.space = is_init(state, p) ? state[p].above : state[p].space};
    for (auto& process : state) {
      const auto id = static_cast<int>(&process - state.data());
      if (is_free(state, id)) process = {};
    }
  }
  void reap(int p) {
    with([&](State& next) { bury(next, p); });
  }

  const State& now_;
  const Rules& rules_;
  Visit& visit_;
};

/// The canonical words of all states that can be reached.
inline States reachable_states(const Rules& rules) {
  States seen{canonical(only_init())};
  std::vector<Word> open(seen.begin(), seen.end());
  const auto visit = [&](const State& next) {
    const Word word = canonical(next);
    if (seen.insert(word).second) open.push_back(word);
  };
  while (!open.empty()) {
    const State state = state_of(open.back());
    open.pop_back();
    Step(state, rules, visit).run();
  }
  return seen;
}

}  // namespace stasis::plan::small
