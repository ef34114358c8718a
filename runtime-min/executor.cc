#include "runtime-min/executor.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>

#include "base/checked.h"
#include "runtime-min/attention.h"
#include "runtime-min/parallel.h"
#include "runtime-min/prepare.h"
#include "runtime-min/vector_math.h"

namespace moepack::runtime {

Result<std::unique_ptr<Executor>> Executor::Create(const Program& program, const DenseWeights& weights, SequenceState& state,
                                                   ExpertCache& cache, ThreadPool& pool, const ExecutorOptions& options) {
  std::unique_ptr<Executor> executor(new Executor(program, weights, state, pool, options));
  MOEPACK_ASSIGN_OR_RETURN(executor->plan_, MakePlan(program, options.tile_tokens, options.logit_rows));
  MOEPACK_ASSIGN_OR_RETURN(executor->arena_, FloatBuffer::Create(executor->plan_.arena_floats));
  MOEPACK_RETURN_IF_ERROR(executor->CreateRotaryTables());
  MOEPACK_ASSIGN_OR_RETURN(MoeExecutor moe,
                           MoeExecutor::Create(program, cache, pool, options.isa, options.tile_tokens, options.stand_ins));
  executor->runs_.reserve(options.tile_tokens);
  executor->previous_row_.resize(options.tile_tokens);
  executor->last_row_.resize(state.sequences().capacity());
  executor->moe_ = std::make_unique<MoeExecutor>(std::move(moe));
  if (options.prefetch > 0) {
    MOEPACK_ASSIGN_OR_RETURN(executor->predictor_,
                             RoutePredictor::Create(program, weights, cache, pool, options.isa, options.prefetch));
  }
  return executor;
}

Status Executor::CreateRotaryTables() {
  rotary_table_.resize(program_.nodes.size());
  const auto less = [](const RotaryNode* a, const RotaryNode* b) {
    const auto angles = [](const RotaryNode* n) {
      return std::tie(n->magnitude, n->inv_freq, n->long_from, n->long_magnitude, n->long_inv_freq);
    };
    return angles(a) < angles(b);
  };
  std::map<const RotaryNode*, uint32_t, decltype(less)> tables(less);
  for (size_t n = 0; n < program_.nodes.size(); ++n) {
    if (program_.nodes[n].kind != NodeKind::kRotary) continue;
    const RotaryNode& node = program_.nodes[n].rotary;
    const auto [known, added] = tables.emplace(&node, static_cast<uint32_t>(rotary_.size()));
    rotary_table_[n] = known->second;
    if (!added) continue;
    uint64_t floats = 0;
    if (!CheckedMul(options_.tile_tokens, node.rotary_dim, &floats))
      return Status(ErrorCode::kLimit, "rotary: size overflows");
    RotaryTable table{&node, node.long_from > 0 && options_.context > node.long_from, {}};
    MOEPACK_ASSIGN_OR_RETURN(table.cos_sin, FloatBuffer::Create(floats));
    rotary_.push_back(std::move(table));
  }
  return Status::Ok();
}

Status Executor::Run(std::span<const TileToken> tokens, uint32_t logit_rows, std::span<const float> rows) {
  tokens_ = tokens;
  ForgetLogits();
  prepared_ = kNone;
  LinkRows();
  for (RotaryTable& table : rotary_) {
    for (size_t t = 0; t < tokens.size(); ++t) {
      RotaryAngles(*table.node, table.longer, tokens[t].position, table.cos_sin.data() + t * table.node->rotary_dim);
    }
  }
  const Rows all{0, tokens.size()}, wanted{tokens.size() - logit_rows, logit_rows};
  if (!rows.empty()) std::memcpy(Row(program_.inputs[0], all), rows.data(), rows.size_bytes());
  for (const Step& step : plan_.steps) {
    const Rows part = step.tail ? wanted : all;
    MOEPACK_RETURN_IF_ERROR(RunStep(step, part));
    if (predictor_ != nullptr) Foretell(step, part);
  }
  logits_ = {Row(program_.output, wanted), Width(program_.output) * logit_rows};
  return Status::Ok();
}

void Executor::LinkRows() {
  for (const TileToken& token : tokens_) last_row_[token.sequence] = kNone;
  for (uint32_t row = 0; row < tokens_.size(); ++row) {
    uint32_t& last = last_row_[tokens_[row].sequence];
    previous_row_[row] = last;
    last = row;
  }
}

Status Executor::RunStep(const Step& step, Rows rows) {
  const Node& node = program_.nodes[step.nodes[0]];
  const bool has_state = step.kind == NodeKind::kAttention || step.kind == NodeKind::kConvolution;
  if (rows.count == 0 && !has_state) return Status::Ok();
  switch (step.kind) {
    case NodeKind::kEmbedding:
      RunEmbedding(node, rows);
      break;
    case NodeKind::kLinear:
      RunLinears(step, rows);
      break;
    case NodeKind::kNorm:
      RunNorm(node, rows);
      break;
    case NodeKind::kRotary:
      RunRotary(node, rows);
      break;
    case NodeKind::kAttention:
      RunAttention(node, rows);
      break;
    case NodeKind::kMoe:
      return RunMoe(node, rows);
    case NodeKind::kElementwise:
      RunElementwise(node, rows);
      break;
    case NodeKind::kSlice:
      RunSlice(node, rows);
      break;
    case NodeKind::kConcat:
      RunConcat(node, rows);
      break;
    case NodeKind::kConvolution:
      RunConvolution(node, rows);
      break;
  }
  return Status::Ok();
}

void Executor::Foretell(const Step& step, Rows rows) {
  for (const uint32_t node : step.nodes) {
    const ValueId value = predictor_->ValueFor(node);
    if (value != kNone) predictor_->Run(node, Row(value, rows), rows.count);
  }
}

float* Executor::Row(ValueId value, Rows rows) {
  const ValuePlace& place = plan_.values[value];
  return arena_.data() + place.offset + (place.tail ? 0 : rows.begin * place.width);
}

const kernels::Activations& Executor::Prepare(ValueId value, Rows rows) {
  if (prepared_ != value || prepared_rows_.begin != rows.begin || prepared_rows_.count != rows.count) {
    const size_t width = Width(value);
    const RowsToPrepare job{Row(value, rows), rows.count, width, width, &activations_};
    PrepareRows(pool_, options_.isa, {&job, 1});
    prepared_ = value;
    prepared_rows_ = rows;
  }
  return activations_;
}

void Executor::RunEmbedding(const Node& node, Rows rows) {
  const ResidentTensor& table = weights_.matrix(node.embedding.table);
  float* out = Row(node.output, rows);
  const uint64_t width = Width(node.output);
  ForEach(pool_, rows.count, width * 4,
          [&](size_t i) { kernels::DecodeRow(table, static_cast<size_t>(tokens_[rows.begin + i].token), out + i * width); });
}

bool Executor::IsCoarse(const Node& node) const {
  const TensorId weight = node.linear.weight;
  return options_.coarse_routers && program_.tensors[weight].role == TensorRole::kRouter &&
         weights_.matrix(weight).codec().coded();
}

// Values of 8 bits with a step for each row. All products take finer steps, 257 of which are one of these: nothing more is
// lost.
void Executor::PrepareCoarse(ValueId value, Rows rows) {
  const size_t width = Width(value);
  const float* x = Row(value, rows);
  coarse_values_.resize(rows.count * width);
  ForEach(pool_, rows.count, width * 4,
          [&](size_t t) { RoundTo8Bits(x + t * width, width, coarse_values_.data() + t * width); });
  const RowsToPrepare job{coarse_values_.data(), rows.count, width, width, &coarse_};
  PrepareRows(pool_, options_.isa, {&job, 1});
}

void Executor::RunLinears(const Step& step, Rows rows) {
  const ValueId input = program_.nodes[step.nodes[0]].inputs[0];
  const kernels::Activations& fine = Prepare(input, rows);
  const auto is_coarse = [this](uint32_t n) { return IsCoarse(program_.nodes[n]); };
  if (std::any_of(step.nodes.begin(), step.nodes.end(), is_coarse)) PrepareCoarse(input, rows);
  size_t all_rows = 0;
  for (uint32_t n : step.nodes) all_rows += Width(program_.nodes[n].output);
  const size_t rows_per_item = RowsPerBlock(Width(input), rows.count, all_rows, pool_.threads());
  items_.clear();
  for (uint32_t n : step.nodes) {
    const Node& node = program_.nodes[n];
    const size_t width = Width(node.output);
    for (size_t begin = 0; begin < width; begin += rows_per_item) {
      items_.push_back({&node, begin, std::min(width, begin + rows_per_item)});
    }
  }
  pool_.ParallelFor(items_.size(), 1, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      const Item& item = items_[i];
      float* y = Row(item.node->output, rows);
      const size_t width = Width(item.node->output);
      const kernels::Activations& x = IsCoarse(*item.node) ? coarse_ : fine;
      kernels::MatMul(options_.isa, weights_.matrix(item.node->linear.weight), x, y, width, item.row_begin, item.row_end);
      const float* bias = weights_.vector(item.node->linear.bias);
      for (size_t t = 0; bias != nullptr && t < rows.count; ++t, y += width) {
        for (size_t r = item.row_begin; r < item.row_end; ++r) y[r] += bias[r];
      }
    }
  });
}

