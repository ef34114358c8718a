#include "runtime-min/convolution.h"

#include <cstring>

#include "base/checked.h"

namespace moepack::runtime {

Result<ConvolutionState> ConvolutionState::Create(uint64_t channels, uint64_t width, uint32_t sequences) {
  ConvolutionState state;
  state.channels_ = channels;
  state.width_ = width;  // 1..kMaxConvolution
  state.now_.resize(sequences);
  const CheckedU64 floats = CheckedU64(2 * (width - 1)) * CheckedU64(channels) * CheckedU64(sequences);
  if (!floats.valid()) return Status(ErrorCode::kLimit, "convolution: size overflows");
  MOEPACK_ASSIGN_OR_RETURN(state.inputs_, FloatBuffer::Create(floats.value()));
  return state;
}

void ConvolutionState::Copy(SequenceId from, SequenceId to) {
  if (width_ <= 1) return;
  now_[to] = now_[from];
  const uint64_t floats = 2 * (width_ - 1) * channels_;
  std::memcpy(inputs_.data() + to * floats, inputs_.data() + from * floats, floats * sizeof(float));
}

void Convolve(std::span<const float* const> inputs, uint64_t width, uint64_t channels, const float* weight,
              const float* bias, float* out) {
  if (bias != nullptr) {
    std::memcpy(out, bias, channels * sizeof(float));
  } else {
    std::fill(out, out + channels, 0.0f);
  }
  for (size_t back = inputs.size(); back-- > 0;) {
    const float* x = inputs[back];
    const float* w = weight + (width - 1 - back) * channels;
    for (uint64_t c = 0; c < channels; ++c) out[c] += w[c] * x[c];
  }
}

}  // namespace moepack::runtime
