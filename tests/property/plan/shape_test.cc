// Canonical forms, and trees and programs as words.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <rapidcheck/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <set>

#include "plan/bare_tree.h"
#include "plan/shape.h"
#include "plan/tokens.h"
#include "plan/tree_history.h"

namespace stasis::plan {
namespace {

using nlohmann::ordered_json;

TreeHistory any_history() {
  return random_history(*rc::gen::arbitrary<uint64_t>(), *rc::gen::inRange(0u, 120u), *rc::gen::arbitrary<bool>(),
                        *rc::gen::arbitrary<bool>());
}

model::Application read(const ordered_json& processes) {
  auto tree = tree_from_json(ordered_json{{"processes", processes}}.dump());
  if (!tree) throw std::runtime_error(tree.error().message());
  return std::move(*tree);
}

/// Other pids for all but 0 and the root, the processes in another order.
model::Application disguised(const model::Application& tree, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto shape = canonical_form(tree);
  std::vector<pid_t> pool(4 * shape->renaming.size());
  std::iota(pool.begin(), pool.end(), 2);
  std::ranges::shuffle(pool, random);
  std::map<pid_t, pid_t> names;
  for (const auto& [id, unused] : shape->renaming) {
    if (id == 0 || id == tree.root.value) continue;
    names[id] = pool.back();
    pool.pop_back();
  }
  auto json = ordered_json::parse(tree_to_json(renamed(tree, names)));
  auto processes = json["processes"].get<std::vector<ordered_json>>();
  std::ranges::shuffle(processes, random);
  json["processes"] = processes;
  auto other = tree_from_json(json.dump());
  if (!other) throw std::runtime_error(other.error().message());
  return std::move(*other);
}

RC_GTEST_PROP(Shapes, SurviveRenamingOrderAndRepetition, ()) {
  const auto history = any_history();
  const auto shape = canonical_form(history.tree);
  RC_ASSERT(shape.has_value());
  const auto other = canonical_form(disguised(history.tree, *rc::gen::arbitrary<uint64_t>()));
  RC_ASSERT(other.has_value());
  RC_ASSERT(tree_to_json(other->tree) == tree_to_json(shape->tree));
  RC_ASSERT(other->hash == shape->hash);
  const auto again = canonical_form(shape->tree);
  RC_ASSERT(tree_to_json(again->tree) == tree_to_json(shape->tree));
}

RC_GTEST_PROP(Shapes, AreTheTreeUnderOtherNames, ()) {
  const auto history = any_history();
  const auto shape = canonical_form(history.tree);
  std::map<pid_t, pid_t> back;
  for (const auto& [id, name] : shape->renaming) RC_ASSERT(back.emplace(name, id).second);
  // Ids in nested namespaces follow from the pids.
  RC_ASSERT(tree_to_json(renamed(shape->tree, back)) == tree_to_json(renamed(history.tree, {})));
}

/// Two that differ only in which of two namespaces somebody has entered, or where children are to be born.
TEST(Shapes, NamespacesThatNoParentTells) {
  const auto hash = [](const char* entered, const char* births) {
    const auto tree = tree_from_json(fmt::format(
        R"({{"processes": [{{"pid": 1, "ppid": 0, "pgid": 1, "sid": 1{}}},
            {{"pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1]}},
            {{"pid": 3, "ppid": 1, "pgid": 3, "sid": 3, "nested_pids": [1]}},
            {{"pid": 4, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [2], "pid_namespace": {}}}]}})",
        births, entered));
    return tree ? canonical_form(*tree)->hash : tree.error().message();
  };
  const std::set<std::string> hashes{hash("2", ""), hash("3", ""), hash("2", ", \"childrens_namespace\": 2"),
                                     hash("2", ", \"childrens_namespace\": 3")};
  EXPECT_EQ(hashes.size(), 4u) << testing::PrintToString(hashes);
  EXPECT_THAT(hashes, testing::Each(testing::SizeIs(32)));
}

/// Two that differ only in which of two namespaces another lies in, whose init's parent is outside of both.
TEST(Shapes, SayWhatNamespacesLieIn) {
  const ordered_json root{{"pid", 1}, {"ppid", 0}, {"pgid", 1}, {"sid", 1}};
  const ordered_json one{{"pid", 2}, {"ppid", 1}, {"pgid", 1}, {"sid", 1}, {"nested_pids", {1}}};
  const ordered_json other{{"pid", 3}, {"ppid", 1}, {"pgid", 3}, {"sid", 3}, {"nested_pids", {1}}};
  std::set<std::string> hashes;
  for (const int outer : {2, 3}) {
    const ordered_json inner{
        {"pid", 4}, {"ppid", 1}, {"pgid", 1}, {"sid", 1}, {"nested_pids", {2, 1}}, {"outer_namespace", outer}};
    const auto shape = canonical_form(read({root, one, other, inner}));
    ASSERT_TRUE(shape);
    hashes.insert(shape->hash);
    const auto tokens = tree_tokens(shape->tree);
    EXPECT_THAT(join(tokens), testing::HasSubstr("namespace self in "));
    const auto back = from_tokens(tokens);
    ASSERT_TRUE(back) << back.error().message();
    EXPECT_EQ(tree_to_json(std::get<model::Application>(*back)), tree_to_json(shape->tree));
  }
  EXPECT_EQ(hashes.size(), 2u);
  // Of two that lie in each other none has an end.
  EXPECT_FALSE(
      from_tokens(split("tree init ( session self group self ( namespace self in 3 ) ( namespace self in 2 ) )")));
}

