#include "runtime-min/expert_cache.h"

#include <algorithm>
#include <functional>

#include "base/checked.h"
#include "runtime-min/tensor_packer.h"

namespace moepack::runtime {

Result<ExpertCache> ExpertCache::Create(UnitSource& source, ThreadPool& pool, std::span<const uint32_t> top_k,
                                        uint64_t budget_bytes) {
  ExpertCache cache(source, pool);
  MOEPACK_RETURN_IF_ERROR(cache.AddEntries());
  MOEPACK_RETURN_IF_ERROR(cache.ComputeMinimum(top_k));
  if (budget_bytes < cache.minimum_bytes_) {
    return Status(
        ErrorCode::kUsage,
        StrFormat("an expert budget of %llu bytes is too small: the experts of one token need %llu bytes; give "
                  "--expert-ram at least %llu",
                  static_cast<unsigned long long>(budget_bytes), static_cast<unsigned long long>(cache.minimum_bytes_),
                  static_cast<unsigned long long>(cache.minimum_bytes_)));
  }
  cache.budget_bytes_ = budget_bytes;
  return cache;
}

Status ExpertCache::AddEntries() {
  CheckedU64 all(0);
  for (uint32_t t = 0; t < source_->experts().size(); ++t) {
    table_begin_.push_back(static_cast<uint32_t>(entries_.size()));
    const ExpertTable& table = source_->experts()[t];
    for (uint32_t p = 0; p < table.units.size(); ++p) {
      Entry added;
      added.table = t;
      added.physical = p;
      CheckedU64 resident(0), stored(0);
      for (const UnitTensor& tensor : table.units[p].tensors) {
        MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, ResidentBytes(tensor.codec, tensor.shape));
        resident = resident + bytes;
      }
      for (const ChunkRef& chunk : table.units[p].chunks) stored = stored + chunk.stored_bytes;
      all = all + resident;
      if (!all.valid() || !stored.valid()) return Status(ErrorCode::kLimit, "expert tables: sizes overflow");
      added.resident_bytes = resident.value();
      added.stored_bytes = stored.value();
      entries_.push_back(std::move(added));
    }
  }
  all_bytes_ = all.value();
  pending_.reserve(entries_.size());
  load_status_.resize(entries_.size());
  return Status::Ok();
}

// The largest top_k experts of a table, over all tables: then one token always fits, whatever it is routed to.
Status ExpertCache::ComputeMinimum(std::span<const uint32_t> top_k) {
  for (uint32_t t = 0; t < source_->experts().size(); ++t) {
    std::vector<uint64_t> sizes;
    for (uint32_t e = 0; e < source_->experts()[t].experts.size(); ++e) sizes.push_back(entry(t, e).resident_bytes);
    const size_t k = std::min<size_t>(top_k[t], sizes.size());
    std::partial_sort(sizes.begin(), sizes.begin() + static_cast<ptrdiff_t>(k), sizes.end(), std::greater<>());
    uint64_t sum = 0;
    for (size_t i = 0; i < k; ++i) {
      if (!CheckedAdd(sum, sizes[i], &sum)) return Status(ErrorCode::kLimit, "expert tables: sizes overflow");
    }
    minimum_bytes_ = std::max(minimum_bytes_, sum);
  }
  return Status::Ok();
}

uint32_t ExpertCache::EntryIndex(uint32_t table, uint32_t expert) const {
  return table_begin_[table] + source_->experts()[table].experts[expert].variants[0].physical;
}

uint64_t ExpertCache::mean_bytes(uint32_t table) const {
  const size_t experts = source_->experts()[table].experts.size();
  uint64_t sum = 0;
  for (uint32_t e = 0; e < experts; ++e) sum += entry(table, e).resident_bytes;
  return sum / std::max<size_t>(1, experts);
}

bool ExpertCache::IsResident(uint32_t table, uint32_t expert) const { return entry(table, expert).resident; }

void ExpertCache::Link(uint32_t index) {
  Entry& e = entries_[index];
  e.newer = kNil;
  e.older = newest_;
  if (newest_ != kNil) entries_[newest_].newer = index;
  newest_ = index;
  if (oldest_ == kNil) oldest_ = index;
}

void ExpertCache::Unlink(uint32_t index) {
  Entry& e = entries_[index];
  (e.newer != kNil ? entries_[e.newer].older : newest_) = e.older;
  (e.older != kNil ? entries_[e.older].newer : oldest_) = e.newer;
  e.newer = e.older = kNil;
}

