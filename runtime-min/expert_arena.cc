#include "runtime-min/expert_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/checked.h"

namespace moepack::runtime {
namespace {

constexpr uint64_t kHugePage = 2 << 20, kLeastForHugePages = 16 << 20;

}  // namespace

ExpertArena::~ExpertArena() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapped_bytes_);
}

Status ExpertArena::Reserve(uint64_t bytes, uint32_t owners) {
  if (!CheckedAdd(bytes, kHugePage, &mapped_bytes_)) return Status(ErrorCode::kLimit, "expert memory: size overflows");
  void* mapping = ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    return Status(ErrorCode::kNoMemory,
                  StrFormat("cannot reserve %llu bytes for experts", static_cast<unsigned long long>(bytes)));
  }
  mapping_ = mapping;
  begin_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(mapping) + kHugePage - 1) / kHugePage * kHugePage);
  // Only whole huge pages of the budget: one that reaches past it would take more than was given.
  if (bytes >= kLeastForHugePages) ::madvise(begin_, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  blocks_.reserve(owners);
  moved_.reserve(owners);
  offset_.resize(owners);
  return Status::Ok();
}

uint64_t ExpertArena::Gap(size_t i, uint64_t capacity) const {
  const uint64_t begin = i == 0 ? 0 : blocks_[i - 1].end();
  return (i < blocks_.size() ? blocks_[i].offset : capacity) - begin;
}

// The first block behind a gap of enough bytes, or blocks_.size() for the gap at the end; past that when there is none.
size_t ExpertArena::FindGap(uint64_t bytes, uint64_t capacity) const {
  size_t i = 0;
  while (i <= blocks_.size() && Gap(i, capacity) < bytes) ++i;
  return i;
}

// Of all runs of blocks that may move and whose gaps together suffice, the one with the fewest bytes moves to the low end of
// its first gap.
std::optional<size_t> ExpertArena::MakeGap(uint64_t bytes, uint64_t capacity) {
  size_t best_first = 0, best_last = 0;
  uint64_t best = UINT64_MAX, gaps = 0, between = 0;
  for (size_t first = 0, last = 0; last <= blocks_.size(); ++last) {  // gaps first .. last, blocks first .. last - 1
    if (last > 0 && blocks_[last - 1].fixed) {
      first = last;
      gaps = between = 0;
    }
    gaps += Gap(last, capacity);
    if (last > first) between += blocks_[last - 1].bytes;
    for (; first < last && gaps - Gap(first, capacity) >= bytes; ++first) {
      gaps -= Gap(first, capacity);
      between -= blocks_[first].bytes;
    }
    if (gaps >= bytes && between < best) {
      best = between;
      best_first = first;
      best_last = last;
    }
  }
  if (best == UINT64_MAX) return std::nullopt;
  for (size_t i = best_first; i < best_last; ++i) {
    Block& block = blocks_[i];
    const uint64_t to = i == 0 ? 0 : blocks_[i - 1].end();
    std::memmove(begin_ + to, begin_ + block.offset, block.bytes);
    block.offset = offset_[block.owner] = to;
    moved_.push_back(block.owner);
  }
  return best_last;
}

std::optional<std::span<const uint32_t>> ExpertArena::Place(uint32_t owner, uint64_t bytes, uint64_t capacity) {
  capacity = capacity / kExpertAlignment * kExpertAlignment;
  moved_.clear();
  size_t at = FindGap(bytes, capacity);
  if (at > blocks_.size()) {
    const std::optional<size_t> made = MakeGap(bytes, capacity);
    if (!made) return std::nullopt;
    at = *made;
  }
  offset_[owner] = at == 0 ? 0 : blocks_[at - 1].end();
  blocks_.insert(blocks_.begin() + static_cast<std::ptrdiff_t>(at), {offset_[owner], bytes, owner});
  return std::span<const uint32_t>(moved_);
}

std::vector<ExpertArena::Block>::iterator ExpertArena::FindBlock(uint32_t owner) {
  return std::lower_bound(blocks_.begin(), blocks_.end(), offset_[owner],
                          [](const Block& b, uint64_t offset) { return b.offset < offset; });
}

void ExpertArena::Remove(uint32_t owner) { blocks_.erase(FindBlock(owner)); }

}  // namespace moepack::runtime