TEST(Shapes, SayWhoseFirstThreadHasEnded) {
  const ordered_json one{{"pid", 1}, {"ppid", 0}, {"pgid", 1}, {"sid", 1}};
  ordered_json other{{"pid", 2}, {"ppid", 1}, {"pgid", 1}, {"sid", 1}, {"state", "alive"}, {"threads", {3}}};
  const auto living = canonical_form(read({one, other}));
  other["leader_exit_code"] = 7;
  const auto ended = canonical_form(read({one, other}));
  ASSERT_TRUE(living && ended);
  EXPECT_NE(living->hash, ended->hash);
  const auto tokens = tree_tokens(ended->tree);
  EXPECT_THAT(join(tokens), testing::HasSubstr("threads 1 leader 7 )"));
  const auto back = from_tokens(tokens);
  ASSERT_TRUE(back) << back.error().message();
  EXPECT_EQ(tree_to_json(std::get<model::Application>(*back)), tree_to_json(ended->tree));
}

/// Every tree of a family: is it told apart from all others but those that some renaming makes it?
class Family {
 public:
  /// Links of processes 2, 3, …: parent, session, group of each.
  using Links = std::vector<std::array<int, 3>>;
  void add(const Links& links) {
    ordered_json processes{{{"pid", 1}, {"ppid", 0}, {"pgid", 1}, {"sid", 1}}};
    for (size_t i = 0; i < links.size(); ++i)
      processes.push_back({{"pid", i + 2}, {"ppid", links[i][0]}, {"pgid", links[i][2]}, {"sid", links[i][1]}});
    const auto tree = tree_from_json(ordered_json{{"processes", processes}}.dump());
    if (!tree) return;  // parents in a circle
    const auto hash = canonical_form(*tree)->hash;
    const auto least = least_renaming(links);
    const auto [by_hash, new_hash] = by_hash_.try_emplace(hash, least);
    const auto [by_renaming, new_renaming] = by_renaming_.try_emplace(least, hash);
    EXPECT_EQ(new_hash, new_renaming) << tree_to_json(*tree);
    EXPECT_EQ(by_hash->second, least);
    EXPECT_EQ(by_renaming->second, hash);
  }
  size_t shapes() const { return by_hash_.size(); }

 private:
  static Links least_renaming(const Links& links) {
    std::vector<int> order(links.size());
    std::iota(order.begin(), order.end(), 2);
    std::optional<Links> least;
    do {
      const auto name = [&](int id) {
        return id >= 2 && id < 2 + static_cast<int>(links.size()) ? order[static_cast<size_t>(id - 2)] : id;
      };
      Links renamed(links.size());
      for (size_t i = 0; i < links.size(); ++i) {
        auto& row = renamed[static_cast<size_t>(name(static_cast<int>(i) + 2) - 2)];
        for (size_t link = 0; link < 3; ++link) row[link] = name(links[i][link]);
      }
      if (!least || renamed < *least) least = renamed;
    } while (std::ranges::next_permutation(order).found);
    return *least;
  }
  std::map<std::string, Links> by_hash_;
  std::map<Links, std::string> by_renaming_;
};

constexpr int dead = 9;  // the id of a leader that is no more

TEST(AllSmallShapes, ParentsAndSessions) {
  constexpr int targets[] = {1, 2, 3, 4, dead};
  Family family;
  for (int code = 0; code < 64 * 125; ++code) {
    Family::Links links;
    for (int i = 0, rest = code; i < 3; ++i) {
      const int parent = 1 + rest % 4;
      rest /= 4;
      const int session = targets[rest % 5];
      rest /= 5;
      links.push_back({parent, session, session});
    }
    family.add(links);
  }
  EXPECT_EQ(family.shapes(), 350u);
}

TEST(AllSmallShapes, GroupsLedByAnybody) {
  constexpr int targets[] = {1, 2, 3, 4, 5, dead};
  Family family;
  for (int code = 0; code < 6 * 6 * 6 * 6; ++code) {
    Family::Links links;
    for (int i = 0, rest = code; i < 4; ++i, rest /= 6) links.push_back({1, 1, targets[rest % 6]});
    family.add(links);
  }
  EXPECT_EQ(family.shapes(), 90u);
}

/// Each leads the group of the next.
ordered_json ring(int first, int length) {
  auto processes = ordered_json::array();
  for (int i = 0; i < length; ++i)
    processes.push_back({{"pid", first + i}, {"ppid", 1}, {"pgid", first + (i + 1) % length}, {"sid", 1}});
  return processes;
}

model::Application rings(std::vector<int> lengths) {
  ordered_json processes{{{"pid", 1}, {"ppid", 0}, {"pgid", 1}, {"sid", 1}}};
  int first = 2;
  for (const int length : lengths) {
    for (auto& process : ring(first, length)) processes.push_back(process);
    first += length;
  }
  return read(processes);
}

