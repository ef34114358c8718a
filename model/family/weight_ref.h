// Where a weight of a program lies in a checkpoint. What families say and model/frontend/weight_reader.h reads.
#pragma once

#include <cstdint>
#include <string>

#include "format/program.h"

namespace moepack {

// Runs of `block` rows (or columns) at every `stride`, from `begin` on. block 0: all of them. A weight of n rows then comes
// from n / block * stride stored ones.
struct WeightRuns {
  uint64_t begin = 0, block = 0, stride = 0;
  uint64_t Stored(uint64_t count) const { return block == 0 ? count : count / block * stride; }
  uint64_t Place(uint64_t i) const { return block == 0 ? i : begin + i / block * stride + i % block; }
};

// A weight [rows, cols], or one of a stack of `stack` equal ones in one tensor.
struct WeightRef {
  WeightRef() = default;
  WeightRef(std::string tensor) : name(std::move(tensor)) {}  // NOLINT: a name alone is the usual case
  WeightRef(const char* tensor) : name(tensor) {}             // NOLINT

  std::string name;
  uint32_t stack = 0, index = 0;  // entries of the first dimension and the one meant; stack 0: no such dimension
  bool transposed = false;        // stored [cols, rows]
  WeightRuns rows, columns;       // which of the stored rows and columns, before transposition
  // MXFP4 (OCP Microscaling 1.0): NAME_blocks [stack, rows, cols / 32, 16] of two codes a byte, the lower column in the
  // lower half, and NAME_scales [stack, rows, cols / 32], powers of two with a bias of 127.
  bool mxfp4 = false;
};

}  // namespace moepack
