#include "model/export/gguf_element.h"

#include <algorithm>
#include <cmath>

namespace moepack {
namespace {

struct Layout {
  int bits = 0;
  bool minimum = false;
};

Layout LayoutOf(GgufElement element) {
  switch (element) {
    case GgufElement::kQ4_0:
      return {4, false};
    case GgufElement::kQ4_1:
      return {4, true};
    case GgufElement::kQ5_0:
      return {5, false};
    case GgufElement::kQ5_1:
      return {5, true};
    case GgufElement::kQ8_0:
      return {8, false};
    case GgufElement::kF32:
    case GgufElement::kF16:
    case GgufElement::kBf16:
      break;
  }
  return {};
}

// Codes of one block, as the layout stores them: value i and value i + 16 share a byte, fifth bits come first.
void PutCodes(const uint8_t (&codes)[kGgufBlock], int bits, ByteWriter* out) {
  constexpr uint64_t kHalf = kGgufBlock / 2;
  if (bits == 8) {
    out->Append(codes);
    return;
  }
  if (bits == 5) {
    uint32_t fifth = 0;
    for (uint64_t i = 0; i < kGgufBlock; ++i) fifth |= static_cast<uint32_t>(codes[i] >> 4 & 1) << i;
    out->U32(fifth);
  }
  for (uint64_t i = 0; i < kHalf; ++i) out->U8(static_cast<uint8_t>((codes[i] & 15) | (codes[i + kHalf] & 15) << 4));
}

}  // namespace

bool IsQuantized(GgufElement element) { return LayoutOf(element).bits != 0; }

uint64_t GgufBytes(GgufElement element, uint64_t values) {
  const Layout layout = LayoutOf(element);
  if (layout.bits == 0) return values * (element == GgufElement::kF32 ? 4 : 2);
  return values / kGgufBlock * (2 + (layout.minimum ? 2 : 0) + static_cast<uint64_t>(layout.bits) * kGgufBlock / 8);
}

void ElementChoice::Add(const Codec& codec, uint64_t cols) {
  if (codec.element == Element::kTrellis) exact_ = false;
  const bool integer = codec.element == Element::kGroupInt;
  if (any_ && (integer != integer_ || (!integer && codec.element != float_))) exact_ = false;
  any_ = true;
  integer_ = integer;
  float_ = codec.element;
  if (!integer) return;
  // A weight that was removed is zero, which a code stands for only where there is no minimum.
  const bool blocks = cols % kGgufBlock == 0 && (codec.group_size == 0 || codec.group_size % kGgufBlock == 0);
  if (!blocks || (codec.has_min && codec.sparsity != Sparsity::kNone)) exact_ = false;
  minimum_ = minimum_ || codec.has_min;
  bits_ = std::max<int>(bits_, codec.bits);
}

GgufElement ElementChoice::element() const {
  if (!exact_) return GgufElement::kF16;
  if (!integer_) {
    if (float_ == Element::kBf16) return GgufElement::kBf16;
    return float_ == Element::kF16 ? GgufElement::kF16 : GgufElement::kF32;
  }
  if (bits_ <= 4) return minimum_ ? GgufElement::kQ4_1 : GgufElement::kQ4_0;
  if (bits_ <= 5) return minimum_ ? GgufElement::kQ5_1 : GgufElement::kQ5_0;
  return minimum_ ? GgufElement::kF16 : GgufElement::kQ8_0;
}

Result<Bytes> EncodeBlocks(const QuantizedMatrix& matrix, GgufElement element) {
  const Layout layout = LayoutOf(element);
  const uint64_t cols = matrix.shape.cols, width = GroupWidth(matrix.codec, cols), groups = GroupsPerRow(matrix.codec, cols);
  const int half = matrix.codec.has_min ? 0 : 1 << (matrix.codec.bits - 1);
  // Added to a code: symmetric codes count from the middle, of their own width or of the layout's.
  const int shift = matrix.codec.has_min || layout.minimum ? 0 : (layout.bits == 8 ? 0 : 1 << (layout.bits - 1)) - half;
  ByteWriter out;
  for (uint64_t row = 0; row < matrix.shape.rows; ++row) {
    for (uint64_t begin = 0; begin < cols; begin += kGgufBlock) {
      const uint64_t group = row * groups + begin / width;
      out.U16(matrix.scales[group]);
      if (layout.minimum) {
        const uint16_t minimum =
            matrix.codec.has_min ? matrix.mins[group] : F32ToF16(-static_cast<float>(half) * F16ToF32(matrix.scales[group]));
        if (!std::isfinite(F16ToF32(minimum)))
          return Status(ErrorCode::kUnsupported, "a minimum is beyond f16; use --type f32");
        out.U16(minimum);
      }
      uint8_t codes[kGgufBlock];
      for (uint64_t i = 0; i < kGgufBlock; ++i) {
        const uint64_t at = row * cols + begin + i;
        const bool kept = matrix.mask.empty() || matrix.mask[at] != 0;
        codes[i] = static_cast<uint8_t>((kept ? matrix.codes[at] : half) + shift);
      }
      PutCodes(codes, layout.bits, &out);
    }
  }
  return out.Release();
}

}  // namespace moepack
