#include "runtime-min/convolution.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"

namespace moepack::runtime {

Result<ConvolutionState> ConvolutionState::Create(uint64_t channels, uint64_t width, uint32_t tile_tokens) {
  ConvolutionState state;
  state.channels_ = channels;
  state.width_ = width;
  state.places_ = tile_tokens + width - 1;  // width is at most kMaxConvolution
  uint64_t floats = 0;
  if (!CheckedMul(state.places_, channels, &floats)) return Status(ErrorCode::kLimit, "convolution: size overflows");
  MOEPACK_ASSIGN_OR_RETURN(state.inputs_, FloatBuffer::Create(floats));
  return state;
}

void ConvolutionState::Store(uint32_t position, const float* x) {
  std::memcpy(inputs_.data() + position % places_ * channels_, x, channels_ * sizeof(float));
}

void ConvolutionState::Convolve(uint32_t position, const float* weight, const float* bias, float* out) const {
  if (bias != nullptr) {
    std::memcpy(out, bias, channels_ * sizeof(float));
  } else {
    std::fill(out, out + channels_, 0.0f);
  }
  for (uint64_t back = std::min<uint64_t>(width_, uint64_t{position} + 1); back-- > 0;) {
    const float* x = inputs_.data() + (position - back) % places_ * channels_;
    const float* w = weight + (width_ - 1 - back) * channels_;
    for (uint64_t c = 0; c < channels_; ++c) out[c] += w[c] * x[c];
  }
}

}  // namespace moepack::runtime
