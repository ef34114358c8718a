// Runs a program over a tile of tokens of one or more sequences: steps of the plan in order, values in one arena, keys and
// values of earlier positions in the state of sequences.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "runtime-min/buffer.h"
#include "runtime-min/dense_weights.h"
#include "runtime-min/expert_cache.h"
#include "runtime-min/kernels/kernels.h"
#include "runtime-min/moe.h"
#include "runtime-min/plan.h"
#include "runtime-min/route_predictor.h"
#include "runtime-min/sequence_state.h"

namespace moepack::runtime {

struct ExecutorOptions {
  kernels::Isa isa = kernels::Isa::kScalar;
  uint32_t context = 0;         // longest sequence
  uint32_t tile_tokens = 0;     // most tokens a run
  uint32_t logit_rows = 1;      // most tokens of a run whose logits are wanted
  uint32_t prefetch = 0;        // MoE nodes whose experts are foretold, 0..kMaxPrefetchDepth
  bool coarse_routers = false;  // inputs of quantized routers in 8 bits (EngineOptions::router_input_bits)
  StandInOptions stand_ins;
};

// A token of a tile.
struct TileToken {
  int32_t token = 0;  // id, in range
  SequenceId sequence = 0;
  uint32_t position = 0;
};

// A token's values depend on the tokens before it in its sequence only: not on how a sequence is cut into runs, on other
// sequences of a run, or on threads.
class Executor {
 public:
  // `program` (validated), `weights`, `state`, `cache` and `pool` must outlive it. kNoMemory, kLimit.
  static Result<std::unique_ptr<Executor>> Create(const Program& program, const DenseWeights& weights, SequenceState& state,
                                                  ExpertCache& cache, ThreadPool& pool, const ExecutorOptions& options);

  // 1..tile_tokens tokens, those of a sequence in order; for each the state has room, and every position before it is in
  // the state or in the tile. The caller advances the state. Computes logits of the last `logit_rows` tokens, none when 0.
  // Allocates nothing once scratch has grown to the largest tile. rows: what goes in where the program takes floats, a row a
  // token; empty otherwise.
  Status Run(std::span<const TileToken> tokens, uint32_t logit_rows, std::span<const float> rows = {});
  // [logit_rows, vocab] of the last run, row-major; none after an error.
  std::span<const float> logits() const { return logits_; }
  void ForgetLogits() { logits_ = {}; }
  const StandInStats& stand_ins() const { return moe_->stats(); }
  void ResetStats() { moe_->ResetStats(); }

 private:
  // The rows of a tile that a step computes.
  struct Rows {
    size_t begin = 0, count = 0;
  };
  struct Item {
    const Node* node = nullptr;
    size_t row_begin = 0, row_end = 0;  // of its weight
  };
  // Consecutive tokens of one sequence.
  struct TokenRun {
    uint32_t row = 0, count = 0;  // row: of the rows that attend
  };
  // Rotary nodes that turn by the same angles share them.
  struct RotaryTable {
    const RotaryNode* node = nullptr;
    bool longer = false;  // the context is longer than the node's long_from
    FloatBuffer cos_sin;  // [tile, rotary_dim]
  };

  Executor(const Program& program, const DenseWeights& weights, SequenceState& state, ThreadPool& pool,
           const ExecutorOptions& options)
      : program_(program), weights_(weights), state_(state), pool_(pool), options_(options) {}
  Status CreateRotaryTables();
  Status RunStep(const Step& step, Rows rows);
  void Foretell(const Step& step, Rows rows);
  void RunEmbedding(const Node& node, Rows rows);
  void RunLinears(const Step& step, Rows rows);
  bool IsCoarse(const Node& node) const;
  void PrepareCoarse(ValueId value, Rows rows);
  void RunNorm(const Node& node, Rows rows);
  void RunRotary(const Node& node, Rows rows);
  void RunAttention(const Node& node, Rows rows);
  void LinkRows();
  size_t LastInputs(const ConvolutionState& state, const float* in, uint32_t row, uint64_t most,
                    ConvolutionInputs* inputs) const;
  void PlanAttention(const AttentionNode& attention, Rows rows);
  Status RunMoe(const Node& node, Rows rows);
  void RunElementwise(const Node& node, Rows rows);
  void RunSlice(const Node& node, Rows rows);
  void RunConcat(const Node& node, Rows rows);
  void RunConvolution(const Node& node, Rows rows);

  float* Row(ValueId value, Rows rows);  // first row of `rows`
  uint64_t Width(ValueId value) const { return plan_.values[value].width; }
  const kernels::Activations& Prepare(ValueId value, Rows rows);

  const Program& program_;
  const DenseWeights& weights_;
  SequenceState& state_;
  ThreadPool& pool_;
  ExecutorOptions options_;
  Plan plan_;
  FloatBuffer arena_;
  std::span<const TileToken> tokens_;   // of the run
  std::vector<uint32_t> previous_row_;  // by row: that of the token before it in its sequence; kNone: before the run
  std::vector<uint32_t> last_row_;      // by sequence: of its last token in the run; kNone: not in it
  std::vector<RotaryTable> rotary_;
  std::vector<uint32_t> rotary_table_;  // by node
  std::unique_ptr<MoeExecutor> moe_;
  std::unique_ptr<RoutePredictor> predictor_;  // null: nothing is foretold
  kernels::Activations activations_;
  kernels::Activations coarse_;       // inputs of routers in 8 bits
  std::vector<float> coarse_values_;  // [rows, width]
  ValueId prepared_ = kNone;          // what activations_ holds
  Rows prepared_rows_;
  std::vector<Item> items_;
  std::vector<TokenRun> runs_;    // of the attention that runs
  uint32_t attention_heads_ = 0;  // that make one task with a run
  std::span<const float> logits_;
};

}  // namespace moepack::runtime
