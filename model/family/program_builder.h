// Builds a Program node by node and remembers which checkpoint tensor each of its tensors comes from.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "format/program.h"

namespace moepack {

// Names of one expert's matrices in the checkpoint, by ExpertMatrix.
using ExpertNames = std::array<std::string, kExpertMatrices>;

// A program and where its weights are: checkpoint tensor names by TensorId and by (table, expert).
struct CheckpointLayout {
  Program program;
  std::vector<std::string> tensor_names;
  std::vector<std::vector<ExpertNames>> expert_names;
};

// One tensor as the builder is told about it: its name in the program and in the checkpoint.
struct TensorNames {
  std::string program, checkpoint;
};

// Widths and ranges are the caller's to get right; ValidateProgram checks the result.
class ProgramBuilder {
 public:
  // Nodes added from now on belong to this block; their tensors to this decoder layer (-1: none).
  void Enter(int32_t block, int32_t layer);

  ValueId AddTokens();
  TensorId AddTensor(const TensorNames& names, uint64_t rows, uint64_t cols, TensorRole role);
  ValueId AddEmbedding(ValueId tokens, TensorId table);
  ValueId AddLinear(ValueId in, TensorId weight, TensorId bias = kNone);
  // RMS norm over runs of `group` columns with a weight of `group` entries.
  ValueId AddRmsNorm(ValueId in, const TensorNames& weight, uint64_t group, float eps);
  ValueId AddRotary(ValueId in, uint32_t heads, uint32_t head_dim, const std::vector<float>& inv_freq);
  // Takes a new state slot.
  ValueId AddAttention(ValueId q, ValueId k, ValueId v, const AttentionNode& attention);
  ValueId AddMoe(ValueId in, ValueId router_logits, const RoutingRecord& routing, const ActivationRecord& activation,
                 uint32_t table);
  uint32_t AddExpertTable(uint64_t hidden, uint64_t intermediate, std::vector<ExpertNames> experts);
  ValueId AddUnary(ElementOp op, ValueId in, float alpha = 0);
  ValueId AddBinary(ElementOp op, ValueId a, ValueId b);

  uint64_t width(ValueId value) const { return layout_.program.values[value].width; }

  // The layout with `output` as logits. The builder is empty afterwards.
  CheckpointLayout Finish(ValueId output, uint32_t max_positions);

 private:
  ValueId AddNode(Node node, const char* what, uint64_t width);
  CheckpointLayout layout_;
  int32_t block_ = 0, layer_ = -1;
};

}  // namespace moepack
