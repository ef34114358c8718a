// State of one convolution node: the last inputs of every sequence.
#pragma once

#include <cstdint>

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
  uint64_t width() const { return width_; }
  uint64_t size_bytes() const { return inputs_.size() * sizeof(float); }

 private:
  float* ring(SequenceId id) { return inputs_.data() + id * places_ * channels_; }
  const float* ring(SequenceId id) const { return inputs_.data() + id * places_ * channels_; }

  uint64_t channels_ = 0, width_ = 0, places_ = 0;
  FloatBuffer inputs_;  // [sequences, places, channels]
};

}  // namespace moepack::runtime
