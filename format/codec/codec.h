// Codecs: how a weight matrix becomes bytes. This header is the whole interface; format/SPEC.md has the byte layouts.
//
// Three forms of a matrix W [rows, cols] (rows = outputs, cols = inputs):
//   quantized   QuantizedMatrix: one code a weight plus scales, what compressor/ produces and the oracle decodes
//   plain       exactly PlainBytes(codec, shape) bytes: what digests identify and chunks compress
//   resident    what a kernel reads (runtime-min/kernels); never stored
//
// Plain layout of a group-wise integer matrix, for a coder that likes like with like. A code of b bits is cut into bit
// planes, most significant first: 8 -> 8; 6 -> 4+2; 5 -> 4+1; 4 -> 4; 3 -> 2+1; 2 -> 2. A plane of p bits stores row after
// row, each row ceil(cols * p / 8) bytes, 8/p codes a byte, the lower column in the lower bits. Then all scales' low
// bytes, all scales' high bytes (f16, row-major [rows, groups]), then the same for minima when has_min.
// Dense float matrices are row-major little endian. A sparse matrix is its mask (row after row, ceil(cols / 8) bytes, bit
// c%8 of byte c/8), then the kept values in column order, each row as if it were a dense row of kept_per_row columns,
// then scales (groups are still counted by column of the full matrix).
// A trellis has codes of 2 to 6 bits laid out as group-wise integers; a weight is scale * TrellisValue of its own code and
// those just before it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace moepack {

enum class Element : uint8_t { kF32 = 0, kBf16 = 1, kF16 = 2, kGroupInt = 3, kTrellis = 4 };
enum class Sparsity : uint8_t { kNone = 0, kBitmask = 1, kNM = 2 };

struct Codec {
  Element element = Element::kF32;
  Sparsity sparsity = Sparsity::kNone;
  // kGroupInt: 2, 3, 4, 5, 6 or 8; kTrellis: 2 to 6; otherwise 0.
  uint8_t bits = 0;
  // kGroupInt: false  w = scale * (q - 2^(bits-1)),  q in [0, 2^bits);   true  w = scale * q + min.
  bool has_min = false;
  // kGroupInt, kTrellis: columns that share a scale: 16, 32, 64, 128, 256, or 0 for a whole row. The last group of a row may
  // be shorter.
  uint16_t group_size = 0;
  // kBitmask: weights kept in every row, 1..cols (set per shape). kNM: n kept in every m consecutive columns, 1 <= n < m,
  // m in {4, 8, 16}; cols must be a multiple of m.
  uint32_t kept_per_row = 0;
  uint8_t n = 0, m = 0;

  bool operator==(const Codec&) const = default;
  // Codes and scales rather than floats.
  bool coded() const { return element == Element::kGroupInt || element == Element::kTrellis; }
  // "f32" "bf16" "f16" "i4g64" "i4mg32" (m: with minimum) "i8r" (group = row) "t2g128" (trellis); sparse: "i4g64+keep128"
  // "bf16+2:4".
  std::string Name() const;
};

// Bits of a code of `bits` bits that lie in the second plane; 0: one plane holds it.
constexpr int LowPlaneBits(int bits) { return bits == 6 ? 2 : bits == 3 || bits == 5 ? 1 : 0; }

// Trellis-coded quantization (2406.11235) with values that are computed: what a code stands for depends on a window of ten
// bits, its own and those of the codes before it (0 in front of the first column). Plane by plane, as they lie: the last
// ten bits where codes are one plane; where they are two, the last eight of the first in bits 0-7 and the last two of the
// second in bits 8 and 9. The newest are the highest. The mean of both bytes of a product modulo 2^16 is spread like a
// triangle over [-128, 127], near enough to the Gaussian of weights.
inline constexpr uint32_t kTrellisWindows = 1024;
inline constexpr int kTrellisCentre = 128;  // taken off the mean of the bytes
constexpr uint32_t TrellisFactor(int bits) { return bits == 2 ? 40093 : bits == 3 ? 43969 : bits == 4 ? 60481 : 27787; }
// Columns whose codes a window holds bits of, the own one among them.
constexpr uint32_t TrellisSpan(int bits) { return bits == 2 ? 5 : bits == 3 ? 4 : bits == 4 ? 3 : 2; }
inline int8_t TrellisValue(int bits, uint32_t window) {
  const uint32_t product = window * TrellisFactor(bits) & 0xffff;
  return static_cast<int8_t>(static_cast<int>(((product >> 8) + (product & 0xff) + 1) >> 1) - kTrellisCentre);
}
// The window that follows when a row goes on with `code`.
constexpr uint32_t NextTrellisWindow(int bits, uint32_t window, uint32_t code) {
  const int low = LowPlaneBits(bits), high = bits - low;
  if (low == 0) return window >> high | code << (10 - high);
  const uint32_t second = window >> (8 + low) | (code & ((1u << low) - 1)) << (2 - low);
  return (window & 0xff) >> high | (code >> low) << (8 - high) | second << 8;
}

