// Builds a Program node by node and remembers which checkpoint tensor each of its tensors comes from.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "format/program.h"
#include "model/family/weight_ref.h"

namespace moepack {

// Where one expert's matrices are, by ExpertMatrix.
using ExpertRefs = std::array<WeightRef, kExpertMatrices>;

// Weights stored as F8_E4M3 with one float32 scale a block of [rows, cols], in NAME_scale_inv. 0: the checkpoint has none.
struct Fp8Blocks {
  uint64_t rows = 0, cols = 0;
};

// A program and where its weights are: by TensorId and by (table, expert).
struct CheckpointLayout {
  Program program;
  std::vector<WeightRef> tensors;
  std::vector<std::vector<ExpertRefs>> experts;
  Fp8Blocks fp8;
  // A tied head may be stored again under `head`, if it is the tensor `embedding`.
  std::string head, embedding;
  // Tensors whose names begin so are no part of what the program computes.
  std::vector<std::string> ignored;
};

// One tensor as the builder is told about it: its name in the program and where it is in the checkpoint.
struct TensorNames {
  std::string program;
  WeightRef checkpoint;
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
  ValueId AddNorm(ValueId in, const NormNode& norm);
  ValueId AddRotary(ValueId in, const RotaryNode& rotary);
  // Takes a new state slot.
  ValueId AddAttention(ValueId q, ValueId k, ValueId v, const AttentionNode& attention);
  ValueId AddMoe(ValueId in, ValueId router_logits, const MoeNode& moe);
  uint32_t AddExpertTable(uint64_t hidden, uint64_t intermediate, std::vector<ExpertRefs> experts);
  ValueId AddSlice(ValueId in, uint64_t begin, uint64_t width);
  // The last `shared` inputs go to each of `heads` heads.
  ValueId AddConcatHeads(const std::vector<ValueId>& inputs, uint32_t heads, uint32_t shared);
  // Takes a new state slot.
  ValueId AddConvolution(ValueId in, TensorId weight, TensorId bias);
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
