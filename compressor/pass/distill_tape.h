// A program over one tile of tokens, forward with every value kept, then backward: gradients of a loss by the weights that
// are being learnt.
#pragma once

#include <map>
#include <set>
#include <vector>

#include "compressor/pass/distill_nodes.h"
#include "compressor/tensors.h"

namespace moepack {

// Gradients of the weights that are learnt, by what they belong to. Shapes are the weights'.
struct Gradients {
  std::map<TensorId, Matrix> dense;
  std::map<std::tuple<uint32_t, uint32_t, ExpertMatrix>, Matrix> experts;
  // Adds a zero matrix.
  Matrix& Add(const TensorRef& t);
  Matrix& Of(const TensorRef& t) { return t.is_expert() ? experts.at({t.table, t.expert, t.matrix}) : dense.at(t.dense); }
  void SetZero();
};

class Tape {
 public:
  // `weights` has one entry a block of the program, loaded before Forward. All arguments must outlive the tape; weights may
  // change between runs.
  Tape(const Program& program, const std::vector<BlockWeights>& weights, ThreadPool& pool);

  // `part`: whole sequences. Errors: kBadInput for a token outside of the vocabulary.
  Status Forward(const TokenBatch& part);
  const Matrix& value(ValueId id) const { return values_[id]; }

  // d_value: derivative of the loss by value `id`, after Forward. Gradients of the tensors in `gradients` are added to;
  // what no such tensor influences is not computed.
  void Backward(ValueId id, Matrix d_value, Gradients* gradients);

 private:
  const Matrix* Dense(const Node& node, TensorId id) const {
    return id == kNone ? nullptr : &weights_[node.block].dense(id);
  }
  Status RunNode(const Node& node, const TokenBatch& part);
  void FindLearning(const Gradients& gradients);
  void NodeBackward(const Node& node, Gradients* gradients);
  void MoeNodeBackward(const Node& node, const Matrix& d_out, Gradients* gradients);
  // Where the derivative by a value is summed; null when nothing learnt influences the value.
  Matrix* Derivative(ValueId id);

  const Program& program_;
  const std::vector<BlockWeights>& weights_;
  ThreadPool& pool_;
  std::vector<Matrix> values_, derivatives_;  // by ValueId
  std::vector<bool> learning_;                // by ValueId: depends on something learnt
  std::map<const Node*, MoeCapture> captures_;
  std::vector<uint32_t> positions_;
  std::vector<TileSequence> sequences_;
};

}  // namespace moepack
