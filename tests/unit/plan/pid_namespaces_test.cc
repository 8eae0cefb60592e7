// Nested pid namespaces in bare trees, in the planner and in the verifier.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <signal.h>

#include "plan/bare_tree.h"
#include "plan/verify.h"

namespace stasis::plan {
namespace {

using testing::HasSubstr;

constexpr const char* root = R"({"pid": 1, "ppid": 0, "pgid": 1, "sid": 1})";

std::string tree_of(const std::string& processes, const std::string& more = "") {
  return std::string(R"({"processes": [)") + root + processes + "]" + more + "}";
}
model::Application read(const std::string& text) {
  auto tree = tree_from_json(text);
  if (!tree) throw std::runtime_error(tree.error().message());
  return std::move(*tree);
}
std::string error_of(const std::string& processes, const std::string& more = "") {
  const auto tree = tree_from_json(tree_of(processes, more));
  return tree ? "accepted" : tree.error().message();
}
/// How a tree is decided; a plan for it must be one that the verifier accepts.
std::string decision(const std::string& processes, const std::string& more = "") {
  const auto tree = read(tree_of(processes, more));
  const auto program = make_tree_program(tree);
  if (!program) return program.error().message();
  const auto rejection = verify(*program, tree, Extent::tree);
  return rejection ? rejection->message(*program) + "\n" + to_text(*program) : "restorable";
}

TEST(NestedNamespaces, AreReadStrictly) {
  const auto init = [](const std::string& more) {
    return R"(, {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1)" + more + "}";
  };
  EXPECT_EQ(error_of(init(R"(, "nested_pids": [1])")), "accepted");
  EXPECT_THAT(error_of(init(R"(, "nested_pids": [])")), HasSubstr("processes[1], field nested_pids"));
  EXPECT_THAT(error_of(init(R"(, "nested_pids": [0])")), HasSubstr("0 is not between 1 and"));
  EXPECT_THAT(error_of(init(R"(, "nested_pids": [2])")), HasSubstr("pid namespace is 0 levels deep"));
  EXPECT_THAT(error_of(init(R"(, "nested_pids": [1, 1])")), HasSubstr("levels deep"));
  EXPECT_THAT(error_of(init(R"(, "pid_namespace": 5)")), HasSubstr("only a process with nested_pids"));
  EXPECT_THAT(error_of(init(R"(, "nested_pids": [2], "pid_namespace": 7)")), HasSubstr("the init of none"));
  EXPECT_THAT(error_of(init(R"(, "nested_pids": [1], "threads": [6])")), HasSubstr("field nested_tids"));
  EXPECT_THAT(error_of(init(R"(, "nested_pids": [1], "threads": [6], "nested_tids": [[1]])")),
              HasSubstr("occurs twice"));
  EXPECT_EQ(error_of(init(R"(, "nested_pids": [1], "threads": [6], "nested_tids": [[2]])")), "accepted");
  EXPECT_THAT(error_of(init(R"(, "childrens_namespace": 7)")), HasSubstr("which is none below its own"));
  EXPECT_THAT(error_of(R"(, {"pid": 5, "ppid": 1, "pgid": 5, "sid": 5, "nested_pids": [1]},
                          {"pid": 6, "ppid": 1, "pgid": 5, "sid": 5})"),
              HasSubstr("leader lives in a pid namespace that 6 does not"));
  EXPECT_THAT(error_of(R"(, {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1], "state": "zombie"},
                          {"pid": 6, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [2], "pid_namespace": 5})"),
              HasSubstr("its end would have ended all"));
  EXPECT_THAT(error_of(R"(, {"pid": 5, "ppid": 1, "pgid": 9, "sid": 1, "nested_pids": [1], "state": "zombie"})",
                       R"(, "dead_leaders": [{"pid": 9, "nested_pids": [3], "pid_namespace": 5}])"),
              HasSubstr("would have kept its pid namespace from ending"));
  EXPECT_THAT(error_of("", R"(, "dead_leaders": [{"pid": 9, "nested_pids": [3], "pid_namespace": 5}])"),
              HasSubstr("the dead leader 9 is in no pid namespace"));
  EXPECT_THAT(error_of("", R"(, "dead_leaders": [{"pid": 9, "nested_pids": [3]}])"),
              HasSubstr("dead_leaders[0], field pid_namespace"));
}

TEST(NestedNamespaces, AreRestoredWhereClonesLeadToThem) {
  // Two siblings and one inside, with sessions from outside and of their own, and a dead leader.
  EXPECT_EQ(decision(R"(, {"pid": 5, "ppid": 1, "pgid": 5, "sid": 5, "nested_pids": [1]},
                        {"pid": 6, "ppid": 5, "pgid": 6, "sid": 5, "nested_pids": [2]},
                        {"pid": 7, "ppid": 5, "pgid": 9, "sid": 9, "nested_pids": [3]},
                        {"pid": 8, "ppid": 6, "pgid": 6, "sid": 5, "nested_pids": [7, 1]},
                        {"pid": 10, "ppid": 8, "pgid": 10, "sid": 10, "nested_pids": [8, 2]},
                        {"pid": 11, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1], "state": "zombie"})",
                     R"(, "dead_leaders": [{"pid": 9, "nested_pids": [4], "pid_namespace": 5}])"),
            "restorable");
  // An init that leads a session, and whose child was born before that.
  EXPECT_EQ(decision(R"(, {"pid": 5, "ppid": 1, "pgid": 5, "sid": 5, "nested_pids": [1]},
                        {"pid": 6, "ppid": 5, "pgid": 1, "sid": 1, "nested_pids": [2]})"),
            "restorable");
  // A namespace that began in a group of its parent's, which has left it; and in one whose leader is dead.
  for (const char* leader : {"4", "9"}) {
    EXPECT_EQ(decision(std::string(R"(, {"pid": 4, "ppid": 1, "pgid": 1, "sid": 1},
                          {"pid": 5, "ppid": 4, "sid": 1, "nested_pids": [1], "pgid": )") +
                       leader + R"(}, {"pid": 6, "ppid": 5, "sid": 1, "nested_pids": [2], "pgid": )" + leader + "}"),
              "restorable");
  }
  // Inits in groups of their own namespaces, led by a living process and by a dead one, and an outer process in one.
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 6, "sid": 1},
                        {"pid": 5, "ppid": 1, "pgid": 6, "sid": 1, "nested_pids": [1]},
                        {"pid": 6, "ppid": 5, "pgid": 6, "sid": 1, "nested_pids": [2]},
                        {"pid": 7, "ppid": 1, "pgid": 9, "sid": 1, "nested_pids": [1]},
                        {"pid": 8, "ppid": 4, "pgid": 8, "sid": 1, "nested_pids": [1], "state": "zombie"})",
                     R"(, "dead_leaders": [{"pid": 9, "nested_pids": [3], "pid_namespace": 7}])"),
            "restorable");
  // Children are to be born in the namespace of a child.
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 1, "sid": 1, "childrens_namespace": 5},
                        {"pid": 5, "ppid": 4, "pgid": 1, "sid": 1, "nested_pids": [1]})"),
            "restorable");
}