void ExpertCache::Evict(uint32_t index) {
  Unlink(index);
  Entry& e = entries_[index];
  for (ResidentTensor& tensor : e.weights) tensor = ResidentTensor();
  e.resident = false;
  used_bytes_ -= e.resident_bytes;
}

// Evicts unpinned entries, oldest first, until `bytes` more fit. Evicts nothing when they cannot.
bool ExpertCache::MakeRoom(uint64_t bytes) {
  if (bytes > budget_bytes_) return false;
  uint64_t free = budget_bytes_ - used_bytes_;
  for (uint32_t i = oldest_; i != kNil && free < bytes; i = entries_[i].newer) {
    if (entries_[i].pins == 0) free += entries_[i].resident_bytes;
  }
  if (free < bytes) return false;
  for (uint32_t i = oldest_; budget_bytes_ - used_bytes_ < bytes;) {
    const uint32_t newer = entries_[i].newer;
    if (entries_[i].pins == 0) Evict(i);
    i = newer;
  }
  return true;
}

Status ExpertCache::LoadEntry(Entry& e) {
  MOEPACK_ASSIGN_OR_RETURN(const PlainUnit plain, source_->ReadExpert(e.table, e.physical));
  uint64_t offset = 0;
  for (const UnitTensor& tensor : source_->experts()[e.table].units[e.physical].tensors) {
    MOEPACK_ASSIGN_OR_RETURN(e.weights[tensor.tensor], TensorPacker::Pack(tensor, plain, &offset, memory_.get()));
  }
  return Status::Ok();
}

// "layer 3, expert 5": 5 is the index in the original checkpoint.
std::string ExpertCache::NameOf(const Entry& e) const {
  const ExpertTableDecl& decl = source_->program().expert_tables[e.table];
  uint32_t expert = 0;
  while (EntryIndex(e.table, expert) != table_begin_[e.table] + e.physical) ++expert;
  return StrFormat("layer %d, expert %u", decl.layer, decl.original[expert]);
}

// Loads pending_ on all threads. Their bytes are already counted and they are linked and pinned.
Status ExpertCache::LoadPending() {
  pool_->ParallelFor(pending_.size(), 1, [this](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) load_status_[i] = LoadEntry(entries_[pending_[i]]);
  });
  Status first;
  for (size_t i = 0; i < pending_.size(); ++i) {
    Entry& e = entries_[pending_[i]];
    if (load_status_[i].ok()) {
      ++stats_.loads;
      stats_.bytes_read += e.stored_bytes;
      continue;
    }
    if (first.ok()) first = load_status_[i].With(NameOf(e));
    Evict(pending_[i]);
  }
  return first;
}

Result<size_t> ExpertCache::Pin(uint32_t table, std::span<const uint32_t> experts) {
  pending_.clear();
  size_t pinned = 0;
  for (; pinned < experts.size(); ++pinned) {
    const uint32_t index = EntryIndex(table, experts[pinned]);
    Entry& e = entries_[index];
    if (e.resident) {
      Unlink(index);
      ++stats_.hits;
    } else {
      if (!MakeRoom(e.resident_bytes)) break;
      e.resident = true;
      used_bytes_ += e.resident_bytes;
      pending_.push_back(index);
      ++stats_.misses;
    }
    Link(index);
    ++e.pins;
  }
  const Status loaded = LoadPending();
  if (loaded.ok()) return pinned;
  Unpin(table, experts.first(pinned));
  return loaded;
}

void ExpertCache::Unpin(uint32_t table, std::span<const uint32_t> experts) {
  for (uint32_t expert : experts) --entries_[EntryIndex(table, expert)].pins;
}

Status ExpertCache::Preload() {
  pending_.clear();
  for (const auto& [table, expert] : source_->hot_list().experts) {
    const uint32_t index = EntryIndex(table, expert);
    Entry& e = entries_[index];
    if (e.resident) continue;
    if (e.resident_bytes > budget_bytes_ - used_bytes_) break;
    e.resident = true;
    used_bytes_ += e.resident_bytes;
    pending_.push_back(index);
  }
  // Linked coldest first, so that the hottest are the last to make room.
  for (size_t i = pending_.size(); i-- > 0;) Link(pending_[i]);
  return LoadPending();
}

}  // namespace moepack::runtime
