// How an expert that fits into one chunk is cut into several, so that threads can share the load of it. A writer's choice:
// readers take chunks of any size. The packager cuts, and the planner counts the cuts.
#pragma once

#include <cstdint>
#include <vector>

namespace moepack {

// How often a unit of so many plain bytes is halved: 0 where it is small, or has several chunks anyhow. A chunk takes about
// 85 bytes of the table, less than 0.3 % of the smallest part.
uint32_t HalvingsOfExpert(uint64_t plain_bytes);

// Plain bytes of the parts of a chunk that is stored raw, halved so often: all but the last are whole pages, so that they
// take no page more than the chunk.
std::vector<uint64_t> RawParts(uint64_t plain_bytes, uint32_t halvings);

}  // namespace moepack
