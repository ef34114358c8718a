// One expert from stored bytes to matrices that kernels take.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "format/program.h"
#include "format/verified.h"
#include "runtime-min/unit_source.h"

namespace moepack::runtime {

inline constexpr uint64_t kExpertAlignment = 64;

// The matrices of one expert, by ExpertMatrix; kGate is empty when the table is not gated.
using ExpertWeights = std::array<ResidentTensor, kExpertMatrices>;

// Reads, verifies and packs a physical expert of `table` to `place`: ResidentBytes of its matrices in load order, each
// rounded up to kExpertAlignment. `place` stays the caller's and outlives the weights. Errors of UnitSource::ReadExpert and
// TensorPacker. Thread-safe for different places.
Status LoadExpert(UnitSource& source, uint32_t table, uint32_t physical, uint8_t* place, ExpertWeights* weights);

// Loads of several experts by all threads of a pool, each chunk by whoever is free. An expert is packed when all its chunks
// are verified. The plain bytes of at most two experts a thread are held at once. One thread at a time calls it.
class ExpertLoads {
 public:
  void Clear() { count_ = 0; }
  // As LoadExpert. `weights` and `place` are written in Run.
  void Add(uint32_t table, uint32_t physical, uint8_t* place, ExpertWeights* weights);
  // Loads all that were added since Clear.
  void Run(UnitSource& source, ThreadPool& pool);
  size_t size() const { return count_; }
  // What LoadExpert would return for the i-th that was added; of several errors of its chunks one about wrong bytes.
  const Status& status(size_t i) const { return loads_[i]->status; }

 private:
  struct Load {
    uint32_t table = 0, physical = 0;
    uint8_t* place = nullptr;
    ExpertWeights* weights = nullptr;
    std::mutex mutex;  // of the beginning
    bool begun = false;
    Status beginning;
    UnitParts parts;
    std::vector<Status> chunks;
    std::atomic<size_t> left{0};  // chunks that are not done
    Status status;
  };
  struct Task {
    Load* load = nullptr;
    size_t chunk = 0;
  };
  static void RunTask(UnitSource& source, const Task& task);
  static Status Begin(UnitSource& source, Load* load);
  static Status Finish(UnitSource& source, Load* load);

  std::vector<std::unique_ptr<Load>> loads_;  // the first count_; the others are kept for later
  size_t count_ = 0;
  std::vector<Task> tasks_;
};

}  // namespace moepack::runtime