TEST(NestedNamespaces, AreEnteredWhereClonesDoNotLeadToThem) {
  // Parents outside, in the same session and group, with children and threads of their own, and two levels down.
  EXPECT_EQ(decision(R"(, {"pid": 5, "ppid": 1, "pgid": 5, "sid": 5, "nested_pids": [1]},
                        {"pid": 6, "ppid": 5, "pgid": 6, "sid": 6, "nested_pids": [2, 1]},
                        {"pid": 7, "ppid": 1, "pgid": 1, "sid": 1, "childrens_namespace": 6},
                        {"pid": 8, "ppid": 7, "pgid": 1, "sid": 1, "nested_pids": [9], "pid_namespace": 5},
                        {"pid": 9, "ppid": 8, "pgid": 9, "sid": 1, "nested_pids": [3], "threads": [10],
                         "nested_tids": [[10]]},
                        {"pid": 11, "ppid": 7, "pgid": 11, "sid": 11, "nested_pids": [4, 2], "pid_namespace": 6},
                        {"pid": 12, "ppid": 8, "pgid": 9, "sid": 1, "nested_pids": [5, 3], "pid_namespace": 6},
                        {"pid": 13, "ppid": 7, "pgid": 1, "sid": 1, "nested_pids": [6], "pid_namespace": 5,
                         "state": "zombie", "exit_code": 3})"),
            "restorable");
  // A sibling that the leader of a session inside has created.
  EXPECT_EQ(decision(R"(, {"pid": 5, "ppid": 1, "pgid": 5, "sid": 5, "nested_pids": [1]},
                        {"pid": 6, "ppid": 1, "pgid": 1, "sid": 1},
                        {"pid": 7, "ppid": 6, "pgid": 7, "sid": 7, "nested_pids": [2], "pid_namespace": 5},
                        {"pid": 8, "ppid": 6, "pgid": 7, "sid": 7, "nested_pids": [3], "pid_namespace": 5},
                        {"pid": 9, "ppid": 8, "pgid": 7, "sid": 7, "nested_pids": [4]})"),
            "restorable");
  // Orphans that have come to an init, in a session and in a group from outside that it was not born in.
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 4, "sid": 4},
                          {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1]},
                          {"pid": 6, "ppid": 5, "pgid": 4, "sid": 4, "nested_pids": [2]})"),
            "restorable");
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 4, "sid": 1},
                          {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1]},
                          {"pid": 6, "ppid": 5, "pgid": 4, "sid": 1, "nested_pids": [2]})"),
            "restorable");
  // One whose parent is the init of a namespace between: its relay lives there.
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 4, "sid": 4},
                          {"pid": 5, "ppid": 1, "pgid": 5, "sid": 5, "nested_pids": [1]},
                          {"pid": 6, "ppid": 5, "pgid": 5, "sid": 5, "nested_pids": [2, 1]},
                          {"pid": 7, "ppid": 5, "pgid": 4, "sid": 4, "nested_pids": [3, 2], "pid_namespace": 6},
                          {"pid": 8, "ppid": 5, "pgid": 4, "sid": 4, "nested_pids": [4, 1]})"),
            "restorable");
  // Born before its session's leader led it, while the namespace has begun only since.
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 4, "sid": 4},
                          {"pid": 5, "ppid": 4, "pgid": 4, "sid": 4, "nested_pids": [1]},
                          {"pid": 6, "ppid": 4, "pgid": 1, "sid": 1, "nested_pids": [2], "pid_namespace": 5})"),
            "restorable");
  // In groups of outer processes that belong to others themselves, one dead, and one led from a sibling namespace.
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 1, "sid": 1},
                          {"pid": 5, "ppid": 1, "pgid": 5, "sid": 5, "nested_pids": [1]},
                          {"pid": 6, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1]},
                          {"pid": 7, "ppid": 6, "pgid": 7, "sid": 1, "nested_pids": [2]},
                          {"pid": 8, "ppid": 4, "pgid": 4, "sid": 1, "nested_pids": [2], "pid_namespace": 5},
                          {"pid": 9, "ppid": 4, "pgid": 19, "sid": 1, "nested_pids": [3], "pid_namespace": 5},
                          {"pid": 10, "ppid": 4, "pgid": 7, "sid": 1, "nested_pids": [4], "pid_namespace": 5})"),
            "restorable");
}

