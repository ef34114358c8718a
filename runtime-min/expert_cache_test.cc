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

  ExpertCache MakeCache(uint64_t budget) {
    const uint32_t top_k[] = {3, 3};
    auto cache = ExpertCache::Create(*source_, pool_, top_k, budget);
    EXPECT_TRUE(cache.ok()) << cache.status().message();
    return std::move(*cache);
  }
  // Pins and unpins one expert at a time.
  static void Touch(ExpertCache& cache, uint32_t table, std::vector<uint32_t> experts) {
    for (uint32_t e : experts) {
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
