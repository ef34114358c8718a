// A codec with the rate its codes are held to. Integer codes that use few of their levels take fewer bits in a bundle, where
// chunks are entropy coded, than once loaded: the encoder chooses steps so that they take `rate`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "format/codec/codec.h"

namespace moepack {

struct RatedCodec {
  Codec codec;
  // Hundredths of a bit a weight that the matrix takes in the bundle at most, scales and tables included; 0: as many as its
  // plain bytes have.
  uint16_t rate = 0;

  RatedCodec() = default;
  RatedCodec(const Codec& from) : codec(from) {}  // NOLINT: a codec is one without a rate
  RatedCodec(const Codec& from, uint16_t hundredths) : codec(from), rate(hundredths) {}
  operator const Codec&() const { return codec; }  // NOLINT: sizes and layouts do not depend on the rate
  bool operator==(const RatedCodec&) const = default;
  // "i4g64", "i8r@2.25".
  std::string Name() const;
};

// Rates from 0.5 up to 8 bits; the codec must be an integer one with a scale a row and neither minimum nor sparsity.
inline constexpr uint16_t kMinRate = 50, kMaxRate = 800;
Result<RatedCodec> ParseRatedCodec(std::string_view name);

// Bytes the matrix takes in a bundle at most, paddings of chunks aside.
Result<uint64_t> StoredBytes(const RatedCodec& codec, const MatrixShape& shape);

}  // namespace moepack
