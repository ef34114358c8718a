// Loading ahead. All decisions are made on the caller's thread: it takes the room of an expert, fixes its block and hands it
// to a lane, which writes there and nowhere else, and it takes over what lanes have done. What a lane could not load is
// forgotten: when the router chooses that expert it is loaded again, and then its error counts.
#include <algorithm>

#include "runtime-min/expert_cache.h"

namespace moepack::runtime {

// One load under way and one to go on with: what waits longer in a queue holds memory that others use better.
constexpr uint32_t kLoadsPerLane = 2;

bool ExpertCache::ThreadsMayWait() const {
  const auto threads = static_cast<size_t>(pool_->threads());
  return std::any_of(entries_.begin(), entries_.end(), [&](const Entry& e) {
    return source_->experts()[e.table].units[e.physical].chunks.size() % threads != 0;
  });
}

Status ExpertCache::StartPrefetch(uint32_t lanes) {
  prefetches_ = true;
  if (lanes == 0) return Status::Ok();
  MOEPACK_ASSIGN_OR_RETURN(lanes_, LoadLanes::Start(*source_, lanes, kLoadsPerLane * lanes));
  return Status::Ok();
}

void ExpertCache::Expect(uint32_t table, std::span<const uint32_t> experts) {
  if (!prefetches_) return;
  expectation_[table] = ++calls_;
  for (const uint32_t expert : experts) entries_[EntryIndex(table, expert)].expected = calls_;
  DropUnexpected(table);
  for (const uint32_t expert : experts) {
    if (!IsGivenUp(table, expert, 0)) expected_.push_back(EntryIndex(table, expert));
  }
}

// Takes what is left of an earlier Expect of `table` back; loads under way go on.
void ExpertCache::DropUnexpected(uint32_t table) {
  if (!prefetches_) return;
  std::erase_if(expected_, [&](uint32_t index) { return entries_[index].table == table; });
  if (lanes_ == nullptr || lanes_->empty()) return;
  const uint32_t end = table + 1 < table_begin_.size() ? table_begin_[table + 1] : static_cast<uint32_t>(entries_.size());
  for (uint32_t i = table_begin_[table]; i < end; ++i) {
    if (entries_[i].loading && !IsExpected(entries_[i])) CancelLoad(i);
  }
}

void ExpertCache::CountRouted(uint32_t index) {
  const Entry& e = entries_[index];
  stats_.foreseen += IsExpected(e);
  stats_.hits += e.resident && !e.prefetched;
  stats_.prefetched += e.prefetched;
  stats_.misses += !e.resident;
  if (e.loading && !CancelLoad(index)) ++stats_.late;
}

// Hands expected experts to lanes as long as there is room.
void ExpertCache::StartExpected() {
  if (lanes_ == nullptr) return;
  for (size_t i = 0; i < expected_.size() && !lanes_->full(); ++i) {
    const uint32_t index = expected_[i];
    Entry& e = entries_[index];
    if (e.resident || e.loading) continue;
    if (!PlaceExpected(index)) return;
    e.loading = true;
    arena_->Fix(index, true);
    lanes_->Submit(index, e.table, e.physical, arena_->data(index));
  }
}

// Threads of the pool that would wait while others load the last chunks load expected experts meanwhile, which they can load
// in that time.
void ExpertCache::LoadExpectedBeside() {
  const auto chunks = [this](uint32_t index) {
    return source_->experts()[entries_[index].table].units[entries_[index].physical].chunks.size();
  };
  const auto threads = static_cast<size_t>(pool_->threads());
  size_t busy = 0;
  for (const uint32_t index : pending_) busy += entries_[index].missing ? chunks(index) : 0;
  if (busy == 0) return;
  for (size_t i = 0; i < expected_.size() && busy % threads != 0; ++i) {
    const uint32_t index = expected_[i];
    Entry& e = entries_[index];
    if (e.resident || e.loading || chunks(index) > threads - busy % threads) continue;
    if (!PlaceExpected(index)) return;
    e.resident = e.missing = true;
    beside_.push_back(index);
    busy += chunks(index);
  }
}

bool ExpertCache::PlaceExpected(uint32_t index) { return MakeRoomForExpected(index) && TakePlace(index); }

// Evicts experts that the policy gives up before this one, as if it had just been used, and that nobody uses or expects.
bool ExpertCache::MakeRoomForExpected(uint32_t index) {
  const Entry& wanted = entries_[index];
  uint64_t free = budget_bytes_ - used_bytes_;
  if (free >= wanted.resident_bytes) return true;
  ExpertUse use = wanted.use;
  clock_.Use(1, &use);
  const CacheCandidate guess{clock_.Score(use, wanted.table), use.last, wanted.hot_rank, index};
  victims_.clear();
  for (uint32_t i = 0; i < entries_.size(); ++i) {
    const Entry& e = entries_[i];
    if (!e.resident || e.kept || e.pins > 0 || e.routed == last_route_ || IsExpected(e)) continue;
    const CacheCandidate candidate = CandidateOf(i);
    if (!guess.StaysLongerThan(candidate)) continue;
    victims_.push_back({0, candidate});
    free += e.resident_bytes;
  }
  if (free < wanted.resident_bytes) return false;
  EvictVictims(wanted.resident_bytes);
  return true;
}

// True when a lane had not begun to load the expert; its bytes are free again.
bool ExpertCache::CancelLoad(uint32_t index) {
  if (!lanes_->Cancel(index)) return false;
  entries_[index].loading = false;
  Evict(index);
  return true;
}

// Takes a load over that a lane has done: true when the expert is resident, false when it is as if never loaded.
bool ExpertCache::FinishLoad(LaneResult result) {
  entries_[result.id].loading = false;
  arena_->Fix(result.id, false);
  entries_[result.id].weights = std::move(result.weights);
  return FinishAhead(result.id, result.status);
}

bool ExpertCache::FinishAhead(uint32_t index, const Status& status) {
  Entry& e = entries_[index];
  e.missing = false;
  if (!status.ok()) {
    Evict(index);
    return false;
  }
  e.resident = e.prefetched = true;
  ++stats_.loads;
  ++stats_.prefetch_loads;
  ++stats_.wasted;
  stats_.bytes_read += e.stored_bytes;
  stats_.prefetch_bytes_read += e.stored_bytes;
  return true;
}

void ExpertCache::FinishDoneLoads() {
  if (lanes_ == nullptr) return;
  while (std::optional<LaneResult> result = lanes_->TakeDone()) FinishLoad(std::move(*result));
}

void ExpertCache::FinishAllLoads() {
  for (uint32_t i = 0; i < entries_.size(); ++i) {
    if (!entries_[i].loading || CancelLoad(i)) continue;
    if (entries_[i].pins > 0) {
      TakeFromLane(i);
    } else {
      FinishLoad(lanes_->Wait(i));
    }
  }
}

// Waits for an expert of pending_ that a lane loads. False when the lane failed; the expert keeps its place, to be loaded.
bool ExpertCache::TakeFromLane(uint32_t index) {
  Entry& e = entries_[index];
  LaneResult result = lanes_->Wait(index);
  if (!result.status.ok()) {
    e.loading = false;
    e.resident = e.missing = true;
    arena_->Fix(index, false);
    return false;
  }
  FinishLoad(std::move(result));
  e.prefetched = false;
  --stats_.wasted;
  return true;
}

void ExpertCache::ResetStats() {
  stats_ = {};
  for (Entry& e : entries_) e.prefetched = false;
}

}  // namespace moepack::runtime