void Executor::RunNorm(const Node& node, Rows rows) {
  const float* in = Row(node.inputs[0], rows);
  float* out = Row(node.output, rows);
  const uint64_t width = Width(node.output);
  const float* weight = weights_.vector(node.norm.weight);
  const float* bias = weights_.vector(node.norm.bias);
  // What is multiplied next is prepared for it row by row, while the row is in the cache.
  const bool multiplied = plan_.values[node.output].multiplied;
  if (multiplied) {
    activations_.Reshape(options_.isa, rows.count, width);
    prepared_ = node.output;
    prepared_rows_ = rows;
  }
  ForEach(pool_, rows.count, width * (multiplied ? 5 : 1), [&](size_t i) {
    NormRow(node.norm, weight, bias, in + i * width, width, out + i * width);
    if (multiplied) activations_.Fill(out, width, i, i + 1);
  });
}

void Executor::RunRotary(const Node& node, Rows rows) {
  const float* in = Row(node.inputs[0], rows);
  float* out = Row(node.output, rows);
  const uint64_t width = Width(node.output);
  const float* cos_sin = rotary_[rotary_table_[static_cast<size_t>(&node - program_.nodes.data())]].cos_sin.data();
  ForEach(pool_, rows.count, width * 2, [&](size_t i) {
    RotateRow(node.rotary, cos_sin + (rows.begin + i) * node.rotary.rotary_dim, in + i * width, out + i * width);
  });
}

