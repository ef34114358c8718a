// Which experts a token goes to, from router logits and a routing record.
#pragma once

#include <cstdint>
#include <span>

#include "format/program.h"

namespace moepack::runtime {

// logits: [experts], overwritten. ids, weights: [routing.k], largest score first, ties to the lower index.
void Route(const RoutingRecord& routing, std::span<float> logits, std::span<uint32_t> ids, std::span<float> weights);

}  // namespace moepack::runtime
