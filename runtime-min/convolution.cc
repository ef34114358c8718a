#include "runtime-min/convolution.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"

namespace moepack::runtime {

Result<ConvolutionState> ConvolutionState::Create(uint64_t channels, uint64_t width, uint32_t tile_tokens,
                                                  uint32_t sequences) {
  ConvolutionState state;
  state.channels_ = channels;
  state.width_ = width;
  state.places_ = tile_tokens + width - 1;  // width is at most kMaxConvolution
  const CheckedU64 floats = CheckedU64(state.places_) * CheckedU64(channels) * CheckedU64(sequences);
  if (!floats.valid()) return Status(ErrorCode::kLimit, "convolution: size overflows");
  MOEPACK_ASSIGN_OR_RETURN(state.inputs_, FloatBuffer::Create(floats.value()));
  return state;
}

void ConvolutionState::Copy(SequenceId from, SequenceId to) {
  std::memcpy(ring(to), ring(from), places_ * channels_ * sizeof(float));
}

void ConvolutionState::Store(SequenceId id, uint32_t position, const float* x) {
  std::memcpy(ring(id) + position % places_ * channels_, x, channels_ * sizeof(float));
}

void ConvolutionState::Convolve(SequenceId id, uint32_t position, const float* weight, const float* bias, float* out) const {
  if (bias != nullptr) {
    std::memcpy(out, bias, channels_ * sizeof(float));
  } else {
    std::fill(out, out + channels_, 0.0f);
  }
  for (uint64_t back = std::min<uint64_t>(width_, uint64_t{position} + 1); back-- > 0;) {
    const float* x = ring(id) + (position - back) % places_ * channels_;
    const float* w = weight + (width_ - 1 - back) * channels_;
    for (uint64_t c = 0; c < channels_; ++c) out[c] += w[c] * x[c];
  }
}

}  // namespace moepack::runtime
