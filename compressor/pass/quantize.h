// Group-wise integer quantization by weighted scale search: the round-to-nearest base of every codec, and the grid that
// GPTQ rounds to.
#pragma once

#include <Eigen/Dense>
#include <cstdint>
#include <span>
#include <vector>

#include "format/codec/codec.h"
#include "forward/forward.h"

namespace moepack {

// The grid of one group: w = scale * (q - 2^(bits-1)), or w = scale * q + min. Both are exactly representable in f16.
struct GroupGrid {
  float scale = 0, min = 0;
};

// Searches the grid of a group that minimises sum_j importance_j (w_j - grid(w_j))^2: a line of range multipliers, each
// refined by least squares for its codes (the symmetric case tries both signs of the scale, since the code range has one
// more level below zero than above). Holds scratch memory; one thread an object.
class GridSearch {
 public:
  // bits, has_min as in Codec.
  GridSearch(int bits, bool has_min) : bits_(bits), has_min_(has_min) {}
  // importance: one non-negative number a weight; 0 leaves a weight out (pruned ones). All zero counts as all one.
  GroupGrid Find(std::span<const float> weights, std::span<const float> importance);

 private:
  GroupGrid FindSymmetric();
  GroupGrid FindWithMin();
  bool RefitWithMin(float scale, float min, GroupGrid* out);
  double ErrorOf(const GroupGrid& grid);

  int bits_;
  bool has_min_;
  Eigen::ArrayXf weights_, importance_, codes_, weighted_;
};

// Code of the grid point nearest to w, and the weight it stands for.
uint8_t NearestCode(const Codec& codec, const GroupGrid& grid, float w);
inline float GridValue(const Codec& codec, const GroupGrid& grid, uint8_t code) {
  return codec.has_min ? grid.scale * static_cast<float>(code) + grid.min
                       : grid.scale * (static_cast<float>(code) - static_cast<float>(1 << (codec.bits - 1)));
}
// w rounded to a float element type (kF32, kBf16, kF16).
float RoundToElement(Element element, float w);

// An empty matrix of the codec and shape with all vectors sized.
QuantizedMatrix MakeQuantized(const Codec& codec, const MatrixShape& shape);

// Rows [row_begin, row_end) of `weights` rounded to nearest into `out` (made by MakeQuantized; out->mask already set when
// the codec is sparse). importance: [cols] second moments of the inputs, or empty for all one. Thread-safe for disjoint
// rows.
void QuantizeRowsNearest(const Matrix& weights, std::span<const float> importance, size_t row_begin, size_t row_end,
                         QuantizedMatrix* out);

}  // namespace moepack