/// Of leaders who are dead, and in namespaces further inside.
TEST(NestedNamespaces, HaveSiblingsOfLeadersInside) {
  const std::string outside = R"(, {"pid": 5, "ppid": 1, "pgid": 5, "sid": 5, "nested_pids": [1]},
                                   {"pid": 6, "ppid": 1, "pgid": 1, "sid": 1})";
  const std::string dead = R"(, "dead_leaders": [{"pid": 7, "nested_pids": [9], "pid_namespace": 5}])";
  const auto sibling = [](int pid, int parent, const std::string& nested, const std::string& space) {
    return fmt::format(R"(, {{"pid": {}, "ppid": {}, "pgid": 7, "sid": 7, "nested_pids": {}{}}})", pid, parent, nested,
                       space);
  };
  const std::string inside = R"(, "pid_namespace": 5)";
  EXPECT_EQ(decision(outside + sibling(8, 6, "[2]", inside) + sibling(9, 6, "[3]", inside) +
                         R"(, {"pid": 10, "ppid": 8, "pgid": 7, "sid": 7, "nested_pids": [4]})",
                     dead),
            "restorable");
  // Orphans that have come to the root: their first parent, who was outside, has ended.
  EXPECT_EQ(decision(outside + sibling(8, 1, "[2]", inside), dead), "restorable");
  EXPECT_THAT(decision(outside + sibling(8, 6, "[2]", inside) + sibling(9, 1, "[3]", inside), dead),
              HasSubstr("as a sibling"));
  const std::string leader = R"(, {"pid": 7, "ppid": 6, "pgid": 7, "sid": 7, "nested_pids": [9], "pid_namespace": 5})";
  EXPECT_EQ(decision(outside + leader + R"(, {"pid": 11, "ppid": 5, "pgid": 5, "sid": 5, "nested_pids": [5, 1]})" +
                     sibling(8, 6, "[2, 2]", R"(, "pid_namespace": 11)")),
            "restorable");
}

/// Who has come into a namespace begins another for a sibling: its parent lives two levels further out, or more.
TEST(NestedNamespaces, AreBegunForSiblings) {
  const std::string around = R"(, {"pid": 5, "ppid": 1, "pgid": 5, "sid": 5, "nested_pids": [1]},
                                  {"pid": 6, "ppid": 1, "pgid": 1, "sid": 1})";
  const auto init = [](int pid, int parent, const std::string& ids, const std::string& nested, int outer) {
    return fmt::format(R"(, {{"pid": {}, "ppid": {}, {}, "nested_pids": {}, "outer_namespace": {}}})", pid, parent, ids,
                       nested, outer);
  };
  const std::string in_first = R"("pgid": 1, "sid": 1)", in_seventh = R"("pgid": 7, "sid": 7)";
  const std::string plain = init(8, 6, in_first, "[2, 1]", 5);
  EXPECT_EQ(decision(around + plain + R"(, {"pid": 9, "ppid": 8, "pgid": 9, "sid": 9, "nested_pids": [3, 2]})"),
            "restorable");
  // Three levels, into one that has been begun so itself.
  EXPECT_EQ(decision(around + plain + init(9, 1, in_first, "[3, 2, 1]", 8)), "restorable");
  // In the session and the group of a process that lives inside, and of one who has ended.
  EXPECT_EQ(decision(around + init(8, 6, in_seventh, "[2, 1]", 5) +
                     R"(, {"pid": 7, "ppid": 6, "pgid": 7, "sid": 7, "nested_pids": [9], "pid_namespace": 5})"),
            "restorable");
  EXPECT_EQ(decision(around + init(8, 6, in_seventh, "[2, 1]", 5) + init(9, 6, in_seventh, "[3, 2, 1]", 8),
                     R"(, "dead_leaders": [{"pid": 7, "nested_pids": [9], "pid_namespace": 5}])"),
            "restorable");
  EXPECT_EQ(decision(around + init(8, 6, R"("pgid": 9, "sid": 1)", "[2, 1]", 5) +
                     R"(, {"pid": 9, "ppid": 6, "pgid": 9, "sid": 1, "nested_pids": [9], "pid_namespace": 5})"),
            "restorable");
  // One that has ended, and orphans that have come to the root and to an init.
  EXPECT_EQ(decision(around + R"(, {"pid": 8, "ppid": 6, "pgid": 1, "sid": 1, "nested_pids": [2, 1],
                                    "outer_namespace": 5, "state": "zombie"})"),
            "restorable");
  EXPECT_EQ(decision(around + R"(, {"pid": 8, "ppid": 5, "pgid": 5, "sid": 5, "nested_pids": [2, 1]})" +
                     init(9, 1, in_first, "[3, 2, 1]", 8) + init(10, 5, in_first, "[4, 3, 1]", 8)),
            "restorable");
}

