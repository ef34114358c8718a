// Scalar kernels: plain C++ that every other kernel is compared with. A row is decoded piece by piece and each piece is
// multiplied with all tokens of a batch.
#include <algorithm>

#include "runtime-min/kernels/row_decode.h"

namespace moepack::kernels {
namespace {

constexpr size_t kPiece = 256;  // columns: |code| * |activation| * kPiece stays below 2^31
constexpr size_t kTokenBatch = 64;

// One piece of a row, decoded. Columns [begin, begin + count) share a group.
struct Piece {
  size_t begin, count;
  float scale, min;  // min is of centred codes
  int8_t codes[kPiece];
  uint8_t kept[kPiece];
};

void LoadPiece(const MatrixView& w, size_t row, RowReader* reader, size_t begin, Piece* piece) {
  const size_t group_size = w.group_size == 0 ? w.cols : w.group_size;
  const size_t group_end = (begin / group_size + 1) * group_size;
  piece->begin = begin;
  piece->count = std::min({w.cols - begin, group_end - begin, kPiece});
  piece->scale = ScaleAt(ScaleRow(w, row), begin / group_size);
  piece->min =
      w.has_min ? ScaleAt(MinRow(w, row), begin / group_size) + piece->scale * static_cast<float>(CodeOffset(w)) : 0.0f;
  reader->Codes(piece->count, piece->codes, piece->kept);
}

float DotPiece(const Piece& piece, bool has_min, const int16_t* x) {
  int32_t dot = 0;
  for (size_t c = 0; c < piece.count; ++c) dot += static_cast<int32_t>(piece.codes[c]) * x[piece.begin + c];
  float result = piece.scale * static_cast<float>(dot);
  if (!has_min) return result;
  int32_t sum = 0;
  for (size_t c = 0; c < piece.count; ++c) sum += static_cast<int32_t>(piece.kept[c]) * x[piece.begin + c];
  return result + piece.min * static_cast<float>(sum);
}

void MatMulInt(const MatrixView& w, const ActivationView& x, float* y, size_t y_stride, size_t row_begin, size_t row_end) {
  for (size_t t0 = 0; t0 < x.tokens; t0 += kTokenBatch) {
    const size_t tokens = std::min(kTokenBatch, x.tokens - t0);
    for (size_t row = row_begin; row < row_end; ++row) {
      float acc[kTokenBatch] = {};
      RowReader reader(w, row);
      Piece piece;
      for (size_t c = 0; c < w.cols; c += piece.count) {
        LoadPiece(w, row, &reader, c, &piece);
        for (size_t t = 0; t < tokens; ++t) acc[t] += DotPiece(piece, w.has_min, x.wide + RowOf(x, t0 + t) * x.padded_cols);
      }
      for (size_t t = 0; t < tokens; ++t) y[(t0 + t) * y_stride + row] = acc[t] * x.scales[RowOf(x, t0 + t)];
    }
  }
}

template <Element kElement>
void MatMulFloat(const MatrixView& w, const ActivationView& x, float* y, size_t y_stride, size_t row_begin, size_t row_end) {
  for (size_t t0 = 0; t0 < x.tokens; t0 += kTokenBatch) {
    const size_t tokens = std::min(kTokenBatch, x.tokens - t0);
    for (size_t row = row_begin; row < row_end; ++row) {
      float acc[kTokenBatch] = {};
      RowReader reader(w, row);
      for (size_t c = 0; c < w.cols; c += kPiece) {
        float values[kPiece];
        const size_t count = std::min(kPiece, w.cols - c);
        reader.Values(count, kElement, values);
        for (size_t t = 0; t < tokens; ++t) {
          const float* in = x.values + RowOf(x, t0 + t) * x.padded_cols + c;
          float sum = 0.0f;
          for (size_t i = 0; i < count; ++i) sum += values[i] * in[i];
          acc[t] += sum;
        }
      }
      for (size_t t = 0; t < tokens; ++t) y[(t0 + t) * y_stride + row] = acc[t];
    }
  }
}

constexpr MatMulFunction kF32 = MatMulFloat<Element::kF32>, kBf16 = MatMulFloat<Element::kBf16>,
                         kF16 = MatMulFloat<Element::kF16>;

}  // namespace

const KernelSet kScalarKernels = {
    .isa = Isa::kScalar,
    .supported = [] { return true; },
    .order = Order::kColumns,
    .matmul = {kF32,      kBf16,     kF16,      MatMulInt, MatMulInt, MatMulInt, MatMulInt, MatMulInt,
               MatMulInt, kF32,      kBf16,     kF16,      MatMulInt, MatMulInt, MatMulInt, MatMulInt,
               MatMulInt, MatMulInt, MatMulInt, MatMulInt, MatMulInt, MatMulInt, MatMulInt},
};

}  // namespace moepack::kernels
