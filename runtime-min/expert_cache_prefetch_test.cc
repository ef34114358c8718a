#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "runtime-min/expert_cache.h"
#include "runtime-min/sampler.h"
#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using testing::FakeSource;

constexpr std::chrono::seconds kPatience(20);  // what should happen has failed to by then

// Stops threads that read a chosen expert until it is opened.
class Gate {
 public:
  void Close(uint32_t table, uint32_t expert) {
    std::lock_guard lock(mutex_);
    closed_[{table, expert}] = true;
  }
  void Open(uint32_t table, uint32_t expert) {
    std::lock_guard lock(mutex_);
    closed_[{table, expert}] = false;
    changed_.notify_all();
  }
  void Pass(uint32_t table, uint32_t expert) {
    std::unique_lock lock(mutex_);
    ++reads_[{table, expert}];
    changed_.notify_all();
    changed_.wait(lock, [&] { return !closed_[{table, expert}]; });
  }
  void WaitForReads(uint32_t table, uint32_t expert, int reads) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience,
                                  [&] {
                                    return reads_[{table, expert}] >= reads;
                                  }))
        << table << ":" << expert;
  }
  int reads(uint32_t table, uint32_t expert) {
    std::lock_guard lock(mutex_);
    return reads_[{table, expert}];
  }

 private:
  using Key = std::pair<uint32_t, uint32_t>;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Key, bool> closed_;
  std::map<Key, int> reads_;
};

class ExpertCachePrefetch : public ::testing::Test {
 protected:
  ExpertCachePrefetch() : program_(testing::ToyLanguageModel()), source_(testing::ToyUnits(program_, "i4g16")), pool_(2) {
    source_->before_read = [this](uint32_t table, uint32_t expert) { gate_.Pass(table, expert); };
  }
  ExpertCache MakeCache(const ExpertCacheOptions& options, uint32_t lanes = 1, bool prefetches = true) {
    const uint32_t top_k[] = {3, 3};
    auto cache = ExpertCache::Create(*source_, pool_, top_k, options);
    EXPECT_TRUE(cache.ok()) << cache.status().message();
    if (prefetches) {
      EXPECT_TRUE(cache->StartPrefetch(lanes).ok());
    }
    return std::move(*cache);
  }
  static void Route(ExpertCache& cache, uint32_t table, const std::vector<uint32_t>& experts) {
    cache.Route(table, 1, experts, std::vector<uint32_t>(experts.size(), 1));
  }
  static Status Use(ExpertCache& cache, uint32_t table, const std::vector<uint32_t>& experts) {
    Route(cache, table, experts);
    const auto pinned = cache.Pin(table, experts);
    if (!pinned.ok()) return pinned.status();
    EXPECT_EQ(*pinned, experts.size());
    cache.Unpin(table, experts);
    return Status::Ok();
  }
  // Lanes start with a Pin, and what they have done is taken over by the next.
  static void PinNothing(ExpertCache& cache) { ASSERT_EQ(cache.Pin(0, {}).value(), 0u); }
  static void PinUntilResident(ExpertCache& cache, uint32_t table, uint32_t expert) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!cache.IsResident(table, expert) && std::chrono::steady_clock::now() < end) PinNothing(cache);
    ASSERT_TRUE(cache.IsResident(table, expert)) << table << ":" << expert;
  }
  static void ExpectAndLoad(ExpertCache& cache, uint32_t table, const std::vector<uint32_t>& experts) {
    cache.Expect(table, experts);
    for (const uint32_t e : experts) PinUntilResident(cache, table, e);
  }
  // Of all resident experts; none are merged.
  uint64_t Bytes(const ExpertCache& cache) const {
    uint64_t bytes = 0;
    for (uint32_t t = 0; t < 2; ++t) {
      for (uint32_t e = 0; e < 7; ++e) bytes += cache.IsResident(t, e) ? source_->ExpertBytes(t, e) : 0;
    }
    return bytes;
  }
  // The weights of every resident expert are those that a fresh load gives.
  void CheckWeights(const ExpertCache& cache) {
    for (uint32_t t = 0; t < 2; ++t) {
      for (uint32_t e = 0; e < 7; ++e) {
        if (cache.IsResident(t, e)) CheckWeights(cache, t, e);
      }
    }
  }

  Gate gate_;
  Program program_;
  std::unique_ptr<FakeSource> source_;
  ThreadPool pool_;

 private:
  void CheckWeights(const ExpertCache& cache, uint32_t table, uint32_t expert) {
    const uint32_t physical = source_->experts()[table].experts[expert].variants[0].physical;
    std::vector<uint8_t>& expected = fresh_[{table, physical}];
    const ExpertWeights& weights = cache.weights(table, expert);
    if (expected.empty()) {
      const size_t bytes = cache.all_bytes();
      void* const memory = std::aligned_alloc(kExpertAlignment, (bytes + 63) / 64 * 64);
      ExpertWeights loaded;
      ASSERT_TRUE(LoadExpert(*source_, table, physical, static_cast<uint8_t*>(memory), &loaded).ok());
      for (const ResidentTensor& t : loaded) expected.insert(expected.end(), t.data(), t.data() + t.size_bytes());
      loaded = {};
      std::free(memory);
    }
    size_t at = 0;
    for (const ResidentTensor& t : weights) {
      ASSERT_LE(at + t.size_bytes(), expected.size());
      ASSERT_TRUE(std::equal(t.data(), t.data() + t.size_bytes(), expected.data() + at)) << table << ":" << expert;
      at += t.size_bytes();
    }
    ASSERT_EQ(at, expected.size());
  }
  std::map<std::pair<uint32_t, uint32_t>, std::vector<uint8_t>> fresh_;
};

