// State of one convolution node: the last inputs of every sequence.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "format/program.h"
#include "runtime-min/buffer.h"
#include "runtime-min/sequences.h"

namespace moepack::runtime {

// For each sequence the `width` - 1 inputs before its next one, by position, and room for those that a run makes of them: a
// run that fails and is repeated finds what it needs.
class ConvolutionState {
 public:
  ConvolutionState() = default;
  // `width`: positions that one output reads. kLimit, kNoMemory.
  static Result<ConvolutionState> Create(uint64_t channels, uint64_t width, uint32_t sequences);

  // [channels] of one of the last width - 1 positions of the sequence.
  const float* input(SequenceId id, uint32_t position) const {
    return inputs_.data() + Place(id, now_[id], position) * channels_;
  }
  // Where such an input goes that counts from the next Advance on. Different ones may be written from different threads.
  float* next_input(SequenceId id, uint32_t position) {
    return inputs_.data() + Place(id, 1 - now_[id], position) * channels_;
  }
  void Advance(SequenceId id) { now_[id] = 1 - now_[id]; }
  // What the sequence `from` remembers becomes what `to` does.
  void Copy(SequenceId from, SequenceId to);

  // Inputs that a sequence of `positions` positions needs to go on: its last ones.
  uint32_t kept(uint32_t positions) const {
    return width_ == 0 ? 0 : static_cast<uint32_t>(std::min<uint64_t>(positions, width_ - 1));
  }
  uint64_t channels() const { return channels_; }
  uint64_t width() const { return width_; }  // 0 of a state that was not created
  uint64_t size_bytes() const { return inputs_.size() * sizeof(float); }

 private:
  uint64_t Place(SequenceId id, uint32_t half, uint32_t position) const {
    return (uint64_t{id} * 2 + half) * (width_ - 1) + position % (width_ - 1);
  }

  uint64_t channels_ = 0, width_ = 0;
  std::vector<uint32_t> now_;  // by sequence: the half that counts
  FloatBuffer inputs_;         // [sequences, 2, width - 1, channels]
};

// Inputs of one output, the newest first; those before the first position of a sequence are left out.
using ConvolutionInputs = std::array<const float*, kMaxConvolution>;

// out[c] = bias[c] + sum over j of weight[j * channels + c] * input j, the oldest first; bias may be null.
void Convolve(std::span<const float* const> inputs, uint64_t width, uint64_t channels, const float* weight,
              const float* bias, float* out);

}  // namespace moepack::runtime
