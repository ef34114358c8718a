// Distillation of experts, one block at a time: each encoded expert learns to give what the full model's expert gives for
// the rows that its router sends it. It minimises sum over rows of |g (f(x) - f_full(x))|^2, g the routing weight, through
// gate, up and down together, which rounding to a Hessian treats one by one. Kept weights, scales, minima and the rounding
// of every code learn; masks and codecs stay.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "compressor/calibration.h"
#include "compressor/pass/distill_learner.h"
#include "compressor/recipe.h"
#include "forward/forward.h"

namespace moepack {

// The rows that each expert of a block got.
class ExpertInputs : public Observer {
 public:
  struct Row {
    uint32_t token;  // of the batch
    float gate;
  };
  struct Table {
    const MoeNode* node = nullptr;
    Matrix input;                        // [tokens, hidden]
    std::vector<std::vector<Row>> rows;  // by expert, in token order
  };
  ExpertInputs(const Program& program, uint64_t tokens) : program_(program), tokens_(tokens) {}
  void OnMoe(const MoeCapture& capture) override;
  bool wants_moe() const override { return true; }
  const std::map<uint32_t, Table>& tables() const { return tables_; }

 private:
  const Program& program_;
  const uint64_t tokens_;
  std::map<uint32_t, Table> tables_;  // by index into Program::expert_tables
};

// One encoded expert. Matrices as ExpertMatrix counts them; a table without gates has no first one.
struct ExpertEncoding {
  std::array<QuantizedMatrix, 3> matrices;
  std::array<std::optional<Learns>, 3> learns;  // nullopt: stays as it is
};

struct ExpertDistillation {
  const ExpertInputs::Table* seen = nullptr;
  const Calibration* calibration = nullptr;
  const DistillRecipe* recipe = nullptr;
  // The full model's matrix of an expert of `experts`; thread-safe.
  std::function<Result<Matrix>(uint32_t expert, ExpertMatrix matrix)> full;
};

// Trains all experts of a table. An expert keeps what it learnt when that lowers its error on rows of held-back sequences
// (on the rows it learnt from, where none are). Errors are those of `full`. Sums over all experts of the error before and
// after. The same result on any number of threads; at any time a few matrices for each thread are held.
struct ErrorChange {
  double before = 0, after = 0;
};
Result<ErrorChange> DistillExperts(const ExpertDistillation& input, std::span<ExpertEncoding> experts, ThreadPool& pool);

}  // namespace moepack