TEST_F(ExpertCachePrefetch, ExpectedExpertsAreLoadedAheadAndCountApart) {
  ExpertCache cache = MakeCache({});
  ExpectAndLoad(cache, 1, {2, 4});
  EXPECT_EQ(cache.stats().wasted, 2u) << "not used so far";
  ASSERT_TRUE(Use(cache, 1, {2, 5, 6}).ok());
  ASSERT_TRUE(Use(cache, 1, {2, 4}).ok());
  const ExpertCacheStats& stats = cache.stats();
  EXPECT_EQ(stats.prefetched, 2u) << "2 and 4, once each";
  EXPECT_EQ(stats.misses, 2u);
  EXPECT_EQ(stats.hits, 1u);
  EXPECT_EQ(stats.late, 0u);
  EXPECT_EQ(stats.foreseen, 1u) << "4 was not expected the second time";
  EXPECT_EQ(stats.loads, 4u);
  EXPECT_EQ(stats.prefetch_loads, 2u);
  EXPECT_EQ(stats.wasted, 0u);
  const auto stored = [&](uint32_t expert) {
    uint64_t bytes = 0;
    for (const ChunkRef& chunk : source_->experts()[1].units[expert].chunks) bytes += chunk.stored_bytes;
    return bytes;
  };
  EXPECT_EQ(stats.prefetch_bytes_read, stored(2) + stored(4));
  EXPECT_EQ(stats.bytes_read, stored(2) + stored(4) + stored(5) + stored(6));
  CheckWeights(cache);
}

TEST_F(ExpertCachePrefetch, NothingIsExpectedUnlessAsked) {
  ExpertCache cache = MakeCache({}, 0, false);
  const uint32_t wanted[] = {1, 2};
  cache.Expect(1, wanted);
  ASSERT_TRUE(Use(cache, 0, {0}).ok());
  Route(cache, 1, {1, 2, 3});
  EXPECT_EQ(cache.stats().foreseen, 0u);
  EXPECT_EQ(cache.stats().loads, 1u);
}

TEST_F(ExpertCachePrefetch, ThreadsOfThePoolThatWaitLoadWhatIsExpected) {
  ExpertCache cache = MakeCache({}, 0);  // a pool of two threads
  const uint32_t guesses[] = {3, 4, 5};
  cache.Expect(1, guesses);
  PinNothing(cache);
  EXPECT_EQ(cache.stats().loads, 0u) << "nobody waits";
  ASSERT_TRUE(Use(cache, 0, {0, 1}).ok());
  EXPECT_EQ(cache.stats().prefetch_loads, 0u) << "both load what is needed";
  ASSERT_TRUE(Use(cache, 0, {0, 2}).ok());
  EXPECT_EQ(cache.stats().prefetch_loads, 1u);
  EXPECT_TRUE(cache.IsResident(1, 3)) << "the most likely one";
  source_->broken.insert({1, 4});
  ASSERT_TRUE(Use(cache, 0, {4}).ok()) << "nobody needed the damaged one";
  EXPECT_FALSE(cache.IsResident(1, 4));
  ASSERT_TRUE(Use(cache, 1, {3}).ok());
  EXPECT_EQ(cache.stats().prefetched, 1u);
  EXPECT_EQ(cache.stats().wasted, 0u);
  EXPECT_EQ(Use(cache, 1, {4, 6}).code(), ErrorCode::kDigest);
  EXPECT_EQ(cache.used_bytes(), Bytes(cache));
  CheckWeights(cache);
}

