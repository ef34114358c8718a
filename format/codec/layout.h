// Where the parts of a matrix lie in its plain and in its resident bytes. Shared by format/codec and runtime-min/kernels.
//
// Both forms hold the same sections in the same order: mask, code planes (or float values), scales, minima; a row of a
// section takes a whole number of bytes. They differ in two ways only:
//   plain     sections follow each other directly; a scale's low and high bytes lie in two separate runs
//   resident  sections start at multiples of kResidentAlignment, scales are little-endian u16, and kResidentTail zero
//             bytes follow the last section, so that a kernel may load a whole vector at the end of any row
#pragma once

#include <array>
#include <cstdint>

#include "format/codec/codec.h"

namespace moepack {

inline constexpr uint64_t kResidentAlignment = 64;
inline constexpr uint64_t kResidentTail = 64;

// One bit plane of the codes: code >> shift & (2^bits - 1), 8 / bits codes a byte, lower column in the lower bits.
struct PlaneLayout {
  uint8_t bits = 0, shift = 0;
  uint64_t offset = 0;     // of the section
  uint64_t row_bytes = 0;  // ceil(kept * bits / 8)
};

struct MatrixLayout {
  uint64_t kept = 0;                             // values stored in a row
  uint64_t groups = 0;                           // scales in a row; 0 for float elements
  uint64_t mask_offset = 0, mask_row_bytes = 0;  // mask_row_bytes is 0 for a dense matrix
  uint8_t plane_count = 0;                       // 0 for float elements, then value_bytes counts
  std::array<PlaneLayout, 2> planes;
  uint64_t values_offset = 0, value_bytes = 0;
  uint64_t scales_offset = 0, mins_offset = 0;  // mins_offset is 0 without has_min
  uint64_t total_bytes = 0;
};

// kMalformed when the codec is invalid or does not fit the shape, kLimit when the shape is above the caps.
Result<MatrixLayout> PlainLayoutOf(const Codec& codec, const MatrixShape& shape);
Result<MatrixLayout> ResidentLayoutOf(const Codec& codec, const MatrixShape& shape);

// kMalformed unless `plain` is a well-formed matrix: exact length, zero padding bits, mask counts, finite scales, minima
// and values. What FromPlain, DecodePlain and PackResident check first.
Status CheckPlain(const Codec& codec, const MatrixShape& shape, ByteSpan plain);

}  // namespace moepack
