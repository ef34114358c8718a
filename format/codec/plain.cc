// Plain bytes: write, check, read.
#include <algorithm>
#include <bit>

#include "base/checked.h"
#include "format/codec/layout.h"

namespace moepack {
namespace {

using ull = unsigned long long;

constexpr uint16_t kF16ExponentMask = 0x7c00;
constexpr uint16_t kBf16ExponentMask = 0x7f80;

void PutU16(uint8_t* p, uint16_t v) {
  p[0] = static_cast<uint8_t>(v);
  p[1] = static_cast<uint8_t>(v >> 8);
}

uint16_t GetU16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }

uint32_t GetU32(const uint8_t* p) { return GetU16(p) | static_cast<uint32_t>(GetU16(p + 2)) << 16; }

// The float that element `element` stores for `value`.
float RoundTo(Element element, float value) {
  if (element == Element::kBf16) return Bf16ToF32(F32ToBf16(value));
  if (element == Element::kF16) return F16ToF32(F32ToF16(value));
  return value;
}

void PutValue(Element element, float value, uint8_t* p) {
  if (element == Element::kF32) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    PutU16(p, static_cast<uint16_t>(bits));
    PutU16(p + 2, static_cast<uint16_t>(bits >> 16));
  } else {
    PutU16(p, element == Element::kBf16 ? F32ToBf16(value) : F32ToF16(value));
  }
}

float GetValue(Element element, const uint8_t* p) {
  if (element == Element::kF32) return std::bit_cast<float>(GetU32(p));
  return element == Element::kBf16 ? Bf16ToF32(GetU16(p)) : F16ToF32(GetU16(p));
}

// Exponent bits all set: infinity or NaN.
bool IsFiniteF32(uint32_t bits) { return (bits & 0x7f800000) != 0x7f800000; }

Status NotFinite(const char* what, uint64_t row, uint64_t index) {
  return Status(ErrorCode::kMalformed,
                StrFormat("%s %llu of row %llu is not finite", what, static_cast<ull>(index), static_cast<ull>(row)));
}

// ---- mask ----

Status CheckMaskRow(const Codec& codec, uint64_t cols, uint64_t row, const uint8_t* mask, uint64_t kept) {
  uint64_t count = 0;
  for (uint64_t i = 0; i < CeilDiv(cols, 8); ++i) count += static_cast<uint64_t>(std::popcount(mask[i]));
  if (cols % 8 != 0 && (mask[cols / 8] >> (cols % 8)) != 0) {
    return Status(ErrorCode::kMalformed, StrFormat("mask of row %llu has bits past its last column", static_cast<ull>(row)));
  }
  if (count != kept) {
    return Status(ErrorCode::kMalformed, StrFormat("mask of row %llu keeps %llu weights, the codec says %llu",
                                                   static_cast<ull>(row), static_cast<ull>(count), static_cast<ull>(kept)));
  }
  if (codec.sparsity != Sparsity::kNM) return Status::Ok();
  for (uint64_t c = 0; c < cols; c += codec.m) {
    // A run of m in {4, 8, 16} bits starts at a multiple of m, so it lies in two bytes at most.
    uint32_t bits = mask[c / 8];
    if (codec.m == 16) bits |= static_cast<uint32_t>(mask[c / 8 + 1]) << 8;
    const uint32_t run = (bits >> (c % 8)) & ((1u << codec.m) - 1);
    if (std::popcount(run) != codec.n) {
      return Status(ErrorCode::kMalformed,
                    StrFormat("mask of row %llu keeps %d weights in the %u columns from %llu, not %u", static_cast<ull>(row),
                              std::popcount(run), codec.m, static_cast<ull>(c), codec.n));
    }
  }
  return Status::Ok();
}

bool MaskBit(const uint8_t* mask, uint64_t c) { return (mask[c / 8] >> (c % 8) & 1) != 0; }

// ---- sections ----

// Rows of a plane may end in the middle of a byte; the bits past the end are zero.
Status CheckPlanePadding(const MatrixLayout& layout, uint64_t rows, const uint8_t* plain) {
  for (uint8_t i = 0; i < layout.plane_count; ++i) {
    const PlaneLayout& plane = layout.planes[i];
    const uint64_t used = layout.kept * plane.bits % 8;
    if (used == 0) continue;
    for (uint64_t r = 0; r < rows; ++r) {
      if (plain[plane.offset + (r + 1) * plane.row_bytes - 1] >> used != 0) {
        return Status(ErrorCode::kMalformed,
                      StrFormat("codes of row %llu have bits past their last column", static_cast<ull>(r)));
      }
    }
  }
  return Status::Ok();
}

