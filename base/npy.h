// Tables of numbers in NumPy's file format (NEP 1; numpy/lib/format.py): versions 1, 2 and 3 of .npy, two dimensions
// [rows, columns] in C order, little-endian float32 or float64. The file may be hostile.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/env.h"
#include "base/status.h"

namespace moepack {

inline constexpr uint64_t kMaxNpyHeader = 1 << 16;

// What the header says.
struct NpyHeader {
  uint64_t rows = 0, columns = 0;  // at least 1
  bool float64 = false;
};
// Of the Python literal after the lengths. kBadInput (malformed), kUnsupported (element type, Fortran order, dimensions).
Result<NpyHeader> ParseNpyHeader(std::string_view text);

// An open file. Thread-safe.
class NpyFile {
 public:
  // Errors name path and field: those of ParseNpyHeader, kBadInput for a file that is longer or shorter than its shape
  // says, kLimit for a header above kMaxNpyHeader or a shape that overflows.
  static Result<std::unique_ptr<NpyFile>> Open(Env& env, const std::string& path);

  uint64_t rows() const { return header_.rows; }
  uint64_t columns() const { return header_.columns; }
  // kShape unless there are so many columns.
  Status CheckColumns(uint64_t expected) const;
  // Rows [first, first + count), which exist, to `out` [count, columns]. kNotFinite names the first number that is none, or
  // too large for a float32; errors of reading.
  Status Read(uint64_t first, uint64_t count, std::span<float> out) const;

 private:
  NpyFile(std::unique_ptr<RandomAccessFile> file, const NpyHeader& header, uint64_t data)
      : file_(std::move(file)), header_(header), data_(data) {}
  std::unique_ptr<RandomAccessFile> file_;
  NpyHeader header_;
  uint64_t data_ = 0;  // offset of the first number
};

}  // namespace moepack
