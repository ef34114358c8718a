// Which experts the next MoE nodes will choose, foretold by running their routers early: the residual stream changes little
// from layer to layer, so that the hidden state before a router says much about the routers after it (HOBBIT, 2411.01433,
// section 3.3; Pre-gated MoE).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "format/program.h"
#include "runtime-min/dense_weights.h"
#include "runtime-min/expert_cache.h"
#include "runtime-min/kernels/kernels.h"

namespace moepack::runtime {

inline constexpr uint32_t kMaxPrefetchDepth = 4;

class RoutePredictor {
 public:
  // More tokens than these go to most of the experts: then nothing is foretold.
  static constexpr size_t kMostRows = 4;

  // depth: 1..kMaxPrefetchDepth MoE nodes ahead. A MoE node is foretold when its logits come from a linear node, with or
  // without a norm before it; from the input of that norm, which is the residual stream, or of the linear node. All must
  // outlive it. kNoMemory.
  static Result<std::unique_ptr<RoutePredictor>> Create(const Program& program, const DenseWeights& weights,
                                                        ExpertCache& cache, ThreadPool& pool, kernels::Isa isa,
                                                        uint32_t depth);

  // The value that is to be given to Run once `node` has run; kNone when nothing is foretold from it.
  ValueId ValueFor(uint32_t node) const { return router_at_[node] == kNone ? kNone : routers_[router_at_[node]].from; }
  // values: [rows, width] of ValueFor(node), row-major. Tells the cache which experts to expect. Allocates nothing.
  void Run(uint32_t node, const float* values, size_t rows);

 private:
  struct Router {
    const Node *moe = nullptr, *linear = nullptr, *norm = nullptr;  // norm: or null
    ValueId from = kNone;                                           // what the norm reads, or the linear node
  };
  RoutePredictor(const Program& program, const DenseWeights& weights, ExpertCache& cache, ThreadPool& pool, kernels::Isa isa,
                 uint32_t depth)
      : program_(program), weights_(weights), cache_(cache), pool_(pool), isa_(isa), depth_(depth) {}
  Status FindRouters();
  void Foretell(const Router& router, const float* values, size_t width, size_t rows);
  void Logits(const Router& router, const float* values, size_t width, size_t rows);

  const Program& program_;
  const DenseWeights& weights_;
  ExpertCache& cache_;
  ThreadPool& pool_;
  kernels::Isa isa_;
  uint32_t depth_;
  std::vector<Router> routers_;      // in the order of the program
  std::vector<uint32_t> router_at_;  // by node: the router whose `from` is there once the node has run, kNone
  FloatBuffer normed_, logits_;      // [kMostRows, widest], [kMostRows, most experts]
  kernels::Activations activations_;
  std::vector<float> scores_;            // [2 * most experts], scratch of routing
  std::vector<uint32_t> ids_, experts_;  // of a row, in all rows
  std::vector<float> gates_, sums_;      // of a row's experts; of every expert over rows
};

}  // namespace moepack::runtime
