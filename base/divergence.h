// How far one model's next-token distributions are from another's: the protocol of llama.cpp's perplexity tool.
// Non-overlapping chunks of n_ctx tokens, only the second half of each scored.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moepack {

struct DivergenceReport {
  uint64_t tokens = 0;
  double ppl = 0, ppl_base = 0;
  double ln_ratio_stderr = 0;   // standard error of ln(ppl / ppl_base)
  double kld_mean = 0, kld_stderr = 0, kld_median = 0, kld_p90 = 0, kld_p95 = 0, kld_p99 = 0, kld_p999 = 0, kld_max = 0;
  double same_top1 = 0;         // share 0..1
  double delta_p_mean = 0, delta_p_rms = 0;  // of the target token's probability
};

// Feeds rows one at a time. Not thread-safe.
class Divergence {
 public:
  // base, other: [vocab] logits that predict `target`.
  void Add(std::span<const float> base, std::span<const float> other, int32_t target);
  DivergenceReport Report() const;

 private:
  std::vector<float> kld_;
  std::vector<double> nll_, nll_base_;
  uint64_t same_ = 0;
  double delta_sum_ = 0, delta_sq_ = 0;
};

}  // namespace moepack
