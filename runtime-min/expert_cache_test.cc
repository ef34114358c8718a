#include "runtime-min/expert_cache.h"

#include <gtest/gtest.h>

#include "runtime-min/engine.h"
#include "runtime-min/sampler.h"
#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using testing::FakeSource;

class ExpertCacheTest : public ::testing::Test {
 protected:
  ExpertCacheTest() : program_(testing::ToyLanguageModel()), source_(testing::ToyUnits(program_, "i4g16")), pool_(2) {}

  ExpertCache MakeCache(const ExpertCacheOptions& options) {
    const uint32_t top_k[] = {3, 3};
    auto cache = ExpertCache::Create(*source_, pool_, top_k, options);
    EXPECT_TRUE(cache.ok()) << cache.status().message();
    return std::move(*cache);
  }
  ExpertCache MakeCache(uint64_t budget) { return MakeCache({.limit_bytes = budget}); }
  // Routes to, pins and unpins one expert at a time.
  static void Touch(ExpertCache& cache, uint32_t table, std::vector<uint32_t> experts) {
    const uint32_t once = 1;
    for (uint32_t e : experts) {
      cache.Route(table, 1, {&e, 1}, {&once, 1});
      ASSERT_EQ(cache.Pin(table, {&e, 1}).value(), 1u);
      cache.Unpin(table, {&e, 1});
    }
  }
  static std::vector<uint32_t> Resident(const ExpertCache& cache, uint32_t table) {
    std::vector<uint32_t> resident;
    for (uint32_t e = 0; e < 7; ++e) {
      if (cache.IsResident(table, e)) resident.push_back(e);
    }
    return resident;
  }

  // Table 0: experts 0, 3 and 5 have the widest intermediate (40), the others 33, 24, 17 and 32.
  Program program_;
  std::unique_ptr<FakeSource> source_;
  ThreadPool pool_;
};

TEST_F(ExpertCacheTest, MinimumIsTheWidestExpertsOfOneToken) {
  const uint64_t minimum = source_->ExpertBytes(0, 0) + source_->ExpertBytes(0, 3) + source_->ExpertBytes(0, 5);
  EXPECT_EQ(MakeCache(kAllExperts).minimum_bytes(), minimum);
}

