#include "runtime-min/moe.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "base/checked.h"
#include "runtime-min/parallel.h"
#include "runtime-min/prepare.h"
#include "runtime-min/routing.h"
#include "runtime-min/vector_math.h"

namespace moepack::runtime {
namespace {

struct Sizes {
  uint64_t k = 0, experts = 0, hidden = 0, intermediate = 0;  // the largest of all MoE nodes
};

Sizes LargestSizes(const Program& program) {
  Sizes sizes;
  for (const Node& node : program.nodes) {
    if (node.kind != NodeKind::kMoe) continue;
    const ExpertTableDecl& table = program.expert_tables[node.moe.table];
    sizes.k = std::max<uint64_t>(sizes.k, node.moe.routing.k);
    sizes.experts = std::max<uint64_t>(sizes.experts, table.experts());
    sizes.hidden = std::max(sizes.hidden, table.hidden);
    for (uint64_t intermediate : table.intermediate) sizes.intermediate = std::max(sizes.intermediate, intermediate);
  }
  return sizes;
}

Result<FloatBuffer> CreateRows(uint64_t rows, uint64_t columns) {
  uint64_t count = 0;
  if (!CheckedMul(rows, columns, &count)) return Status(ErrorCode::kLimit, "MoE buffers: size overflows");
  return FloatBuffer::Create(count);
}

constexpr size_t Index(ExpertMatrix m) { return static_cast<size_t>(m); }

}  // namespace

Result<MoeExecutor> MoeExecutor::Create(const Program& program, ExpertCache& cache, ThreadPool& pool, kernels::Isa isa,
                                        uint32_t tile_tokens, StandInOptions stand_ins) {
  const Sizes sizes = LargestSizes(program);
  const uint64_t choices = sizes.k * tile_tokens;  // both are capped far below 2^32
  MoeExecutor moe(cache, pool, isa, std::move(stand_ins));
  // One expert of a whole tile, or all experts of one token; more only makes fewer and larger turns.
  moe.turn_rows_ = std::max<uint64_t>(sizes.k, 2 * uint64_t{tile_tokens});
  moe.scores_.resize(2 * sizes.experts * tile_tokens);
  moe.ids_.resize(choices);
  moe.weights_.resize(choices);
  moe.place_.resize(choices);
  moe.before_.resize(choices);
  moe.rows_.resize(choices);
  moe.gates_.resize(choices);
  moe.places_.resize(choices);
  std::iota(moe.places_.begin(), moe.places_.end(), 0u);
  moe.counts_.resize(sizes.experts + 1);
  moe.groups_.reserve(sizes.experts);
  moe.turn_experts_.reserve(sizes.experts);
  moe.turn_variants_.reserve(sizes.experts);
  moe.turn_uses_.reserve(sizes.experts);
  moe.items_.reserve(kExpertsPerTurn * (std::max(sizes.hidden, sizes.intermediate) / 16 + 1));
  moe.middles_.resize(kExpertsPerTurn);
  moe.stride_ = sizes.intermediate;
  MOEPACK_ASSIGN_OR_RETURN(moe.gate_, CreateRows(moe.turn_rows_, sizes.intermediate));
  MOEPACK_ASSIGN_OR_RETURN(moe.middle_, CreateRows(moe.turn_rows_, sizes.intermediate));
  MOEPACK_ASSIGN_OR_RETURN(moe.outputs_, CreateRows(choices, sizes.hidden));
  return moe;
}

Status MoeExecutor::Run(const MoeNode& node, const ExpertTableDecl& table, const Biases& biases, const Input& x,
                        const float* logits, float* out) {
  const uint32_t k = node.routing.k;
  const size_t experts = table.experts(), tokens = x.prepared.tokens();
  biases_ = biases;
  if (biases.up != nullptr) bias_columns_ = *std::max_element(table.intermediate.begin(), table.intermediate.end());
  weight_on_input_ = node.routing.weight_on_input;
  const RoutingTables tables{biases.selection, table.original};
  ForEach(*pool_, tokens, experts * 16, [&](size_t t) {
    float* scores = scores_.data() + t * 2 * experts;
    std::copy(logits + t * experts, logits + (t + 1) * experts, scores);
    Route(node.routing, tables, {scores, 2 * experts}, {ids_.data() + t * k, k}, {weights_.data() + t * k, k});
  });
  GroupByExpert(table, tokens, k);
  left_out_ = false;
  if (options_.misses.on_miss != OnMiss::kLoad) JudgeMisses(node, tokens);
  OrderGroups(node.table);
  cache_->Route(node.table, tokens, turn_experts_, turn_uses_, turn_variants_);
  for (; groups_.back().skipped; groups_.pop_back()) LeaveOut(groups_.back(), k);
  const kernels::Activations& inputs = weight_on_input_ ? WeightInputs(tokens * k, table.hidden, x.values) : x.prepared;
  MOEPACK_RETURN_IF_ERROR(RunTurns(node, table.hidden, inputs));
  if (left_out_) Renormalise(tokens, k);
  Combine(tokens, k, table.hidden, out);
  return Status::Ok();
}

// Counting sort of the (token, choice) pairs by expert; tokens stay in order within an expert.
void MoeExecutor::GroupByExpert(const ExpertTableDecl& table, size_t tokens, uint32_t k) {
  std::fill(counts_.begin(), counts_.end(), 0);
  for (size_t i = 0; i < tokens * k; ++i) ++counts_[ids_[i] + 1];
  groups_.clear();
  for (uint32_t e = 0; e < table.experts(); ++e) {
    const size_t begin = counts_[e];
    counts_[e + 1] += begin;
    if (counts_[e + 1] > begin) groups_.push_back({e, begin, counts_[e + 1], table.intermediate[e]});
  }
  for (size_t i = 0; i < tokens * k; ++i) {
    const size_t at = counts_[ids_[i]]++;
    place_[i] = static_cast<uint32_t>(at);
    rows_[at] = static_cast<uint32_t>(i / k);
    gates_[at] = weights_[i];
  }
}

// The input of every row of outputs_ times its weight. outputs_ is not in use yet and holds them until they are prepared.
const kernels::Activations& MoeExecutor::WeightInputs(size_t rows, size_t hidden, const float* x) {
  ForEach(*pool_, rows, hidden * 2, [&](size_t at) {
    const float* from = x + rows_[at] * hidden;
    float* to = outputs_.data() + at * hidden;
    for (size_t c = 0; c < hidden; ++c) to[c] = from[c] * gates_[at];
  });
  const RowsToPrepare job{outputs_.data(), rows, hidden, hidden, &weighted_};
  PrepareRows(*pool_, isa_, {&job, 1});
  return weighted_;
}

// Resident experts first, so that loading the others does not push them out before they were used; skipped ones last.
void MoeExecutor::OrderGroups(uint32_t table) {
  for (Group& group : groups_) group.resident = cache_->IsResident(table, group.expert, group.variant);
  std::sort(groups_.begin(), groups_.end(), [](const Group& a, const Group& b) {
    if (a.skipped != b.skipped) return b.skipped;
    return a.resident != b.resident ? a.resident : a.expert < b.expert;
  });
  turn_experts_.clear();
  turn_variants_.clear();
  turn_uses_.clear();
  for (const Group& group : groups_) {
    turn_experts_.push_back(group.expert);
    turn_variants_.push_back(group.variant);
    turn_uses_.push_back(static_cast<uint32_t>(group.rows()));
  }
}

// The groups from `done` on that fit the buffers of a turn, with their places there.
std::span<MoeExecutor::Group> MoeExecutor::NextTurn(size_t done) {
  size_t offset = 0, count = 0;
  for (; count < kExpertsPerTurn && done + count < groups_.size(); ++count) {
    Group& group = groups_[done + count];
    if (offset + group.rows() > turn_rows_) break;
    group.offset = offset;
    offset += group.rows();
  }
  return {groups_.data() + done, count};
}

Status MoeExecutor::RunTurns(const MoeNode& node, size_t hidden, const kernels::Activations& x) {
  for (size_t done = 0; done < groups_.size();) {
    const std::span<Group> wanted = NextTurn(done);
    const std::span<const uint32_t> experts(turn_experts_.data() + done, wanted.size());
    const std::span<const uint32_t> variants(turn_variants_.data() + done, wanted.size());
    const Result<size_t> fitting = cache_->Pin(node.table, experts, variants);
    if (!fitting.ok()) {
      MOEPACK_RETURN_IF_ERROR(Bridge(node, fitting.status(), done + cache_->failed(), &done));
      continue;
    }
    const size_t pinned = *fitting;
    if (pinned == 0) return Status(ErrorCode::kInternal, "expert cache: no expert fits although the budget was checked");
    const std::span<Group> turn = wanted.first(pinned);
    CountBridged(turn);
    Expand(node, turn, x);
    Contract(node, turn, hidden);
    cache_->Unpin(node.table, experts.first(pinned), variants.first(pinned));
    done += pinned;
  }
  return Status::Ok();
}

void MoeExecutor::AddItems(size_t group, size_t matrix_rows, size_t rows_per_item) {
  for (size_t begin = 0; begin < matrix_rows; begin += rows_per_item) {
    items_.push_back({group, begin, std::min(matrix_rows, begin + rows_per_item)});
  }
}

// middle = act(gate(x)) * up(x), then prepared for the down matrices.
void MoeExecutor::Expand(const MoeNode& node, std::span<const Group> turn, const kernels::Activations& x) {
  items_.clear();
  size_t all_rows = 0;
  for (const Group& group : turn) all_rows += group.intermediate;
  for (size_t g = 0; g < turn.size(); ++g) {
    AddItems(g, turn[g].intermediate, RowsPerBlock(x.cols(), turn[g].rows(), all_rows, pool_->threads()));
  }
  pool_->ParallelFor(items_.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) ExpandItem(node, turn[items_[i].group], items_[i], x);
  });
  std::array<RowsToPrepare, kExpertsPerTurn> jobs;
  for (size_t g = 0; g < turn.size(); ++g) {
    jobs[g] = {middle_.data() + turn[g].offset * stride_, turn[g].rows(), turn[g].intermediate, stride_, &middles_[g]};
  }
  PrepareRows(*pool_, isa_, std::span(jobs).first(turn.size()));
}

