// Mixture-of-Experts nodes: routing, experts from the cache, the weighted sum.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "format/program.h"
#include "runtime-min/buffer.h"
#include "runtime-min/expert_cache.h"
#include "runtime-min/kernels/kernels.h"
#include "runtime-min/stand_ins.h"

namespace moepack::runtime {

// Scratch of all MoE nodes of a program, allocated once. Tokens of a tile are grouped by expert. Experts are taken in
// turns of as many as the cache can pin; every (token, choice) has its own output row and a token's rows are summed in the
// order of its choices, so the result does not depend on cache, turns, tile or threads.
class MoeExecutor {
 public:
  static Result<MoeExecutor> Create(const Program& program, ExpertCache& cache, ThreadPool& pool, kernels::Isa isa,
                                    uint32_t tile_tokens, StandInOptions stand_ins = {});

  // Tensors of the node as float32, row-major, null where it has none.
  struct Biases {
    const float* selection = nullptr;
    const float *gate = nullptr, *up = nullptr, *down = nullptr;
  };
  // The hidden state [tokens, hidden], prepared and as it is.
  struct Input {
    const kernels::Activations& prepared;
    const float* values;
  };
  // logits: [tokens, experts], out: [tokens, hidden].
  Status Run(const MoeNode& node, const ExpertTableDecl& table, const Biases& biases, const Input& x, const float* logits,
             float* out);
  const StandInStats& stats() const { return stats_; }
  void ResetStats() { stats_ = {}; }

 private:
  static constexpr size_t kExpertsPerTurn = 16;
  static constexpr uint32_t kRetries = 2;  // of a read that the policy lets repeat

  // The (token, choice) pairs of one expert: rows [begin, end) of outputs_ and rows_.
  struct Group {
    uint32_t expert = 0;
    size_t begin = 0, end = 0;
    size_t intermediate = 0;
    size_t offset = 0;  // first row in the buffers of a turn
    bool resident = false;
    uint32_t variant = 0;                        // of the expert, as its table lists them
    bool lowered = false;                        // the variant was chosen by MissPolicy
    VariantKind stand_in = VariantKind::kFirst;  // what the variant is, where a step of the policy chose it
    bool skipped = false;                        // by MissPolicy
    uint32_t retries = 0;                        // reads of this variant that were repeated
    size_t rows() const { return end - begin; }
    bool has_biases() const { return stand_in != VariantKind::kDense; }  // the expert's own
  };
  // Rows of one expert's matrix, the unit of work.
  struct Item {
    size_t group = 0;  // of the turn
    size_t row_begin = 0, row_end = 0;
  };

  MoeExecutor(ExpertCache& cache, ThreadPool& pool, kernels::Isa isa, StandInOptions options)
      : cache_(&cache), pool_(&pool), isa_(isa), options_(std::move(options)), stand_ins_(cache.tables()) {}
  void GroupByExpert(const ExpertTableDecl& table, size_t tokens, uint32_t k);
  void JudgeMisses(const MoeNode& node, size_t tokens);
  void OrderGroups(uint32_t table);
  size_t ChoiceOf(size_t row, uint32_t k) const;
  void LeaveOut(const Group& group, uint32_t k);
  size_t LeaveOutBesideOthers(Group* group, uint32_t k);
  Status Bridge(const MoeNode& node, const Status& failure, size_t index, size_t* done);
  void ReportBridge(const Group& group, uint32_t table, Unavailable step, const Status& failure);
  void CountBridged(std::span<const Group> turn);
  void Renormalise(size_t tokens, uint32_t k);
  Status RunTurns(const MoeNode& node, size_t hidden, const kernels::Activations& x);
  std::span<Group> NextTurn(size_t done);
  const kernels::Activations& WeightInputs(size_t rows, size_t hidden, const float* x);
  void AddBias(const float* bias, size_t columns, const Group& group, const Item& item, float* values, size_t stride) const;
  void AddItems(size_t group, size_t matrix_rows, size_t rows_per_item);
  void Expand(const MoeNode& node, std::span<const Group> turn, const kernels::Activations& x);
  void ExpandItem(const MoeNode& node, const Group& group, const Item& item, const kernels::Activations& input);
  void Contract(const MoeNode& node, std::span<const Group> turn, size_t hidden);
  void Combine(size_t tokens, uint32_t k, size_t hidden, float* out);

  ExpertCache* cache_;
  ThreadPool* pool_;
  kernels::Isa isa_;
  StandInOptions options_;
  StandIns stand_ins_;
  StandInStats stats_;
  std::set<std::array<uint32_t, 3>> reported_;  // (table, expert, step)
  bool left_out_ = false;                       // some choice of this run has no row
  Biases biases_;                               // of the node that runs
  size_t bias_columns_ = 0;                     // of its gate and up biases
  bool weight_on_input_ = false;
  std::vector<float> scores_;  // [tile, 2 * experts], scratch of routing
  // By token * k + choice.
  std::vector<uint32_t> ids_;
  std::vector<float> weights_;
  std::vector<uint32_t> place_;  // row of outputs_, kNone when it was left out
  std::vector<float> before_;    // WeightsBefore, where MissPolicy asks for it

  std::vector<uint32_t> rows_;     // token of each row of outputs_
  std::vector<float> gates_;       // weight of each row of outputs_
  std::vector<uint32_t> places_;   // 0, 1, 2 ...: the rows of weighted_
  kernels::Activations weighted_;  // the input of each row of outputs_, where weights go on inputs
  std::vector<size_t> counts_;     // scratch of the counting sort
  std::vector<Group> groups_;
  std::vector<uint32_t> turn_experts_;  // expert of each group
  std::vector<uint32_t> turn_variants_;
  std::vector<uint32_t> turn_uses_;  // its tokens
  std::vector<Item> items_;
  std::vector<kernels::Activations> middles_;  // by group of the turn
  size_t turn_rows_ = 0;                       // most rows of a turn
  size_t stride_ = 0;                          // columns of gate_ and middle_: the largest intermediate width
  FloatBuffer gate_, middle_;                  // [turn_rows_, stride_]
  FloatBuffer outputs_;                        // [tile * k, hidden]
};

}  // namespace moepack::runtime