TEST(NestedNamespaces, BegunForSiblingsAreReadStrictly) {
  const std::string outer = R"(, {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1]})";
  const auto with = [&](const std::string& nested, int space) {
    return error_of(outer + fmt::format(R"(, {{"pid": 6, "ppid": 1, "pgid": 1, "sid": 1, {}"outer_namespace": {}}})",
                                        nested, space));
  };
  EXPECT_EQ(with(R"("nested_pids": [2, 1], )", 5), "accepted");
  EXPECT_THAT(with("", 5), HasSubstr("only a process with nested_pids"));
  EXPECT_THAT(with(R"("nested_pids": [2], "pid_namespace": 5, )", 5), HasSubstr("the init of no pid namespace"));
  EXPECT_THAT(with(R"("nested_pids": [2, 1], )", 7), HasSubstr("the init of none"));
  EXPECT_THAT(with(R"("nested_pids": [2, 1], )", 6), HasSubstr("that of 6 is 2 levels deep"));
  EXPECT_THAT(with(R"("nested_pids": [1], )", 5), HasSubstr("that of 5 is 1 levels deep"));
  EXPECT_THAT(with(R"("nested_pids": [2, 1], )", 0), HasSubstr("0 is not between 1 and"));
  EXPECT_THAT(error_of(outer + R"(, {"pid": 6, "ppid": 5, "pgid": 1, "sid": 1, "nested_pids": [2, 1],
                                      "outer_namespace": 5})"),
              HasSubstr("its parent's anyway"));
  EXPECT_THAT(error_of(R"(, {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1], "state": "zombie"},
                           {"pid": 6, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [2, 1], "outer_namespace": 5,
                            "state": "zombie"})"),
              HasSubstr("its end would have ended all"));
  const auto one = read(tree_of(outer + R"(, {"pid": 6, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [2, 1],
                                               "outer_namespace": 5})"));
  EXPECT_EQ(tree_to_json(read(tree_to_json(one))), tree_to_json(one));
}

/// Members live further inside, or have come from outside.
TEST(NestedNamespaces, HaveDeadGroupsLedFromInside) {
  const std::string dead = R"(, "dead_leaders": [{"pid": 9, "nested_pids": [9], "pid_namespace": 5}])";
  const std::string init = R"(, {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1]})";
  EXPECT_EQ(decision(init + R"(, {"pid": 6, "ppid": 5, "pgid": 9, "sid": 1, "nested_pids": [2, 1]})", dead),
            "restorable");
  EXPECT_EQ(decision(init + R"(, {"pid": 7, "ppid": 5, "pgid": 1, "sid": 1, "nested_pids": [2, 1]},
                               {"pid": 8, "ppid": 1, "pgid": 9, "sid": 1, "nested_pids": [3, 2], "pid_namespace": 7},
                               {"pid": 10, "ppid": 1, "pgid": 9, "sid": 1})",
                     dead),
            "restorable");
}

constexpr const char* in_circle = R"(, {"pid": 2, "ppid": 4, "pgid": 2, "sid": 1, "nested_pids": [2]},
                                       {"pid": 3, "ppid": 5, "pgid": 3, "sid": 1, "nested_pids": [2]},
                                       {"pid": 4, "ppid": 1, "pgid": 3, "sid": 1, "nested_pids": [1]},
                                       {"pid": 5, "ppid": 1, "pgid": 2, "sid": 1, "nested_pids": [1]})";

/// An outer parent can put whom it has created into groups that these cannot name, one after the other.
TEST(NestedNamespaces, ArePutIntoGroupsFromOutside) {
  // Two outer groups on one line of births.
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 4, "sid": 1},
                          {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1]},
                          {"pid": 6, "ppid": 1, "pgid": 4, "sid": 1, "nested_pids": [2], "pid_namespace": 5},
                          {"pid": 7, "ppid": 6, "pgid": 1, "sid": 1, "nested_pids": [3]},
                          {"pid": 8, "ppid": 6, "pgid": 9, "sid": 1, "nested_pids": [4], "state": "zombie"},
                          {"pid": 10, "ppid": 7, "pgid": 10, "sid": 10, "nested_pids": [5]})"),
            "restorable");
  // Before it leads a session, and in groups whose leaders are dead, one in a namespace between.
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 4, "sid": 1},
                          {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1]},
                          {"pid": 6, "ppid": 5, "pgid": 6, "sid": 6, "nested_pids": [2, 1]},
                          {"pid": 7, "ppid": 6, "pgid": 12, "sid": 1, "nested_pids": [3, 2]},
                          {"pid": 8, "ppid": 6, "pgid": 13, "sid": 1, "nested_pids": [4, 3]},
                          {"pid": 9, "ppid": 6, "pgid": 6, "sid": 6, "nested_pids": [5, 4]})",
                     R"(, "dead_leaders": [{"pid": 12, "nested_pids": [6], "pid_namespace": 5},
                                           {"pid": 13, "nested_pids": [7], "pid_namespace": 5}])"),
            "restorable");
  // Who leads a group inside, and belongs to one outside.
  EXPECT_EQ(decision(R"(, {"pid": 2, "ppid": 1, "pgid": 3, "sid": 1},
                          {"pid": 3, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1]},
                          {"pid": 4, "ppid": 3, "pgid": 3, "sid": 1, "nested_pids": [2]})"),
            "restorable");
  // Each of two inits is in a group that is led from the other's namespace.
  EXPECT_EQ(decision(in_circle), "restorable");
  // Its parent is inside, too: nobody can put it back.
  EXPECT_THAT(decision(R"(, {"pid": 2, "ppid": 1, "pgid": 4, "sid": 1},
                            {"pid": 3, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1]},
                            {"pid": 4, "ppid": 3, "pgid": 1, "sid": 1, "nested_pids": [2]})"),
              HasSubstr("which it cannot come back to"));
}

