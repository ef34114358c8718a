#include "runtime-min/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace moepack::runtime {

Random::Random(uint64_t seed) {
  for (uint64_t& s : state_) {
    seed += 0x9e3779b97f4a7c15u;
    uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    s = z ^ (z >> 31);
  }
}

uint64_t Random::Next() {
  const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  const uint64_t t = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= t;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

Status ValidateSamplerOptions(const SamplerOptions& options) {
  if (!std::isfinite(options.temperature) || options.temperature < 0) {
    return Status(ErrorCode::kUsage, "temperature: expected a number of at least 0");
  }
  if (!(options.top_p > 0 && options.top_p <= 1))
    return Status(ErrorCode::kUsage, "top p: expected a number above 0, at most 1");
  return Status::Ok();
}

int32_t Argmax(std::span<const float> logits) {
  // The block of the first maximum by lanes, which the compiler turns into vectors, then its place there.
  constexpr size_t kBlock = 1024, kLanes = 16;
  float best = -INFINITY;
  size_t found = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const std::span<const float> block = logits.subspan(begin, std::min(kBlock, logits.size() - begin));
    float largest[kLanes];
    std::fill_n(largest, kLanes, -INFINITY);
    size_t i = 0;
    for (; i + kLanes <= block.size(); i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane)
        largest[lane] = block[i + lane] > largest[lane] ? block[i + lane] : largest[lane];
    }
    for (; i < block.size(); ++i) largest[0] = block[i] > largest[0] ? block[i] : largest[0];
    const float most = *std::max_element(largest, largest + kLanes);
    if (most > best) best = most, found = begin;
  }
  const auto place = std::find(logits.begin() + static_cast<ptrdiff_t>(found), logits.end(), best);
  return place == logits.end() ? 0 : static_cast<int32_t>(place - logits.begin());
}

// Most likely first; ids break ties, so that the order is total.
bool Sampler::MoreLikely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// Sorts the first `count` candidates at least. Few are looked at, as a rule: what is sorted grows eightfold.
void Sampler::SortFirst(size_t count) {
  constexpr size_t kFirst = 64, kGrowth = 8;
  if (count <= sorted_) return;
  const size_t wanted = std::min(candidates_.size(), std::max({count, kFirst, sorted_ * kGrowth}));
  const auto begin = candidates_.begin() + static_cast<ptrdiff_t>(sorted_);
  const auto end = candidates_.begin() + static_cast<ptrdiff_t>(wanted);
  if (end != candidates_.end()) std::nth_element(begin, end, candidates_.end(), MoreLikely);
  std::sort(begin, end, MoreLikely);
  sorted_ = wanted;
}

double Sampler::TotalOfFirst(size_t count) const {
  double total = 0;
  for (size_t i = 0; i < count; ++i) total += candidates_[i].probability;
  return total;
}

// Of `count` candidates with unnormalised probabilities that sum to `total`.
size_t Sampler::KeepTopP(size_t count, double total) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    SortFirst(i + 1);
    sum += candidates_[i].probability;
    if (sum >= options_.top_p * total) return i + 1;
  }
  return count;
}

int32_t Sampler::Sample(std::span<const float> logits) {
  if (options_.temperature == 0 || logits.size() == 1) return Argmax(logits);
  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    candidates_[i] = {std::isnan(logits[i]) ? -INFINITY : logits[i], static_cast<int32_t>(i), 0};
  }
  sorted_ = 0;
  size_t kept = options_.top_k == 0 ? candidates_.size() : std::min<size_t>(options_.top_k, candidates_.size());
  if (options_.top_k > 0) SortFirst(kept);
  const Candidate first = *std::min_element(candidates_.begin(), candidates_.end(), MoreLikely);
  if (!std::isfinite(first.logit)) return first.id;
  for (size_t i = 0; i < kept; ++i) {
    const double scaled = (double{candidates_[i].logit} - first.logit) / options_.temperature;
    candidates_[i].probability = std::exp(scaled);
  }
  double total = TotalOfFirst(kept);
  if (options_.top_p < 1) {
    kept = KeepTopP(kept, total);
    total = TotalOfFirst(kept);
  }
  double left = random_.NextDouble() * total;
  for (size_t i = 0; i < kept; ++i) {
    SortFirst(i + 1);
    left -= candidates_[i].probability;
    if (left < 0) return candidates_[i].id;
  }
  return candidates_[kept - 1].id;
}

}  // namespace moepack::runtime