// `count` f16 numbers as a run of low bytes and a run of high bytes.
Status CheckSplitF16(const uint8_t* high, uint64_t count, uint64_t groups, const char* what) {
  constexpr uint8_t kMask = kF16ExponentMask >> 8;
  for (uint64_t i = 0; i < count; ++i) {
    if ((high[i] & kMask) == kMask) return NotFinite(what, i / groups, i % groups);
  }
  return Status::Ok();
}

Status CheckValues(Element element, const MatrixLayout& layout, uint64_t rows, const uint8_t* values) {
  const uint64_t count = rows * layout.kept;
  const uint16_t exponent = element == Element::kBf16 ? kBf16ExponentMask : kF16ExponentMask;
  for (uint64_t i = 0; i < count; ++i) {
    const bool finite =
        element == Element::kF32 ? IsFiniteF32(GetU32(values + 4 * i)) : (GetU16(values + 2 * i) & exponent) != exponent;
    if (!finite) return NotFinite("value", i / layout.kept, i % layout.kept);
  }
  return Status::Ok();
}

Status CheckSections(const Codec& codec, const MatrixLayout& layout, const MatrixShape& shape, ByteSpan plain) {
  if (plain.size() != layout.total_bytes) {
    return Status(ErrorCode::kMalformed,
                  StrFormat("%s matrix of %llu x %llu has %llu plain bytes, expected %llu", codec.Name().c_str(),
                            static_cast<ull>(shape.rows), static_cast<ull>(shape.cols), static_cast<ull>(plain.size()),
                            static_cast<ull>(layout.total_bytes)));
  }
  const uint8_t* p = plain.data();
  for (uint64_t r = 0; layout.mask_row_bytes != 0 && r < shape.rows; ++r) {
    MOEPACK_RETURN_IF_ERROR(
        CheckMaskRow(codec, shape.cols, r, p + layout.mask_offset + r * layout.mask_row_bytes, layout.kept));
  }
  if (layout.plane_count == 0) return CheckValues(codec.element, layout, shape.rows, p + layout.values_offset);
  MOEPACK_RETURN_IF_ERROR(CheckPlanePadding(layout, shape.rows, p));
  const uint64_t scales = shape.rows * layout.groups;
  MOEPACK_RETURN_IF_ERROR(CheckSplitF16(p + layout.scales_offset + scales, scales, layout.groups, "scale"));
  if (!codec.has_min) return Status::Ok();
  return CheckSplitF16(p + layout.mins_offset + scales, scales, layout.groups, "minimum");
}

// ---- rows of codes ----

void PackRow(const MatrixLayout& layout, uint64_t row, const uint8_t* kept, uint8_t* plain) {
  for (uint8_t i = 0; i < layout.plane_count; ++i) {
    const PlaneLayout& plane = layout.planes[i];
    uint8_t* out = plain + plane.offset + row * plane.row_bytes;
    const uint32_t mask = (1u << plane.bits) - 1;
    for (uint64_t k = 0; k < layout.kept; ++k) {
      const uint64_t bit = k * plane.bits;
      out[bit / 8] =
          static_cast<uint8_t>(out[bit / 8] | ((static_cast<uint32_t>(kept[k]) >> plane.shift) & mask) << (bit % 8));
    }
  }
}

void UnpackRow(const MatrixLayout& layout, uint64_t row, const uint8_t* plain, uint8_t* kept) {
  std::fill(kept, kept + layout.kept, uint8_t{0});
  for (uint8_t i = 0; i < layout.plane_count; ++i) {
    const PlaneLayout& plane = layout.planes[i];
    const uint8_t* in = plain + plane.offset + row * plane.row_bytes;
    const uint32_t mask = (1u << plane.bits) - 1;
    for (uint64_t k = 0; k < layout.kept; ++k) {
      const uint64_t bit = k * plane.bits;
      kept[k] = static_cast<uint8_t>(kept[k] | (static_cast<uint32_t>(in[bit / 8]) >> (bit % 8) & mask) << plane.shift);
    }
  }
}

void SplitF16(const std::vector<uint16_t>& in, uint8_t* out) {
  for (size_t i = 0; i < in.size(); ++i) {
    out[i] = static_cast<uint8_t>(in[i]);
    out[in.size() + i] = static_cast<uint8_t>(in[i] >> 8);
  }
}

std::vector<uint16_t> JoinF16(const uint8_t* in, uint64_t count) {
  std::vector<uint16_t> out(count);
  for (uint64_t i = 0; i < count; ++i) out[i] = static_cast<uint16_t>(in[i] | in[count + i] << 8);
  return out;
}