/// The parent has the session that its children are born in from a sibling, and creates them before it leads its own.
/// Another is between them that has not come to its final parent when the last are born.
TEST(NestedNamespaces, HaveParentsFromElsewhere) {
  EXPECT_EQ(decision(R"(, {"pid": 2, "ppid": 3, "pgid": 4, "sid": 4, "nested_pids": [2, 1]},
                          {"pid": 3, "ppid": 1, "pgid": 3, "sid": 3, "nested_pids": [3], "pid_namespace": 5},
                          {"pid": 4, "ppid": 1, "pgid": 4, "sid": 4, "nested_pids": [4], "pid_namespace": 5},
                          {"pid": 5, "ppid": 1, "pgid": 5, "sid": 1, "nested_pids": [1]})"),
            "restorable");
  EXPECT_EQ(decision(R"(, {"pid": 2, "ppid": 1, "pgid": 1, "sid": 1},
                          {"pid": 3, "ppid": 1, "pgid": 3, "sid": 3},
                          {"pid": 4, "ppid": 3, "pgid": 4, "sid": 3},
                          {"pid": 5, "ppid": 2, "pgid": 4, "sid": 3, "nested_pids": [1]})"),
            "restorable");
  // A sibling in a group of another sibling's, which only a porter among them can have.
  EXPECT_EQ(decision(R"(, {"pid": 2, "ppid": 1, "pgid": 2, "sid": 2, "nested_pids": [1]},
                          {"pid": 3, "ppid": 2, "pgid": 3, "sid": 3, "nested_pids": [2, 1]},
                          {"pid": 4, "ppid": 1, "pgid": 4, "sid": 4, "nested_pids": [3], "pid_namespace": 2},
                          {"pid": 5, "ppid": 4, "pgid": 5, "sid": 4, "nested_pids": [4]},
                          {"pid": 6, "ppid": 1, "pgid": 5, "sid": 4, "nested_pids": [5, 2], "pid_namespace": 3})"),
            "restorable");
}

std::string init_ended_by(int signal) {
  return R"(, {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1], "state": "zombie", "exit_signal": )" +
         std::to_string(signal) + "}";
}

/// It is shielded from signals, but not from faults, filters, reboot(2), and SIGKILL from outside.
TEST(NestedNamespaces, InitsEndBySomeSignals) {
  for (const int signal : {SIGHUP, SIGINT, SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGKILL, SIGSEGV, SIGSYS})
    EXPECT_EQ(decision(init_ended_by(signal)), "restorable") << signal;
  for (const int signal : {SIGTERM, SIGQUIT, SIGABRT, SIGPIPE, 34}) {
    EXPECT_EQ(*decide_tree(read(tree_of(init_ended_by(signal)))), Verdict::not_restorable) << signal;
    EXPECT_THAT(decision(init_ended_by(signal)), HasSubstr("is shielded")) << signal;
  }
}

TEST(NestedNamespaces, CanBeEmpty) {
  const std::string empty = R"(, "childrens_namespace": 0)";
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 1, "sid": 1, "threads": [6])" + empty + "}"), "restorable");
  EXPECT_EQ(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 1, "sid": 1, "threads": [6], "leader_exit_code": 2)" + empty +
                     R"(}, {"pid": 5, "ppid": 4, "pgid": 1, "sid": 1, "nested_pids": [1])" + empty + "}"),
            "restorable");
  EXPECT_THAT(error_of(R"(, {"pid": 5, "ppid": 1, "pgid": 1, "sid": 1, "state": "zombie")" + empty + "}"),
              HasSubstr("a zombie has none"));
  const auto one = read(tree_of(R"(, {"pid": 4, "ppid": 1, "pgid": 1, "sid": 1)" + empty + "}"));
  EXPECT_EQ(tree_to_json(read(tree_to_json(one))), tree_to_json(one));
}

/// Whoever creates in a namespace lives there, or above.
TEST(NestedNamespaces, AreNotEnteredFromWhereNobodyCan) {
  EXPECT_THAT(decision(R"(, {"pid": 4, "ppid": 1, "pgid": 1, "sid": 1},
                            {"pid": 5, "ppid": 1, "pgid": 5, "sid": 5, "nested_pids": [1]},
                            {"pid": 6, "ppid": 4, "pgid": 5, "sid": 5, "nested_pids": [2], "pid_namespace": 5})"),
              HasSubstr("only its leader can have created it, as a sibling"));
}

