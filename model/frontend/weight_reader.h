// Reads weights of a checkpoint as float32 from wherever a family says they are: one tensor each, one of a stack, some of
// its rows or columns, transposed, MXFP4, or FP8 with a scale a block. Values of the last two are what the format says,
// computed in float32 without further rounding.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/family/program_builder.h"
#include "model/frontend/safetensors.h"

namespace moepack {

// A weight that was found and whose stored shape fits.
struct BoundWeight {
  WeightRef ref;
  uint64_t rows = 0, cols = 0;      // of the weight
  SafetensorsSet::Location values;  // its elements, or the codes of MXFP4
  SafetensorsSet::Location scales;  // of MXFP4 and FP8, otherwise null
};

// Keeps references to both. Thread-safe.
class WeightReader {
 public:
  WeightReader(const SafetensorsSet& set, const Fp8Blocks& fp8) : set_(set), fp8_(fp8) {}

  // The weight [rows, cols] ([cols] too for a vector). Names of the tensors it takes go to `used`. kMissingTensor, kShape,
  // kUnsupported (element type).
  Result<BoundWeight> Bind(const WeightRef& ref, uint64_t rows, uint64_t cols, std::set<std::string>* used) const;
  // Row-major; kNotFinite. Pages are released.
  Result<std::vector<float>> Load(const BoundWeight& weight) const;
  // The codec that holds the weight without loss: its own, bf16 for MXFP4, f32 for FP8.
  static Codec StoredCodec(const BoundWeight& weight);

 private:
  Result<SafetensorsSet::Location> Find(const std::string& name, std::set<std::string>* used) const;
  Status CheckPlain(const BoundWeight& weight) const;
  Status BindFp8(BoundWeight* weight, std::set<std::string>* used) const;
  Status BindMxfp4(BoundWeight* weight, std::set<std::string>* used) const;
  void ReadRow(const BoundWeight& weight, const uint8_t* data, uint64_t row, uint64_t cols, float* out) const;
  void LoadMxfp4(const BoundWeight& weight, std::vector<float>* out) const;
  void LoadPlain(const BoundWeight& weight, std::vector<float>* out) const;

  const SafetensorsSet& set_;
  const Fp8Blocks fp8_;
};

}  // namespace moepack
