// Resident experts within a budget of bytes. The policy of the bundle says which make room; those in use are pinned and
// stay.
#pragma once

#include <array>
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
#include "runtime-min/unit_source.h"

namespace moepack::runtime {

struct ExpertCacheOptions {
  uint64_t limit_bytes = UINT64_MAX;  // the budget never exceeds it
  uint64_t start_bytes = UINT64_MAX;  // the budget at first; raised to what one token needs, lowered to the limit
  // The budget grows by kGrowthShare of the limit when fewer than this share of kGrowthLookups lookups found their expert.
  double grow_below = 0.9;
  CachePolicy policy;  // valid
};

struct ExpertCacheStats {
  uint64_t hits = 0;        // experts that were resident when the router chose them
  uint64_t misses = 0;      // those that were not
  uint64_t loads = 0;       // experts read, verified and packed: misses and preloads
  uint64_t bytes_read = 0;  // stored bytes of those loads
  uint64_t evictions = 0;
};

// The matrices of one expert, by ExpertMatrix; kGate is empty when the table is not gated.
using ExpertWeights = std::array<ResidentTensor, kExpertMatrices>;

// Counts resident bytes: ResidentBytes of every matrix, each rounded up to kExpertAlignment. They lie in one run of memory
// no longer than the budget. While an expert is being loaded its stored and plain bytes are held too, for at most one expert
// a thread; they are not part of the budget. Not thread-safe; loads run on the pool.
class ExpertCache {
 public:
  static constexpr uint64_t kGrowthLookups = 256, kGrowthShare = 8;  // an eighth of the limit

  // `source` and `pool` must outlive it. `top_k[t]`: experts that one token of table t needs. kUsage, with the minimum,
  // when the limit cannot hold the experts of one token of every table; kNoMemory.
  static Result<ExpertCache> Create(UnitSource& source, ThreadPool& pool, std::span<const uint32_t> top_k,
                                    const ExpertCacheOptions& options);

  // Loads experts of the hot list, hottest first, as long as they fit.
  Status Preload();
  bool IsResident(uint32_t table, uint32_t expert) const;
  // The router of `table` chose `experts` (logical, each once) for `tokens` tokens, experts[i] for uses[i] of them. Counts
  // hits and misses, ages uses, and lets the budget grow.
  void Route(uint32_t table, uint64_t tokens, std::span<const uint32_t> experts, std::span<const uint32_t> uses);
  // Pins leading entries of `experts` (logical, of one table): as many as fit beside what is pinned, loading those that
  // are not resident. Returns how many, at least one when nothing else is pinned. Errors name layer and expert; nothing
  // stays pinned by the call then.
  Result<size_t> Pin(uint32_t table, std::span<const uint32_t> experts);
  // A pinned expert's weights. Valid until the next Pin: weights may move to make room.
  const ExpertWeights& weights(uint32_t table, uint32_t expert) const { return entry(table, expert).weights; }
  void Unpin(uint32_t table, std::span<const uint32_t> experts);

  const ExpertCacheStats& stats() const { return stats_; }
  void ResetStats() { stats_ = {}; }
  const CachePolicy& policy() const { return options_.policy; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t budget_bytes() const { return budget_bytes_; }  // now
  uint64_t limit_bytes() const { return options_.limit_bytes; }
  uint64_t all_bytes() const { return all_bytes_; }  // what all experts together need
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
    bool kept = false;  // hot: never leaves
    ExpertUse use;
    ExpertWeights weights;
  };
  ExpertCache(UnitSource& source, ThreadPool& pool, const ExpertCacheOptions& options)
      : source_(&source),
        pool_(&pool),
        options_(options),
        clock_(options.policy, static_cast<uint32_t>(source.experts().size())) {}
  Status AddEntries();
  Status ComputeMinimum(std::span<const uint32_t> top_k);
  Status SetBudget();
  void ChooseKept();
  void GrowWhereHitsAreFew(uint64_t hits, uint64_t lookups);
  uint32_t EntryIndex(uint32_t table, uint32_t expert) const;
  const Entry& entry(uint32_t table, uint32_t expert) const { return entries_[EntryIndex(table, expert)]; }
  bool MakeRoom(uint64_t bytes);
  void Evict(uint32_t index);
  void Place(uint32_t index);
  Status LoadPending();
  Status LoadEntry(uint32_t index);
  std::string NameOf(const Entry& entry) const;

  UnitSource* source_;
  ThreadPool* pool_;
  ExpertCacheOptions options_;
  CacheClock clock_;
  std::unique_ptr<ExpertArena> arena_ = std::make_unique<ExpertArena>();  // outlives entries_; blocks by entry
  std::vector<Entry> entries_;
  std::vector<uint32_t> table_begin_;    // first entry of each table
  std::vector<uint32_t> pending_;        // entries to load, reused between calls
  std::vector<Status> load_status_;      // one a pending entry
  std::vector<CacheCandidate> victims_;  // scratch of MakeRoom, a heap
  uint64_t budget_bytes_ = 0, used_bytes_ = 0, all_bytes_ = 0, minimum_bytes_ = 0, kept_experts_ = 0;
  uint64_t window_hits_ = 0, window_lookups_ = 0;  // since the budget was last looked at
  ExpertCacheStats stats_;
};

}  // namespace moepack::runtime
