// A room for one kind of thing behind descriptors: regular files, pipes, character devices …
#pragma once

#include <string_view>
#include <vector>

#include "base/result.h"
#include "image/file_records.h"
#include "model/application.h"
#include "plan/contributor.h"
#include "resource/capture_context.h"
#include "resource/leftovers.h"

namespace stasis::resource {

/// One file in src/resource implements it and holds all that stasis knows of this kind. Making the descriptions at
/// restore is plan::DescriptionMaker.
class FileRoom : public plan::DescriptionMaker {
 public:
  // -- capture
  /// Whether this descriptor is of this kind. Rooms are asked in registry order; the first that says yes has it.
  virtual bool recognises(const DescriptorProbe&) const = 0;
  /// What stands behind it. Flags, position and owner are taken by the caller. A problem of the application goes to
  /// context.diagnostics and is no Error.
  virtual Result<model::KindState> capture(CaptureContext&, const DescriptorProbe&) const = 0;
  /// Whether something goes on in it that begins when everybody is complete (plan::DescriptionMaker::start).
  virtual bool starts_last(const model::KindState&) const { return false; }
  /// Called once after all descriptors of all tasks are known (pipes without a reader inside the tree …).
  virtual Status finish_capture(CaptureContext&) const { return {}; }

  // -- images
  /// Writes the description as a file_entry (and data into images of its own).
  virtual Status encode(const model::Application&, const model::OpenDescription&, image::FileRecords&) const = 0;
  /// Whether a file_entry is of this kind, and its reading: sets state, flags, position and owner.
  virtual bool decodes(const image::FileRecords&, const image::FileRecord&) const = 0;
  /// Ids of further records of files.img that belong to this one and are no descriptions themselves (a FIFO's path).
  virtual std::vector<uint32_t> parts(const image::FileRecords&, const image::FileRecord&) const { return {}; }
  virtual Result<model::OpenDescription> decode(const image::FileRecords&, const image::FileRecord&,
                                                model::Application&) const = 0;
  /// Called once after all records of all kinds have been decoded and all tables are known, if any is of this kind.
  virtual Status finish_decode(model::Application&) const { return {}; }

  // -- before a restore
  virtual void validate(const model::Application&, const model::OpenDescription&, Diagnostics&) const {}
  /// Everything of this kind, if there is any: `validate` for each description, or once for what many of them share.
  virtual void validate_all(const model::Application&, Diagnostics&) const;
  /// What --inherit-fd calls it, as criu does ("pipe:[4711]", "var/log/x"); nothing: no descriptor can take its place.
  virtual std::vector<std::string> names(const model::Application&, const model::OpenDescription&) const { return {}; }

  // -- after a dump that ends the tree
  /// What of this kind remains on the system.
  virtual void leftovers(const model::Application&, std::vector<Leftover>&) const {}
  /// Supervisor's preparation and clean-up for this kind as a whole (stages prepare and settle).
  void contribute(plan::Stage, const model::Application&, plan::Sink&) const override {}
};

}  // namespace stasis::resource