// Keys and values of every token are stored, also when the output of few or none is wanted.
void Executor::RunAttention(const Node& node, Rows rows) {
  const AttentionNode& attention = node.attention;
  const Sequences& sequences = state_.sequences();
  KvCache& cache = state_.keys_and_values(attention.state_slot);
  const Rows all{0, tokens_.size()};
  const float* k = Row(node.inputs[1], all);
  const float* v = Row(node.inputs[2], all);
  const uint64_t k_width = Width(node.inputs[1]), v_width = Width(node.inputs[2]);
  ForEach(pool_, all.count, k_width * 4, [&](size_t t) {
    const TileToken& token = tokens_[t];
    const uint32_t block = sequences.blocks(token.sequence)[token.position / kBlockPositions];
    cache.Store(block, token.position % kBlockPositions, k + t * k_width, v + t * v_width);
  });
  if (rows.count == 0) return;
  PlanAttention(attention, rows);
  const uint32_t group = attention.heads / attention.kv_heads;
  const size_t parts_per_group = CeilDiv(group, attention_heads_), parts = attention.kv_heads * parts_per_group;
  const float* sinks = weights_.vector(attention.sinks);
  const float* q = Row(node.inputs[0], rows);
  float* out = Row(node.output, rows);
  const uint64_t q_width = Width(node.inputs[0]), width = Width(node.output);
  const uint64_t cost = (uint64_t{tokens_.back().position} + 32) * attention.head_dim * attention_heads_;
  ForEach(pool_, runs_.size() * parts, cost * runs_.front().count, [&](size_t i) {
    const TokenRun& run = runs_[i / parts];
    const TileToken& token = tokens_[rows.begin + run.row];
    const uint32_t part = static_cast<uint32_t>(i % parts_per_group * attention_heads_);
    AttentionTask task{.position = token.position, .tokens = run.count};
    task.first_head = static_cast<uint32_t>(i % parts / parts_per_group) * group + part;
    task.heads = std::min(attention_heads_, group - part);
    task.blocks = sequences.blocks(token.sequence);
    task.sinks = sinks;
    task.q = q + run.row * q_width;
    task.out = out + run.row * width;
    Attend(attention, cache, task);
  });
}

// Cuts the rows into runs of consecutive tokens of one sequence and the heads that share a kv head into parts, so that a run
// and a part make one task. Where there are few tokens, parts get smaller until every thread has work.
void Executor::PlanAttention(const AttentionNode& attention, Rows rows) {
  const uint32_t group = attention.heads / attention.kv_heads;
  const size_t wanted = 2 * static_cast<size_t>(pool_.threads());
  attention_heads_ = std::min(group, AttentionTask::kMaxQueries);
  while (attention_heads_ > 1 && rows.count * attention.kv_heads * CeilDiv(group, attention_heads_) < wanted) {
    attention_heads_ /= 2;
  }
  const uint32_t most = AttentionTask::kMaxQueries / attention_heads_;
  runs_.clear();
  for (uint32_t row = 0; row < rows.count; ++row) {
    const TileToken* token = &tokens_[rows.begin + row];
    const bool goes_on = row > 0 && token[-1].sequence == token->sequence && token[-1].position + 1 == token->position;
    if (goes_on && runs_.back().count < most) {
      ++runs_.back().count;
    } else {
      runs_.push_back({row, 1});
    }
  }
}

