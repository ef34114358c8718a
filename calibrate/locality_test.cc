#include "calibrate/locality.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace moepack {
namespace {

struct Trace {
  std::vector<uint16_t> ids;
  std::vector<uint64_t> starts;
  uint32_t experts = 0, k = 0;
  RoutingTrace view() const { return {ids, starts, experts, k}; }
  size_t tokens() const { return ids.size() / k; }
  size_t end(size_t s) const { return s + 1 < starts.size() ? starts[s + 1] : tokens(); }
  bool uses(size_t t, uint32_t e) const { return std::count(&ids[t * k], &ids[t * k] + k, e) != 0; }
};

// Experts that change slowly, so that neither number is trivial.
Trace Pseudo(uint32_t experts, uint32_t k, std::vector<size_t> lengths, uint64_t seed) {
  Trace trace{.experts = experts, .k = k};
  uint64_t state = seed;
  const auto random = [&](uint32_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>((state >> 33) % n);
  };
  for (size_t length : lengths) {
    trace.starts.push_back(trace.tokens());
    for (size_t t = 0; t < length; ++t) {
      std::set<uint16_t> chosen;
      while (chosen.size() < k) {
        const uint32_t centre = static_cast<uint32_t>(t / 7);
        chosen.insert(static_cast<uint16_t>((random(3) == 0 ? random(experts) : centre + random(k + 1)) % experts));
      }
      trace.ids.insert(trace.ids.end(), chosen.begin(), chosen.end());
    }
  }
  return trace;
}

// The definition, window by window and threshold by threshold.
double BruteSrp(const Trace& trace, uint32_t window) {
  std::vector<uint32_t> uses;
  for (size_t s = 0; s < trace.starts.size(); ++s) {
    for (size_t t = trace.starts[s]; t + window <= trace.end(s); ++t) {
      for (uint32_t e = 0; e < trace.experts; ++e) {
        uint32_t f = 0;
        for (size_t i = t; i < t + window; ++i) f += trace.uses(i, e);
        uses.push_back(f);
      }
    }
  }
  double best = 0;
  for (uint32_t threshold = 1; threshold <= window; ++threshold) {
    double tp = 0, p = 0, a = 0;
    for (uint32_t f : uses) {
      a += f;
      if (f >= threshold) tp += f, p += window;
    }
    if (p > 0) best = std::max(best, 2 * tp / (p + a));
  }
  return 100 * best;
}

double BruteSch(const Trace& trace, uint32_t window, uint32_t rho) {
  const size_t capacity = std::min<size_t>(rho * trace.k, trace.experts);
  size_t hits = 0;
  for (size_t s = 0; s < trace.starts.size(); ++s) {
    std::set<uint32_t> cache;
    for (size_t t = trace.starts[s]; t < trace.end(s); ++t) {
      for (uint32_t i = 0; i < trace.k; ++i) hits += cache.count(trace.ids[t * trace.k + i]);
      for (uint32_t i = 0; i < trace.k; ++i) {
        const uint32_t wanted = trace.ids[t * trace.k + i];
        if (cache.count(wanted)) continue;
        if (cache.size() == capacity) {
          std::vector<std::pair<size_t, uint32_t>> candidates;  // (uses ahead, expert)
          for (uint32_t e : cache) {
            if (trace.uses(t, e)) continue;
            size_t ahead = 0;
            for (size_t u = t + 1; u < std::min(trace.end(s), t + 1 + window); ++u) ahead += trace.uses(u, e);
            candidates.emplace_back(ahead, e);
          }
          cache.erase(std::min_element(candidates.begin(), candidates.end())->second);
        }
        cache.insert(wanted);
      }
    }
  }
  return static_cast<double>(hits) / static_cast<double>(trace.ids.size());
}

TEST(LocalityTest, MatchesBruteForce) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const Trace trace = Pseudo(9 + seed % 3, 1 + seed % 4, {40, 1, 16, 15, 63}, seed);
    for (uint32_t window : {1u, 5u, 16u}) {
      EXPECT_NEAR(SegmentRoutingPerformance(trace.view(), window), BruteSrp(trace, window), 1e-9) << seed << " " << window;
      for (uint32_t rho = 1; rho <= 3; ++rho) {
        EXPECT_DOUBLE_EQ(SegmentCacheHitRate(trace.view(), window, rho), BruteSch(trace, window, rho)) << seed << " " << rho;
      }
    }
  }
}

TEST(LocalityTest, OneExpertForAllTokensIsPerfectlyLocal) {
  const Trace trace{std::vector<uint16_t>(100, 3), {0}, 8, 1};
  EXPECT_DOUBLE_EQ(SegmentRoutingPerformance(trace.view(), 16), 100);
  EXPECT_DOUBLE_EQ(SegmentCacheHitRate(trace.view(), 16, 1), 0.99);  // the first use is a miss
}

TEST(LocalityTest, ShortSequencesHaveNoWindow) {
  const Trace trace = Pseudo(8, 2, {10, 15}, 1);
  EXPECT_EQ(SegmentRoutingPerformance(trace.view(), 16), 0);
  EXPECT_GT(SegmentCacheHitRate(trace.view(), 16, 2), 0);
}

TEST(LocalityTest, CacheThatHoldsAllMissesOnlyOnce) {
  Trace trace{.starts = {0}, .experts = 6, .k = 2};
  for (uint16_t t = 0; t < 60; ++t) {
    trace.ids.push_back(t % 6);
    trace.ids.push_back((t + 3) % 6);
  }
  EXPECT_DOUBLE_EQ(SegmentCacheHitRate(trace.view(), 16, 3), 1 - 6.0 / 120);
}

}  // namespace
}  // namespace moepack
