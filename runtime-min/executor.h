// Runs a program over a tile of tokens of one sequence: steps of the plan in order, values in one arena, keys and values of
// earlier positions in KV caches.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "runtime-min/attention.h"
#include "runtime-min/buffer.h"
#include "runtime-min/convolution.h"
#include "runtime-min/dense_weights.h"
#include "runtime-min/expert_cache.h"
#include "runtime-min/kernels/kernels.h"
#include "runtime-min/moe.h"
#include "runtime-min/plan.h"

namespace moepack::runtime {

struct ExecutorOptions {
  kernels::Isa isa = kernels::Isa::kScalar;
  uint32_t context = 0;      // longest sequence
  uint32_t tile_tokens = 0;  // most tokens a run
  uint32_t logit_rows = 1;   // most tokens of a run whose logits are wanted
};

// A token's values depend on the tokens before it only: not on how a sequence is cut into runs, and not on threads.
class Executor {
 public:
  // `program` (validated), `weights`, `cache` and `pool` must outlive it. kNoMemory, kLimit.
  static Result<std::unique_ptr<Executor>> Create(const Program& program, const DenseWeights& weights, ExpertCache& cache,
                                                  ThreadPool& pool, const ExecutorOptions& options);

  // tokens: 1..tile_tokens ids in range, at positions position, position + 1, ... (position + tokens <= context). State of
  // earlier positions must be there. Computes logits of the last `logit_rows` tokens, none when 0. Allocates nothing once
  // scratch has grown to the largest tile.
  Status Run(std::span<const int32_t> tokens, uint32_t position, uint32_t logit_rows);
  // [logit_rows, vocab] of the last run, row-major.
  std::span<const float> logits() const { return logits_; }
  uint64_t state_bytes() const;

 private:
  // The rows of a tile that a step computes.
  struct Rows {
    size_t begin = 0, count = 0;
  };
  struct Item {
    const Node* node = nullptr;
    size_t row_begin = 0, row_end = 0;  // of its weight
  };
  // Rotary nodes that turn by the same angles share them.
  struct RotaryTable {
    const RotaryNode* node = nullptr;
    bool longer = false;  // the context is longer than the node's long_from
    FloatBuffer cos_sin;  // [tile, rotary_dim]
  };

  Executor(const Program& program, const DenseWeights& weights, ThreadPool& pool, const ExecutorOptions& options)
      : program_(program), weights_(weights), pool_(pool), options_(options) {}
  Status CreateState();
  Status CreateRotaryTables();
  Status RunStep(const Step& step, std::span<const int32_t> tokens, uint32_t position, Rows rows);
  void RunEmbedding(const Node& node, std::span<const int32_t> tokens, Rows rows);
  void RunLinears(const Step& step, Rows rows);
  void RunNorm(const Node& node, Rows rows);
  void RunRotary(const Node& node, Rows rows);
  void RunAttention(const Node& node, Rows rows, size_t tokens, uint32_t position);
  Status RunMoe(const Node& node, Rows rows);
  void RunElementwise(const Node& node, Rows rows);
  void RunSlice(const Node& node, Rows rows);
  void RunConcat(const Node& node, Rows rows);
  void RunConvolution(const Node& node, Rows rows, size_t tokens, uint32_t position);

  float* Row(ValueId value, Rows rows);  // first row of `rows`
  uint64_t Width(ValueId value) const { return plan_.values[value].width; }
  const kernels::Activations& Prepare(ValueId value, Rows rows);

  const Program& program_;
  const DenseWeights& weights_;
  ThreadPool& pool_;
  ExecutorOptions options_;
  Plan plan_;
  FloatBuffer arena_;
  std::vector<KvCache> state_;             // by state slot; empty for those of convolutions
  std::vector<ConvolutionState> history_;  // by state slot; empty for those of attention
  std::vector<RotaryTable> rotary_;
  std::vector<uint32_t> rotary_table_;  // by node
  std::unique_ptr<MoeExecutor> moe_;
  kernels::Activations activations_;
  ValueId prepared_ = kNone;  // what activations_ holds
  Rows prepared_rows_;
  std::vector<Item> items_;
  std::span<const float> logits_;
};

}  // namespace moepack::runtime
