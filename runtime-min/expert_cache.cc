#include "runtime-min/expert_cache.h"

#include <algorithm>
#include <functional>

#include "base/checked.h"
#include "runtime-min/stand_ins.h"
#include "runtime-min/tensor_packer.h"

namespace moepack::runtime {
namespace {

uint32_t VariantOf(std::span<const uint32_t> variants, size_t i) { return variants.empty() ? 0 : variants[i]; }

}  // namespace

Result<ExpertCache> ExpertCache::Create(UnitSource& source, ThreadPool& pool, std::span<const uint32_t> top_k,
                                        const ExpertCacheOptions& options) {
  ExpertCache cache(source, pool, options);
  MOEPACK_RETURN_IF_ERROR(cache.AddEntries());
  MOEPACK_RETURN_IF_ERROR(cache.ComputeMinimum(top_k));
  if (options.keep_dense) MOEPACK_RETURN_IF_ERROR(cache.KeepDense());
  MOEPACK_RETURN_IF_ERROR(cache.SetBudget());
  return cache;
}

Status ExpertCache::SetBudget() {
  if (options_.raise_limit) options_.limit_bytes = std::max(options_.limit_bytes, minimum_bytes_);
  if (options_.limit_bytes < minimum_bytes_) {
    return Status(
        ErrorCode::kUsage,
        StrFormat("expert RAM of %llu bytes is too little: the experts of one token%s need %llu bytes, the least to give",
                  static_cast<unsigned long long>(options_.limit_bytes),
                  dense_.empty() ? "" : " and the dense stand-ins of the bundle's policy",
                  static_cast<unsigned long long>(minimum_bytes_)));
  }
  options_.limit_bytes = std::min(options_.limit_bytes, all_bytes_);
  budget_bytes_ = std::clamp(options_.start_bytes, minimum_bytes_, options_.limit_bytes);
  ChooseKept();
  return arena_->Reserve(options_.limit_bytes, static_cast<uint32_t>(entries_.size()));
}

// The first of the hot list that fit into their share, and leave room for any token's experts.
void ExpertCache::ChooseKept() {
  uint64_t left = std::min(budget_bytes_ / 100 * options_.policy.pinned_percent, budget_bytes_ - minimum_bytes_);
  kept_experts_ = 0;
  for (const auto& [table, expert] : source_->hot_list().experts) {
    Entry& e = entries_[EntryIndex(table, expert)];
    if (e.resident_bytes > left) break;
    left -= e.resident_bytes;
    e.kept = true;
    ++kept_experts_;
  }
}

Status ExpertCache::AddEntries() {
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
        uint64_t aligned = 0;
        if (!CheckedAlign(bytes, kExpertAlignment, &aligned))
          return Status(ErrorCode::kLimit, "expert tables: sizes overflow");
        resident = resident + aligned;
      }
      for (const ChunkRef& chunk : table.units[p].chunks) stored = stored + chunk.stored_bytes;
      if (!resident.valid() || !stored.valid()) return Status(ErrorCode::kLimit, "expert tables: sizes overflow");
      added.resident_bytes = resident.value();
      added.stored_bytes = stored.value();
      entries_.push_back(std::move(added));
    }
  }
  MOEPACK_RETURN_IF_ERROR(CountAllBytes());
  for (size_t rank = 0; rank < source_->hot_list().experts.size(); ++rank) {
    const auto& [table, expert] = source_->hot_list().experts[rank];
    Entry& e = entries_[EntryIndex(table, expert)];
    if (e.hot_rank == kNotHot) e.hot_rank = static_cast<uint32_t>(rank);
  }
  expectation_.assign(source_->experts().size(), calls_);
  expected_.reserve(entries_.size());
  beside_.reserve(entries_.size());
  victims_.reserve(entries_.size());
  pending_.reserve(entries_.size());
  return Status::Ok();
}

// Experts that share a unit count once.
Status ExpertCache::CountAllBytes() {
  CheckedU64 all(0);
  std::vector<bool> counted(entries_.size(), false);
  for (uint32_t t = 0; t < source_->experts().size(); ++t) {
    for (uint32_t e = 0; e < source_->experts()[t].experts.size(); ++e) {
      const uint32_t index = EntryIndex(t, e);
      if (!counted[index]) all = all + entries_[index].resident_bytes;
      counted[index] = true;
    }
  }
  if (!all.valid()) return Status(ErrorCode::kLimit, "expert tables: sizes overflow");
  all_bytes_ = all.value();
  return Status::Ok();
}

