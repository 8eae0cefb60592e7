// stasis show: an image, or a whole checkpoint, as JSON in crit's shape or as a tree for people.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>

#include "cli/key_options.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "cli/subcommands.h"
#include "image/show.h"

namespace stasis::cli {
namespace {

struct Options {
  std::string path;
  std::string images_dir;
  bool tree = false;
  bool compact = false;
  KeyOptions keys;
};

Result<std::string> shown(const Options& options) {
  const std::filesystem::path path = options.path.empty() ? options.images_dir : options.path;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    const auto images = TRY(open_images(path.string(), options.keys));
    return options.tree ? image::show_tree(images) : image::show_directory(images, !options.compact);
  }
  const auto parent = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const auto images = TRY(open_images(parent.string(), options.keys));
  return image::show_file(images, path.filename().string(), !options.compact);
}

/// On a terminal a line that is longer than it is wide ends in "…".
std::string cut_lines(std::string_view text, unsigned width) {
  std::string cut;
  size_t columns = 0, last = 0;  // where the last character of the line begins in `cut`
  for (const char c : text) {
    const bool continues = (static_cast<unsigned char>(c) & 0xc0) == 0x80;  // a character of UTF-8
    if (c == '\n')
      columns = 0;
    else if (!continues && ++columns == width)
      last = cut.size();
    else if (!continues && columns == width + 1)
      cut.resize(last), cut += "…";
    if (columns <= width) cut += c;
  }
  return cut;
}

}  // namespace

void add_show(CLI::App& app, Action& chosen, Face) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("show", "Print an image, or all images of a directory");
  command->add_option("path", options->path, "An image file or a directory of images")->type_name("PATH");
  command->add_option("-D,--images-dir", options->images_dir, "The directory, as for the other subcommands")
      ->type_name("DIR");
  command->add_flag("--tree", options->tree, "The process tree with files and memory per task, for people");
  command->add_flag("--compact", options->compact, "JSON on one line");
  add_key_options(*command, options->keys);
  command->callback([options, &chosen] {
    if (options->path.empty() && options->images_dir.empty()) options->images_dir = ".";
    chosen = [options] {
      auto text = shown(*options);
      if (!text) {
        fmt::print(stderr, "Error: {}\n", text.error().message());
        return 1;
      }
      if (const auto width = terminal_width(STDOUT_FILENO); width && options->tree) *text = cut_lines(*text, *width);
      fmt::print("{}\n", *text);
      return 0;
    };
  });
}

}  // namespace stasis::cli
