// Resident experts within a budget of bytes. The policy of the bundle says which make room; those in use are pinned and
// stay. Experts that are expected to be chosen are loaded ahead (expert_cache_prefetch.cc).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "format/cache_policy.h"
#include "format/verified.h"
#include "runtime-min/expert_arena.h"
#include "runtime-min/expert_load.h"
#include "runtime-min/load_lanes.h"
#include "runtime-min/unit_source.h"

namespace moepack::runtime {

struct ExpertCacheOptions {
  uint64_t limit_bytes = UINT64_MAX;  // the budget never exceeds it
  bool raise_limit = false;           // to what one token needs, where it is less
  uint64_t start_bytes = UINT64_MAX;  // the budget at first; raised to what one token needs, lowered to the limit
  // The budget grows by kGrowthShare of the limit when fewer than this share of kGrowthLookups lookups found their expert.
  double grow_below = 0.9;
  CachePolicy policy;                // valid
  bool keep_dense = false;           // dense stand-ins (VariantKind) are loaded first and never leave
  bool preload_must_succeed = true;  // otherwise what cannot be read is left to whoever needs it
};

struct ExpertCacheStats {
  // Experts that the router chose, by what it found: resident, but not for the first time since they were loaded
  // ahead; resident since they were loaded ahead, in time for it; not resident.
  uint64_t hits = 0, prefetched = 0, misses = 0;
  uint64_t late = 0;        // of the misses: a lane was loading them
  uint64_t foreseen = 0;    // of all three: they were expected
  uint64_t loads = 0;       // experts read, verified and packed: misses, preloads, those loaded ahead
  uint64_t bytes_read = 0;  // stored bytes of those loads
  uint64_t evictions = 0;
  uint64_t prefetch_loads = 0, prefetch_bytes_read = 0;  // of loads and bytes_read: those loaded ahead
  uint64_t wasted = 0;                                   // of prefetch_loads: not used, evicted or not
};

// Experts are logical. Where a call takes `variants`, variants[i] says which of the table's variants of experts[i] is meant;
// none: the first of each.
//
// Counts resident bytes: ResidentBytes of every matrix, each rounded up to kExpertAlignment. They lie in one run of memory
// no longer than the budget. While an expert is being loaded its stored and plain bytes are held too, for at most two
// experts a thread of the pool and one a lane; they are not part of the budget. Not thread-safe; loads run on the pool and
// on lanes.
class ExpertCache {
 public:
  static constexpr uint64_t kGrowthLookups = 256, kGrowthShare = 8;  // an eighth of the limit
  static constexpr uint32_t kPinsUntilNextTry = 256;                 // of an expert that was given up

  // `source` and `pool` must outlive it. `top_k[t]`: experts that one token of table t needs. kUsage, with the minimum,
  // when the limit cannot hold the experts of one token of every table; kNoMemory.
  static Result<ExpertCache> Create(UnitSource& source, ThreadPool& pool, std::span<const uint32_t> top_k,
                                    const ExpertCacheOptions& options);

  // Whether threads of the pool can be without work while others load: not when all experts have so many chunks that they go
  // round. Then only lanes load ahead.
  bool ThreadsMayWait() const;
  // From now on expected experts are loaded ahead: by the pool's threads that have no chunk to load while others of the
  // pool do, and by `lanes` threads of their own, which may be 0. Once. kNoMemory.
  Status StartPrefetch(uint32_t lanes);
  // Loads the dense stand-ins that are kept, then experts of the hot list, hottest first, as long as they fit.
  Status Preload();
  // Why dense stand-ins that are to be kept are not there.
  std::vector<Status> MissingDense() const;
  bool IsResident(uint32_t table, uint32_t expert, uint32_t variant = 0) const;
  // Whether a first variant is resident or a lane is loading it.
  bool IsComing(uint32_t table, uint32_t expert) const {
    return entry(table, expert).resident || entry(table, expert).loading;
  }
  // `experts` (logical, most likely first) are expected when `table` is routed next, instead of those named before. They
  // leave last. Those that are not resident are loaded from the next Pin on, in the room of experts that the policy gives up
  // before them and nobody uses or expects; the others stay out. Does nothing before StartPrefetch.
  void Expect(uint32_t table, std::span<const uint32_t> experts);
  // The router of `table` chose `experts` (logical, each once) for `tokens` tokens, experts[i] for uses[i] of them. Counts
  // hits and misses, ages uses, and lets the budget grow.
  void Route(uint32_t table, uint64_t tokens, std::span<const uint32_t> experts, std::span<const uint32_t> uses,
             std::span<const uint32_t> variants = {});
  // Pins leading entries of `experts` (logical, of one table): as many as fit beside what is pinned, loading those that
  // are not resident. Returns how many, at least one when nothing else is pinned. Errors name layer and expert; nothing
  // stays pinned by the call then. Wrong bytes come before bytes that could not be read (IsUnavailable).
  Result<size_t> Pin(uint32_t table, std::span<const uint32_t> experts, std::span<const uint32_t> variants = {});
  // It could not be read, and something else took its place: Pin fails alike for so many times before it reads it again.
  void GiveUp(uint32_t table, uint32_t expert, uint32_t variant);
  bool IsGivenUp(uint32_t table, uint32_t expert, uint32_t variant) const {
    return entry(table, expert, variant).given_up > 0;
  }
  // As messages name it: "layer 3, expert 5".
  std::string NameOf(uint32_t table, uint32_t expert) const { return NameOf(entry(table, expert)); }
  // After an error of Pin: the place in `experts` of the one it names.
  size_t failed() const { return failed_; }
  // A pinned expert's weights. Valid until the next Pin: weights may move to make room.
  const ExpertWeights& weights(uint32_t table, uint32_t expert, uint32_t variant = 0) const {
    return entry(table, expert, variant).weights;
  }
  void Unpin(uint32_t table, std::span<const uint32_t> experts, std::span<const uint32_t> variants = {});

