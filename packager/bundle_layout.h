// Where everything of a bundle stands: offsets in the tables depend on the sizes of the tables, which depend on offsets.
#pragma once

#include <vector>

#include "format/manifest/manifest.h"

namespace moepack {

// Contents of a bundle with chunk offsets counted from the start of the chunk area.
struct BundleParts {
  Bytes program, tokenizer, provenance, golden;  // but for the program they may be empty: then they are left out
  DenseTable dense;
  std::vector<ExpertTable> experts;
  HotList hot_list;
  uint64_t chunk_area_bytes = 0;
};

struct PlacedBundle {
  Bytes manifest;
  std::vector<Bytes> blobs;  // in the order of Manifest::blobs
  std::vector<uint64_t> blob_offsets;
  uint64_t chunks_begin = 0, file_bytes = 0;
};

// `base`: product, version, epoch, counter, features; the rest of the manifest is filled in. kLimit when a size is over a
// cap of the format.
Result<PlacedBundle> PlaceBundle(const Manifest& base, const BundleParts& parts);

}  // namespace moepack
