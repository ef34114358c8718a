// Memory of resident experts: one run of addresses, never longer than the budget. Experts of unequal sizes that replace each
// other leave gaps; where none is large enough, blocks between gaps move together, so that gaps cost no memory.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "runtime-min/expert_load.h"

namespace moepack::runtime {

// One thread at a time; what blocks hold may be read and written by any while no function runs, and that of fixed blocks at
// any time.
class ExpertArena {
 public:
  ExpertArena() = default;
  ~ExpertArena();
  ExpertArena(const ExpertArena&) = delete;
  ExpertArena& operator=(const ExpertArena&) = delete;

  // Address space for `bytes` bytes and blocks of owners 0 .. owners - 1. Pages are taken as they are used. kNoMemory,
  // kLimit. Once, before all else.
  Status Reserve(uint64_t bytes, uint32_t owners);
  // A place of `bytes` (a multiple of kExpertAlignment, not 0) for an owner without one, all of it below `capacity`. At
  // least `bytes` bytes must be free there. Returns the owners whose blocks had to move; valid until the next call. Moves as
  // few bytes as one run of blocks takes. Nothing when fixed blocks leave no room, which then stays as it is.
  std::optional<std::span<const uint32_t>> Place(uint32_t owner, uint64_t bytes, uint64_t capacity);
  void Remove(uint32_t owner);
  // A fixed block does not move, so that another thread may write to it.
  void Fix(uint32_t owner, bool fixed) { FindBlock(owner)->fixed = fixed; }
  // Where an owner's block is: at a multiple of kExpertAlignment.
  uint8_t* data(uint32_t owner) const { return begin_ + offset_[owner]; }

 private:
  struct Block {
    uint64_t offset = 0, bytes = 0;
    uint32_t owner = 0;
    bool fixed = false;
    uint64_t end() const { return offset + bytes; }
  };
  // The gap before blocks_[i], or after the last one.
  uint64_t Gap(size_t i, uint64_t capacity) const;
  size_t FindGap(uint64_t bytes, uint64_t capacity) const;
  std::optional<size_t> MakeGap(uint64_t bytes, uint64_t capacity);
  std::vector<Block>::iterator FindBlock(uint32_t owner);

  void* mapping_ = nullptr;
  uint64_t mapped_bytes_ = 0;
  uint8_t* begin_ = nullptr;
  std::vector<Block> blocks_;     // by offset
  std::vector<uint64_t> offset_;  // by owner
  std::vector<uint32_t> moved_;
};

}  // namespace moepack::runtime
