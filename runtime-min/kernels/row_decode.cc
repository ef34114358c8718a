#include "runtime-min/kernels/row_decode.h"

#include <cstring>

namespace moepack::kernels {
namespace {

uint32_t CodeAt(const MatrixView& w, size_t row, size_t index) {
  uint32_t code = 0;
  for (uint8_t i = 0; i < w.layout.plane_count; ++i) {
    const PlaneLayout& plane = w.layout.planes[i];
    const size_t bit = index * plane.bits;
    const uint32_t byte = PlaneRow(w, i, row)[bit / 8];
    code |= (byte >> (bit % 8) & ((1u << plane.bits) - 1)) << plane.shift;
  }
  return code;
}

float ValueAt(const uint8_t* values, Element element, size_t index) {
  if (element == Element::kF32) {
    float value;
    std::memcpy(&value, values + 4 * index, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, values + 2 * index, sizeof(bits));
  return element == Element::kBf16 ? Bf16ToF32(bits) : F16ToF32(bits);
}

}  // namespace

RowReader::RowReader(const MatrixView& w, size_t row) : w_(w), row_(row) {}

bool RowReader::NextIsKept() {
  const size_t c = column_++;
  return !w_.sparse || (MaskRow(w_, row_)[c / 8] >> (c % 8) & 1) != 0;
}

void RowReader::Codes(size_t count, int8_t* codes, uint8_t* kept) {
  const int offset = CodeOffset(w_);
  for (size_t c = 0; c < count && w_.trellis; ++c, ++kept_) {
    window_ = NextTrellisWindow(w_.bits, window_, CodeAt(w_, row_, kept_));
    codes[c] = TrellisValue(w_.bits, window_);
    kept[c] = 1;
  }
  if (w_.trellis) return;
  for (size_t c = 0; c < count; ++c) {
    kept[c] = NextIsKept() ? 1 : 0;
    codes[c] = kept[c] != 0 ? static_cast<int8_t>(static_cast<int>(CodeAt(w_, row_, kept_++)) - offset) : int8_t{0};
  }
}

void RowReader::Values(size_t count, Element element, float* values) {
  for (size_t c = 0; c < count; ++c) values[c] = NextIsKept() ? ValueAt(ValueRow(w_, row_), element, kept_++) : 0.0f;
}

float ScaleAt(const uint8_t* row_bytes, size_t group) {
  uint16_t bits;
  std::memcpy(&bits, row_bytes + 2 * group, sizeof(bits));
  return F16ToF32(bits);
}

}  // namespace moepack::kernels