// The largest top_k experts of a table, over all tables: then one token always fits, whatever it is routed to.
Status ExpertCache::ComputeMinimum(std::span<const uint32_t> top_k) {
  for (uint32_t t = 0; t < source_->experts().size(); ++t) {
    std::vector<uint64_t> sizes;
    const std::vector<std::vector<VariantKind>> kinds = VariantKinds(source_->experts()[t].experts);
    for (uint32_t e = 0; e < kinds.size(); ++e) {
      sizes.push_back(0);
      for (uint32_t v = 0; v < kinds[e].size(); ++v) {  // a dense stand-in is kept beside them, or never used
        if (kinds[e][v] != VariantKind::kDense) sizes.back() = std::max(sizes.back(), entry(t, e, v).resident_bytes);
      }
    }
    const size_t k = std::min<size_t>(top_k[t], sizes.size());
    std::partial_sort(sizes.begin(), sizes.begin() + static_cast<ptrdiff_t>(k), sizes.end(), std::greater<>());
    uint64_t sum = 0;
    for (size_t i = 0; i < k; ++i) {
      if (!CheckedAdd(sum, sizes[i], &sum)) return Status(ErrorCode::kLimit, "expert tables: sizes overflow");
    }
    minimum_bytes_ = std::max(minimum_bytes_, sum);
  }
  all_bytes_ = std::max(all_bytes_, minimum_bytes_);
  return Status::Ok();
}

// Dense stand-ins are there when nothing can be read any more, beside the experts of a token.
Status ExpertCache::KeepDense() {
  for (uint32_t t = 0; t < source_->experts().size(); ++t) {
    const std::vector<std::vector<VariantKind>> kinds = VariantKinds(source_->experts()[t].experts);
    for (uint32_t e = 0; e < kinds.size(); ++e) {
      for (uint32_t v = 0; v < kinds[e].size(); ++v) {
        const uint32_t index = EntryIndex(t, e, v);
        if (kinds[e][v] != VariantKind::kDense || entries_[index].kept) continue;
        entries_[index].kept = true;
        dense_.push_back(index);
        if (!CheckedAdd(minimum_bytes_, entries_[index].resident_bytes, &minimum_bytes_) ||
            !CheckedAdd(all_bytes_, entries_[index].resident_bytes, &all_bytes_))
          return Status(ErrorCode::kLimit, "expert tables: sizes overflow");
      }
    }
  }
  return Status::Ok();
}

std::vector<Status> ExpertCache::MissingDense() const {
  std::vector<Status> reasons;
  for (const uint32_t index : dense_) {
    if (!entries_[index].resident) reasons.push_back(entries_[index].failure);
  }
  return reasons;
}

void ExpertCache::GiveUp(uint32_t table, uint32_t expert, uint32_t variant) {
  Entry& e = entries_[EntryIndex(table, expert, variant)];
  if (e.given_up == 0) e.given_up = kPinsUntilNextTry;
}

uint32_t ExpertCache::EntryIndex(uint32_t table, uint32_t expert, uint32_t variant) const {
  return table_begin_[table] + source_->experts()[table].experts[expert].variants[variant].physical;
}

uint64_t ExpertCache::mean_bytes(uint32_t table) const {
  const size_t experts = source_->experts()[table].experts.size();
  uint64_t sum = 0;
  for (uint32_t e = 0; e < experts; ++e) sum += entry(table, e).resident_bytes;
  return sum / std::max<size_t>(1, experts);
}

bool ExpertCache::IsResident(uint32_t table, uint32_t expert, uint32_t variant) const {
  return entry(table, expert, variant).resident;
}

void ExpertCache::Route(uint32_t table, uint64_t tokens, std::span<const uint32_t> experts, std::span<const uint32_t> uses,
                        std::span<const uint32_t> variants) {
  FinishDoneLoads();
  clock_.Advance(table, tokens);
  last_route_ = ++calls_;
  uint64_t found = 0;
  for (size_t i = 0; i < experts.size(); ++i) {
    const uint32_t index = EntryIndex(table, experts[i], VariantOf(variants, i));
    CountRouted(index);
    Entry& e = entries_[index];
    found += e.resident;
    e.routed = last_route_;
    clock_.Use(uses[i], &e.use);
  }
  expectation_[table] = last_route_;
  DropUnexpected(table);
  GrowWhereHitsAreFew(found, experts.size());
}

