// Needs root: a pid namespace of its own for each tree.
#include "execute/tree_run.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include "plan/bare_tree.h"

namespace stasis::execute {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

model::Application tree(const char* processes) {
  auto read = plan::tree_from_json(std::string(R"({"processes": [)") + processes + "]}");
  EXPECT_TRUE(read) << read.error().message();
  return *read;
}

std::vector<std::string> run(const model::Application& made, const model::Application& wanted) {
  const auto program = plan::make_tree_program(made);
  EXPECT_TRUE(program) << program.error().message();
  const auto differences = run_tree(*program, wanted);
  EXPECT_TRUE(differences) << differences.error().message();
  return *differences;
}

TEST(RunTree, TwoGroupsLedCrosswise) {
  const auto crosswise = tree(R"({"pid": 5, "ppid": 0, "pgid": 5, "sid": 5},
                                 {"pid": 6, "ppid": 5, "pgid": 7, "sid": 5}, {"pid": 7, "ppid": 5, "pgid": 6, "sid": 5},
                                 {"pid": 8, "ppid": 7, "pgid": 7, "sid": 5, "threads": [11, 12]})");
  EXPECT_THAT(run(crosswise, crosswise), IsEmpty());
}

TEST(RunTree, DeadLeadersThreeSessionsDeep) {
  const auto deep = tree(R"({"pid": 1, "ppid": 0, "pgid": 1, "sid": 1}, {"pid": 20, "ppid": 1, "pgid": 90, "sid": 90},
                            {"pid": 21, "ppid": 20, "pgid": 91, "sid": 91},
                            {"pid": 22, "ppid": 21, "pgid": 92, "sid": 92},
                            {"pid": 23, "ppid": 22, "pgid": 92, "sid": 92, "state": "zombie", "exit_code": 7})");
  EXPECT_THAT(run(deep, deep), IsEmpty());
}

TEST(RunTree, FirstThreadsThatHaveEnded) {
  const auto ended = tree(R"({"pid": 1, "ppid": 0, "pgid": 1, "sid": 1, "threads": [30], "leader_exit_code": 3},
                             {"pid": 2, "ppid": 1, "pgid": 2, "sid": 2, "threads": [31], "leader_exit_code": 0},
                             {"pid": 4, "ppid": 2, "pgid": 2, "sid": 2},
                             {"pid": 5, "ppid": 2, "pgid": 2, "sid": 2, "state": "zombie", "exit_code": 7})");
  EXPECT_THAT(run(ended, ended), IsEmpty());
}

/// Killed from outside, by faults, by seccomp, and by reboot(2).
TEST(RunTree, InitsEndBySignals) {
  std::string inits = R"({"pid": 1, "ppid": 0, "pgid": 1, "sid": 1})";
  int pid = 1;
  for (const int signal : {SIGHUP, SIGINT, SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGKILL, SIGSEGV, SIGSYS})
    inits += fmt::format(R"(, {{"pid": {}, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1], "state": "zombie",
                               "exit_signal": {}}})",
                         ++pid, signal);
  const auto ended = tree(inits.c_str());
  EXPECT_THAT(run(ended, ended), IsEmpty());
}

TEST(RunTree, EmptyNamespacesForChildrenToCome) {
  const auto empty = tree(R"({"pid": 1, "ppid": 0, "pgid": 1, "sid": 1, "childrens_namespace": 0},
                             {"pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "threads": [30], "childrens_namespace": 0},
                             {"pid": 3, "ppid": 1, "pgid": 1, "sid": 1, "nested_pids": [1],
                              "childrens_namespace": 0})");
  EXPECT_THAT(run(empty, empty), IsEmpty());
}

TEST(RunTree, WhatDiffersIsNamed) {
  const auto one = tree(R"({"pid": 5, "ppid": 0, "pgid": 5, "sid": 5}, {"pid": 6, "ppid": 5, "pgid": 5, "sid": 5},
                           {"pid": 7, "ppid": 6, "pgid": 5, "sid": 5})");
  const auto other = tree(R"({"pid": 5, "ppid": 0, "pgid": 5, "sid": 5}, {"pid": 6, "ppid": 5, "pgid": 6, "sid": 5},
                             {"pid": 7, "ppid": 5, "pgid": 5, "sid": 5}, {"pid": 8, "ppid": 5, "pgid": 5, "sid": 5})");
  EXPECT_THAT(run(one, other), ElementsAre("process 6: its group is 5 instead of 6",
                                           "process 7: its parent is 6 instead of 5", "process 8 is missing"));
}

/// Nobody of the session is outside of group 6: an end in it must not continue the others.
TEST(RunTree, StoppedOnesStayStoppedInAnOrphanedGroup) {
  const auto stopped = tree(R"({"pid": 1, "ppid": 0, "pgid": 1, "sid": 1, "subreaper": true},
                               {"pid": 6, "ppid": 1, "pgid": 6, "sid": 6, "state": "stopped", "threads": [20, 21]},
                               {"pid": 7, "ppid": 6, "pgid": 6, "sid": 6, "state": "stopped", "subreaper": true},
                               {"pid": 8, "ppid": 6, "pgid": 6, "sid": 6, "state": "zombie", "exit_signal": 15})");
  EXPECT_THAT(run(stopped, stopped), IsEmpty());
}

TEST(RunTree, FlagsAndThreadsAreCompared) {
  const auto one = tree(R"({"pid": 5, "ppid": 0, "pgid": 5, "sid": 5, "threads": [8, 9]},
                           {"pid": 6, "ppid": 5, "pgid": 5, "sid": 5, "subreaper": true})");
  const auto other = tree(R"({"pid": 5, "ppid": 0, "pgid": 5, "sid": 5, "threads": [8, 10], "subreaper": true},
                             {"pid": 6, "ppid": 5, "pgid": 5, "sid": 5})");
  EXPECT_THAT(run(one, other), ElementsAre("process 5: its subreaper flag is false instead of true",
                                           "process 5: its list of threads is [5, 8, 9] instead of [5, 8, 10]",
                                           "process 6: its subreaper flag is true instead of false"));
}

TEST(RunTree, ASessionFromOutsideIsRefused) {
  const auto job = tree(R"({"pid": 5, "ppid": 0, "pgid": 5, "sid": 3})");
  const auto differences = run_tree(*plan::make_tree_program(job), job);
  ASSERT_FALSE(differences);
  EXPECT_THAT(differences.error().message(), HasSubstr("does not lead its session"));
}

}  // namespace
}  // namespace stasis::execute