Status Executor::RunMoe(const Node& node, Rows rows) {
  const MoeExecutor::Biases biases{weights_.vector(node.moe.selection_bias), weights_.vector(node.moe.gate_bias),
                                   weights_.vector(node.moe.up_bias), weights_.vector(node.moe.down_bias)};
  const MoeExecutor::Input x{Prepare(node.inputs[0], rows), Row(node.inputs[0], rows)};
  return moe_->Run(node.moe, program_.expert_tables[node.moe.table], biases, x, Row(node.inputs[1], rows),
                   Row(node.output, rows));
}

void Executor::RunElementwise(const Node& node, Rows rows) {
  const float* a = Row(node.inputs[0], rows);
  const bool binary = node.inputs.size() > 1;
  const float* b = binary ? Row(node.inputs[1], rows) : nullptr;
  const uint64_t b_width = binary ? Width(node.inputs[1]) : 0, width = Width(node.output);
  float* out = Row(node.output, rows);
  ForEach(pool_, rows.count, width * 2, [&](size_t i) {
    ElementwiseRow(node.elementwise, a + i * width, b + i * b_width, b_width == 1 && width != 1, width, out + i * width);
  });
}

void Executor::RunSlice(const Node& node, Rows rows) {
  const uint64_t in_width = Width(node.inputs[0]), width = Width(node.output);
  const float* in = Row(node.inputs[0], rows) + node.slice.begin;
  float* out = Row(node.output, rows);
  ForEach(pool_, rows.count, width,
          [&](size_t i) { std::memcpy(out + i * width, in + i * in_width, width * sizeof(float)); });
}

void Executor::RunConcat(const Node& node, Rows rows) {
  const uint64_t width = Width(node.output), heads = std::max<uint32_t>(node.concat.heads, 1);
  const size_t own = node.inputs.size() - node.concat.shared;
  float* first = Row(node.output, rows);
  ForEach(pool_, rows.count, width, [&](size_t i) {
    float* out = first + i * width;
    for (uint64_t head = 0; head < heads; ++head) {
      for (size_t n = 0; n < node.inputs.size(); ++n) {
        const uint64_t in_width = Width(node.inputs[n]), part = n < own ? in_width / heads : in_width;
        const float* in = Row(node.inputs[n], rows) + i * in_width + (n < own ? head * part : 0);
        std::memcpy(out, in, part * sizeof(float));
        out += part;
      }
    }
  });
}

// Up to `most` inputs of a token and those before it in its sequence, the newest first; in [tile, channels]: those of the
// run.
size_t Executor::LastInputs(const ConvolutionState& state, const float* in, uint32_t row, uint64_t most,
                            ConvolutionInputs* inputs) const {
  const TileToken& token = tokens_[row];
  const size_t count = std::min<uint64_t>(most, uint64_t{token.position} + 1);
  for (uint32_t i = 0; i < count; ++i) {
    if (row == kNone) {
      (*inputs)[i] = state.input(token.sequence, token.position - i);
    } else {
      (*inputs)[i] = in + row * state.channels();
      row = previous_row_[row];
    }
  }
  return count;
}

// The last inputs of every sequence are stored, also when the output of few or none of its tokens is wanted.
void Executor::RunConvolution(const Node& node, Rows rows) {
  ConvolutionState& state = state_.inputs(node.convolution.state_slot);
  const uint64_t channels = Width(node.output);
  const float* in = Row(node.inputs[0], {0, tokens_.size()});
  const float* weight = weights_.convolution(node.convolution.weight);
  const float* bias = weights_.vector(node.convolution.bias);
  float* out = Row(node.output, rows);
  ForEach(pool_, rows.count, channels * state.width(), [&](size_t i) {
    ConvolutionInputs inputs;
    const size_t count = LastInputs(state, in, static_cast<uint32_t>(rows.begin + i), state.width(), &inputs);
    Convolve(std::span(inputs).first(count), state.width(), channels, weight, bias, out + i * channels);
  });
  ForEach(pool_, tokens_.size(), channels, [&](size_t t) {
    const TileToken& token = tokens_[t];
    if (last_row_[token.sequence] != t) return;
    ConvolutionInputs inputs;
    const size_t count = LastInputs(state, in, static_cast<uint32_t>(t), state.width() - 1, &inputs);
    for (uint32_t i = 0; i < count; ++i) {
      std::memcpy(state.next_input(token.sequence, token.position - i), inputs[i], channels * sizeof(float));
    }
  });
}

}  // namespace moepack::runtime
