// Kernels: products of a resident weight matrix with float32 activations, one file an instruction set, chosen at run time.
//
// The resident layout of a codec is the same for every instruction set (ResidentBytes(codec, shape) of format/codec).
// Integer codecs multiply codes with activations quantized to 15 bits (a power-of-two-free scale per run of activations,
// split into two int8 planes where the instruction set multiplies bytes), so a product differs from float64 by less than
// 1e-4 of |W||x| a row; each kernel's bound is stated in kernels_test.cc. The result of a row depends on its weights and
// its own activations only: not on the number of tokens in the call, rows in the call, or threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "format/codec/codec.h"
#include "format/verified.h"

namespace moepack::kernels {

enum class Isa : uint8_t { kScalar = 0, kAvx2 = 1, kAvx512Vnni = 2, kNeonDot = 3 };
const char* IsaName(Isa isa);  // "scalar" "avx2" "avx512-vnni" "neon-dot"
// Those this processor and this build can run, slowest first; kScalar is always there.
std::vector<Isa> SupportedIsas();
Isa BestIsa();

// Writes the resident form; `out` has ResidentBytes(codec, shape) bytes, 64-byte aligned. Checks the plain bytes as
// FromPlain does (kMalformed).
Status PackResident(const Codec& codec, const MatrixShape& shape, ByteSpan plain, std::span<uint8_t> out);

// Activations of some tokens, prepared once and shared by all matrices that read them. Reused between calls without
// allocating once it has grown to its largest size. Not thread-safe while Prepare runs; read-only use is.
class Activations {
 public:
  // x: [tokens, cols], rows `stride` floats apart. Copies; x may go away.
  void Prepare(Isa isa, const float* x, size_t tokens, size_t cols, size_t stride);
  size_t tokens() const { return tokens_; }
  size_t cols() const { return cols_; }

  // Layout for the kernels (kernels_internal.h documents it).
  std::vector<float> values;     // [tokens, padded cols], zero padded
  std::vector<int8_t> high, low; // two planes of the 15-bit integers
  std::vector<int16_t> wide;     // the same integers in one piece
  std::vector<float> scales;     // per token and run
  std::vector<float> sums;       // per token and run of activations: sum of the quantized values times scale
  size_t padded_cols = 0;

 private:
  size_t tokens_ = 0, cols_ = 0;
};

// y[t * y_stride + r] = sum over c of W[r, c] * x[t, c], for rows [row_begin, row_end) and all tokens of x.
// x must have been prepared for the same isa. Writes nothing else. Allocates nothing.
void MatMul(Isa isa, const ResidentTensor& w, const Activations& x, float* y, size_t y_stride, size_t row_begin, size_t row_end);

// Weights of one row as float32: out[cols]. For embeddings.
void DecodeRow(const ResidentTensor& w, size_t row, float* out);

}  // namespace moepack::kernels
