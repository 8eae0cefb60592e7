#include "plan/bare_tree.h"

#include <gmock/gmock.h>

#include "plan/drawing.h"
#include "plan/verify.h"

namespace stasis::plan {
namespace {

using testing::HasSubstr;

std::string error_of(const std::string& text) {
  const auto read = tree_from_json(text);
  return read ? "accepted" : read.error().message();
}
std::string error_of_process(const std::string& fields) {
  return error_of(R"({"processes": [{"pid": 1, "ppid": 0, "pgid": 1, "sid": 1}, {)" + fields + "}]}");
}

TEST(BareTree, IsReadStrictly) {
  EXPECT_THAT(error_of("{\n\"processes\": [,]}"), HasSubstr("it is not JSON: parse error at line 2, column 15"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "pid": 3)"), HasSubstr("'pid' twice"));
  EXPECT_THAT(error_of("[]"), HasSubstr("processes"));
  EXPECT_THAT(error_of(R"({"processes": [], "more": 1})"), HasSubstr("one field"));
  EXPECT_THAT(error_of(R"({"processes": []})"), HasSubstr("0 processes have a parent that is not in the tree"));
  EXPECT_THAT(error_of(R"({"processes": [7]})"), HasSubstr("processes[0]"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 1)"),
              HasSubstr("processes[1], field sid): it is missing"));
  EXPECT_THAT(error_of_process(R"("pid": 0, "ppid": 1, "pgid": 1, "sid": 1)"), HasSubstr("0 is not between 1 and"));
  EXPECT_THAT(error_of_process(R"("pid": 18446744073709551615, "ppid": 1, "pgid": 1, "sid": 1)"),
              HasSubstr("is not between"));
  EXPECT_THAT(error_of_process(R"("pid": 2.5, "ppid": 1, "pgid": 1, "sid": 1)"), HasSubstr("not an integer"));
  EXPECT_THAT(error_of_process(R"("pid": 1, "ppid": 1, "pgid": 1, "sid": 1)"), HasSubstr("pid 1 occurs twice"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "threads": [1])"),
              HasSubstr("thread 1 occurs twice"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 9, "pgid": 1, "sid": 1)"), HasSubstr("2 processes have a parent"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "state": "dead")"), HasSubstr("state"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "exit_code": 3)"),
              HasSubstr("only a zombie"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "state": "zombie", "exit_code": 256)"),
              HasSubstr("256 is not between 0 and 255"));
  EXPECT_THAT(error_of(R"({"processes": [{"pid": 1, "ppid": 0, "pgid": 1, "sid": 1},
                                         {"pid": 2, "ppid": 3, "pgid": 1, "sid": 1},
                                         {"pid": 3, "ppid": 2, "pgid": 1, "sid": 1}]})"),
              HasSubstr("cycle"));
}

TEST(BareTree, TerminalsControlSessions) {
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 2, "sid": 2, "terminal": 1048576)"),
              HasSubstr("field terminal): 1048576 is not between 0 and 1048575"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 2, "sid": 2, "foreground": 2)"),
              HasSubstr("field foreground): only a session leader with a terminal"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 2, "sid": 2, "terminal": 0, "foreground": 1)"),
              HasSubstr("nobody of its session is in group 1, in the foreground of /dev/pts/0"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "terminal": 3)"),
              HasSubstr("process 2 has terminal 3, which the leader of its session does not have"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "state": "zombie", "terminal": 3)"),
              HasSubstr("field terminal): a zombie has none"));
  const std::string text = R"({"processes": [
{"pid":1,"ppid":0,"pgid":1,"sid":1,"state":"alive"},
{"pid":2,"ppid":1,"pgid":2,"sid":2,"state":"alive","terminal":4,"foreground":3},
{"pid":3,"ppid":2,"pgid":3,"sid":2,"state":"alive","terminal":4},
{"pid":4,"ppid":2,"pgid":4,"sid":2,"state":"alive"},
{"pid":5,"ppid":1,"pgid":5,"sid":5,"state":"alive","terminal":0,"foreground":0}
]})";
  const auto tree = tree_from_json(text);
  ASSERT_TRUE(tree) << tree.error().message();
  EXPECT_EQ(tree_to_json(*tree), text);
  const auto program = make_tree_program(*tree);
  ASSERT_TRUE(program) << program.error().message();
  const auto rejection = verify(*program, *tree, Extent::tree);
  EXPECT_FALSE(rejection) << rejection->message(*program);
}

