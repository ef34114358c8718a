// Kernels: products of a resident weight matrix with float32 activations, one file an instruction set, chosen at run time.
//
// The resident layout of a codec is the same for every instruction set (ResidentBytes(codec, shape) of format/codec).
// Integer codecs multiply codes with activations quantized to 16 bits (one step a token; split into two int8 planes where
// the instruction set multiplies bytes), so a product differs from float64 by less than 3e-5 of |W_r||x| (kernels_test.cc
// holds every kernel to it; activations.cc derives it). The result of a row depends on its weights and its own activations
// only: not on the number of tokens in the call, rows in the call, or threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
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

// Allocates at cache lines: a vector load that straddles two of them costs twice.
template <typename T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}  // NOLINT: implicit on purpose
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  bool operator==(const LineAllocator&) const { return true; }
  static constexpr std::align_val_t kLine{64};
};
template <typename T>
using LineVector = std::vector<T, LineAllocator<T>>;

// Activations of some tokens, prepared once and shared by all matrices that read them. Reused between calls without
// allocating once it has grown to its largest size. Not thread-safe while it changes (Fill of different tokens is).
class Activations {
 public:
  // x: [tokens, cols], rows `stride` floats apart. Copies; x may go away. The same as Reshape and Fill of all tokens.
  void Prepare(Isa isa, const float* x, size_t tokens, size_t cols, size_t stride);
  // In two steps, so that threads can fill different tokens: x is that of token 0.
  void Reshape(Isa isa, size_t tokens, size_t cols);
  void Fill(const float* x, size_t stride, size_t token_begin, size_t token_end);
  size_t tokens() const { return tokens_; }
  size_t cols() const { return cols_; }

  // Layout for the kernels (kernels_internal.h documents it).
  LineVector<float> values;      // [tokens, padded_cols], zero padded
  LineVector<int16_t> wide;      // [tokens, padded_cols] the 16-bit integers, in the order the instruction set wants
  LineVector<int8_t> high, low;  // [tokens, padded_cols] integer = high * 256 + low; filled for byte multipliers only
  LineVector<float> scales;      // [tokens] the step; NaN when the token has an element that is not finite
  LineVector<float> sums;        // [tokens, SumLayout::stride] integers summed over groups of every size
  LineVector<int32_t>
      centres;  // [tokens, padded_cols / 4] minus the sum of four columns' integers; sets with even and odd columns apart
  size_t padded_cols = 0;  // cols rounded up to a whole block

 private:
  size_t tokens_ = 0, cols_ = 0;
  uint8_t order_ = 0;  // Order of kernels_internal.h
};

// y[t * y_stride + r] = sum over c of W[r, c] * x[t, c], for rows [row_begin, row_end) and all tokens of x.
// x must have been prepared for the same isa. Writes nothing else. Allocates nothing.
void MatMul(Isa isa, const ResidentTensor& w, const Activations& x, float* y, size_t y_stride, size_t row_begin,
            size_t row_end);

// The same for some tokens of x: y[i * y_stride + r] is that of token tokens[i].
void MatMul(Isa isa, const ResidentTensor& w, const Activations& x, std::span<const uint32_t> tokens, float* y,
            size_t y_stride, size_t row_begin, size_t row_end);

// Weights of one row as float32: out[cols]. For embeddings.
void DecodeRow(const ResidentTensor& w, size_t row, float* out);

}  // namespace moepack::kernels
