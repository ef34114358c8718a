// Codes of a trellis: the path of least weighted error (Viterbi), which every code of a row is a step of.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "compressor/pass/quantize.h"

namespace moepack {

struct TrellisTables;

// Holds scratch memory; one thread an object.
class TrellisSearch {
 public:
  // bits: of a code, 2 to 6.
  explicit TrellisSearch(int bits);

  // Chooses codes of consecutive columns that come after `window` (format/codec/codec.h) to minimise
  // sum_j importance_j (targets_j - value_j)^2. Targets are in units of the scale. `end`: a window, or none. All
  // columns that follow then have the windows they would have after `end`; what leaves `end` with the next column does not
  // count. Needs TrellisSpan(bits) - 1 columns at least.
  void Find(std::span<const float> targets, std::span<const float> importance, uint32_t window, std::optional<uint32_t> end,
            std::span<uint8_t> codes);

  // The scale of a group whose codes come after `window`, exactly representable in f16: the best of a line of multiples of
  // the weights' spread, refined by least squares for its codes. importance: one non-negative number a weight; all zero
  // counts as all one. 0 for a group of zeros.
  float FindScale(std::span<const float> weights, std::span<const float> importance, uint32_t window);

 private:
  static constexpr size_t kMostStates = kTrellisWindows / 4;
  const int bits_;
  const TrellisTables& tables_;
  // Of the best path into each state, before each column and after the last.
  std::vector<std::array<float, kMostStates>> costs_;
  std::vector<float> targets_, importance_;
  std::vector<uint8_t> codes_;
};

// Rows [row_begin, row_end) of `weights` into `out` (made by MakeQuantized), a group at a time. importance: [cols], or empty
// for all one. Thread-safe for disjoint rows.
void TrellisRows(const Matrix& weights, std::span<const float> importance, size_t row_begin, size_t row_end,
                 QuantizedMatrix* out);

}  // namespace moepack