  const ExpertCacheStats& stats() const { return stats_; }
  void ResetStats();
  const CachePolicy& policy() const { return options_.policy; }
  const std::vector<ExpertTable>& tables() const { return source_->experts(); }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t budget_bytes() const { return budget_bytes_; }  // now
  uint64_t limit_bytes() const { return options_.limit_bytes; }
  // What all experts together need, each in its first variant, and what is kept.
  uint64_t all_bytes() const { return all_bytes_; }
  uint64_t minimum_bytes() const { return minimum_bytes_; }
  uint64_t kept_experts() const { return kept_experts_; }  // hot ones that never leave
  uint64_t mean_bytes(uint32_t table) const;               // resident, of one expert of a table

 private:
  static constexpr uint32_t kNotHot = 0xffffffffu;
  struct Entry {  // one physical expert
    uint32_t table = 0, physical = 0;
    uint64_t resident_bytes = 0, stored_bytes = 0;
    uint32_t pins = 0;
    uint32_t hot_rank = kNotHot;  // place in the hot list
    bool resident = false;
    bool missing = false;     // resident but for its weights: Pin loads them
    bool loading = false;     // a lane has it; its block is taken, its bytes count
    bool prefetched = false;  // resident since it was loaded ahead, and not used yet
    bool kept = false;        // hot, or a dense stand-in: never leaves
    uint32_t given_up = 0;    // pins until it is read again
    Status failure;           // of the last try to read it
    uint64_t expected = 0;    // Expect call that named it
    uint64_t routed = 0;      // Route call that chose it
    ExpertUse use;
    ExpertWeights weights;
  };
  ExpertCache(UnitSource& source, ThreadPool& pool, const ExpertCacheOptions& options)
      : source_(&source),
        pool_(&pool),
        options_(options),
        clock_(options.policy, static_cast<uint32_t>(source.experts().size())) {}
  Status AddEntries();
  Status CountAllBytes();
  Status KeepDense();
  Status ComputeMinimum(std::span<const uint32_t> top_k);
  Status SetBudget();
  void ChooseKept();
  void GrowWhereHitsAreFew(uint64_t hits, uint64_t lookups);
  uint32_t EntryIndex(uint32_t table, uint32_t expert, uint32_t variant = 0) const;
  const Entry& entry(uint32_t table, uint32_t expert, uint32_t variant = 0) const {
    return entries_[EntryIndex(table, expert, variant)];
  }
  CacheCandidate CandidateOf(uint32_t index) const;
  bool MakeRoom(uint64_t bytes);
  void EvictVictims(uint64_t bytes);
  void Evict(uint32_t index);
  void Place(uint32_t index);
  bool TakePlace(uint32_t index);
  Status LoadPending();
  std::string NameOf(const Entry& entry) const;

  bool IsExpected(const Entry& e) const { return e.expected == expectation_[e.table]; }
  void CountRouted(uint32_t index);
  void StartExpected();
  void LoadExpectedBeside();
  bool PlaceExpected(uint32_t index);
  bool MakeRoomForExpected(uint32_t index);
  bool CancelLoad(uint32_t index);
  void DropUnexpected(uint32_t table);
  bool TakeFromLane(uint32_t index);
  bool FinishLoad(LaneResult result);
  bool FinishAhead(uint32_t index, const Status& status);
  void FinishDoneLoads();
  void FinishAllLoads();

  UnitSource* source_;
  ThreadPool* pool_;
  ExpertCacheOptions options_;
  CacheClock clock_;
  std::unique_ptr<ExpertArena> arena_ = std::make_unique<ExpertArena>();  // outlives entries_; blocks by entry
  std::vector<Entry> entries_;
  std::vector<uint32_t> table_begin_;  // first entry of each table
  std::vector<uint32_t> dense_;        // entries of dense stand-ins that are kept
  std::vector<uint32_t> pending_;      // entries to load, reused between calls
  ExpertLoads loads_;                  // of pending_ and beside_
  uint32_t failed_entry_ = 0;          // the one that LoadPending's error is about
  size_t failed_ = 0;
  // Scratch of MakeRoom, a heap. Those with a lower `last` leave first.
  struct Victim {
    uint8_t last = 0;  // 0: nobody expects it, 1: expected, 2: a lane has it
    CacheCandidate candidate;
    bool StaysLongerThan(const Victim& other) const {
      return last != other.last ? last > other.last : candidate.StaysLongerThan(other.candidate);
    }
  };
  std::vector<Victim> victims_;
  uint64_t budget_bytes_ = 0, used_bytes_ = 0, all_bytes_ = 0, minimum_bytes_ = 0, kept_experts_ = 0;
  uint64_t window_hits_ = 0, window_lookups_ = 0;  // since the budget was last looked at
  ExpertCacheStats stats_;

  std::vector<uint64_t> expectation_;  // number of the last Expect or Route of each table
  uint64_t calls_ = 1;                 // of Expect and Route, and one before them
  uint64_t last_route_ = 1;
  std::vector<uint32_t> expected_;  // entries, in the order to load them
  std::vector<uint32_t> beside_;    // of those, what the pool loads beside pending_
  bool prefetches_ = false;
  std::unique_ptr<LoadLanes> lanes_;  // ends before the memory that it loads to
};

}  // namespace moepack::runtime