/// What is not restorable without namespaces is not with them either, whatever setns can do.
TEST(NestedNamespaces, DoNotMakePossibleWhatIsNot) {
  const auto verdict = decide_tree(read(tree_of(R"(, {"pid": 4, "ppid": 1, "pgid": 4, "sid": 4},
      {"pid": 2, "ppid": 4, "pgid": 9, "sid": 9}, {"pid": 3, "ppid": 2, "pgid": 1, "sid": 1},
      {"pid": 5, "ppid": 3, "pgid": 1, "sid": 1, "nested_pids": [1]})")));
  ASSERT_TRUE(verdict) << verdict.error().message();
  EXPECT_EQ(*verdict, Verdict::not_restorable);
}

// ---- the kernel's rules

std::string rejection_of(const std::string& commands) {
  const auto program =
      from_json(R"([{"command": "FORK", "pid": 0, "child_pid": 1, "new_pid_namespace": true}, )" + commands + "]");
  if (!program) throw std::runtime_error(program.error().message());
  const auto outcome = outcome_of(*program);
  return outcome.rejection ? outcome.rejection->message(*program) : "accepted";
}
std::string fork(int pid, int child, const std::string& nested, bool begins = false) {
  return R"({"command": "FORK", "pid": )" + std::to_string(pid) + R"(, "child_pid": )" + std::to_string(child) +
         R"(, "nested_pids": )" + nested + (begins ? R"(, "new_pid_namespace": true})" : "}");
}

TEST(NamespaceRules, NumbersOnEveryLevel) {
  const std::string begun = fork(1, 5, "[1]", true);
  EXPECT_EQ(rejection_of(begun + ", " + fork(5, 6, "[2]")), "accepted");
  EXPECT_THAT(rejection_of(fork(1, 5, "[2]", true)), HasSubstr("is its init, 1, not 2 (EINVAL)"));
  EXPECT_THAT(rejection_of(fork(1, 5, "[1, 1]", true)), HasSubstr("1 levels deep (EINVAL)"));
  EXPECT_THAT(rejection_of(begun + ", " + fork(5, 6, "[]")), HasSubstr("(EINVAL)"));
  EXPECT_THAT(rejection_of(begun + ", " + fork(5, 6, "[1]")), HasSubstr("in use in the pid namespace of 5 (EEXIST)"));
  EXPECT_THAT(rejection_of(begun + ", " + fork(5, 6, "[2]") + ", " + fork(5, 7, "[2]")), HasSubstr("(EEXIST)"));
  EXPECT_THAT(rejection_of(begun + R"(, {"command": "START_THREAD", "pid": 5, "tid": 8, "nested_tids": [1]})"),
              HasSubstr("(EEXIST)"));
  EXPECT_THAT(rejection_of(begun + R"(, {"command": "CLONE", "pid": 5, "child_pid": 8, "nested_pids": [2]})"),
              HasSubstr("can create siblings (EINVAL)"));
}

/// Whoever has entered another for its children begins none, but they do, and for siblings (kernel/pid_namespace.c,
/// copy_pid_ns).
TEST(NamespaceRules, WhoBeginsOne) {
  const std::string entered = fork(1, 5, "[1]", true) + ", " + fork(1, 6, "[]") +
                              R"(, {"command": "POST", "pid": 1, "event": "begun"},
                                 {"command": "AWAIT", "pid": 6, "event": "begun", "count": 1},
                                 {"command": "ENTER_PID_NAMESPACE", "pid": 6, "target": 5}, )";
  EXPECT_THAT(rejection_of(entered + fork(6, 7, "[2, 1]", true)), HasSubstr("it cannot begin one (EINVAL)"));
  EXPECT_THAT(rejection_of(entered + R"({"command": "UNSHARE", "pid": 6, "pid_namespace": true})"),
              HasSubstr("in another pid namespace already (EINVAL)"));
  const std::string clone =
      R"({"command": "CLONE", "pid": 7, "child_pid": 8, "nested_pids": [3, 1], "new_pid_namespace": true})";
  EXPECT_EQ(rejection_of(entered + fork(6, 7, "[2]") + ", " + clone), "accepted");
}

TEST(NamespaceRules, AnInitTakesItsNamespaceWithIt) {
  const std::string begun = fork(1, 5, "[1]", true) + ", " + fork(5, 6, "[2]");
  EXPECT_EQ(rejection_of(begun + R"(, {"command": "EXIT", "pid": 5})"), "accepted");
  EXPECT_THAT(rejection_of(begun + R"(, {"command": "EXIT", "pid": 5}, {"command": "SET_SID", "pid": 6})"),
              HasSubstr("has ended (ESRCH)"));
  // 6 may do more than it has been seen to do.
  EXPECT_THAT(rejection_of(begun + R"(, {"command": "SET_SID", "pid": 6}, {"command": "EXIT", "pid": 5})"),
              HasSubstr("may not be done by then"));
  EXPECT_THAT(rejection_of(fork(1, 5, "[1]", true) + R"(, {"command": "ENTER_PID_NAMESPACE", "pid": 1, "target": 5},
                           {"command": "EXIT", "pid": 5}, )" +
                           fork(1, 7, "[3]")),
              HasSubstr("(ENOMEM)"));
}

