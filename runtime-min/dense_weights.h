// Weights outside of experts: resident from start to end.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "format/verified.h"
#include "runtime-min/buffer.h"
#include "runtime-min/unit_source.h"
#include "runtime-min/weight_memory.h"

namespace moepack::runtime {

class DenseWeights {
 public:
  // Reads, verifies and packs every dense unit, on all threads. Errors name the tensors' block; kNoMemory.
  static Result<DenseWeights> Load(UnitSource& source, ThreadPool& pool);

  // Weights of a linear node or table of an embedding, packed for kernels.
  const ResidentTensor& matrix(TensorId id) const { return matrices_[id]; }
  // A tensor as float32, row-major: what nodes read otherwise than as a matrix product or a lookup (biases, norm weights,
  // sinks). Null for kNone.
  const float* vector(TensorId id) const { return id == kNone ? nullptr : vectors_[id].data(); }
  // Weights of a convolution as float32, [width, channels]: the channels of one position side by side.
  const float* convolution(TensorId id) const { return convolutions_[id].data(); }
  uint64_t resident_bytes() const { return resident_bytes_; }

 private:
  // How the nodes of the program read a tensor: what is kept of it.
  struct Uses {
    bool matrix = false, vector = false, convolution = false;
  };
  static std::vector<Uses> UsesOf(const Program& program);
  Status LoadUnit(UnitSource& source, const std::vector<Uses>& uses, size_t unit);
  Status Keep(ResidentTensor tensor, Uses uses, TensorId id);

  std::unique_ptr<WeightMemory> memory_ = std::make_unique<WeightMemory>();  // outlives matrices_
  // By TensorId; empty where no node reads the tensor in that form.
  std::vector<ResidentTensor> matrices_;
  std::vector<FloatBuffer> vectors_, convolutions_;
  uint64_t resident_bytes_ = 0;
};

}  // namespace moepack::runtime
