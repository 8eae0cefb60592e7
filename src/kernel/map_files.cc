#include "kernel/map_files.h"

#include <sys/stat.h>

#include <filesystem>
#include <string>

namespace stasis::kernel {

Status follow_map_files() {
  const std::string directory = "/proc/self/map_files";
  std::error_code problem;
  const std::filesystem::directory_iterator links(directory, problem);
  if (problem) return fail(Error::system("list what is mapped", problem.value(), directory));
  if (links == std::filesystem::directory_iterator()) return {};  // not even our program
  struct stat status;
  if (stat(links->path().c_str(), &status) == 0) return {};
  return fail_errno("follow a link to what is mapped", links->path());
}

}  // namespace stasis::kernel