TEST(NamespaceRules, AnInitWaitsForTheIdsOfGroups) {
  const auto set_group = [](int by, int target, int group) {
    return R"(, {"command": "SET_PGID", "pid": )" + std::to_string(by) + R"(, "target": )" + std::to_string(target) +
           R"(, "pgid": )" + std::to_string(group) + "}";
  };
  const auto turn = [](const std::string& name, int from, int to) {
    return R"(, {"command": "POST", "pid": )" + std::to_string(from) + R"(, "event": ")" + name +
           R"("}, {"command": "AWAIT", "pid": )" + std::to_string(to) + R"(, "event": ")" + name + R"(", "count": 1})";
  };
  const std::string end = R"(, {"command": "EXIT", "pid": 5})";
  const std::string begun = R"({"command": "SET_SID", "pid": 1}, )" + fork(1, 4, "[]") + ", " +
                            fork(1, 5, "[1]", true) + ", " + fork(5, 6, "[2]") + set_group(6, 6, 6) + turn("a", 6, 5);
  EXPECT_EQ(rejection_of(begun + end), "accepted");
  EXPECT_EQ(rejection_of(begun + set_group(5, 5, 6)), "accepted");
  EXPECT_THAT(rejection_of(begun + set_group(5, 5, 6) + end),
              HasSubstr("it never ends: 5 is in group 6, whose leader lived in its pid namespace"));
  EXPECT_EQ(rejection_of(begun + set_group(5, 5, 6) + set_group(5, 5, 5) + end), "accepted");
  // Somebody outside is a member.
  const std::string joined = begun + turn("b", 5, 4) + set_group(4, 4, 6) + turn("c", 4, 5);
  EXPECT_THAT(rejection_of(joined + end), HasSubstr("it never ends: 4 is in group 6"));
  EXPECT_EQ(rejection_of(joined + turn("d", 5, 4) + set_group(4, 4, 4) + turn("e", 4, 5) + end), "accepted");
}

TEST(NamespaceRules, OrphansStayInTheirNamespace) {
  const auto program =
      from_json("[" + std::string(R"({"command": "FORK", "pid": 0, "child_pid": 1,
                                  "new_pid_namespace": true}, )") +
                R"({"command": "SET_CHILD_REAPER", "pid": 1, "value": true}, )" + fork(1, 5, "[1]", true) + ", " +
                fork(5, 6, "[2]") + ", " + fork(6, 7, "[3]") + R"(, {"command": "EXIT", "pid": 6}])");
  ASSERT_TRUE(program) << program.error().message();
  const auto outcome = outcome_of(*program);
  ASSERT_FALSE(outcome.rejection) << outcome.rejection->message(*program);
  EXPECT_EQ(outcome.tree.find(Pid{7})->parent, Pid{5});
}

TEST(NamespaceRules, WhoIsOutsideCannotBeNamed) {
  const std::string begun = fork(1, 5, "[1]", true) + R"(, {"command": "SET_SID", "pid": 1}, )" + fork(1, 4, "[]") +
                            R"(, {"command": "SET_PGID", "pid": 4, "target": 4, "pgid": 4})";
  EXPECT_THAT(rejection_of(begun + R"(, {"command": "SET_PGID", "pid": 5, "target": 5, "pgid": 4})"),
              HasSubstr("(EPERM)"));
  EXPECT_THAT(
      rejection_of(begun + R"(, {"command": "TRANSFER_FD", "from_pid": 4, "to_pid": 5, "fd": 3, "target_fd": 3})"),
      HasSubstr("outside of its pid namespace (ESRCH)"));
  EXPECT_THAT(rejection_of(begun + R"(, {"command": "OPEN_PIDFD", "pid": 5, "target": 4, "fd": 3})"),
              HasSubstr("outside of its pid namespace (ESRCH)"));
  EXPECT_THAT(rejection_of(begun + R"(, {"command": "ENTER_PID_NAMESPACE", "pid": 5, "target": 1})"),
              HasSubstr("outside of its pid namespace (ESRCH)"));
  EXPECT_THAT(rejection_of(R"({"command": "OPEN_PIDFD", "pid": 1, "target": 1, "fd": 9}, )" + fork(1, 5, "[1]", true) +
                           R"(, {"command": "TAKE_FD", "pid": 5, "pidfd": 9, "fd": 8, "target_fd": 10})"),
              HasSubstr("1 has no descriptor 8 (EBADF)"));
  EXPECT_EQ(rejection_of(R"({"command": "OPEN_PIDFD", "pid": 1, "target": 1, "fd": 9}, )" + fork(1, 5, "[1]", true) +
                         R"(, {"command": "TAKE_FD", "pid": 5, "pidfd": 9, "fd": 9, "target_fd": 10})"),
            "accepted");
}

std::string exit_of(int pid, int status) {
  return R"(, {"command": "EXIT", "pid": )" + std::to_string(pid) + R"(, "status": )" + std::to_string(status) + "}";
}

TEST(NamespaceRules, AnInitIsShielded) {
  const std::string begun = fork(1, 5, "[1]", true);
  EXPECT_EQ(rejection_of(begun + exit_of(5, SIGKILL)), "accepted");
  EXPECT_THAT(rejection_of(begun + exit_of(5, SIGTERM)), HasSubstr("is not ended by signal 15"));
  EXPECT_THAT(rejection_of(begun + R"(, {"command": "START_THREAD", "pid": 5, "tid": 8, "nested_tids": [2]})" +
                           exit_of(5, SIGKILL)),
              HasSubstr("its other threads would go on"));
  EXPECT_EQ(rejection_of(fork(1, 5, "[]") + exit_of(5, SIGTERM)), "accepted");
}