void ExpertCache::GrowWhereHitsAreFew(uint64_t hits, uint64_t lookups) {
  if (budget_bytes_ == options_.limit_bytes) return;
  window_hits_ += hits;
  window_lookups_ += lookups;
  if (window_lookups_ < kGrowthLookups) return;
  if (static_cast<double>(window_hits_) < options_.grow_below * static_cast<double>(window_lookups_)) {
    const uint64_t growth = std::max<uint64_t>(1, options_.limit_bytes / kGrowthShare);
    budget_bytes_ += std::min(growth, options_.limit_bytes - budget_bytes_);
    ChooseKept();
  }
  window_hits_ = window_lookups_ = 0;
}

// Gives the bytes of an expert back that is resident, or was to be.
void ExpertCache::Evict(uint32_t index) {
  Entry& e = entries_[index];
  for (ResidentTensor& tensor : e.weights) tensor = ResidentTensor();
  arena_->Remove(index);
  e.resident = e.prefetched = false;
  used_bytes_ -= e.resident_bytes;
}

CacheCandidate ExpertCache::CandidateOf(uint32_t index) const {
  const Entry& e = entries_[index];
  return {clock_.Score(e.use, e.table), e.use.last, e.hot_rank, index};
}

// Evicts what the policy gives up first until `bytes` more fit. Evicts nothing when they cannot.
bool ExpertCache::MakeRoom(uint64_t bytes) {
  uint64_t free = budget_bytes_ - used_bytes_;
  if (free >= bytes) return true;
  victims_.clear();
  for (uint32_t i = 0; i < entries_.size(); ++i) {
    const Entry& e = entries_[i];
    if (!(e.resident || e.loading) || e.kept || e.pins > 0) continue;
    victims_.push_back({static_cast<uint8_t>(e.loading ? 2 : IsExpected(e) ? 1 : 0), CandidateOf(i)});
    free += e.resident_bytes;
  }
  if (free < bytes) return false;
  EvictVictims(bytes);
  return true;
}

// Evicts victims_, in their order, until `bytes` more fit.
void ExpertCache::EvictVictims(uint64_t bytes) {
  const auto stays_longer = [](const Victim& a, const Victim& b) { return a.StaysLongerThan(b); };
  std::make_heap(victims_.begin(), victims_.end(), stays_longer);
  for (; budget_bytes_ - used_bytes_ < bytes; victims_.pop_back()) {
    std::pop_heap(victims_.begin(), victims_.end(), stays_longer);
    const uint32_t index = victims_.back().candidate.index;
    if (entries_[index].loading && (CancelLoad(index) || !FinishLoad(lanes_->Wait(index)))) continue;
    Evict(index);
    ++stats_.evictions;
  }
}

// Takes the expert's bytes, which are free, and leaves it to be loaded.
void ExpertCache::Place(uint32_t index) {
  if (!TakePlace(index)) {  // between blocks that lanes write to
    FinishAllLoads();
    TakePlace(index);
  }
  entries_[index].resident = entries_[index].missing = true;
  pending_.push_back(index);
}

// False when the free bytes lie apart and what is between may not move.
bool ExpertCache::TakePlace(uint32_t index) {
  Entry& e = entries_[index];
  const auto all_moved = arena_->Place(index, e.resident_bytes, budget_bytes_);
  if (!all_moved) return false;
  used_bytes_ += e.resident_bytes;
  for (const uint32_t moved : *all_moved) {
    uint8_t* place = arena_->data(moved);
    for (ResidentTensor& tensor : entries_[moved].weights) {
      if (tensor.data() == nullptr) continue;
      TensorPacker::MovedTo(place, &tensor);
      place += (tensor.size_bytes() + kExpertAlignment - 1) / kExpertAlignment * kExpertAlignment;
    }
  }
  return true;
}