TEST_F(ExpertCacheTest, ALimitIsRefusedOrRaisedToTheMinimum) {
  const uint64_t minimum = MakeCache(kAllExperts).minimum_bytes();
  const uint32_t top_k[] = {3, 3};
  EXPECT_EQ(ExpertCache::Create(*source_, pool_, top_k, {.limit_bytes = minimum - 1}).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(MakeCache({.limit_bytes = 0, .raise_limit = true}).limit_bytes(), minimum);
  EXPECT_EQ(MakeCache({.limit_bytes = minimum + 1, .raise_limit = true}).limit_bytes(), minimum + 1);
}

TEST_F(ExpertCacheTest, LeastRecentlyUsedMakeRoom) {
  const uint64_t one = source_->ExpertBytes(0, 0);
  ExpertCache cache = MakeCache(3 * one);
  Touch(cache, 0, {0, 3, 5});
  Touch(cache, 0, {0});
  EXPECT_EQ(cache.stats().hits, 1u);
  Touch(cache, 0, {1});  // 3 is the oldest
  EXPECT_EQ(Resident(cache, 0), (std::vector<uint32_t>{0, 1, 5}));
  EXPECT_EQ(cache.stats().misses, 4u);
  EXPECT_EQ(cache.stats().loads, 4u);
}

TEST_F(ExpertCacheTest, PinnedExpertsStayAndOthersWait) {
  const uint64_t one = source_->ExpertBytes(0, 0);
  ExpertCache cache = MakeCache(3 * one);
  const uint32_t wanted[] = {0, 3, 5, 1, 2};
  ASSERT_EQ(cache.Pin(0, wanted).value(), 3u);
  const uint32_t another = 1;
  EXPECT_EQ(cache.Pin(0, {&another, 1}).value(), 0u);
  EXPECT_EQ(Resident(cache, 0), (std::vector<uint32_t>{0, 3, 5}));
  cache.Unpin(0, std::span(wanted).first(1));
  EXPECT_EQ(cache.Pin(0, {&another, 1}).value(), 1u);
  EXPECT_EQ(Resident(cache, 0), (std::vector<uint32_t>{1, 3, 5}));
}

TEST_F(ExpertCacheTest, NeverExceedsItsBudget) {
  Random random(5);
  for (const double share : {0.0, 0.3, 0.7, 1.0}) {
    const ExpertCache probe = MakeCache(kAllExperts);
    const uint64_t budget = probe.minimum_bytes() +
                            static_cast<uint64_t>(share * static_cast<double>(probe.all_bytes() - probe.minimum_bytes()));
    ExpertCache cache = MakeCache(budget);
    for (int i = 0; i < 300; ++i) {
      const uint32_t table = static_cast<uint32_t>(random.Next() % 2), first = static_cast<uint32_t>(random.Next() % 7);
      const uint32_t wanted[] = {first, (first + 2) % 7, (first + 5) % 7};
      const uint32_t uses[] = {1, 1, 1};
      cache.Route(table, 1, wanted, uses);
      const size_t pinned = cache.Pin(table, wanted).value();
      ASSERT_EQ(pinned, 3u) << "the minimum holds any token's experts";
      uint64_t resident = 0;
      for (uint32_t t = 0; t < 2; ++t) {
        for (uint32_t e : Resident(cache, t)) resident += source_->ExpertBytes(t, e);
      }
      ASSERT_EQ(cache.used_bytes(), resident);
      ASSERT_LE(resident, budget);
      cache.Unpin(table, std::span(wanted).first(pinned));
    }
    EXPECT_EQ(cache.stats().hits + cache.stats().misses, 900u);
    EXPECT_EQ(share == 1.0, cache.stats().loads <= 14u);
  }
}

TEST_F(ExpertCacheTest, PreloadsTheHottestThatFitAndEvictsTheColdestFirst) {
  source_->hot.experts = {{0, 5}, {1, 2}, {0, 0}, {0, 3}, {1, 6}};
  const uint64_t wide = source_->ExpertBytes(0, 0);
  ExpertCache cache = MakeCache(3 * wide + source_->ExpertBytes(1, 2) + 100);
  ASSERT_TRUE(cache.Preload().ok());
  EXPECT_EQ(Resident(cache, 0), (std::vector<uint32_t>{0, 3, 5}));
  EXPECT_EQ(Resident(cache, 1), (std::vector<uint32_t>{2}));
  EXPECT_EQ(cache.stats().hits + cache.stats().misses, 0u);
  EXPECT_EQ(cache.stats().loads, 4u);
  Touch(cache, 0, {4});
  EXPECT_EQ(Resident(cache, 0), (std::vector<uint32_t>{0, 4, 5}));
}

TEST_F(ExpertCacheTest, ThePolicyChoosesWhoLeaves) {
  const uint64_t one = source_->ExpertBytes(0, 0);
  const struct {
    CachePolicy policy;
    std::vector<uint32_t> left;
  } cases[] = {
      {{}, {0, 1, 5}}, {{CachePolicyKind::kLfu, 64}, {0, 1, 3}}, {{CachePolicyKind::kHobbit, 0, 0, 100, 0}, {0, 1, 3}}};
  for (const auto& c : cases) {
    ExpertCache cache = MakeCache({.limit_bytes = 3 * one, .policy = c.policy});
    Touch(cache, 0, {3, 3, 3, 0, 0, 0, 5, 0, 1});  // 3 is the oldest, 5 has the fewest uses
    EXPECT_EQ(Resident(cache, 0), c.left) << DescribeCachePolicy(c.policy);
    EXPECT_EQ(cache.stats().hits, 5u);
    EXPECT_EQ(cache.stats().evictions, 1u);
  }
}

TEST_F(ExpertCacheTest, PinnedHotExpertsNeverLeave) {
  source_->hot.experts = {{0, 5}, {1, 2}, {0, 3}};
  const ExpertCache probe = MakeCache(kAllExperts);
  const uint64_t budget = probe.minimum_bytes() * 3 / 2;
  ExpertCache cache = MakeCache({.limit_bytes = budget, .policy = {.pinned_percent = 30}});
  ASSERT_TRUE(cache.Preload().ok());
  const uint64_t kept = cache.kept_experts();
  EXPECT_GE(kept, 1u);
  EXPECT_LT(kept, 3u);
  Random random(3);
  for (int i = 0; i < 200; ++i) {
    Touch(cache, static_cast<uint32_t>(random.Next() % 2), {static_cast<uint32_t>(random.Next() % 7)});
    EXPECT_TRUE(cache.IsResident(0, 5));
  }
  const uint32_t widest[] = {0, 3, 1};
  EXPECT_EQ(cache.Pin(0, widest).value(), 3u) << "any token still fits";
}

TEST_F(ExpertCacheTest, TheBudgetGrowsToItsLimitWhileHitsAreFew) {
  const ExpertCache probe = MakeCache(kAllExperts);
  for (const double below : {0.0, 0.9}) {
    ExpertCache cache = MakeCache({.limit_bytes = kAllExperts, .start_bytes = probe.minimum_bytes(), .grow_below = below});
    EXPECT_EQ(cache.budget_bytes(), probe.minimum_bytes());
    EXPECT_EQ(cache.limit_bytes(), probe.all_bytes());
    uint64_t budget = cache.budget_bytes();
    for (uint32_t i = 0; i < 20 * ExpertCache::kGrowthLookups; ++i) {
      Touch(cache, i / 7 % 2, {i % 7});
      ASSERT_LE(cache.used_bytes(), cache.budget_bytes());
      ASSERT_LE(cache.budget_bytes() - budget, cache.limit_bytes() / ExpertCache::kGrowthShare + 1);
      budget = cache.budget_bytes();
    }
    EXPECT_EQ(budget, below > 0 ? probe.all_bytes() : probe.minimum_bytes());
  }
}

TEST_F(ExpertCacheTest, AFailedLoadLeavesNothingPinnedOrCounted) {
  ExpertCache cache = MakeCache(3 * source_->ExpertBytes(0, 0));
  source_->broken.insert({0, 3});
  const uint32_t wanted[] = {0, 3, 5};
  const auto failed = cache.Pin(0, wanted);
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.status().code(), ErrorCode::kDigest);
  EXPECT_NE(failed.status().message().find("layer 0, expert 3"), std::string::npos) << failed.status().message();
  EXPECT_FALSE(cache.IsResident(0, 3));
  EXPECT_EQ(cache.used_bytes(), source_->ExpertBytes(0, 0) + source_->ExpertBytes(0, 5));
  source_->broken.clear();
  const uint32_t others[] = {1, 2, 3};
  EXPECT_EQ(cache.Pin(0, others).value(), 3u);
}

}  // namespace
}  // namespace moepack::runtime
