// Basic-refinement attribution (2505.24593): log p(y | u + g v) - log p(y | u), with u the post-attention residual state,
// g v what an expert adds to it, p the model's own final norm and head, y the next token. A mean over sampled tokens.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "forward/forward.h"
#include "model/profile.h"

namespace moepack {

// Where a MoE node stands in its block's residual stream:
//   leaving = state + scale * moe output (+ what stands beside it, when `beside`).
struct ResidualPlan {
  ValueId state = kNone, leaving = kNone;
  float scale = 1;
  bool beside = false;
};

// kUnsupported, with the reason, when the MoE output does not just get added (after scaling) to a state whose norm (or
// which itself) is the node's input.
Result<ResidualPlan> FindResidual(const Program& program, const Node& moe);

// Tokens that have a successor in their sequence, one at a pseudo-random place of each of `count` equal strata of all such
// tokens (all of them when there are fewer). Strictly increasing.
std::vector<uint64_t> SampleTokens(const TokenBatch& batch, uint64_t count);

// The last block as a function of the residual state alone. Keeps a reference to all arguments.
class HeadEvaluator {
 public:
  // kUnsupported when the last block is not a function of one value, token by token.
  static Result<HeadEvaluator> Make(const Program& program, const BlockWeights& last, ThreadPool& pool);
  // log p(targets[i] | states row i).
  Result<std::vector<double>> LogLikelihood(Matrix states, std::span<const int32_t> targets) const;
  uint64_t width() const { return program_->values[import_].width; }

 private:
  const Program* program_ = nullptr;
  const BlockWeights* last_ = nullptr;
  ThreadPool* pool_ = nullptr;
  ValueId import_ = kNone;
};

// Gathers what one block's MoE node does at the sampled tokens, then measures it.
class AttributionProbe {
 public:
  // References must outlive it. stream: as it is before the block runs (for a state that the block does not make itself).
  AttributionProbe(const Program& program, const Node& moe, const ResidualPlan& plan, const TokenBatch& batch,
                   const std::vector<uint64_t>& samples, const Stream& stream);
  void OnMoe(const MoeCapture& capture);
  void OnValue(const Node& node, uint64_t first_token, const Matrix& value);
  // Fills table->attribution and shared_attribution.
  Status Measure(const HeadEvaluator& head, TableProfile* table) const;

 private:
  Status MeasureGroup(const HeadEvaluator& head, size_t begin, size_t end, std::vector<double>* gain, double* shared) const;
  // Samples in tile rows [first, first + rows), as indices of samples_.
  std::pair<size_t, size_t> InTile(uint64_t first, uint64_t rows) const;

  const Node& moe_;
  const ResidualPlan plan_;
  const TokenBatch& batch_;
  const std::vector<uint64_t>& samples_;
  Matrix state_, leaving_, routed_;  // [samples, hidden]; routed_: scaled MoE output
  Matrix added_;                     // [samples * k, hidden]: scale * g * f(x), by slot
  std::vector<uint32_t> expert_;     // [samples * k]
};

}  // namespace moepack