// "layer 3, expert 5": 5 is the index in the original checkpoint.
std::string ExpertCache::NameOf(const Entry& e) const {
  const ExpertTableDecl& decl = source_->program().expert_tables[e.table];
  const auto index = static_cast<uint32_t>(&e - entries_.data());
  if (std::find(dense_.begin(), dense_.end(), index) != dense_.end())
    return StrFormat("layer %d, dense stand-in", decl.layer);
  const auto names = [&](const ExpertEntry& entry) {
    return std::find(entry.variants.begin(), entry.variants.end(), ExpertEntry::Variant{e.physical}) != entry.variants.end();
  };
  const std::vector<ExpertEntry>& experts = source_->experts()[e.table].experts;
  const auto expert = static_cast<size_t>(std::find_if(experts.begin(), experts.end(), names) - experts.begin());
  return StrFormat("layer %d, expert %u", decl.layer, decl.original[expert]);
}

// Loads pending_ on all threads, and waits for those that lanes have. Their bytes are already counted, their places taken.
Status ExpertCache::LoadPending() {
  loads_.Clear();
  const auto add = [this](uint32_t index) {
    Entry& e = entries_[index];
    if (e.missing) loads_.Add(e.table, e.physical, arena_->data(index), &e.weights);
  };
  for (const uint32_t index : pending_) add(index);
  const size_t needed = loads_.size();
  for (const uint32_t index : beside_) add(index);
  loads_.Run(*source_, *pool_);
  for (size_t i = 0; i < beside_.size(); ++i) FinishAhead(beside_[i], loads_.status(needed + i));
  beside_.clear();
  Status failure;
  size_t load = 0;
  for (const uint32_t index : pending_) {
    Entry& e = entries_[index];
    Status status = e.missing ? loads_.status(load++) : Status();
    if (e.loading && !TakeFromLane(index)) {
      status = LoadExpert(*source_, e.table, e.physical, arena_->data(index), &e.weights);
    }
    if (!e.missing) continue;
    e.missing = false;
    if (status.ok()) {
      ++stats_.loads;
      stats_.bytes_read += e.stored_bytes;
      continue;
    }
    e.failure = status.With(NameOf(e));
    if (failure.ok() || (IsUnavailable(failure) && !IsUnavailable(status))) {
      failure = e.failure;
      failed_entry_ = index;
    }
    Evict(index);
  }
  return failure;
}

Result<size_t> ExpertCache::Pin(uint32_t table, std::span<const uint32_t> experts, std::span<const uint32_t> variants) {
  FinishDoneLoads();
  for (size_t i = 0; i < experts.size(); ++i) {
    Entry& e = entries_[EntryIndex(table, experts[i], VariantOf(variants, i))];
    if (e.resident || e.loading || e.given_up == 0 || --e.given_up == 0) continue;
    failed_ = i;
    return e.failure;
  }
  pending_.clear();
  size_t pinned = 0;
  for (; pinned < experts.size(); ++pinned) {
    const uint32_t index = EntryIndex(table, experts[pinned], VariantOf(variants, pinned));
    Entry& e = entries_[index];
    if (e.loading && e.pins == 0 && !CancelLoad(index)) pending_.push_back(index);
    if (!e.resident && !e.loading) {
      if (!MakeRoom(e.resident_bytes)) break;
      Place(index);
    }
    if (e.prefetched) --stats_.wasted;
    e.prefetched = false;
    ++e.pins;
  }
  if (prefetches_) {
    LoadExpectedBeside();
    StartExpected();
  }
  const Status loaded = LoadPending();
  if (loaded.ok()) return pinned;
  Unpin(table, experts.first(pinned), variants);
  failed_ = 0;
  while (EntryIndex(table, experts[failed_], VariantOf(variants, failed_)) != failed_entry_) ++failed_;
  return loaded;
}

void ExpertCache::Unpin(uint32_t table, std::span<const uint32_t> experts, std::span<const uint32_t> variants) {
  for (size_t i = 0; i < experts.size(); ++i) --entries_[EntryIndex(table, experts[i], VariantOf(variants, i))].pins;
}

Status ExpertCache::Preload() {
  pending_.clear();
  for (const uint32_t index : dense_) Place(index);
  for (const auto& [table, expert] : source_->hot_list().experts) {
    const uint32_t index = EntryIndex(table, expert);
    const Entry& e = entries_[index];
    if (e.resident || e.loading) continue;
    if (e.resident_bytes > budget_bytes_ - used_bytes_) break;
    Place(index);
  }
  const Status loaded = LoadPending();
  return !options_.preload_must_succeed && IsUnavailable(loaded) ? Status::Ok() : loaded;
}

}  // namespace moepack::runtime