void MoeExecutor::ExpandItem(const MoeNode& node, const Group& group, const Item& item, const kernels::Activations& x) {
  const ExpertWeights& weights = cache_->weights(node.table, group.expert, group.variant);
  const std::vector<uint32_t>& inputs = weight_on_input_ ? places_ : rows_;
  const std::span<const uint32_t> tokens(inputs.data() + group.begin, group.rows());
  float* gate = gate_.data() + group.offset * stride_;
  float* middle = middle_.data() + group.offset * stride_;
  kernels::MatMul(isa_, weights[Index(ExpertMatrix::kUp)], x, tokens, middle, stride_, item.row_begin, item.row_end);
  const size_t count = item.row_end - item.row_begin;
  AddBias(biases_.up, bias_columns_, group, item, middle, stride_);
  if (!node.activation.gated) {
    for (size_t t = 0; t < group.rows(); ++t) {
      float* row = middle + t * stride_ + item.row_begin;
      Activate(node.activation.function, row, count, row);
    }
    return;
  }
  kernels::MatMul(isa_, weights[Index(ExpertMatrix::kGate)], x, tokens, gate, stride_, item.row_begin, item.row_end);
  AddBias(biases_.gate, bias_columns_, group, item, gate, stride_);
  for (size_t t = 0; t < group.rows(); ++t) {
    const size_t at = t * stride_ + item.row_begin;
    ActivateGated(node.activation, gate + at, middle + at, count, middle + at);
  }
}

