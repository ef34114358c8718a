// Local routing consistency (2505.16056): how far a few experts serve a run of tokens, from a routing trace alone.
//
// trace [tokens, k]: experts of every token; sequence_start: where sequences begin (windows and caches do not cross them).
#pragma once

#include <cstdint>
#include <span>

namespace moepack {

struct RoutingTrace {
  std::span<const uint16_t> experts_of;
  std::span<const uint64_t> sequence_start;
  uint32_t experts = 0, k = 0;
};

// Segment routing best performance, in percent: the best F1 of fixed expert sets for windows of `window` tokens. Over all
// windows and experts, with f the tokens of the window that chose the expert and threshold a:
//   max over a of 2 TP / (P + A),  TP = sum of f >= a,  P = window * count(f >= a),  A = sum of f.
// 0 when no sequence is as long as the window.
double SegmentRoutingPerformance(const RoutingTrace& trace, uint32_t window);

// Segment cache best hit rate, 0..1: a cache of min(rho * k, experts) experts, empty at the start of each sequence; a miss
// loads the expert and evicts the one that the next `window` tokens use least (ties: the lowest index), never one that the
// current token uses.
double SegmentCacheHitRate(const RoutingTrace& trace, uint32_t window, uint32_t rho);

}  // namespace moepack
