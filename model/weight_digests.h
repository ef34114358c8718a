// Digests of a model's weights, taken while they are read anyway: what ties a profile to the weights it was made from. They
// are of the float32 values, so the same weights as safetensors, as ONNX or in other shards have the same digests.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/digest/sha256.h"
#include "model/model.h"

namespace moepack {

// One digest a tensor of `program` by id, then three an expert (gate, up, down) by table and expert; where there is no
// gate, zeros.
struct WeightDigests {
  std::vector<Digest> digests;
  bool operator==(const WeightDigests&) const = default;
};
size_t CountWeightDigests(const Program& program);

// Hands on what `source` loads and keeps its digests. Thread-safe. Stores references to both arguments.
class DigestingSource final : public TensorSource {
 public:
  DigestingSource(const Program& program, const TensorSource& source);
  Result<std::vector<float>> Load(TensorId tensor) const override;
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override;
  Codec StoredCodec(TensorId tensor) const override { return source_.StoredCodec(tensor); }
  Codec StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return source_.StoredExpertCodec(table, expert, matrix);
  }
  // Of what was loaded so far; kInternal naming a weight that was not. Not while another thread loads.
  Result<WeightDigests> Finish() const;

 private:
  void Note(size_t index, const std::vector<float>& values) const;

  const Program& program_;
  const TensorSource& source_;
  mutable WeightDigests seen_;
  mutable std::vector<std::atomic<bool>> known_;
};

// Hands on what `source` loads once its digest was compared with `expected`, at the first load of each weight: kBadInput,
// "`label`: ..." with the weight's name, when it differs. Errors of `source` come first. Thread-safe; keeps both alive.
std::shared_ptr<const TensorSource> CheckWeights(const Program& program, std::shared_ptr<const TensorSource> source,
                                                 WeightDigests expected, std::string label);

}  // namespace moepack
