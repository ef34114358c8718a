// Which sequence holds which block of positions. A block is the room that kBlockPositions positions take in every KV cache;
// sequences that begin alike share blocks until one of them writes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/status.h"

namespace moepack::runtime {

using SequenceId = uint32_t;
inline constexpr SequenceId kFirstSequence = 0;
inline constexpr uint32_t kBlockPositions = 32;
inline constexpr uint64_t kMaxBlocks = 1 << 26;  // of all sequences together

// What has to be copied before a sequence may write: the positions of block `from` that are in use, to block `to`.
struct BlockCopy {
  uint32_t from = 0, to = 0;
};

// Bookkeeping alone: no state is stored here. Allocates nothing after Create. Not thread-safe.
class Sequences {
 public:
  // Room for `sequences` sequences of up to `context` positions, with blocks for `positions` positions of all of them
  // together (a sequence takes whole blocks); more than sequences * context is never needed. kLimit above kMaxBlocks.
  static Result<Sequences> Create(uint32_t sequences, uint32_t context, uint64_t positions);

  // An empty sequence; kLimit when all are open.
  Result<SequenceId> Open();
  // A sequence that shares the first `positions` positions of `from` (open; at most its position). kLimit.
  Result<SequenceId> Fork(SequenceId from, uint32_t positions);
  void Empty(SequenceId id);
  void Close(SequenceId id);

  // Gives `id` blocks for `tokens` positions more, of its own from its position on. A copy to be made before anything is
  // written, if one is needed: at most one, since only the last block in use can be shared. kLimit when blocks run out; the
  // sequence then has what it had.
  Result<std::optional<BlockCopy>> Extend(SequenceId id, uint32_t tokens);
  // Gives back blocks past the position: what Extend made room for and was not used.
  void Trim(SequenceId id);
  // The sequence has `tokens` positions more, for which Extend made room.
  void Advance(SequenceId id, uint32_t tokens) { sequences_[id].position += tokens; }

  bool is_open(SequenceId id) const { return id < sequences_.size() && sequences_[id].open; }
  uint32_t position(SequenceId id) const { return sequences_[id].position; }
  // Block of each run of kBlockPositions positions for which there is room.
  const uint32_t* blocks(SequenceId id) const { return tables_.data() + uint64_t{id} * blocks_per_sequence_; }
  uint32_t capacity() const { return static_cast<uint32_t>(sequences_.size()); }
  uint32_t all_blocks() const { return static_cast<uint32_t>(references_.size()); }
  uint32_t used_blocks() const { return all_blocks() - static_cast<uint32_t>(free_.size()); }

 private:
  struct Sequence {
    bool open = false;
    uint32_t position = 0;
    uint32_t blocks = 0;  // entries of its table in use
  };

  uint32_t* table(SequenceId id) { return tables_.data() + uint64_t{id} * blocks_per_sequence_; }
  uint32_t TakeBlock();
  void Shrink(SequenceId id, uint32_t blocks);

  uint32_t blocks_per_sequence_ = 0;
  std::vector<Sequence> sequences_;
  std::vector<uint32_t> tables_;      // [sequence, blocks_per_sequence_]
  std::vector<uint32_t> references_;  // by block: sequences that hold it
  std::vector<uint32_t> free_;        // taken from the end: those given back last are in memory already
};

}  // namespace moepack::runtime
