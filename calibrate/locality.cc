#include "calibrate/locality.h"

#include <algorithm>
#include <vector>

namespace moepack {
namespace {

struct Range {
  size_t begin = 0, end = 0;  // tokens
};

std::vector<Range> Sequences(const RoutingTrace& trace) {
  std::vector<Range> ranges;
  for (size_t s = 0; s < trace.sequence_start.size(); ++s) {
    const bool last = s + 1 == trace.sequence_start.size();
    ranges.push_back({trace.sequence_start[s], last ? trace.experts_of.size() / trace.k : trace.sequence_start[s + 1]});
  }
  return ranges;
}

// Cache of one sequence after another.
class OracleCache {
 public:
  OracleCache(const RoutingTrace& trace, uint32_t window, uint32_t rho)
      : trace_(trace),
        window_(window),
        capacity_(std::min<uint64_t>(uint64_t{rho} * trace.k, trace.experts)),
        ahead_(trace.experts),
        resident_(trace.experts),
        needed_(trace.experts) {}

  // Hits of the sequence.
  uint64_t Run(const Range& sequence) {
    std::fill(ahead_.begin(), ahead_.end(), 0u);
    std::fill(resident_.begin(), resident_.end(), false);
    cache_.clear();
    uint64_t hits = 0;
    for (size_t t = sequence.begin + 1; t < std::min(sequence.end, sequence.begin + 1 + window_); ++t) Count(t, 1);
    for (size_t t = sequence.begin; t < sequence.end; ++t) {
      hits += Use(t);
      if (t + 1 < sequence.end) Count(t + 1, -1);
      if (t + 1 + window_ < sequence.end) Count(t + 1 + window_, 1);
    }
    return hits;
  }

 private:
  std::span<const uint16_t> Experts(size_t t) const { return trace_.experts_of.subspan(t * trace_.k, trace_.k); }
  void Count(size_t t, int change) {
    for (uint16_t e : Experts(t)) ahead_[e] += static_cast<uint32_t>(change);
  }

  uint64_t Use(size_t t) {
    uint64_t hits = 0;
    for (uint16_t e : Experts(t)) {
      hits += resident_[e];
      needed_[e] = true;
    }
    for (uint16_t e : Experts(t)) {
      if (resident_[e]) continue;
      if (cache_.size() == capacity_) Evict();
      cache_.push_back(e);
      resident_[e] = true;
    }
    for (uint16_t e : Experts(t)) needed_[e] = false;
    return hits;
  }

  void Evict() {
    size_t worst = cache_.size();
    for (size_t i = 0; i < cache_.size(); ++i) {
      if (needed_[cache_[i]]) continue;
      if (worst == cache_.size() || ahead_[cache_[i]] < ahead_[cache_[worst]] ||
          (ahead_[cache_[i]] == ahead_[cache_[worst]] && cache_[i] < cache_[worst])) {
        worst = i;
      }
    }
    resident_[cache_[worst]] = false;
    cache_[worst] = cache_.back();
    cache_.pop_back();
  }

  const RoutingTrace& trace_;
  const uint32_t window_;
  const size_t capacity_;
  std::vector<uint32_t> ahead_;  // uses in the next window
  std::vector<bool> resident_, needed_;
  std::vector<uint16_t> cache_;
};

}  // namespace

double SegmentRoutingPerformance(const RoutingTrace& trace, uint32_t window) {
  std::vector<uint64_t> totals(window + 1, 0);  // (window, expert) pairs by f
  for (const Range& sequence : Sequences(trace)) {
    if (sequence.end - sequence.begin < window) continue;
    std::vector<uint32_t> uses(trace.experts, 0);
    std::vector<uint64_t> pairs(window + 1, 0);  // experts of the current window by f > 0
    const auto change = [&](size_t t, int by) {
      for (size_t i = t * trace.k; i < (t + 1) * trace.k; ++i) {
        uint32_t& f = uses[trace.experts_of[i]];
        if (f > 0) --pairs[f];
        f += static_cast<uint32_t>(by);
        if (f > 0) ++pairs[f];
      }
    };
    for (size_t t = sequence.begin; t < sequence.end; ++t) {
      if (t >= sequence.begin + window) change(t - window, -1);
      change(t, 1);
      if (t + 1 < sequence.begin + window) continue;
      for (size_t f = 1; f <= window; ++f) totals[f] += pairs[f];
    }
  }
  double all = 0, best = 0, positives = 0, pairs = 0;
  for (size_t f = 1; f <= window; ++f) all += static_cast<double>(f * totals[f]);
  for (size_t threshold = window; threshold >= 1; --threshold) {
    positives += static_cast<double>(threshold * totals[threshold]);
    pairs += static_cast<double>(totals[threshold]);
    if (pairs > 0) best = std::max(best, 2 * positives / (window * pairs + all));
  }
  return 100 * best;
}

double SegmentCacheHitRate(const RoutingTrace& trace, uint32_t window, uint32_t rho) {
  if (trace.experts_of.empty()) return 0;
  OracleCache cache(trace, window, rho);
  uint64_t hits = 0;
  for (const Range& sequence : Sequences(trace)) hits += cache.Run(sequence);
  return static_cast<double>(hits) / static_cast<double>(trace.experts_of.size());
}

}  // namespace moepack
