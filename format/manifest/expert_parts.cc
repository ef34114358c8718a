#include "format/manifest/expert_parts.h"

#include "base/checked.h"
#include "format/manifest/manifest.h"

namespace moepack {

uint32_t HalvingsOfExpert(uint64_t plain_bytes) {
  if (plain_bytes > kMaxChunkPlainBytes || plain_bytes < (64 << 10)) return 0;
  return plain_bytes < (256 << 10) ? 1 : 2;
}

std::vector<uint64_t> RawParts(uint64_t plain_bytes, uint32_t halvings) {
  const uint64_t first = CeilDiv(plain_bytes, kBundleAlignment) / 2 * kBundleAlignment;
  if (halvings == 0 || first == 0) return {plain_bytes};
  std::vector<uint64_t> parts = RawParts(first, halvings - 1);
  const std::vector<uint64_t> rest = RawParts(plain_bytes - first, halvings - 1);
  parts.insert(parts.end(), rest.begin(), rest.end());
  return parts;
}

}  // namespace moepack