TEST_F(ExpertCachePrefetch, AnExpertUnderWayIsWaitedForAndLoadedOnce) {
  ExpertCache cache = MakeCache({});
  gate_.Close(1, 2);
  const uint32_t expected[] = {2};
  cache.Expect(1, expected);
  PinNothing(cache);
  gate_.WaitForReads(1, 2, 1);
  std::thread opener([this] {
    gate_.WaitForReads(1, 5, 1);  // the other expert is loaded meanwhile
    gate_.Open(1, 2);
  });
  ASSERT_TRUE(Use(cache, 1, {2, 5}).ok());
  opener.join();
  EXPECT_EQ(gate_.reads(1, 2), 1);
  EXPECT_EQ(cache.stats().late, 1u);
  EXPECT_EQ(cache.stats().misses, 2u);
  EXPECT_EQ(cache.stats().prefetched, 0u);
  EXPECT_EQ(cache.stats().wasted, 0u);
  EXPECT_EQ(cache.stats().loads, 2u);
  CheckWeights(cache);
}

TEST_F(ExpertCachePrefetch, AnExpertThatNoLaneHasBegunIsLoadedByTheOneWhoNeedsIt) {
  ExpertCache cache = MakeCache({});
  gate_.Close(0, 6);
  const uint32_t first[] = {6}, second[] = {2};
  cache.Expect(0, first);
  PinNothing(cache);
  gate_.WaitForReads(0, 6, 1);
  cache.Expect(1, second);
  PinNothing(cache);  // queued behind an expert that does not come
  ASSERT_TRUE(Use(cache, 1, {2, 3}).ok());
  EXPECT_EQ(cache.stats().late, 0u);
  EXPECT_EQ(cache.stats().prefetch_loads, 0u);
  EXPECT_EQ(gate_.reads(1, 2), 1);
  gate_.Open(0, 6);
}

TEST_F(ExpertCachePrefetch, AWrongGuessEvictsNothingThatIsNeeded) {
  source_->hot.experts = {{0, 0}};
  const uint64_t one = source_->ExpertBytes(0, 0);
  // Room for four: one that never leaves, one chosen just now, expected ones, and one that may go.
  ExpertCache cache = MakeCache({.limit_bytes = 4 * one, .policy = {.pinned_percent = 50}});
  ASSERT_TRUE(cache.Preload().ok());
  ASSERT_EQ(cache.kept_experts(), 1u);
  ASSERT_TRUE(Use(cache, 0, {5}).ok());
  ExpectAndLoad(cache, 1, {0});
  ASSERT_TRUE(Use(cache, 0, {3}).ok());
  const uint32_t guesses[] = {0, 3, 5, 1};
  cache.Expect(1, guesses);
  ASSERT_TRUE(Use(cache, 0, {3}).ok());
  PinUntilResident(cache, 1, 3);
  for (int i = 0; i < 20; ++i) PinNothing(cache);
  EXPECT_FALSE(cache.IsResident(0, 5)) << "nobody needed it";
  EXPECT_TRUE(cache.IsResident(0, 0) && cache.IsResident(0, 3) && cache.IsResident(1, 0) && cache.IsResident(1, 3));
  EXPECT_EQ(gate_.reads(1, 1), 0) << "there is no room for it";
  // What is needed pushes out what nobody expects, and only then guesses.
  ASSERT_TRUE(Use(cache, 0, {2}).ok());
  EXPECT_FALSE(cache.IsResident(0, 3));
  EXPECT_TRUE(cache.IsResident(1, 0) && cache.IsResident(1, 3));
  ASSERT_TRUE(Use(cache, 0, {1, 2, 5}).ok());
  EXPECT_FALSE(cache.IsResident(1, 0) && cache.IsResident(1, 3));
  EXPECT_EQ(cache.stats().wasted, cache.stats().prefetch_loads);
}