// Inverse of Name(). kRecipe on anything that is not the name of a valid codec.
Result<Codec> ParseCodec(std::string_view name);
// kMalformed unless every field holds a documented value (closed enums, unused fields zero).
Status ValidateCodec(const Codec& codec);

struct MatrixShape {
  uint64_t rows = 0, cols = 0;
  bool operator==(const MatrixShape&) const = default;
};

// Caps on shapes from outside.
inline constexpr uint64_t kMaxRows = 1ull << 24, kMaxCols = 1ull << 20;

// Exact sizes; kMalformed/kLimit when the codec does not fit the shape or arithmetic overflows.
Result<uint64_t> PlainBytes(const Codec& codec, const MatrixShape& shape);
// Bytes a kernel's resident form takes, scales, sums and padding included (runtime-min/kernels asserts equality).
Result<uint64_t> ResidentBytes(const Codec& codec, const MatrixShape& shape);

// Groups in a row (1 when group_size is 0); 0 for float elements.
uint64_t GroupsPerRow(const Codec& codec, uint64_t cols);
// Columns of a group, the last of a row aside: all `cols` when group_size is 0, as for float elements.
inline uint64_t GroupWidth(const Codec& codec, uint64_t cols) { return codec.group_size == 0 ? cols : codec.group_size; }
// Kept weights in a row: cols for a dense matrix.
uint64_t KeptPerRow(const Codec& codec, uint64_t cols);

// A matrix in codes. Coded elements use codes/scales/mins; float elements use `values`.
struct QuantizedMatrix {
  Codec codec;
  MatrixShape shape;
  std::vector<uint8_t> codes;    // [rows * cols], 0 where masked out; coded elements only
  std::vector<uint16_t> scales;  // f16 bits [rows * groups]
  std::vector<uint16_t> mins;    // f16 bits [rows * groups] when has_min
  std::vector<float> values;     // [rows * cols], float elements (rounded to the element type by ToPlain)
  std::vector<uint8_t> mask;     // [rows * cols] 0/1 when sparse, otherwise empty
};

// Plain bytes of a quantized matrix. kInternal when the parts do not fit each other.
Result<Bytes> ToPlain(const QuantizedMatrix& matrix);
// Inverse. Every byte pattern of the right length is checked: padding bits zero, mask popcounts, finite scales and values.
Result<QuantizedMatrix> FromPlain(const Codec& codec, const MatrixShape& shape, ByteSpan plain);
// The oracle: out[rows * cols] = the weights the bytes stand for, 0 where masked out.
Status DecodePlain(const Codec& codec, const MatrixShape& shape, ByteSpan plain, std::span<float> out);
// Weights of a quantized matrix, as DecodePlain gives them.
void Dequantize(const QuantizedMatrix& matrix, std::span<float> out);
// Those of rows [begin, end) alone: out[(end - begin) * cols].
void DequantizeRows(const QuantizedMatrix& matrix, uint64_t begin, uint64_t end, std::span<float> out);

// Round-to-nearest-even conversions (format/codec/float16.cc).
uint16_t F32ToF16(float value);
float F16ToF32(uint16_t bits);
uint16_t F32ToBf16(float value);
inline float Bf16ToF32(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float out;
  static_assert(sizeof(out) == sizeof(wide));
  __builtin_memcpy(&out, &wide, sizeof(out));
  return out;
}

}  // namespace moepack
