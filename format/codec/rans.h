// Entropy coding of a chunk: bytes that lie in rows, coded with few static frequency tables chosen by column or by row.
// Codes of a matrix whose columns have steps of their own (compressor/pass/rated.h) fall into few kinds of columns; a table
// a kind reaches their conditional entropy in fractional bits, where zstd spends whole bits on one table for all.
// format/SPEC.md section 5 has the stored form. Range variant of asymmetric numeral systems: Duda, arXiv 1311.2540.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "format/codec/codec.h"

namespace moepack {

// Frequencies of a table add up to 2^kRansBits.
inline constexpr uint32_t kRansBits = 12;
inline constexpr uint32_t kRansTotal = 1u << kRansBits;
inline constexpr size_t kMaxRansTables = 16;
inline constexpr size_t kRansStates = 4;
// States lie in [kRansLow, 2^32); 16 bits are moved at a time.
inline constexpr uint32_t kRansLow = 1u << 16;
inline constexpr uint32_t kMaxRansPeriod = 1u << 20;

enum class RansOrder : uint8_t { kOneTable = 0, kByColumn = 1, kByRow = 2 };

// Fills `plain` from the stored form. kMalformed unless `stored` is exactly what stands for plain.size() bytes. Reads and
// writes nothing outside the spans; memory taken is bounded by plain.size(). Thread-safe.
Status DecodeRans(ByteSpan stored, std::span<uint8_t> plain);

// A run of plain bytes with one structure: byte i of it lies in column (phase + i) % period. period 0: no columns.
struct RansRun {
  uint64_t bytes = 0;
  uint32_t period = 0, phase = 0;
};

// Appends the runs of one matrix's plain bytes: its mask, code planes, values, scales and minima. kMalformed when codec and
// shape do not fit.
Status AppendRansRuns(const Codec& codec, const MatrixShape& shape, std::vector<RansRun>* runs);
// The part [begin, end) of consecutive runs.
std::vector<RansRun> CutRansRuns(std::span<const RansRun> runs, uint64_t begin, uint64_t end);

// Stored form of `plain`, whose runs add up to its size. Deterministic integer arithmetic: the same bytes on every
// processor. Thread-safe.
Bytes EncodeRans(ByteSpan plain, std::span<const RansRun> runs);

}  // namespace moepack
