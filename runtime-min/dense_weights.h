// Weights outside of experts: resident from start to end.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "format/verified.h"
#include "runtime-min/unit_source.h"
#include "runtime-min/weight_memory.h"

namespace moepack::runtime {

class DenseWeights {
 public:
  // Reads, verifies and packs every dense unit, on all threads. Errors name the tensors' block.
  static Result<DenseWeights> Load(UnitSource& source, ThreadPool& pool);

  const ResidentTensor& matrix(TensorId id) const { return matrices_[id]; }
  // A tensor as float32, row-major: what nodes read otherwise than as a matrix product or a lookup (biases, norm weights,
  // sinks, convolutions). Null for kNone.
  const float* vector(TensorId id) const { return id == kNone ? nullptr : vectors_[id].data(); }
  uint64_t resident_bytes() const { return resident_bytes_; }

 private:
  Status LoadUnit(UnitSource& source, size_t unit);

  std::unique_ptr<WeightMemory> memory_ = std::make_unique<WeightMemory>();  // outlives matrices_
  std::vector<ResidentTensor> matrices_;                                     // by TensorId
  std::vector<std::vector<float>> vectors_;  // by TensorId; filled for those that vector() may be asked for
  uint64_t resident_bytes_ = 0;
};

}  // namespace moepack::runtime
