// The guard of --network-lock iptables, with a program of ours in the place of iptables-restore.
#include "resource/iptables_lock.h"

#include <arpa/inet.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "../eventually.h"

namespace stasis::resource {
namespace {

class IptablesLock : public testing::Test {
 protected:
  IptablesLock() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stasis-iptables-XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
    const auto program = directory_ / "iptables-restore";
    // Rules are inserted some time after it has been told so, as where another has the lock (xtables.lock).
    std::ofstream(program) << "#!/bin/sh\n"
                              "cd \"${0%/*}\"\n"
                              "if grep -q -e '^-I'; then\n"
                              "  : >started; until [ -e go ]; do sleep 0.01; done; sleep 0.2; : >rules\n"
                              "else\n"
                              "  rm rules && : >removed\n"
                              "fi\n";
    chmod(program.c_str(), 0755);
    setenv("PATH", (directory_.string() + ":" + path_).c_str(), 1);
  }
  ~IptablesLock() override {
    setenv("PATH", path_.c_str(), 1);
    std::filesystem::remove_all(directory_);
  }
  bool is_there(const char* name) const { return std::filesystem::exists(directory_ / name); }
  void make(const char* name) const { std::ofstream(directory_ / name).flush(); }

  const std::string path_ = getenv("PATH");
  std::filesystem::path directory_;
};

TEST_F(IptablesLock, is_taken_away_after_whoever_is_inserting_it) {
  kernel::Connection connection;
  connection.local.family = connection.remote.family = AF_INET;
  const pid_t holder = fork();
  if (holder == 0) {
    (void)hold_iptables_lock({&connection, 1});
    _exit(0);
  }
  EXPECT_TRUE(eventually([&] { return is_there("started"); }));
  kill(holder, SIGKILL);
  waitpid(holder, nullptr, 0);
  make("go");
  EXPECT_TRUE(eventually([&] { return is_there("removed"); }));
  EXPECT_FALSE(is_there("rules"));
}

}  // namespace
}  // namespace stasis::resource
