// What the kernel files share: views of the operands, the kinds of kernels, and the list that holds each once.
//
// A file of an instruction set is compiled with flags the processor at hand may lack, so nothing here may leave code in
// it that other files could end up calling: structs hold plain pointers, and helpers have internal linkage (static).
//
// Order of activations. Columns are cut into blocks of kBlock. `wide` of AVX2 and AVX-512 holds a block as its even
// columns, then its odd ones: codes widened from bytes to 16 bits fall apart that way (v << 8 >> 8 and v >> 8), and 32-bit
// lane j of a multiply-add then covers columns 4j .. 4j+3, which share a scale for every group size. `high`/`low` (NEON)
// and `wide` of the scalar kernels are in column order.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "format/codec/layout.h"
#include "runtime-min/kernels/kernels.h"

namespace moepack::kernels {

inline constexpr size_t kBlock = 64;
// Largest magnitude of a quantized activation: the largest that splits into high * 256 + low with both in int8.
inline constexpr int kActivationMax = 127 * 256 + 127;

// Sums of quantized activations are kept for every group size: level i has groups of 16 << i columns, the last level one
// group for the whole row. Each level is padded with zeros to a multiple of kSumPad entries.
inline constexpr size_t kSumLevels = 6;
inline constexpr size_t kSumPad = 16;

struct SumLayout {
  size_t offset[kSumLevels];
  size_t stride;  // entries of a token
};

static inline SumLayout SumLayoutOf(size_t padded_cols) {
  SumLayout layout = {};
  for (size_t level = 0; level < kSumLevels; ++level) {
    layout.offset[level] = layout.stride;
    const size_t group = size_t{16} << level;
    const size_t groups = level + 1 == kSumLevels ? 1 : (padded_cols + group - 1) / group;
    layout.stride += (groups + kSumPad - 1) / kSumPad * kSumPad;
  }
  return layout;
}

static inline size_t SumLevelOf(uint16_t group_size) {
  switch (group_size) {
    case 16:
      return 0;
    case 32:
      return 1;
    case 64:
      return 2;
    case 128:
      return 3;
    case 256:
      return 4;
    default:
      return kSumLevels - 1;
  }
}

struct ActivationView {
  size_t tokens, padded_cols;
  const uint32_t* rows;  // [tokens] row of each token in the arrays below; null when they are in order
  const float* values;   // [tokens, padded_cols]
  const int8_t *high, *low;
  const int16_t* wide;
  const float* scales;     // [tokens]
  const float* sums;       // [tokens, sum_layout.stride]
  const int32_t* centres;  // [tokens, padded_cols / 4]
  SumLayout sum_layout;
};
static inline size_t RowOf(const ActivationView& x, size_t token) { return x.rows == nullptr ? token : x.rows[token]; }

struct MatrixView {
  const uint8_t* data;
  uint64_t cols;
  uint16_t group_size;
  uint8_t bits;
  bool has_min, sparse, trellis;
  MatrixLayout layout;
};

// Code 2^(bits-1) stands for zero once centred; a minimum is raised by as many steps to make up for it.
static inline int CodeOffset(const MatrixView& w) { return 1 << (w.bits - 1); }

static inline const uint8_t* MaskRow(const MatrixView& w, size_t row) {
  return w.data + w.layout.mask_offset + row * w.layout.mask_row_bytes;
}
static inline const uint8_t* PlaneRow(const MatrixView& w, size_t plane, size_t row) {
  return w.data + w.layout.planes[plane].offset + row * w.layout.planes[plane].row_bytes;
}
static inline const uint8_t* ValueRow(const MatrixView& w, size_t row) {
  return w.data + w.layout.values_offset + row * w.layout.kept * w.layout.value_bytes;
}
// f16 numbers of a row, little endian.
static inline const uint8_t* ScaleRow(const MatrixView& w, size_t row) {
  return w.data + w.layout.scales_offset + row * w.layout.groups * 2;
}
static inline const uint8_t* MinRow(const MatrixView& w, size_t row) {
  return w.data + w.layout.mins_offset + row * w.layout.groups * 2;
}

// Kinds of kernels: what a table of an instruction set is indexed by.
enum class Kind : uint8_t {
  kF32,
  kBf16,
  kF16,
  kInt2,
  kInt3,
  kInt4,
  kInt5,
  kInt6,
  kInt8,
  kSparseF32,
  kSparseBf16,
  kSparseF16,
  kSparseInt2,
  kSparseInt3,
  kSparseInt4,
  kSparseInt5,
  kSparseInt6,
  kSparseInt8,
  kTrellis2,
  kTrellis3,
  kTrellis4,
  kTrellis5,
  kTrellis6,
};
inline constexpr size_t kKinds = 23;
Kind KindOf(const Codec& codec);

// y[t * y_stride + r] for rows [row_begin, row_end) and all tokens.
using MatMulFunction = void (*)(const MatrixView& w, const ActivationView& x, float* y, size_t y_stride, size_t row_begin,
                                size_t row_end);

// How a set reads quantized activations: `wide` in column order, `wide` with even and odd columns apart, `high`/`low`.
enum class Order : uint8_t { kColumns, kEvenOdd, kPlanes };

struct KernelSet {
  Isa isa;
  bool (*supported)();  // by this processor
  Order order;
  std::array<MatMulFunction, kKinds> matmul;
};

// The list: every set of this build, slowest first. Dispatch, tests and benchmarks go through it.
std::span<const KernelSet* const> KernelSets();

extern const KernelSet kScalarKernels;
extern const KernelSet kAvx2Kernels;    // x86-64 only
extern const KernelSet kAvx512Kernels;  // x86-64 only
extern const KernelSet kNeonKernels;    // aarch64 only

}  // namespace moepack::kernels
