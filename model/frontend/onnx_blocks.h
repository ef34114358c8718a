// Quantized constants of com.microsoft operators: integer codes with a scale and a zero point a block of columns. Internal
// to the ONNX front-end.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/frontend/onnx_file.h"

namespace moepack {

// Rows of all experts together.
inline constexpr uint64_t kMaxBlockRows = 1ull << 36;

// Codes are a matrix [rows, cols] of `bits` each, low bits of a byte first; block j of a row are its columns [j * block,
// ...). Value: (code - zero point) * scale, computed in float32.
struct OnnxBlocks {
  const OnnxTensor* scales = nullptr;  // one a row and block
  const OnnxTensor* zeros = nullptr;   // the same in floats, or packed as the codes are; null: `zero`
  uint32_t bits = 0;
  bool is_signed = false;
  uint64_t rows = 0, cols = 0, block = 0;
  uint64_t row_bits = 0;       // from one row of codes to the next
  uint64_t zero_row_bits = 0;  // of packed zero points
  int32_t zero = 0;
  uint64_t blocks() const { return cols / block + (cols % block != 0); }
  bool operator==(const OnnxBlocks&) const = default;
};

// What an operator says of its codes [rows, cols]. Rows begin at a byte, unless the constant's type is of 4 bits.
struct OnnxBlockShape {
  uint64_t rows = 0, cols = 0;
  int64_t bits = 0;
  int64_t block = 0;         // 0: one block a row
  bool padded_rows = false;  // rows of codes go on to the end of the last block
  bool dense_zeros = false;  // packed zero points of all rows without gaps
};

// Checks constants against the shape; `zeros` may be null. kUnsupported (bits, block size, element types), kShape, with the
// name of the constant.
Result<std::shared_ptr<const OnnxBlocks>> BindBlocks(const OnnxTensor& codes, const OnnxTensor& scales,
                                                     const OnnxTensor* zeros, const OnnxBlockShape& shape);

// `count` values from element `first` of the matrix of codes. kNotFinite.
Result<std::vector<float>> ReadBlocks(const OnnxFile& file, const OnnxTensor& codes, const OnnxBlocks& blocks,
                                      uint64_t first, uint64_t count);

}  // namespace moepack
