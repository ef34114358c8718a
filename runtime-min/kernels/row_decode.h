// Rows of a resident matrix, one element at a time: what the scalar kernels and DecodeRow read.
#pragma once

#include "runtime-min/kernels/kernels_internal.h"

namespace moepack::kernels {

// Walks a row from its first column to its last.
class RowReader {
 public:
  RowReader(const MatrixView& w, size_t row);
  // The next `count` columns as centred codes, of a trellis as its values; kept[c] = 0 and codes[c] = 0 where masked out.
  // Coded elements only.
  void Codes(size_t count, int8_t* codes, uint8_t* kept);
  // The next `count` columns as floats, 0 where masked out. Float codecs only.
  void Values(size_t count, Element element, float* values);

 private:
  bool NextIsKept();
  const MatrixView& w_;
  const size_t row_;
  size_t column_ = 0, kept_ = 0;
  uint32_t window_ = 0;  // of a trellis
};

// Number `group` of the f16 numbers at `row_bytes`.
float ScaleAt(const uint8_t* row_bytes, size_t group);

}  // namespace moepack::kernels