// Columns [row_begin, row_end) of every row += the expert's row of `bias` [experts, columns], null for none. A dense
// stand-in has none.
void MoeExecutor::AddBias(const float* bias, size_t columns, const Group& group, const Item& item, float* values,
                          size_t stride) const {
  if (bias == nullptr || !group.has_biases()) return;
  const float* row = bias + group.expert * columns;
  for (size_t t = 0; t < group.rows(); ++t) {
    for (size_t r = item.row_begin; r < item.row_end; ++r) values[t * stride + r] += row[r];
  }
}

void MoeExecutor::Contract(const MoeNode& node, std::span<const Group> turn, size_t hidden) {
  items_.clear();
  for (size_t g = 0; g < turn.size(); ++g) {
    AddItems(g, hidden, RowsPerBlock(turn[g].intermediate, turn[g].rows(), turn.size() * hidden, pool_->threads()));
  }
  pool_->ParallelFor(items_.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const Item& item = items_[i];
      const Group& group = turn[item.group];
      const ExpertWeights& weights = cache_->weights(node.table, group.expert, group.variant);
      kernels::MatMul(isa_, weights[Index(ExpertMatrix::kDown)], middles_[item.group],
                      outputs_.data() + group.begin * hidden, hidden, item.row_begin, item.row_end);
      AddBias(biases_.down, hidden, group, item, outputs_.data() + group.begin * hidden, hidden);
    }
  });
}

// out[t] = sum over choices of weight * output, in the order of the choices.
void MoeExecutor::Combine(size_t tokens, uint32_t k, size_t hidden, float* out) {
  ForEach(*pool_, tokens, k * hidden, [&](size_t t) {
    float* row = out + t * hidden;
    std::fill(row, row + hidden, 0.0f);
    for (size_t c = t * k; c < (t + 1) * k; ++c) {
      if (place_[c] == kNone) continue;
      const float* y = outputs_.data() + place_[c] * hidden;
      const float weight = weight_on_input_ ? 1.0f : weights_[c];
      for (size_t i = 0; i < hidden; ++i) row[i] += weight * y[i];
    }
  });
}

}  // namespace moepack::runtime
