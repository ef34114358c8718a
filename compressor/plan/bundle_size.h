// Size of the bundle that a plan leads to, before anything is written: the layout of format/SPEC.md with every matrix as
// long as its plain bytes (what `moepack pack --zstd-level 0` writes, to the byte), or as its rate allows. Chunk compression
// can only make the file smaller, so this is what a size gate holds.
#pragma once

#include <span>

#include "base/status.h"
#include "compressor/plan/plan.h"
#include "compressor/tensors.h"
#include "compressor/variants.h"
#include "format/manifest/manifest.h"

namespace moepack {

struct BundleExtras {
  uint64_t tokenizer_bytes = 0, provenance_bytes = 0;  // 0: left out
  HotList hot_list;
  std::optional<RatedCodec> second;  // second units (compressor/variants.h); none: no expert has one
  ExpertIndex twins;                 // or empty
  std::optional<RatedCodec> dense;   // of dense stand-ins; none: there are none
};

// Up to the end of the last page.
uint64_t WholePages(uint64_t bytes);

// Bytes that a unit takes in the chunk area at most, padding included: tensors of `stored_bytes` together, in as many chunks
// as its plain bytes fill.
uint64_t StoredUnitBytes(uint64_t stored_bytes, uint64_t plain_bytes);

// File size at most, with codecs[i] for tensors[i] (as ListTensors gives them), for the longest product name and version.
Result<uint64_t> BundleBytes(const Program& program, std::span<const TensorRef> tensors, std::span<const RatedCodec> codecs,
                             const BundleExtras& extras);

}  // namespace moepack
