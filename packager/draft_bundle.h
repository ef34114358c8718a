// A bundle that is never a file: its head in memory, its chunks in the spool. So what goes into the head of the real one can
// be found by running it, and the keys of the release sign one manifest only.
#pragma once

#include <memory>

#include "packager/bundle_layout.h"
#include "packager/chunk_spool.h"
#include "verify/verify.h"

namespace moepack {

class DraftBundle {
 public:
  // Signs with a new key that is forgotten at once. `spool` is finished and outlives the draft.
  static Result<DraftBundle> Make(const PlacedBundle& placed, const ChunkSpool& spool);
  // Verified as on a device. It must not outlive the draft's spool.
  Result<std::unique_ptr<verify::VerifiedBundle>> Open() const;

 private:
  DraftBundle(std::shared_ptr<const Bytes> head, const ChunkSpool& spool) : head_(std::move(head)), spool_(&spool) {}
  std::shared_ptr<const Bytes> head_;
  const ChunkSpool* spool_;
};

}  // namespace moepack
