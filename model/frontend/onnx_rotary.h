// Rotary frequencies from the cos and sin caches of an ONNX graph. Internal to the ONNX front-end.
#pragma once

#include <span>
#include <vector>

#include "base/status.h"

namespace moepack {

struct RotaryCache {
  std::vector<float> inv_freq;
  float magnitude = 1;
};

// cos, sin [rows, columns]: finds inv_freq and magnitude with cos[p][i] = magnitude * cos(p * inv_freq[i]), the same for
// sin, and checks up to 4096 rows of the caches against it within `tolerance` (plus float32 rounding of the angle).
// kUnsupported when the caches are not a rotary embedding.
Result<RotaryCache> DeriveRotary(std::span<const float> cos, std::span<const float> sin, size_t columns, double tolerance);

}  // namespace moepack
