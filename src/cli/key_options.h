// Options about keys of encrypted images. Secrets are named by files, never given as arguments.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "image/directory.h"

namespace CLI {
class App;
}

namespace stasis::cli {

struct KeyOptions {
  std::vector<std::string> identities, key_files;
};

/// --identity and --key-file, of all that read images.
void add_key_options(CLI::App&, KeyOptions&);
/// Opens images for reading; they may be encrypted.
Result<image::Directory> open_images(const std::string& path, const KeyOptions&);

/// What is done with images that are written.
struct StorageOptions {
  std::string compress;  ///< zstd, zstd:19, lz4; empty: not at all
  bool encrypt = false;
  std::vector<std::string> recipients, key_files;
  std::vector<std::string> identities;  ///< read encrypted parents
  bool auto_dedup = false;
};

/// --compress, --encrypt, --recipient, --key-file, --identity and --auto-dedup of dump and pre-dump.
void add_storage_options(CLI::App&, StorageOptions&);
/// Opens the directory of a dump, which writes as the options say.
Result<image::Directory> open_for_writing(const std::string& path, const StorageOptions&);

}  // namespace stasis::cli
