// Second moments of the inputs of every weight matrix of one block, collected while the forward runs it.
#pragma once

#include <map>
#include <span>
#include <utility>
#include <vector>

#include "compressor/tensors.h"
#include "forward/forward.h"

namespace moepack {

// Over the calibration tokens t that reached a matrix, with token weight v_t (domain weight; 0 leaves a token out) and
// routing weight g_t (1 outside of experts).
struct InputMoments {
  Matrix hessian;                       // sum v g^2 x x^T, symmetric; empty until collected
  std::vector<double> in_sq;            // sum v x_j^2 (Wanda's norms)
  double tokens = 0;                    // tokens with v > 0
  std::vector<float> diagonal() const;  // of the Hessian
};

// Moments that may be in memory at once; what GPTQ makes of them takes as much again. A block that needs more is run again
// for each share of its tensors.
inline constexpr uint64_t kMaxMomentBytes = uint64_t{1} << 28;

class HessianCollector : public Observer {
 public:
  // Collects for the matrices in `wanted` (all of one block). token_weights: one a token of the batch that is run.
  HessianCollector(const Program& program, std::span<const TensorRef> wanted, std::span<const float> token_weights,
                   ThreadPool& pool);
  // Cuts `wanted` into consecutive runs, as indices, whose moments take at most `most_bytes`; a run has one tensor at least.
  static std::vector<std::vector<size_t>> CutByMoments(const Program& program, std::span<const TensorRef> wanted,
                                                       uint64_t most_bytes);

  void OnLinear(const Node& node, uint64_t first_token, const Matrix& input, const Matrix& output) override;
  void OnMoe(const MoeCapture& capture) override;
  bool wants_linear() const override { return !dense_.empty(); }
  bool wants_moe() const override { return !experts_.empty(); }
  bool wants_node(const Node& node) const override;
  bool wants_expert(uint32_t table, uint32_t expert) const override;

  // Moments of the input of `tensor`, null when not collected (embeddings, vectors). Valid after the run; the first call
  // completes the symmetric halves.
  const InputMoments* Find(const TensorRef& tensor);
  // Sum of the gate-weighted Hessians of the gate/up inputs of all experts of a table, those that are not wanted included
  // (up to a factor, and with equal weights where the record puts weights on inputs).
  Matrix Pooled(uint32_t table);

 private:
  // Inputs that several matrices share are collected once: dense by the value read, experts by (table, expert, down).
  using ExpertKey = std::tuple<uint32_t, uint32_t, bool>;
  struct Rows {
    InputMoments* moments = nullptr;
    Matrix scaled;  // sqrt(v) g x
  };
  void Accumulate(std::vector<Rows>& batches);
  void AddRows(const Matrix& input, std::span<const float> token_weight, std::span<const float> gates, InputMoments* moments,
               std::vector<Rows>* batches);
  void Complete();

  std::span<const float> token_weights_;
  ThreadPool& pool_;
  std::map<TensorId, ValueId> input_of_;
  std::map<ValueId, InputMoments> dense_;
  std::map<ValueId, const Node*> first_reader_;  // shared inputs are counted at their first wanted reader
  std::map<ExpertKey, InputMoments> experts_;
  std::map<uint32_t, InputMoments> pooled_;  // of tables that only some experts are wanted of
  bool complete_ = false;
};

}  // namespace moepack
