// Which experts a token goes to, from router logits and a routing record.
#pragma once

#include <cstdint>
#include <span>

#include "format/program.h"

namespace moepack::runtime {

// What routing needs beside the record and the logits.
struct RoutingTables {
  const float* selection_bias = nullptr;  // [experts], or null
  std::span<const uint32_t> original;     // [experts] index in the checkpoint; only read for groups
};

// scores: [2 * experts], the first half holds the logits; overwritten. ids, weights: [routing.k], largest selection score
// first, ties to the lower index. Every expert is chosen at most once, also where logits are no numbers.
void Route(const RoutingRecord& routing, const RoutingTables& tables, std::span<float> scores, std::span<uint32_t> ids,
           std::span<float> weights);

}  // namespace moepack::runtime