TEST_F(ExpertCachePrefetch, ADamagedExpertFailsOnlyWhenItIsNeededAndAsWithoutPrefetch) {
  source_->broken.insert({1, 2});
  const uint32_t guess[] = {2};
  for (const bool under_way : {false, true}) {
    ExpertCache cache = MakeCache({});
    const int reads = gate_.reads(1, 2), others = gate_.reads(1, 4);
    if (under_way) gate_.Close(1, 2);
    cache.Expect(1, guess);
    PinNothing(cache);
    gate_.WaitForReads(1, 2, reads + 1);
    std::thread opener;
    if (under_way) {
      opener = std::thread([&] {
        gate_.WaitForReads(1, 4, others + 1);
        gate_.Open(1, 2);
      });
    } else {
      ASSERT_TRUE(Use(cache, 0, {2, 3}).ok());
      ASSERT_TRUE(Use(cache, 1, {1, 3}).ok()) << "nobody needed the damaged one";
    }
    const Status status = Use(cache, 1, {2, 4});
    if (opener.joinable()) opener.join();
    EXPECT_EQ(status.code(), ErrorCode::kDigest);
    EXPECT_EQ(status.message(), "layer 1, expert 2: chunk at offset 4096 does not match");
    EXPECT_FALSE(cache.IsResident(1, 2));
    EXPECT_EQ(cache.stats().prefetch_loads, 0u);
    ASSERT_TRUE(Use(cache, 1, {4, 5}).ok());
    CheckWeights(cache);
  }
}

TEST_F(ExpertCachePrefetch, EndsWithLoadsUnderWayAndWaiting) {
  for (int i = 0; i < 20; ++i) {
    ExpertCache cache = MakeCache({}, 2);
    const uint32_t guesses[] = {0, 1, 2, 3, 4, 5, 6};
    cache.Expect(1, guesses);
    PinNothing(cache);
    if (i % 2 == 0) {
      ASSERT_TRUE(Use(cache, 0, {1}).ok());
    }
  }
}

// Any mixture of right and wrong guesses, experts of several sizes, merged ones among them: budgets hold, weights are right.
TEST_F(ExpertCachePrefetch, GuessesNeverChangeWhatIsInMemory) {
  source_->Merge(0, 3, 0);
  const ExpertCache probe = MakeCache({});
  for (const uint32_t lanes : {0u, 1u, 3u}) {
    for (const double share : {0.0, 0.2, 0.5, 0.8, 1.0}) {
      const uint64_t budget = probe.minimum_bytes() +
                              static_cast<uint64_t>(share * static_cast<double>(probe.all_bytes() - probe.minimum_bytes()));
      ExpertCache cache = MakeCache({.limit_bytes = budget, .policy = {CachePolicyKind::kHobbit, 64, 30, 60, 10}}, lanes);
      Random random(7);
      for (int i = 0; i < 300; ++i) {
        const uint32_t table = static_cast<uint32_t>(i % 2), first = static_cast<uint32_t>(random.Next() % 7);
        const std::vector<uint32_t> chosen = {first, (first + 2) % 7, (first + 5) % 7};
        const uint32_t next = static_cast<uint32_t>(random.Next() % 7);
        const uint32_t guesses[] = {next, (next + 1) % 7, (next + 3) % 7};
        cache.Expect(1 - table, guesses);
        Route(cache, table, chosen);
        ASSERT_EQ(cache.Pin(table, chosen).value(), 3u) << "the minimum holds any token's experts";
        ASSERT_LE(cache.used_bytes(), budget);
        if (i % 8 == 0) CheckWeights(cache);
        cache.Unpin(table, chosen);
      }
      const ExpertCacheStats& stats = cache.stats();
      EXPECT_EQ(stats.hits + stats.prefetched + stats.misses, 900u);
      EXPECT_LE(stats.wasted, stats.prefetch_loads);
      EXPECT_LE(stats.prefetch_loads, stats.loads);
    }
  }
}

TEST_F(ExpertCachePrefetch, WhatWasGivenUpIsNotLoadedAhead) {
  ExpertCache cache = MakeCache({});
  source_->missing[{0, 1}] = 1;
  EXPECT_EQ(Use(cache, 0, {1}).code(), ErrorCode::kAccess);
  cache.GiveUp(0, 1, 0);
  ASSERT_EQ(gate_.reads(0, 1), 1);
  cache.Expect(0, std::vector<uint32_t>{1, 2});
  PinUntilResident(cache, 0, 2);  // named after it
  EXPECT_EQ(gate_.reads(0, 1), 1);
  EXPECT_FALSE(cache.IsResident(0, 1));
}

}  // namespace
}  // namespace moepack::runtime
