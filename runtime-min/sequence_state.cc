#include "runtime-min/sequence_state.h"

#include <algorithm>

#include "base/checked.h"

namespace moepack::runtime {

Result<std::unique_ptr<SequenceState>> SequenceState::Create(const Program& program, const SequenceStateOptions& options) {
  std::unique_ptr<SequenceState> state(new SequenceState(program));
  MOEPACK_ASSIGN_OR_RETURN(state->sequences_, Sequences::Create(options.sequences, options.context, options.positions));
  MOEPACK_RETURN_IF_ERROR(state->CreateSlots(options));
  return state;
}

Status SequenceState::CreateSlots(const SequenceStateOptions& options) {
  caches_.resize(program_.state_slots);
  inputs_.resize(program_.state_slots);
  for (const Node& node : program_.nodes) {
    if (node.kind == NodeKind::kConvolution) {
      const TensorDecl& weight = program_.tensors[node.convolution.weight];
      MOEPACK_ASSIGN_OR_RETURN(inputs_[node.convolution.state_slot],
                               ConvolutionState::Create(weight.rows, weight.cols, options.sequences));
    }
    if (node.kind != NodeKind::kAttention) continue;
    MOEPACK_ASSIGN_OR_RETURN(caches_[node.attention.state_slot],
                             KvCache::Create(node.attention, options.kv, sequences_.all_blocks()));
  }
  return Status::Ok();
}

Result<SequenceId> SequenceState::Fork(SequenceId from, uint32_t positions) {
  const uint32_t there = sequences_.position(from);
  if (positions > there) {
    return Status(ErrorCode::kUsage,
                  StrFormat("sequence %u has %u tokens: its first %u cannot be shared", from, there, positions));
  }
  if (positions < there && convolution_bytes() > 0) {
    return Status(ErrorCode::kUsage,
                  StrFormat("sequence %u has %u tokens: a model with convolutions shares all of them or none", from, there));
  }
  MOEPACK_ASSIGN_OR_RETURN(const SequenceId id, sequences_.Fork(from, positions));
  for (ConvolutionState& inputs : inputs_) inputs.Copy(from, id);
  return id;
}

Status SequenceState::Extend(SequenceId id, uint32_t tokens) {
  MOEPACK_ASSIGN_OR_RETURN(const std::optional<BlockCopy> copy, sequences_.Extend(id, tokens));
  for (KvCache& cache : caches_) {
    if (copy && cache.block_bytes() > 0) cache.CopyBlock(*copy);
  }
  return Status::Ok();
}

void SequenceState::Advance(SequenceId id, uint32_t tokens) {
  sequences_.Advance(id, tokens);
  for (ConvolutionState& inputs : inputs_) {
    if (inputs.width() > 0) inputs.Advance(id);
  }
}

uint64_t SequenceState::block_bytes() const {
  uint64_t bytes = 0;
  for (const KvCache& cache : caches_) bytes += cache.block_bytes();
  return bytes;
}

uint64_t SequenceState::convolution_bytes() const {
  uint64_t bytes = 0;
  for (const ConvolutionState& inputs : inputs_) bytes += inputs.size_bytes();
  return bytes;
}

Result<uint64_t> SequenceState::SavedBytes(uint32_t positions) const {
  CheckedU64 bytes = CheckedU64(block_bytes()) * CheckedU64(CeilDiv(positions, kBlockPositions));
  for (const ConvolutionState& inputs : inputs_) {
    bytes = bytes + CheckedU64(inputs.kept(positions)) * CheckedU64(inputs.channels() * sizeof(float));
  }
  if (!bytes.valid()) return Status(ErrorCode::kLimit, StrFormat("the state of %u tokens: size overflows", positions));
  return bytes.value();
}

Status SequenceState::Write(SequenceId id, const std::function<Status(ByteSpan)>& sink) const {
  const uint32_t positions = sequences_.position(id);
  Bytes bytes;
  for (uint32_t slot = 0; slot < program_.state_slots; ++slot) {
    const KvCache& cache = caches_[slot];
    bytes.resize(cache.block_bytes());
    for (uint32_t at = 0; at < positions && !bytes.empty(); at += kBlockPositions) {
      cache.ReadBlock(sequences_.blocks(id)[at / kBlockPositions], std::min(positions - at, kBlockPositions), bytes.data());
      MOEPACK_RETURN_IF_ERROR(sink(bytes));
    }
    const ConvolutionState& inputs = inputs_[slot];
    for (uint32_t at = positions - inputs.kept(positions); at < positions; ++at) {
      const auto* input = reinterpret_cast<const uint8_t*>(inputs.input(id, at));
      MOEPACK_RETURN_IF_ERROR(sink({input, inputs.channels() * sizeof(float)}));
    }
  }
  return Status::Ok();
}

Status SequenceState::Read(SequenceId id, uint32_t positions, const std::function<Status(std::span<uint8_t>)>& source) {
  for (uint32_t slot = 0; slot < program_.state_slots; ++slot) {
    KvCache& cache = caches_[slot];
    for (uint32_t at = 0; at < positions && cache.block_bytes() > 0; at += kBlockPositions) {
      MOEPACK_RETURN_IF_ERROR(source(cache.block(sequences_.blocks(id)[at / kBlockPositions])));
    }
    ConvolutionState& inputs = inputs_[slot];
    for (uint32_t at = positions - inputs.kept(positions); at < positions; ++at) {
      auto* input = reinterpret_cast<uint8_t*>(inputs.next_input(id, at));
      MOEPACK_RETURN_IF_ERROR(source({input, inputs.channels() * sizeof(float)}));
    }
  }
  return Status::Ok();
}

uint64_t SequenceState::size_bytes() const { return block_bytes() * sequences_.all_blocks() + convolution_bytes(); }
uint64_t SequenceState::used_bytes() const { return block_bytes() * sequences_.used_blocks() + convolution_bytes(); }

}  // namespace moepack::runtime