// ---- parts of a QuantizedMatrix ----

Status Mismatch(const char* part) {
  return Status(ErrorCode::kInternal, std::string("quantized matrix: ") + part + " do not fit the codec and shape");
}

Status CheckParts(const QuantizedMatrix& m, const MatrixLayout& layout) {
  const uint64_t cells = m.shape.rows * m.shape.cols;
  const uint64_t groups = m.shape.rows * layout.groups;
  const bool integer = m.codec.coded();
  if (m.codes.size() != (integer ? cells : 0)) return Mismatch("codes");
  if (m.values.size() != (integer ? 0 : cells)) return Mismatch("values");
  if (m.scales.size() != groups) return Mismatch("scales");
  if (m.mins.size() != (m.codec.has_min ? groups : 0)) return Mismatch("minima");
  if (m.mask.size() != (layout.mask_row_bytes != 0 ? cells : 0)) return Mismatch("mask entries");
  for (size_t i = 0; i < m.mask.size(); ++i) {
    if (m.mask[i] > 1) return Mismatch("mask entries (neither 0 nor 1)");
    if (integer && m.mask[i] == 0 && m.codes[i] != 0) return Mismatch("codes (not 0 where masked out)");
  }
  const auto too_wide = [&m](uint8_t code) { return code >> m.codec.bits != 0; };
  if (std::any_of(m.codes.begin(), m.codes.end(), too_wide)) return Mismatch("codes (wider than their bits)");
  return Status::Ok();
}

// Copies the kept entries of a row to `out`; returns how many.
template <typename T>
uint64_t Gather(const QuantizedMatrix& m, const std::vector<T>& cells, uint64_t row, T* out) {
  uint64_t kept = 0;
  for (uint64_t c = 0; c < m.shape.cols; ++c) {
    const uint64_t i = row * m.shape.cols + c;
    if (m.mask.empty() || m.mask[i] != 0) out[kept++] = cells[i];
  }
  return kept;
}

void WriteRow(const QuantizedMatrix& m, const MatrixLayout& layout, uint64_t row, Bytes* codes, std::vector<float>* values,
              uint8_t* out) {
  for (uint64_t c = 0; layout.mask_row_bytes != 0 && c < m.shape.cols; ++c) {
    uint8_t* byte = out + layout.mask_offset + row * layout.mask_row_bytes + c / 8;
    *byte = static_cast<uint8_t>(*byte | m.mask[row * m.shape.cols + c] << (c % 8));
  }
  if (layout.plane_count != 0) {
    Gather(m, m.codes, row, codes->data());
    PackRow(layout, row, codes->data(), out);
    return;
  }
  Gather(m, m.values, row, values->data());
  uint8_t* p = out + layout.values_offset + row * layout.kept * layout.value_bytes;
  for (uint64_t k = 0; k < layout.kept; ++k) PutValue(m.codec.element, (*values)[k], p + k * layout.value_bytes);
}

// Kept weights of each row must be as many as the layout holds before anything is written.
Status CheckKept(const QuantizedMatrix& m, const MatrixLayout& layout) {
  for (uint64_t r = 0; !m.mask.empty() && r < m.shape.rows; ++r) {
    const auto begin = m.mask.begin() + static_cast<ptrdiff_t>(r * m.shape.cols);
    const auto kept = std::count(begin, begin + static_cast<ptrdiff_t>(m.shape.cols), uint8_t{1});
    if (static_cast<uint64_t>(kept) != layout.kept) return Mismatch("mask entries (count of a row)");
  }
  return Status::Ok();
}

}  // namespace

Status CheckPlain(const Codec& codec, const MatrixShape& shape, ByteSpan plain) {
  MOEPACK_ASSIGN_OR_RETURN(const MatrixLayout layout, PlainLayoutOf(codec, shape));
  return CheckSections(codec, layout, shape, plain);
}

Result<Bytes> ToPlain(const QuantizedMatrix& m) {
  MOEPACK_ASSIGN_OR_RETURN(const MatrixLayout layout, PlainLayoutOf(m.codec, m.shape));
  MOEPACK_RETURN_IF_ERROR(CheckParts(m, layout));
  MOEPACK_RETURN_IF_ERROR(CheckKept(m, layout));
  Bytes out(layout.total_bytes, 0), codes(layout.kept);
  std::vector<float> values(layout.kept);
  for (uint64_t r = 0; r < m.shape.rows; ++r) WriteRow(m, layout, r, &codes, &values, out.data());
  if (layout.plane_count != 0) SplitF16(m.scales, out.data() + layout.scales_offset);
  if (m.codec.has_min) SplitF16(m.mins, out.data() + layout.mins_offset);
  // Numbers that are not finite (or a mask that is not N:M) would be refused by every reader.
  if (Status status = CheckSections(m.codec, layout, m.shape, out); !status.ok()) {
    return Status(ErrorCode::kInternal, "quantized matrix: " + status.message());
  }
  return out;
}

