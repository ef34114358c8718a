// The list of kernels and the choice among them.
#include <algorithm>

#include "runtime-min/kernels/row_decode.h"

namespace moepack::kernels {
namespace {

constexpr const KernelSet* kSets[] = {
    &kScalarKernels,
#if defined(__x86_64__)
    &kAvx2Kernels,
    &kAvx512Kernels,
#elif defined(__aarch64__)
    &kNeonKernels,
#endif
};

const KernelSet* FindSet(Isa isa) {
  for (const KernelSet* set : kSets) {
    if (set->isa == isa) return set;
  }
  return nullptr;
}

ActivationView ViewOf(const Activations& x, size_t tokens, const uint32_t* rows) {
  return {.tokens = tokens,
          .padded_cols = x.padded_cols,
          .rows = rows,
          .values = x.values.data(),
          .high = x.high.data(),
          .low = x.low.data(),
          .wide = x.wide.data(),
          .scales = x.scales.data(),
          .sums = x.sums.data(),
          .centres = x.centres.data(),
          .sum_layout = SumLayoutOf(x.padded_cols)};
}

MatrixView ViewOf(const ResidentTensor& w, const MatrixLayout& layout) {
  const Codec& codec = w.codec();
  return {.data = w.data(),
          .cols = w.shape().cols,
          .group_size = codec.group_size,
          .bits = codec.bits,
          .has_min = codec.has_min,
          .sparse = codec.sparsity != Sparsity::kNone,
          .trellis = codec.element == Element::kTrellis,
          .layout = layout};
}

void Multiply(Isa isa, const ResidentTensor& w, const ActivationView& x, float* y, size_t y_stride, size_t row_begin,
              size_t row_end) {
  const KernelSet* set = FindSet(isa);
  const Result<MatrixLayout> layout = ResidentLayoutOf(w.codec(), w.shape());
  if (set == nullptr || !layout.ok()) return;  // neither exists: a ResidentTensor has a layout, an Isa comes from the list
  const size_t kind = static_cast<size_t>(KindOf(w.codec()));
  set->matmul[kind](ViewOf(w, *layout), x, y, y_stride, row_begin, row_end);
}

}  // namespace

std::span<const KernelSet* const> KernelSets() { return kSets; }

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512Vnni:
      return "avx512-vnni";
    case Isa::kNeonDot:
      return "neon-dot";
  }
  return "unknown";
}

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  for (const KernelSet* set : kSets) {
    if (set->supported()) isas.push_back(set->isa);
  }
  return isas;
}

Isa BestIsa() { return SupportedIsas().back(); }

Kind KindOf(const Codec& codec) {
  const bool sparse = codec.sparsity != Sparsity::kNone;
  switch (codec.element) {
    case Element::kF32:
      return sparse ? Kind::kSparseF32 : Kind::kF32;
    case Element::kBf16:
      return sparse ? Kind::kSparseBf16 : Kind::kBf16;
    case Element::kF16:
      return sparse ? Kind::kSparseF16 : Kind::kF16;
    case Element::kTrellis:
      return static_cast<Kind>(static_cast<uint8_t>(Kind::kTrellis2) + codec.bits - 2);
    case Element::kGroupInt:
      break;
  }
  switch (codec.bits) {
    case 2:
      return sparse ? Kind::kSparseInt2 : Kind::kInt2;
    case 3:
      return sparse ? Kind::kSparseInt3 : Kind::kInt3;
    case 4:
      return sparse ? Kind::kSparseInt4 : Kind::kInt4;
    case 5:
      return sparse ? Kind::kSparseInt5 : Kind::kInt5;
    case 6:
      return sparse ? Kind::kSparseInt6 : Kind::kInt6;
    default:
      return sparse ? Kind::kSparseInt8 : Kind::kInt8;
  }
}

void MatMul(Isa isa, const ResidentTensor& w, const Activations& x, float* y, size_t y_stride, size_t row_begin,
            size_t row_end) {
  Multiply(isa, w, ViewOf(x, x.tokens(), nullptr), y, y_stride, row_begin, row_end);
}

void MatMul(Isa isa, const ResidentTensor& w, const Activations& x, std::span<const uint32_t> tokens, float* y,
            size_t y_stride, size_t row_begin, size_t row_end) {
  Multiply(isa, w, ViewOf(x, tokens.size(), tokens.data()), y, y_stride, row_begin, row_end);
}

namespace {

// Same operations in the same order as Dequantize (format/codec), so that the weights are the same bits.
void DecodeIntRow(const MatrixView& w, size_t row, float* out) {
  constexpr size_t kPiece = 16;  // divides every group size
  const size_t group_size = w.group_size == 0 ? w.cols : w.group_size;
  RowReader reader(w, row);
  for (size_t c = 0; c < w.cols; c += kPiece) {
    int8_t codes[kPiece];
    uint8_t kept[kPiece];
    const size_t count = std::min<size_t>(kPiece, w.cols - c);
    reader.Codes(count, codes, kept);
    const float scale = ScaleAt(ScaleRow(w, row), c / group_size);
    const float min = w.has_min ? ScaleAt(MinRow(w, row), c / group_size) : 0.0f;
    for (size_t i = 0; i < count; ++i) {
      const int code = w.has_min ? codes[i] + CodeOffset(w) : codes[i];
      out[c + i] = kept[i] != 0 ? scale * static_cast<float>(code) + min : 0.0f;
    }
  }
}

}  // namespace

void DecodeRow(const ResidentTensor& w, size_t row, float* out) {
  const Result<MatrixLayout> layout = ResidentLayoutOf(w.codec(), w.shape());
  if (!layout.ok()) return;  // does not happen: a ResidentTensor has a layout
  const MatrixView view = ViewOf(w, *layout);
  if (w.codec().coded()) {
    DecodeIntRow(view, row, out);
  } else {
    RowReader reader(view, row);
    reader.Values(view.cols, w.codec().element, out);
  }
}

}  // namespace moepack::kernels