/// Whoever looks at neighbours only sees no difference.
TEST(Shapes, OneRingIsNotTwo) {
  EXPECT_NE(canonical_form(rings({6}))->hash, canonical_form(rings({3, 3}))->hash);
  EXPECT_NE(canonical_form(rings({2, 4}))->hash, canonical_form(rings({3, 3}))->hash);
  EXPECT_EQ(canonical_form(rings({2, 4}))->hash, canonical_form(rings({4, 2}))->hash);
}

TEST(Shapes, GiveUpAtTheBound) {
  const auto shape = canonical_form(rings({8}), {.trials = 7});
  ASSERT_FALSE(shape);
  EXPECT_EQ(shape.error().code(), ErrorCode::unsupported);
  EXPECT_TRUE(canonical_form(rings({8}), {.trials = 8}));
}

/// Stays what it is: dumps, caches and datasets are keyed by it.
TEST(Shapes, HashIsStable) { EXPECT_EQ(canonical_form(rings({2}))->hash, "fdc34f43ca9dc13f5fe46c4f1fb8c258"); }

RC_GTEST_PROP(Words, LoseNothingOfATree, ()) {
  const auto shape = canonical_form(any_history().tree);
  const auto tokens = tree_tokens(shape->tree);
  RC_ASSERT(split(join(tokens)) == tokens);
  const auto decoded = from_tokens(tokens);
  if (!decoded) RC_FAIL(decoded.error().message() + "\n" + join(tokens));
  RC_ASSERT(tree_to_json(std::get<model::Application>(*decoded)) == tree_to_json(shape->tree));
}

RC_GTEST_PROP(Words, LoseNothingOfAProgram, ()) {
  const auto history = any_history();
  for (const auto& program : {history.program, *make_tree_program(history.tree)}) {
    const auto decoded = from_tokens(program_tokens(program));
    if (!decoded) RC_FAIL(decoded.error().message());
    RC_ASSERT(to_json(std::get<Program>(*decoded)) == to_json(program));
  }
}

TEST(Words, SpellWholePrograms) {
  Program program;
  program.agent_area = {0x10000, 0x20000};
  program.images_fd = 7;
  Perform perform;
  perform.purpose = "a \"name\" with \\ and \n";
  perform.calls.push_back(call(1, -5, In{{0, 0xff}, {}}, ResultOf{-1}));
  program.commands.push_back({Pid{1}, Tid{1}, perform});
  const auto decoded = from_tokens(split(join(program_tokens(program))));
  ASSERT_TRUE(decoded) << decoded.error().message();
  EXPECT_EQ(to_json(std::get<Program>(*decoded)), to_json(program));
}

RC_GTEST_PROP(Words, DamagedOnesAreRefusedOrMeanSomething, ()) {
  const auto history = any_history();
  auto tokens =
      *rc::gen::arbitrary<bool>() ? tree_tokens(canonical_form(history.tree)->tree) : program_tokens(history.program);
  for (int i = *rc::gen::inRange(1, 4); i > 0 && !tokens.empty(); --i) {
    const auto at = *rc::gen::inRange<size_t>(0, tokens.size());
    const auto from = *rc::gen::inRange<size_t>(0, tokens.size());
    switch (*rc::gen::inRange(0, 3)) {
      case 0:
        tokens.erase(tokens.begin() + static_cast<ptrdiff_t>(at));
        break;
      case 1:
        tokens[at] = tokens[from];
        break;
      default:
        tokens.insert(tokens.begin() + static_cast<ptrdiff_t>(at), tokens[from]);
    }
  }
  const auto decoded = from_tokens(tokens);
  if (!decoded) RC_ASSERT(!decoded.error().message().empty());
}

TEST(Words, ErrorsNameTheWord) {
  const auto message = [](std::string_view text) {
    const auto decoded = from_tokens(split(text));
    return decoded ? "decoded" : decoded.error().message();
  };
  EXPECT_THAT(message(""), testing::HasSubstr("the end is neither \"tree\" nor \"program\""));
  EXPECT_THAT(message("tree init ( session self"), testing::HasSubstr("the end comes where the group"));
  EXPECT_THAT(message("tree init ( session self group self ) ("), testing::HasSubstr("word 8, '(', comes after"));
  EXPECT_THAT(message("tree init ( session self group self threads 9 9 9 9 9 9 9 9 )"),
              testing::HasSubstr("no system"));
  EXPECT_THAT(message("program FORK pid 0 7 ;"), testing::HasSubstr("leading zeros"));
  EXPECT_THAT(message("program FORK pid"), testing::HasSubstr("the end is no value"));
  EXPECT_THAT(message("program FORK pid 1 pid 1 ;"), testing::HasSubstr("word 4, 'pid', is given twice"));
  std::string deep = "program FORK x";
  for (int i = 0; i < 100000; ++i) deep += " { a";
  EXPECT_THAT(message(deep), testing::HasSubstr("nested too deeply"));
}

}  // namespace
}  // namespace stasis::plan
