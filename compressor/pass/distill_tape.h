// A block of a program over one tile of tokens, forward with every value kept, then backward: gradients of a loss by the
// weights that are being learnt.
#pragma once

#include <map>
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

// One block at a time, so that one block's weights and values are all that is held.
class Tape {
 public:
  // All arguments must outlive the tape; weights may change between runs.
  Tape(const Program& program, int32_t block, const BlockWeights& weights, ThreadPool& pool);

  // `part`: whole sequences; `before`: values of earlier blocks, over the rows of `part`. Nodes are plain
  // (model/plain_nodes.h). kBadInput for a token outside of the vocabulary.
  Status Forward(const TokenBatch& part, const Stream& before);
  const Matrix& value(ValueId id) const { return values_[id]; }

  // After Forward. `derivatives`: of the loss by values that live after the block; those of the block's own are taken out,
  // those by values of earlier blocks added, if `earlier_learn`. Gradients of the tensors in `gradients` are added to; what
  // no such tensor influences is not computed.
  void Backward(bool earlier_learn, Stream* derivatives, Gradients* gradients);

 private:
  const Matrix* Dense(TensorId id) const { return id == kNone ? nullptr : &weights_.dense(id); }
  Status RunNode(const Node& node, const TokenBatch& part);
  void FindLearning(bool earlier_learn, const Gradients& gradients);
  void NodeBackward(const Node& node, Gradients* gradients);
  void MoeNodeBackward(const Node& node, const Matrix& d_out, Gradients* gradients);
  // Where the derivative by a value is summed; null when nothing learnt influences the value.
  Matrix* Derivative(ValueId id) { return learning_[id] ? &derivatives_[id] : nullptr; }

  const Program& program_;
  std::vector<const Node*> nodes_;  // of the block, in order
  std::vector<ValueId> imports_;    // values of earlier blocks that it reads
  const BlockWeights& weights_;
  ThreadPool& pool_;
  std::vector<Matrix> values_, derivatives_;  // by ValueId
  std::vector<bool> learning_;                // by ValueId: depends on something learnt
  std::map<const Node*, MoeCapture> captures_;
  std::vector<uint32_t> positions_;
  std::vector<TileSequence> sequences_;
};

}  // namespace moepack
