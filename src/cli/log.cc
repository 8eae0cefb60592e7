#include "cli/log.h"

#include <fcntl.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <chrono>
#include <filesystem>
#include <utility>

#include "base/unique_fd.h"
#include "cli/options.h"

namespace stasis::cli {
namespace {

/// Seconds since the log was opened, as criu prints them: "00.001234".
class ElapsedFlag : public spdlog::custom_flag_formatter {
 public:
  explicit ElapsedFlag(std::chrono::system_clock::time_point start) : start_(start) {}
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    const double seconds = std::chrono::duration<double>(message.time - start_).count();
    fmt::format_to(std::back_inserter(out), "{:09.6f}", seconds < 0 ? 0.0 : seconds);
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<ElapsedFlag>(start_); }

 private:
  std::chrono::system_clock::time_point start_;
};

/// "Error ", "Warn  ", or nothing: the words that callers grep for.
class LevelWordFlag : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    std::string_view word;
    if (message.level >= spdlog::level::err)
      word = "Error: ";
    else if (message.level == spdlog::level::warn)
      word = "Warn: ";
    out.append(word.data(), word.data() + word.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<LevelWordFlag>(); }
};

spdlog::level::level_enum level_of(int verbosity) {
  switch (verbosity) {
    case 0:
      return spdlog::level::off;
    case 1:
      return spdlog::level::err;
    case 2:
      return spdlog::level::warn;
    case 3:
      return spdlog::level::info;
    default:
      return spdlog::level::debug;
  }
}

Error cannot_open(int errno_value, std::string file) {
  return Error::system("open the log file", errno_value, std::move(file))
      .advise("create its directory, or name another place with -o, -W or -D");
}

}  // namespace

Result<std::shared_ptr<spdlog::logger>> open_log(const CommonOptions& options) {
  std::shared_ptr<spdlog::logger> logger;
  if (options.log_file.empty()) {
    logger = std::make_shared<spdlog::logger>("stasis", std::make_shared<spdlog::sinks::stderr_sink_st>());
  } else {
    const std::filesystem::path directory = options.work_dir.empty() ? options.images_dir : options.work_dir;
    const std::filesystem::path file = directory / options.log_file;  // an absolute name stays as it is
    // spdlog would make directories that are missing.
    const UniqueFd made(open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    if (!made.valid()) return fail(cannot_open(errno, file.string()));
    try {  // spdlog reports a file it cannot open by throwing: it goes no further than here
      logger = std::make_shared<spdlog::logger>(
          "stasis", std::make_shared<spdlog::sinks::basic_file_sink_st>(file.string(), /*truncate=*/true));
    } catch (const spdlog::spdlog_ex&) {
      return fail(cannot_open(errno, file.string()));
    }
    logger->set_error_handler([told = false](const std::string& problem) mutable {
      if (!std::exchange(told, true)) fmt::print(stderr, "Warn: the log is incomplete: {}; make room there\n", problem);
    });
  }
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<ElapsedFlag>('*', std::chrono::system_clock::now());
  formatter->add_flag<LevelWordFlag>('#').set_pattern("(%*) %#%v");
  logger->set_formatter(std::move(formatter));
  logger->set_level(level_of(options.verbosity));
  logger->flush_on(spdlog::level::warn);
  return logger;
}

}  // namespace stasis::cli
