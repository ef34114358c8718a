#include "format/cache_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>

namespace moepack {
namespace {

TEST(CachePolicy, TheLeastRecentlyUsedLeavesFirst) {
  CacheClock clock({}, 2);
  ExpertUse early, late, never;
  clock.Advance(0, 1);
  clock.Use(5, &early);
  clock.Advance(1, 1);
  clock.Use(1, &late);
  EXPECT_LT(clock.Score(never, 0), clock.Score(early, 0));
  EXPECT_LT(clock.Score(early, 0), clock.Score(late, 1));
}

// Used at every token for 64, then never again, beside one used at every other token from then on.
TEST(CachePolicy, OldUsesCountLessWhereTheyAge) {
  for (const uint32_t half_life : {0u, 8u}) {
    CacheClock clock({CachePolicyKind::kLfu, half_life}, 1);
    ExpertUse before, now;
    for (int token = 0; token < 96; ++token) {
      clock.Advance(0, 1);
      if (token < 64) clock.Use(1, &before);
      if (token >= 64 && token % 2 == 0) clock.Use(1, &now);
    }
    EXPECT_EQ(clock.Score(before, 0) < clock.Score(now, 0), half_life == 8) << half_life;
  }
  CacheClock clock({CachePolicyKind::kLfu, 8}, 3);
  ExpertUse use;
  clock.Advance(0, 1);
  clock.Use(2, &use);
  for (int step = 0; step < 24; ++step) clock.Advance(0, 1);  // 8 tokens of 3 tables
  EXPECT_NEAR(clock.Score(use, 0), 1.0, 1e-12);
}

TEST(CachePolicy, AnExpertOfTheTableThatRunsNextIsNearerThanOneThatJustRan) {
  CacheClock clock({CachePolicyKind::kHobbit, 0, 0, 0, 100}, 4);
  clock.Advance(1, 1);
  EXPECT_DOUBLE_EQ(clock.Score({}, 2), 75);
  EXPECT_DOUBLE_EQ(clock.Score({}, 3), 50);
  EXPECT_DOUBLE_EQ(clock.Score({}, 0), 25);
  EXPECT_DOUBLE_EQ(clock.Score({}, 1), 0);
}

// Against the formulas of SPEC.md, section 5.
TEST(CachePolicy, ScoresAreTheFormulas) {
  const uint32_t tables = 2, ran[] = {3, 4, 9};
  for (const uint32_t half_life : {0u, 5u}) {
    CacheClock clock({CachePolicyKind::kHobbit, half_life, 30, 60, 10}, tables);
    ExpertUse use;
    double aged = 0;
    for (uint32_t token = 1; token <= 12; ++token) {
      for (uint32_t table = 0; table < tables; ++table) {
        clock.Advance(table, 1);
        if (table == 0 && std::count(std::begin(ran), std::end(ran), token) > 0) clock.Use(1, &use);
      }
    }
    for (const uint32_t token : ran) {  // table 1 of token 12 is step 24, table 0 of a token step 2 * token - 1
      const double age = (24 - (2.0 * token - 1)) / tables;
      aged += half_life == 0 ? 1 : std::exp2(-age / half_life);
    }
    const double frequency = half_life == 0 ? aged / 12 : aged * (1 - std::exp2(-1.0 / half_life));
    const double recency = half_life == 0 ? 17.0 / 24 : std::exp2(-3.5 / half_life);
    EXPECT_NEAR(clock.Score(use, 0), 30 * recency + 60 * frequency + 10 * 0.5, 1e-9);
  }
}

TEST(CachePolicy, ATileCountsAsItsTokens) {
  const CachePolicy policy = {CachePolicyKind::kLfu, 16};
  CacheClock tile(policy, 1), tokens(policy, 1);
  ExpertUse a, b;
  tile.Advance(0, 32);
  for (int i = 0; i < 32; ++i) tokens.Advance(0, 1);
  tile.Use(3, &a);
  tokens.Use(3, &b);
  EXPECT_EQ(tile.Score(a, 0), tokens.Score(b, 0));
}

TEST(CachePolicy, RefusesWhatTheSpecificationRefuses) {
  EXPECT_TRUE(CheckCachePolicy({}).ok());
  EXPECT_TRUE(CheckCachePolicy({CachePolicyKind::kHobbit, 65536, 0, 100, 0, 50}).ok());
  for (const CachePolicy& bad :
       {CachePolicy{CachePolicyKind::kLru, 1}, CachePolicy{CachePolicyKind::kLru, 0, 100},
        CachePolicy{CachePolicyKind::kLfu, 65537}, CachePolicy{CachePolicyKind::kHobbit, 8, 50, 49, 0},
        CachePolicy{CachePolicyKind::kHobbit, 8, 0xffffffffu, 101, 0}, CachePolicy{CachePolicyKind::kLru, 0, 0, 0, 0, 51}}) {
    EXPECT_EQ(CheckCachePolicy(bad).code(), ErrorCode::kMalformed) << DescribeCachePolicy(bad);
  }
  EXPECT_EQ(DescribeCachePolicy({CachePolicyKind::kHobbit, 64, 10, 80, 10, 25}),
            "hobbit recency 10 frequency 80 nearness 10 half-life 64 pinned 25");
}

TEST(CachePolicy, WhatIsDescribedCanBeReadBack) {
  for (const CachePolicy& policy :
       {CachePolicy{}, CachePolicy{CachePolicyKind::kLru, 0, 0, 0, 0, 25}, CachePolicy{CachePolicyKind::kLfu, 64},
        CachePolicy{CachePolicyKind::kLfu, 0}, CachePolicy{CachePolicyKind::kHobbit, 128, 5, 90, 5, 50}}) {
    EXPECT_EQ(ParseCachePolicy(DescribeCachePolicy(policy)).value(), policy) << DescribeCachePolicy(policy);
  }
  EXPECT_EQ(ParseCachePolicy("lfu half-life 0").value(), (CachePolicy{CachePolicyKind::kLfu, 0}));
  for (const char* bad : {"", "fifo", "lru half-life", "lru half-life x", "lru pinned -1", "lru pinned 4294967297",
                          "hobbit 5", "hobbit recency 11", "lfu nearness 100", "lru pinned 51"}) {
    EXPECT_EQ(ParseCachePolicy(bad).status().code(), ErrorCode::kUsage) << bad;
  }
}

}  // namespace
}  // namespace moepack