Result<QuantizedMatrix> FromPlain(const Codec& codec, const MatrixShape& shape, ByteSpan plain) {
  MOEPACK_ASSIGN_OR_RETURN(const MatrixLayout layout, PlainLayoutOf(codec, shape));
  MOEPACK_RETURN_IF_ERROR(CheckSections(codec, layout, shape, plain));
  QuantizedMatrix m{.codec = codec, .shape = shape};
  const bool integer = layout.plane_count != 0;
  const uint64_t cells = shape.rows * shape.cols;
  m.codes.resize(integer ? cells : 0);
  m.values.resize(integer ? 0 : cells);
  m.mask.resize(layout.mask_row_bytes != 0 ? cells : 0);
  Bytes codes(layout.kept);
  for (uint64_t r = 0; r < shape.rows; ++r) {
    const uint8_t* mask = plain.data() + layout.mask_offset + r * layout.mask_row_bytes;
    const uint8_t* values = plain.data() + layout.values_offset + r * layout.kept * layout.value_bytes;
    if (integer) UnpackRow(layout, r, plain.data(), codes.data());
    for (uint64_t c = 0, k = 0; c < shape.cols; ++c) {
      const uint64_t i = r * shape.cols + c;
      if (layout.mask_row_bytes != 0) m.mask[i] = MaskBit(mask, c) ? 1 : 0;
      if (!m.mask.empty() && m.mask[i] == 0) continue;
      if (integer) m.codes[i] = codes[k];
      if (!integer) m.values[i] = GetValue(codec.element, values + k * layout.value_bytes);
      ++k;
    }
  }
  m.scales = JoinF16(plain.data() + layout.scales_offset, shape.rows * layout.groups);
  if (codec.has_min) m.mins = JoinF16(plain.data() + layout.mins_offset, shape.rows * layout.groups);
  return m;
}

Status DecodePlain(const Codec& codec, const MatrixShape& shape, ByteSpan plain, std::span<float> out) {
  MOEPACK_ASSIGN_OR_RETURN(const QuantizedMatrix m, FromPlain(codec, shape, plain));
  if (out.size() != shape.rows * shape.cols) {
    return Status(ErrorCode::kInternal, "DecodePlain: output has not rows * cols elements");
  }
  Dequantize(m, out);
  return Status::Ok();
}

void Dequantize(const QuantizedMatrix& m, std::span<float> out) { DequantizeRows(m, 0, m.shape.rows, out); }

namespace {

void DequantizeTrellis(const QuantizedMatrix& m, uint64_t begin, uint64_t end, std::span<float> out) {
  const uint64_t cols = m.shape.cols, groups = GroupsPerRow(m.codec, cols), width = GroupWidth(m.codec, cols);
  for (uint64_t r = begin; r < end; ++r) {
    uint32_t window = 0;
    for (uint64_t c = 0; c < cols; ++c) {
      window = NextTrellisWindow(m.codec.bits, window, m.codes[r * cols + c]);
      out[(r - begin) * cols + c] =
          F16ToF32(m.scales[r * groups + c / width]) * static_cast<float>(TrellisValue(m.codec.bits, window));
    }
  }
}

}  // namespace

void DequantizeRows(const QuantizedMatrix& m, uint64_t begin, uint64_t end, std::span<float> out) {
  const Codec& codec = m.codec;
  if (codec.element == Element::kTrellis) return DequantizeTrellis(m, begin, end, out);
  const uint64_t cols = m.shape.cols, groups = GroupsPerRow(codec, cols), width = GroupWidth(codec, cols);
  const int offset = codec.has_min || codec.bits == 0 ? 0 : 1 << (codec.bits - 1);
  for (uint64_t i = begin * cols, o = 0; i < end * cols; ++i, ++o) {
    if (!m.mask.empty() && m.mask[i] == 0) {
      out[o] = 0.0f;
    } else if (codec.element != Element::kGroupInt) {
      out[o] = RoundTo(codec.element, m.values[i]);
    } else {
      const uint64_t g = i / cols * groups + i % cols / width;
      const float product = F16ToF32(m.scales[g]) * static_cast<float>(m.codes[i] - offset);
      out[o] = codec.has_min ? product + F16ToF32(m.mins[g]) : product;
    }
  }
}

}  // namespace moepack