TEST(NamespaceRules, AnEmptyOneBeginsWithTheNextChild) {
  const std::string unshared = R"({"command": "UNSHARE", "pid": 1, "pid_namespace": true})";
  EXPECT_EQ(rejection_of(unshared + ", " + fork(1, 5, "[1]") + ", " + fork(1, 6, "[2]") + ", " + fork(5, 7, "[3]")),
            "accepted");
  EXPECT_THAT(rejection_of(unshared + ", " + fork(1, 5, "[2]")), HasSubstr("is its init, 1, not 2 (EINVAL)"));
  EXPECT_THAT(rejection_of(unshared + ", " + fork(1, 5, "[]")), HasSubstr("1 levels deep (EINVAL)"));
  EXPECT_THAT(rejection_of(unshared + ", " + fork(1, 5, "[1]", true)), HasSubstr("it cannot begin one (EINVAL)"));
  EXPECT_THAT(rejection_of(unshared + ", " + unshared), HasSubstr("in another pid namespace already (EINVAL)"));
  EXPECT_THAT(rejection_of(unshared + R"(, {"command": "START_THREAD", "pid": 1, "tid": 8})"),
              HasSubstr("born in another pid namespace (EINVAL)"));
}

/// Others would go on with the table that one leaves.
TEST(NamespaceRules, OneThreadAloneUnsharesItsTable) {
  for (const char* what : {"files", "fs"}) {
    const std::string unshare = R"({"command": "UNSHARE", "pid": 1, ")" + std::string(what) + R"(": true})";
    EXPECT_EQ(rejection_of(unshare), "accepted");
    EXPECT_THAT(rejection_of(R"({"command": "START_THREAD", "pid": 1, "tid": 8}, )" + unshare),
                HasSubstr("its other threads would go on sharing"));
  }
  EXPECT_EQ(rejection_of(R"({"command": "START_THREAD", "pid": 1, "tid": 8},
                            {"command": "UNSHARE", "pid": 1, "tid": 8, "pid_namespace": true})"),
            "accepted");
}

/// Like a fork that is a sibling, which a leader inside a namespace can have created.
TEST(NamespaceRules, ASiblingCanBeginOne) {
  const std::string sibling = R"(, {"command": "CLONE", "pid": 5, "child_pid": 6, "nested_pids": [1],
                                    "new_pid_namespace": true})";
  EXPECT_EQ(rejection_of(fork(1, 5, "[]") + sibling), "accepted");
  EXPECT_THAT(rejection_of(fork(1, 5, "[1]", true) + sibling), HasSubstr("can create siblings (EINVAL)"));
}

/// Whom the first thread passes on with its end, to the next.
TEST(NamespaceRules, AChildIsWaitedForByTheThreadThatItGoesOnTo) {
  const std::string begun = R"({"command": "START_THREAD", "pid": 1, "tid": 8},
                               {"command": "START_THREAD", "pid": 1, "tid": 9}, )" +
                            fork(1, 5, "[]");
  const std::string end = R"(, {"command": "EXIT_THREAD", "pid": 1, "status": 0})";
  const auto await_by = [](int tid, int child) {
    return fmt::format(R"(, {{"command": "AWAIT_CHILD", "pid": 1, "tid": {}, "child_pid": {}}})", tid, child);
  };
  EXPECT_EQ(rejection_of(begun + end + await_by(8, 5)), "accepted");
  EXPECT_EQ(rejection_of(begun + await_by(1, 5)), "accepted") << "it is the first thread's from the beginning";
  EXPECT_THAT(rejection_of(begun + await_by(8, 5)), HasSubstr("a deadlock"));
  EXPECT_THAT(rejection_of(begun + end + await_by(9, 5)), HasSubstr("a deadlock")) << "it goes to the other one";
  EXPECT_THAT(rejection_of(begun + end + await_by(8, 6)), HasSubstr("a deadlock"));
  EXPECT_THAT(rejection_of(begun + ", " + fork(5, 6, "[]") + end + await_by(8, 6)), HasSubstr("a deadlock"));
}

TEST(NamespaceRules, ChildrenAreBornWhereTheRunnerHasGone) {
  const std::string begun =
      fork(1, 5, "[1]", true) + R"(, {"command": "ENTER_PID_NAMESPACE", "pid": 1, "target": 5}, )";
  EXPECT_EQ(rejection_of(begun + fork(1, 6, "[2]")), "accepted");
  EXPECT_THAT(rejection_of(begun + fork(1, 6, "[]")), HasSubstr("1 levels deep"));
  EXPECT_THAT(rejection_of(begun + fork(1, 6, "[2]", true)), HasSubstr("it cannot begin one (EINVAL)"));
  EXPECT_THAT(rejection_of(begun + R"({"command": "START_THREAD", "pid": 1, "tid": 8})"),
              HasSubstr("born in another pid namespace (EINVAL)"));
  EXPECT_EQ(rejection_of(begun + R"({"command": "ENTER_PID_NAMESPACE", "pid": 1, "target": 1}, )" + fork(1, 6, "[]")),
            "accepted");
}

}  // namespace
}  // namespace stasis::plan
