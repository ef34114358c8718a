#include "runtime-min/weight_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <iterator>

#include "base/checked.h"

namespace moepack::runtime {
namespace {

constexpr uint64_t kAlignment = 64, kHugePage = 2 << 20;
// A small model takes one region of small pages and pays for no rounding. Later regions are address space only: pages are
// not touched before they are used.
constexpr uint64_t kFirstRegionBytes = 8 << 20, kRegionBytes = 256 << 20;

}  // namespace

WeightMemory::~WeightMemory() {
  for (const Region& region : regions_) ::munmap(region.begin, region.bytes);
}

Status WeightMemory::AddRegion(uint64_t bytes) {
  uint64_t usable = 0, mapped = 0;
  void* begin = MAP_FAILED;
  const bool small = regions_.empty() && bytes <= kFirstRegionBytes;
  for (const uint64_t wanted : {small ? kFirstRegionBytes : std::max(bytes, kRegionBytes), bytes}) {
    if (!CheckedAlign(wanted, kHugePage, &usable) || !CheckedAdd(usable, kHugePage, &mapped)) break;
    begin = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin != MAP_FAILED) break;
  }
  if (begin == MAP_FAILED) {
    return Status(ErrorCode::kNoMemory,
                  StrFormat("cannot allocate %llu bytes for weights", static_cast<unsigned long long>(bytes)));
  }
  regions_.push_back({begin, mapped});
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kHugePage - 1) / kHugePage * kHugePage;
  uint8_t* aligned = reinterpret_cast<uint8_t*>(first);
  if (!small) ::madvise(aligned, usable, MADV_HUGEPAGE);  // a wish: systems without huge pages work as well
  free_[aligned] = usable;
  return Status::Ok();
}

// The lowest gap that is large enough; null when there is none.
uint8_t* WeightMemory::Take(uint64_t bytes) {
  const auto gap = std::find_if(free_.begin(), free_.end(), [bytes](const auto& g) { return g.second >= bytes; });
  if (gap == free_.end()) return nullptr;
  uint8_t* const p = gap->first;
  const uint64_t left = gap->second - bytes;
  free_.erase(gap);
  if (left > 0) free_[p + bytes] = left;
  used_[p] = bytes;
  return p;
}

Result<uint8_t*> WeightMemory::Allocate(uint64_t bytes) {
  uint64_t size = 0;
  if (!CheckedAlign(std::max<uint64_t>(bytes, 1), kAlignment, &size)) {
    return Status(ErrorCode::kLimit, "tensor size overflows");
  }
  std::lock_guard lock(mutex_);
  if (uint8_t* p = Take(size); p != nullptr) return p;
  MOEPACK_RETURN_IF_ERROR(AddRegion(size));
  return Take(size);
}

void WeightMemory::Release(uint8_t* p) {
  std::lock_guard lock(mutex_);
  auto block = used_.extract(p);
  auto next = free_.lower_bound(p);
  if (next != free_.end() && next->first == p + block.mapped()) {
    block.mapped() += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == p) {
      before->second += block.mapped();
      return;
    }
  }
  free_.insert(std::move(block));
}

}  // namespace moepack::runtime
