#include "compressor/cache_simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace moepack {
namespace {

CacheTrace::Table OneOfEach(std::vector<uint32_t> chosen, std::vector<uint64_t> bytes) {
  return {1, std::move(chosen), std::move(bytes)};
}

// Topics that last, in tables of unequal experts.
CacheTrace Topics(uint32_t tables, uint32_t experts, uint32_t k, uint64_t tokens, uint64_t seed) {
  CacheTrace trace;
  uint64_t state = seed;
  const auto random = [&](uint32_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>((state >> 33) % n);
  };
  for (uint32_t t = 0; t < tables; ++t) {
    CacheTrace::Table table{k, {}, {}};
    for (uint32_t e = 0; e < experts; ++e) table.bytes.push_back(64 * (4 + (e * 5 + t) % 7));
    for (uint64_t i = 0; i < tokens; ++i) {
      std::set<uint32_t> chosen;
      while (chosen.size() < k) {
        chosen.insert((random(3) == 0 ? random(experts) : static_cast<uint32_t>(i / 40) + random(2 * k)) % experts);
      }
      table.chosen.insert(table.chosen.end(), chosen.begin(), chosen.end());
    }
    trace.tables.push_back(std::move(table));
  }
  return trace;
}

TEST(CacheSimulation, ByHand) {
  CacheTrace trace;
  trace.tables.push_back(OneOfEach({0, 1, 2, 0, 1, 2, 0}, {1, 1, 1}));
  EXPECT_EQ(SimulateCache(trace, {}, 2).hits, 0u) << "LRU always gives up the one that comes next";
  const CacheOutcome best = SimulateBelady(trace, 2);  // miss 0, 1, 2 (1 leaves), hit 0, miss 1 (0 leaves), hit 2, miss 0
  EXPECT_EQ(best.hits, 2u);
  EXPECT_EQ(best.lookups, 7u);
  EXPECT_EQ(best.bytes_loaded, 5u);
  EXPECT_EQ(SimulateCache(trace, {}, 3).hits, 4u);
  trace.hot = {{0, 0}, {0, 1}, {0, 2}};
  EXPECT_EQ(SimulateCache(trace, {}, 3).hits, 7u);
  // 0 is held: 1 and 2 share what is left.
  trace.tables[0].bytes = {100, 100, 100};
  EXPECT_EQ(SimulateCache(trace, {.pinned_percent = 50}, 200).hits, 4u);
}

TEST(CacheSimulation, ALargeExpertPushesOutSeveral) {
  CacheTrace trace;
  trace.tables.push_back(OneOfEach({0, 1, 2, 0, 1}, {1, 1, 3}));
  EXPECT_EQ(trace.minimum_bytes(), 3u);
  EXPECT_EQ(SimulateCache(trace, {}, 0).hits, 0u) << "raised to what one token needs";
  EXPECT_EQ(SimulateCache(trace, {}, 4).hits, 0u);
  EXPECT_EQ(SimulateBelady(trace, 4).hits, 1u);
  EXPECT_EQ(SimulateCache(trace, {}, 5).hits, 2u);
}

// All hits that any order of leaving can have, for one size.
uint64_t MostHits(const std::vector<uint32_t>& chosen, size_t at, std::set<uint32_t> resident, size_t budget) {
  if (at == chosen.size()) return 0;
  if (resident.count(chosen[at]) > 0) return 1 + MostHits(chosen, at + 1, resident, budget);
  if (resident.size() < budget) {
    resident.insert(chosen[at]);
    return MostHits(chosen, at + 1, resident, budget);
  }
  uint64_t best = 0;
  for (const uint32_t leaves : resident) {
    std::set<uint32_t> next = resident;
    next.erase(leaves);
    next.insert(chosen[at]);
    best = std::max(best, MostHits(chosen, at + 1, next, budget));
  }
  return best;
}

TEST(CacheSimulation, BeladyIsTheMostForOneSize) {
  for (uint32_t seed = 1; seed < 20; ++seed) {
    std::vector<uint32_t> chosen;
    uint64_t state = seed;
    for (int i = 0; i < 14; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      chosen.push_back(static_cast<uint32_t>(state >> 33) % 5);
    }
    CacheTrace trace;
    trace.tables.push_back(OneOfEach(chosen, {1, 1, 1, 1, 1}));
    EXPECT_EQ(SimulateBelady(trace, 3).hits, MostHits(chosen, 0, {}, 3)) << seed;
  }
}

TEST(CacheSimulation, NoPolicyBeatsBeladyAndMoreRoomIsBetter) {
  const CacheTrace trace = Topics(3, 16, 2, 1500, 7);
  const uint64_t all = trace.all_bytes();
  const CachePolicy policies[] = {
      {}, {CachePolicyKind::kLfu, 64}, {CachePolicyKind::kHobbit, 64, 10, 80, 10}, {CachePolicyKind::kLru, 0, 0, 0, 0, 30}};
  for (const CachePolicy& policy : policies) {
    uint64_t before = 0;
    for (const uint64_t budget : {all / 8, all / 4, all / 2, all}) {
      const CacheOutcome outcome = SimulateCache(trace, policy, budget);
      EXPECT_EQ(outcome.lookups, 1500u * 3 * 2);
      EXPECT_LE(outcome.hits, SimulateBelady(trace, budget).hits) << DescribeCachePolicy(policy);
      EXPECT_GT(outcome.hits, before);
      before = outcome.hits;
    }
    EXPECT_EQ(before, 1500u * 3 * 2 - 48) << "with room for all each is loaded once";
  }
}

TEST(CacheSimulation, ForesightGoesFromThePolicyToBelady) {
  CacheTrace trace = Topics(3, 16, 2, 1500, 7);
  for (CacheTrace::Table& table : trace.tables) table.bytes.assign(16, 64);
  const CachePolicy policy = {CachePolicyKind::kHobbit, 64, 10, 80, 10};
  const uint64_t budget = trace.all_bytes() / 4, belady = SimulateBelady(trace, budget).hits;
  uint64_t before = SimulateCache(trace, policy, budget).hits;
  for (const uint64_t tokens : {1, 4, 16, 1500}) {
    const uint64_t hits = SimulateForesight(trace, policy, budget, tokens).hits;
    EXPECT_GE(hits, before) << tokens;
    EXPECT_LE(hits, belady) << tokens;
    before = hits;
  }
  EXPECT_EQ(before, belady) << "the whole future is known";
}

TEST(CacheSimulation, ChoosesWhatHasTheMostHits) {
  const CacheTrace trace = Topics(3, 16, 2, 1500, 7);
  const auto hits = [&](const CachePolicy& policy) {
    return SimulateCache(trace, policy, trace.all_bytes() / 4).hits +
           SimulateCache(trace, policy, trace.all_bytes() / 2).hits;
  };
  ThreadPool one(1), three(3);
  const CachePolicy chosen = ChooseCachePolicy(trace, one);
  EXPECT_TRUE(CheckCachePolicy(chosen).ok());
  EXPECT_EQ(ChooseCachePolicy(trace, three), chosen);
  for (const CachePolicy& other :
       {CachePolicy{}, CachePolicy{CachePolicyKind::kLfu, 64}, CachePolicy{CachePolicyKind::kLfu, 0}}) {
    EXPECT_GE(hits(chosen), hits(other)) << DescribeCachePolicy(chosen) << " beside " << DescribeCachePolicy(other);
  }
  // Six experts that are used again and again among a parade of others: uses tell them apart, the last use does not.
  CacheTrace parade;
  parade.tables.push_back({2, {}, std::vector<uint64_t>(32, 1)});
  for (uint32_t t = 0; t < 600; ++t) {
    parade.tables[0].chosen.push_back(t % 6);
    parade.tables[0].chosen.push_back(6 + t % 26);
  }
  EXPECT_NE(ChooseCachePolicy(parade, one).kind, CachePolicyKind::kLru);
}

}  // namespace
}  // namespace moepack
