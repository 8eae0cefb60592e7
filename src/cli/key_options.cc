#include "cli/key_options.h"

#include <CLI/CLI.hpp>

#include "cli/options.h"
#include "image/keys.h"
#include "memory/filter/filter.h"

namespace stasis::cli {

void add_key_options(CLI::App& app, KeyOptions& options) {
  app.add_option("--identity", options.identities,
                 "Read encrypted images with the identity in this file (stasis keygen)")
      ->type_name("FILE")
      ->allow_extra_args(false);
  app.add_option("--key-file", options.key_files, "Read encrypted images with the shared key in this file")
      ->type_name("FILE")
      ->allow_extra_args(false);
}

Result<image::Directory> open_images(const std::string& path, const KeyOptions& options) {
  auto ring = std::make_shared<image::KeyRing>();
  for (const auto& file : options.identities) TRY(ring->add_identity(file));
  for (const auto& file : options.key_files) TRY(ring->add_shared_key(file));
  return image::Directory::unlock(path, std::move(ring));
}

void add_storage_options(CLI::App& app, StorageOptions& options) {
  app.add_option("--compress", options.compress, "Compress pages: zstd, zstd:1 to zstd:19, lz4, lz4:1 to lz4:12")
      ->type_name("HOW");
  auto* encrypt =
      add_switch(app, "--encrypt", options.encrypt, "Encrypt the images for --recipient or with --key-file");
  app.add_option("--recipient", options.recipients,
                 "Who may read encrypted images: a public key, or a file with one (several)")
      ->type_name("KEY|FILE")
      ->allow_extra_args(false)
      ->needs(encrypt);
  app.add_option("--key-file", options.key_files,
                 "A shared key that reads encrypted images, and their parents (stasis keygen --shared)")
      ->type_name("FILE")
      ->allow_extra_args(false)
      ->needs(encrypt);
  app.add_option("--identity", options.identities, "Read encrypted parent images with the identity in this file")
      ->type_name("FILE")
      ->allow_extra_args(false)
      ->needs(encrypt);
  add_switch(app, "--auto-dedup", options.auto_dedup,
             "Release pages in the parent images that this dump has anew (stasis dedup)");
}

Result<image::Directory> open_for_writing(const std::string& path, const StorageOptions& options) {
  auto directory = TRY(image::Directory::open(path));
  if (!options.compress.empty()) directory.compress(TRY(memory::parse_compression(options.compress)));
  if (!options.encrypt) return directory;
  auto ring = std::make_shared<image::KeyRing>();
  for (const auto& recipient : options.recipients) TRY(ring->add_recipient(recipient));
  for (const auto& file : options.key_files) TRY(ring->add_shared_key(file));
  for (const auto& file : options.identities) TRY(ring->add_identity(file));
  TRY(directory.encrypt(*ring));
  ring->recipients.clear();  // they read nothing here
  directory.read_parents_with(std::move(ring));
  return directory;
}

}  // namespace stasis::cli
