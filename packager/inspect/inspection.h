// What `moepack inspect` tells about a model, a compressed folder or a bundle, gathered weight by weight.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/status.h"
#include "format/codec/codec.h"
#include "format/manifest/manifest.h"
#include "format/program.h"

namespace moepack {

// Sums over a group of weights.
struct WeightSums {
  uint64_t tensors = 0;
  uint64_t parameters = 0;      // rows * cols, masked-out ones included
  uint64_t bytes_plain = 0;     // PlainBytes
  uint64_t bytes_resident = 0;  // ResidentBytes: what they take in a device's memory, scales and packing included
};

class Inspection {
 public:
  // `kind`: "model", "folder" or "bundle". The program is read during the call only.
  Inspection(std::string kind, const Program& program);

  // kMalformed, kLimit when codec and shape do not fit; kLimit when a sum overflows.
  Status AddTensor(TensorRole role, const Codec& codec, const MatrixShape& shape);
  Status AddExpertMatrix(const Codec& codec, const MatrixShape& shape);
  // All tensors of a unit; `expert`: it is one of an expert table.
  Status AddUnit(const Program& program, bool expert, const std::vector<UnitTensor>& tensors);

  // All units of one expert table, units[i] being physical unit i: first variants count as weights, what only stands in for
  // them apart.
  Status AddExpertUnits(const Program& program, const std::vector<ExpertEntry>& experts,
                        const std::vector<const std::vector<UnitTensor>*>& units);

  const WeightSums& total() const { return all_; }

  // bytes_stored and, from it, bits_per_weight. Without a call both are null.
  void SetStoredBytes(uint64_t bytes) { stored_bytes_ = bytes, has_stored_bytes_ = true; }
  // Weights whose codecs are not known (a config.json alone): resident bytes are null.
  void SetWithoutWeights() { without_weights_ = true; }
  // Further lines of the text.
  void SetNotes(std::string notes) { notes_ = std::move(notes); }
  // Further members of the JSON object.
  nlohmann::json& extra() { return extra_; }

  // One object with stable keys: kind, parameters (of the original model), parameters_now, bytes_stored, bits_per_weight
  // (bytes_stored * 8 / parameters), bytes_resident, expert_bytes_resident, layers, experts, max_positions, expert_tables
  // (layer, experts, top_k, hidden, intermediate_min, intermediate_max), codecs and roles (name -> tensors, parameters,
  // bytes_plain, bytes_resident), stand_ins (experts_lower, experts_twin, experts_dense: how many have one; tensors,
  // parameters, bytes_plain, bytes_resident of units that only stand in, which no other key counts), and what extra() holds.
  // A value that is not known is null.
  nlohmann::json ToJson() const;
  // A compact table for people.
  std::string ToText() const;

 private:
  Status Add(const std::string& role, const Codec& codec, const MatrixShape& shape);
  nlohmann::json TablesJson() const;
  uint64_t ExpertsWith(VariantKind kind) const { return experts_with_.contains(kind) ? experts_with_.at(kind) : 0; }

  std::string kind_;
  uint64_t original_parameters_ = 0, parameters_now_ = 0;
  uint64_t layers_ = 0, experts_ = 0, max_positions_ = 0;
  std::vector<ExpertTableDecl> tables_;
  std::map<uint32_t, uint32_t> top_k_;  // by table
  WeightSums all_;
  std::map<std::string, WeightSums> by_role_, by_codec_;
  WeightSums stand_ins_;                          // of units that only stand in
  std::map<VariantKind, uint64_t> experts_with_;  // such a variant
  uint64_t stored_bytes_ = 0;
  bool has_stored_bytes_ = false, without_weights_ = false;
  std::string notes_;
  nlohmann::json extra_ = nlohmann::json::object();
};

}  // namespace moepack
