// State of one convolution node: the last inputs of every sequence.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "base/status.h"
#include "runtime-min/buffer.h"
#include "runtime-min/sequences.h"

namespace moepack::runtime {

// For each sequence a ring of inputs, addressed by position, that a run of tile_tokens can fill without losing the `width` -
// 1 inputs before it: a run that fails and is repeated finds what it needs.
class ConvolutionState {
 public:
  ConvolutionState() = default;
  // `width`: positions that one output reads. kLimit, kNoMemory.
  static Result<ConvolutionState> Create(uint64_t channels, uint64_t width, uint32_t tile_tokens, uint32_t sequences);

  // x: [channels]. Different positions may be stored from different threads.
  void Store(SequenceId id, uint32_t position, const float* x);
  // out[c] = bias[c] + sum over j of weight[j * channels + c] * input of position - (width - 1) + j; bias may be null. The
  // inputs up to `position` must be stored.
  void Convolve(SequenceId id, uint32_t position, const float* weight, const float* bias, float* out) const;
  // What the sequence `from` remembers becomes what `to` does.
  void Copy(SequenceId from, SequenceId to);
  // Inputs that a sequence of `positions` positions needs to go on: its last ones. 0 of a state that was not created.
  uint32_t kept(uint32_t positions) const {
    return width_ == 0 ? 0 : static_cast<uint32_t>(std::min<uint64_t>(positions, width_ - 1));
  }
  // The bytes of one of them.
  std::span<uint8_t> input(SequenceId id, uint32_t position) {
    return {reinterpret_cast<uint8_t*>(ring(id) + position % places_ * channels_), input_bytes()};
  }
  ByteSpan input(SequenceId id, uint32_t position) const {
    return {reinterpret_cast<const uint8_t*>(ring(id) + position % places_ * channels_), input_bytes()};
  }
  uint64_t input_bytes() const { return channels_ * sizeof(float); }
  uint64_t width() const { return width_; }
  uint64_t size_bytes() const { return inputs_.size() * sizeof(float); }

 private:
  float* ring(SequenceId id) { return inputs_.data() + id * places_ * channels_; }
  const float* ring(SequenceId id) const { return inputs_.data() + id * places_ * channels_; }

  uint64_t channels_ = 0, width_ = 0, places_ = 0;
  FloatBuffer inputs_;  // [sequences, places, channels]
};

}  // namespace moepack::runtime
