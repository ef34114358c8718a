#include "runtime-min/sequences.h"

#include <algorithm>

#include "base/checked.h"

namespace moepack::runtime {

Result<Sequences> Sequences::Create(uint32_t sequences, uint32_t context, uint64_t positions) {
  Sequences out;
  out.blocks_per_sequence_ = static_cast<uint32_t>(CeilDiv(context, kBlockPositions));
  uint64_t most = 0;
  if (!CheckedMul(sequences, out.blocks_per_sequence_, &most) || most > kMaxBlocks) {
    return Status(ErrorCode::kLimit, StrFormat("%u sequences of %u tokens: too many", sequences, context));
  }
  const uint64_t blocks = std::min(most, CeilDiv(positions, kBlockPositions));
  out.sequences_.resize(sequences);
  out.tables_.resize(most);
  out.references_.resize(blocks);
  out.free_.resize(blocks);
  for (uint64_t i = 0; i < blocks; ++i) out.free_[i] = static_cast<uint32_t>(blocks - 1 - i);
  return out;
}

Result<SequenceId> Sequences::Open() {
  for (SequenceId id = 0; id < capacity(); ++id) {
    if (sequences_[id].open) continue;
    sequences_[id] = {.open = true};
    return id;
  }
  return Status(ErrorCode::kLimit, StrFormat("all %u sequences are open: release one, or plan for more", capacity()));
}

Result<SequenceId> Sequences::Fork(SequenceId from, uint32_t positions) {
  MOEPACK_ASSIGN_OR_RETURN(const SequenceId id, Open());
  Sequence& sequence = sequences_[id];
  sequence.position = positions;
  sequence.blocks = static_cast<uint32_t>(CeilDiv(positions, kBlockPositions));
  std::copy_n(blocks(from), sequence.blocks, table(id));
  for (uint32_t i = 0; i < sequence.blocks; ++i) ++references_[table(id)[i]];
  return id;
}

void Sequences::Empty(SequenceId id) {
  Shrink(id, 0);
  sequences_[id].position = 0;
}

void Sequences::Close(SequenceId id) {
  Empty(id);
  sequences_[id].open = false;
}

void Sequences::Trim(SequenceId id) { Shrink(id, static_cast<uint32_t>(CeilDiv(sequences_[id].position, kBlockPositions))); }

Result<std::optional<BlockCopy>> Sequences::Extend(SequenceId id, uint32_t tokens) {
  Sequence& sequence = sequences_[id];
  const uint32_t in_use = static_cast<uint32_t>(CeilDiv(sequence.position, kBlockPositions));
  const uint32_t needed = static_cast<uint32_t>(CeilDiv(uint64_t{sequence.position} + tokens, kBlockPositions));
  Trim(id);
  const bool shared = sequence.position % kBlockPositions != 0 && references_[table(id)[in_use - 1]] > 1;
  if (needed - in_use + (shared ? 1 : 0) > free_.size()) {
    return Status(ErrorCode::kLimit,
                  StrFormat("the memory for %llu positions of all sequences is full: release a sequence, or plan for more",
                            static_cast<unsigned long long>(uint64_t{all_blocks()} * kBlockPositions)));
  }
  std::optional<BlockCopy> copy;
  if (shared) {
    uint32_t& last = table(id)[in_use - 1];
    copy = BlockCopy{last, TakeBlock()};
    --references_[last];
    last = copy->to;
  }
  while (sequence.blocks < needed) table(id)[sequence.blocks++] = TakeBlock();
  return copy;
}

uint32_t Sequences::TakeBlock() {
  const uint32_t block = free_.back();
  free_.pop_back();
  references_[block] = 1;
  return block;
}

void Sequences::Shrink(SequenceId id, uint32_t blocks) {
  Sequence& sequence = sequences_[id];
  while (sequence.blocks > blocks) {
    const uint32_t block = table(id)[--sequence.blocks];
    if (--references_[block] == 0) free_.push_back(block);
  }
}

}  // namespace moepack::runtime