TEST(Drawing, NamesTerminals) {
  const auto tree = tree_from_json(R"({"processes": [{"pid": 1, "ppid": 0, "pgid": 1, "sid": 1},
      {"pid": 2, "ppid": 1, "pgid": 2, "sid": 2, "terminal": 4, "foreground": 3},
      {"pid": 3, "ppid": 2, "pgid": 3, "sid": 2, "terminal": 4}]})");
  ASSERT_TRUE(tree) << tree.error().message();
  const auto picture = draw(*tree);
  EXPECT_THAT(picture, HasSubstr("pid 2, parent 1, group 2, session 2 pts/4<"));
  EXPECT_THAT(picture, HasSubstr("pid 3, parent 2, group 3, session 2 pts/4*<"));
  EXPECT_THAT(picture, HasSubstr("/dev/pts/4 controls session 2, with group 3 in its foreground"));
}

TEST(BareTree, TheFirstThreadMayHaveEndedAlone) {
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "leader_exit_code": 3)"),
              HasSubstr("field leader_exit_code): only a process with other threads"));
  EXPECT_THAT(error_of_process(R"("pid": 2, "ppid": 1, "pgid": 1, "sid": 1, "threads": [3], "leader_exit_code": -1)"),
              HasSubstr("-1 is not between 0 and 255"));
  const std::string text = R"({"processes": [
{"pid":1,"ppid":0,"pgid":1,"sid":1,"state":"alive"},
{"pid":2,"ppid":1,"pgid":1,"sid":1,"state":"alive","threads":[3],"leader_exit_code":7}
]})";
  const auto tree = tree_from_json(text);
  ASSERT_TRUE(tree) << tree.error().message();
  EXPECT_EQ(tree_to_json(*tree), text);
  const auto program = make_tree_program(*tree);
  ASSERT_TRUE(program) << program.error().message();
  const auto outcome = outcome_of(*program);
  ASSERT_FALSE(outcome.rejection) << outcome.rejection->message(*program);
  EXPECT_THAT(tree_differences(*tree, outcome.tree), testing::IsEmpty());
  EXPECT_FALSE(verify(*program, *tree, Extent::tree));
  auto other = *tree;
  other.find(Pid{2})->threads[0].exit_status = 0;
  EXPECT_THAT(tree_differences(other, *tree), testing::ElementsAre(HasSubstr("exit status is 1792 instead of 0")));
  EXPECT_TRUE(verify(*program, other, Extent::tree));
  other.find(Pid{2})->threads[0].exit_status.reset();
  EXPECT_THAT(tree_differences(other, *tree), testing::ElementsAre(HasSubstr("its first thread has ended")));
  EXPECT_TRUE(verify(*program, other, Extent::tree));
}

TEST(BareTree, WhatHasNoHistoryIsRefused) {
  // 3 is of session 1, below 2, which is of session 9, which nobody above 2 leads: session 1 is not to be had below 9.
  const auto tree = tree_from_json(R"({"processes": [{"pid": 1, "ppid": 0, "pgid": 1, "sid": 1},
      {"pid": 4, "ppid": 1, "pgid": 4, "sid": 4}, {"pid": 2, "ppid": 4, "pgid": 9, "sid": 9},
      {"pid": 3, "ppid": 2, "pgid": 1, "sid": 1}]})");
  ASSERT_TRUE(tree) << tree.error().message();
  const auto program = make_tree_program(*tree);
  ASSERT_FALSE(program);
  EXPECT_EQ(program.error().code(), ErrorCode::conflict) << program.error().message();
}

TEST(BareTree, UndecidedSaysHowFarTheSearchCame) {
  const auto tree = tree_from_json(R"({"processes": [{"pid": 1, "ppid": 0, "pgid": 1, "sid": 1},
      {"pid": 4, "ppid": 1, "pgid": 4, "sid": 4}, {"pid": 2, "ppid": 4, "pgid": 2, "sid": 2}]})");
  ASSERT_TRUE(tree) << tree.error().message();
  const auto program = make_tree_program(*tree, {.search_steps = 1});
  ASSERT_FALSE(program);
  EXPECT_EQ(program.error().code(), ErrorCode::unsupported);
  EXPECT_THAT(program.error().message(),
              testing::HasSubstr("undecided: after 1 steps of search over the birth sessions of 2 leaders"));
  EXPECT_TRUE(make_tree_program(*tree));
}

