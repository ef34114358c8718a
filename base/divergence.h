// How far one model's next-token distributions are from another's: the protocol of llama.cpp's perplexity tool.
// Non-overlapping chunks of n_ctx tokens, only the second half of each scored.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace moepack {

// Which rows are scored: position p of a chunk predicts token p + 1, for p from ctx / 2 to ctx - 2. Tokens after the last
// whole chunk are not used.
struct EvalChunks {
  uint64_t ctx = 0;  // tokens of a chunk, at least 4
  uint64_t chunks = 0;
  EvalChunks(uint64_t tokens, uint64_t ctx_tokens) : ctx(ctx_tokens), chunks(tokens / ctx_tokens) {}
  uint64_t first_position() const { return ctx / 2; }           // in a chunk
  uint64_t rows() const { return ctx - 1 - first_position(); }  // scored rows of a chunk
  uint64_t total_rows() const { return chunks * rows(); }
  bool scored(uint64_t token) const {  // index over all chunks
    return token < chunks * ctx && token % ctx >= first_position() && token % ctx + 1 < ctx;
  }
  // Token index of scored row r of chunk c; its target is the token after it.
  uint64_t token(uint64_t c, uint64_t r) const { return c * ctx + first_position() + r; }
};
inline constexpr uint64_t kMinEvalContext = 4;

// Every token can be a target: it is one of the `vocabulary` that have a logit. kTokenizer names the first that is not (a
// model may embed more tokens than it predicts).
Status CheckTargets(std::span<const int32_t> tokens, uint64_t vocabulary);

// -log softmax(logits)[target], in double. `target` is in the vocabulary.
double NegativeLogLikelihood(std::span<const float> logits, int32_t target);

struct DivergenceReport {
  uint64_t tokens = 0;
  double ppl = 0, ppl_base = 0;
  double ln_ratio_stderr = 0;  // standard error of ln(ppl / ppl_base)
  double kld_mean = 0, kld_stderr = 0, kld_median = 0, kld_p90 = 0, kld_p95 = 0, kld_p99 = 0, kld_p999 = 0, kld_max = 0;
  double same_top1 = 0;  // share 0..1
  // Next-token accuracy: share of targets that the compressed and the full model find most likely.
  double top1_accuracy = 0, top1_accuracy_base = 0;
  double delta_p_mean = 0, delta_p_rms = 0;  // of the target token's probability
};

// Feeds rows one at a time. Not thread-safe.
class Divergence {
 public:
  // base, other: [vocab] logits that predict `target`, which is in the vocabulary. A logit that is not finite makes the
  // report's numbers not finite.
  void Add(std::span<const float> base, std::span<const float> other, int32_t target);
  // All zero when nothing was added. Percentiles interpolate linearly between the sorted values.
  DivergenceReport Report() const;

 private:
  std::vector<double> kld_, nll_, nll_base_;
  uint64_t same_ = 0, hits_ = 0, hits_base_ = 0;
  double delta_sum_ = 0, delta_sq_ = 0;
};

}  // namespace moepack
