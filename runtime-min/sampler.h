// Choosing the next token. The same logits, options and seed give the same tokens everywhere.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace moepack::runtime {

// xoshiro256** 1.0 (Blackman and Vigna 2018), state from splitmix64 of the seed.
class Random {
 public:
  explicit Random(uint64_t seed);
  uint64_t Next();
  double NextDouble() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }  // [0, 1)

 private:
  std::array<uint64_t, 4> state_;
};

struct SamplerOptions {
  float temperature = 0;  // 0: the most likely token (ties to the lower id), nothing is random
  uint32_t top_k = 0;     // keep the k most likely tokens; 0: all
  float top_p = 1;        // keep the most likely tokens that together reach this probability, after top_k; 1: all
  uint64_t seed = 0;
};

// kUsage unless temperature is finite and >= 0 and top_p in (0, 1].
Status ValidateSamplerOptions(const SamplerOptions& options);

// Index of the largest logit; ties to the lower id, NaN is below every number.
int32_t Argmax(std::span<const float> logits);

class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {}
  // Draws one number from the generator unless greedy. Among infinite logits and NaN as Argmax. Not thread-safe. Allocates
  // on the first call only.
  int32_t Sample(std::span<const float> logits);

 private:
  struct Candidate {
    float logit = 0;
    int32_t id = 0;
    double probability = 0;
  };
  static bool MoreLikely(const Candidate& a, const Candidate& b);
  void SortFirst(size_t count);
  double TotalOfFirst(size_t count) const;
  size_t KeepTopP(size_t count, double total);

  SamplerOptions options_;
  Random random_;
  std::vector<Candidate> candidates_;
  size_t sorted_ = 0;  // candidates at the front that are in order, all others are less likely
};

}  // namespace moepack::runtime