TEST(BareTree, AProgramWithoutARootGetsOne) {
  const auto published = from_json(R"([{"command": "FORK", "pid": 1, "child_pid": 6},
                                       {"command": "SET_SID", "pid": 6}])");
  ASSERT_TRUE(published) << published.error().message();
  const auto outcome = outcome_of(completed(*published));
  ASSERT_FALSE(outcome.rejection);
  ASSERT_EQ(outcome.tree.tasks.size(), 2u);
  EXPECT_TRUE(outcome.tree.root_is_namespace_init);
  EXPECT_EQ(outcome.tree.find(Pid{6})->session, Pid{6});
}

/// Each of the 16 commands of the published language, with just the fields that it has there.
TEST(PublishedLanguage, IsReadAndUnderstood) {
  const auto published = from_json(R"([
      {"command": "FORK", "pid": 1, "child_pid": 6},
      {"command": "SET_CHILD_REAPER", "pid": 1, "value": true},
      {"command": "CLONE", "pid": 6, "child_pid": 7},
      {"command": "SET_SID", "pid": 6},
      {"command": "START_THREAD", "pid": 6, "tid": 8},
      {"command": "MMAP_ANON", "pid": 6, "addr": 1048576, "length": 8192, "is_shared": false},
      {"command": "OPEN", "pid": 6, "path": "/etc/hostname", "fd": 3},
      {"command": "MMAP", "pid": 6, "addr": 2097152, "length": 4096, "fd": 3, "offset": 0, "is_shared": false},
      {"command": "LSEEK", "pid": 6, "fd": 3, "offset": 5},
      {"command": "DUP2", "pid": 6, "old_fd": 3, "new_fd": 4},
      {"command": "FORK", "pid": 6, "child_pid": 9},
      {"command": "CLOSE", "pid": 9, "fd": 3},
      {"command": "MREMAP", "pid": 9, "addr": 1048576, "new_addr": 3145728},
      {"command": "MUNMAP", "pid": 9, "addr": 3145728},
      {"command": "MUNMAP", "pid": 9, "addr": 2097152},
      {"command": "TRANSFER_FD", "from_pid": 6, "to_pid": 9, "fd": 3, "target_fd": 5},
      {"command": "EXIT", "pid": 9},
      {"command": "WAIT", "pid": 6, "child_pid": 9}])");
  ASSERT_TRUE(published) << published.error().message();
  const auto program = completed(*published);
  const auto outcome = outcome_of(program);
  ASSERT_FALSE(outcome.rejection) << outcome.rejection->message(program);
  EXPECT_EQ(outcome.tree.tasks.size(), 3u);
  EXPECT_EQ(outcome.tree.find(Pid{7})->parent, Pid{1});
  auto wrong = *published;  // nothing begins there
  std::get<Munmap>(wrong.commands[14].action).addr = 0x10000000;
  EXPECT_TRUE(outcome_of(completed(wrong)).rejection);
  for (const Action& action : {Action(Munmap{0, 0}), Action(Mprotect{4096, 0, 1}), Action(Mprotect{1, 4096, 1}),
                               Action(Munmap{~uint64_t{4095}, 8192})}) {
    wrong.commands[14].action = action;
    EXPECT_TRUE(outcome_of(completed(wrong)).rejection);
  }
}

TEST(ProgramJson, LosesNothing) {
  Program program;
  program.agent_area = {0x10000, 0x20000};
  program.images_fd = 9;
  program.commands.push_back({Pid{7}, Tid{7}, Perform{"a purpose", "", {}, {}, {call(1, 2, text("three"))}}});
  program.commands.push_back({Pid{7}, Tid{8}, Perform{"", "an attribute", {"CAP_KILL"}, {{5, ObjectId{6}}}, {}}});
  program.commands.push_back({Pid{7}, Tid{7}, Exit{0x300}});
  const auto text = to_json(program);
  const auto read = from_json(text);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(to_json(*read), text);
}

TEST(ProgramJson, AnEndNeedsNoStatus) {
  const auto read = from_json(R"([{"command": "EXIT", "pid": 6}])");
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(std::get<Exit>(read->commands.front().action).status, 0);
}

}  // namespace
}  // namespace stasis::plan
