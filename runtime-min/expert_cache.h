// Resident experts within a budget of bytes. Least recently used ones make room; ones in use are pinned and stay.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "format/verified.h"
#include "runtime-min/unit_source.h"
#include "runtime-min/weight_memory.h"

namespace moepack::runtime {

struct ExpertCacheStats {
  uint64_t hits = 0;        // lookups that found the expert resident
  uint64_t misses = 0;      // lookups that had to load it
  uint64_t loads = 0;       // experts read, verified and packed: misses and preloads
  uint64_t bytes_read = 0;  // stored bytes of those loads
};

// The matrices of one expert, by ExpertMatrix; kGate is empty when the table is not gated.
using ExpertWeights = std::array<ResidentTensor, kExpertMatrices>;

// Counts resident bytes (ResidentBytes of every matrix). While an expert is being loaded its stored and plain bytes are
// held too, for at most one expert a thread; they are not part of the budget. Not thread-safe; loads run on the pool.
class ExpertCache {
 public:
  // `source` and `pool` must outlive it. `top_k[t]`: experts that one token of table t needs. kUsage, with the minimum,
  // when the budget cannot hold the experts of one token of every table.
  static Result<ExpertCache> Create(UnitSource& source, ThreadPool& pool, std::span<const uint32_t> top_k,
                                    uint64_t budget_bytes);

  // Loads experts of the hot list, hottest first, as long as they fit.
  Status Preload();
  bool IsResident(uint32_t table, uint32_t expert) const;
  // Pins leading entries of `experts` (logical, of one table): as many as fit beside what is pinned, loading those that
  // are not resident. Returns how many, at least one when nothing else is pinned. Errors name layer and expert; nothing
  // stays pinned by the call then.
  Result<size_t> Pin(uint32_t table, std::span<const uint32_t> experts);
  // A pinned expert's weights; valid until it is unpinned.
  const ExpertWeights& weights(uint32_t table, uint32_t expert) const { return entry(table, expert).weights; }
  void Unpin(uint32_t table, std::span<const uint32_t> experts);

  const ExpertCacheStats& stats() const { return stats_; }
  void ResetStats() { stats_ = {}; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t budget_bytes() const { return budget_bytes_; }
  uint64_t all_bytes() const { return all_bytes_; }  // what all experts together need
  uint64_t minimum_bytes() const { return minimum_bytes_; }
  uint64_t mean_bytes(uint32_t table) const;  // resident, of one expert of a table

 private:
  static constexpr uint32_t kNil = 0xffffffffu;
  struct Entry {  // one physical expert
    uint32_t table = 0, physical = 0;
    uint64_t resident_bytes = 0, stored_bytes = 0;
    uint32_t pins = 0;
    bool resident = false;
    uint32_t newer = kNil, older = kNil;  // neighbours in the list of resident entries by last use
    ExpertWeights weights;
  };

  ExpertCache(UnitSource& source, ThreadPool& pool) : source_(&source), pool_(&pool) {}
  Status AddEntries();
  Status ComputeMinimum(std::span<const uint32_t> top_k);
  uint32_t EntryIndex(uint32_t table, uint32_t expert) const;
  const Entry& entry(uint32_t table, uint32_t expert) const { return entries_[EntryIndex(table, expert)]; }
  bool MakeRoom(uint64_t bytes);
  void Evict(uint32_t index);
  void Link(uint32_t index);  // as the most recently used
  void Unlink(uint32_t index);
  Status LoadPending();
  Status LoadEntry(Entry& entry);
  std::string NameOf(const Entry& entry) const;

  UnitSource* source_;
  ThreadPool* pool_;
  std::unique_ptr<WeightMemory> memory_ = std::make_unique<WeightMemory>();  // outlives entries_
  std::vector<Entry> entries_;
  std::vector<uint32_t> table_begin_;  // first entry of each table
  std::vector<uint32_t> pending_;      // entries to load, reused between calls
  std::vector<Status> load_status_;    // one a pending entry
  uint32_t newest_ = kNil, oldest_ = kNil;
  uint64_t budget_bytes_ = 0, used_bytes_ = 0, all_bytes_ = 0, minimum_bytes_ = 0;
  ExpertCacheStats stats_;
};

}  // namespace moepack::runtime
