#include "compressor/structure.h"

#include <algorithm>
#include <numeric>

namespace moepack {
namespace {

// Columns of an intermediate width stay a multiple of this, so that groups and vector kernels stay whole.
constexpr uint64_t kChannelStep = 32;

// The MoE node of a table and the values between its router's linear node and itself, the linear's output included.
struct RouterPath {
  const Node* moe = nullptr;
  const Node* linear = nullptr;
  std::vector<ValueId> values;
};

// Every table of a validated program has one.
const MoeNode& MoeOf(const Program& program, uint32_t table) {
  return std::find_if(program.nodes.begin(), program.nodes.end(),
                      [&](const Node& node) { return node.kind == NodeKind::kMoe && node.moe.table == table; })
      ->moe;
}

Result<RouterPath> FindRouter(const Program& program, uint32_t table) {
  RouterPath path;
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kMoe && node.moe.table == table) path.moe = &node;
  }
  if (path.moe == nullptr) return Status(ErrorCode::kInternal, StrFormat("no node uses expert table %u", table));
  ValueId value = path.moe->inputs[1];
  for (;;) {
    path.values.push_back(value);
    const Node* node = ProducerOf(program, value);
    if (node != nullptr && node->kind == NodeKind::kLinear) {
      path.linear = node;
      return path;
    }
    if (node == nullptr || node->kind != NodeKind::kElementwise || node->inputs.size() != 1) {
      return Status(ErrorCode::kUnsupported,
                    StrFormat("layer %d: experts cannot be dropped, its router is not a linear node",
                              program.expert_tables[table].layer));
    }
    value = node->inputs[0];
  }
}

Result<uint32_t> DropCount(const DropRecipe& drop, const Program& program, uint32_t table) {
  const uint32_t experts = program.expert_tables[table].experts();
  uint32_t count = drop.count;
  if (drop.share > 0) count = static_cast<uint32_t>(static_cast<double>(experts) * drop.share);
  if (!drop.per_layer.empty()) {
    if (drop.per_layer.size() != program.expert_tables.size()) {
      return Status(ErrorCode::kRecipe, StrFormat("drop_experts: per_layer has %zu numbers, the model has %zu expert layers",
                                                  drop.per_layer.size(), program.expert_tables.size()));
    }
    count = drop.per_layer[table];
  }
  MOEPACK_ASSIGN_OR_RETURN(const RouterPath router, FindRouter(program, table));
  const uint32_t k = router.moe->moe.routing.k;
  if (count + k > experts) {
    return Status(ErrorCode::kRecipe,
                  StrFormat("drop_experts: layer %d has %u experts and routes to %u of them, %u cannot be dropped",
                            program.expert_tables[table].layer, experts, k, count));
  }
  return count;
}

Status ChooseChannels(double share, const Model& model, const TableProfile& profile, uint32_t table, TableStructure* out) {
  const ExpertTableDecl& decl = model.program.expert_tables[table];
  for (uint32_t e : out->experts) {
    const uint64_t width = decl.intermediate[e];
    const auto wanted = static_cast<uint64_t>(static_cast<double>(width) * (1 - share));
    const uint64_t kept = std::clamp<uint64_t>((wanted + kChannelStep / 2) / kChannelStep * kChannelStep,
                                               std::min(kChannelStep, width), width);
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> values, model.tensors->LoadExpert(table, e, ExpertMatrix::kDown));
    const Matrix down = Eigen::Map<const Matrix>(values.data(), decl.hidden, width);
    out->channels.push_back(KeepChannels(ChannelScores(down, profile.down_gate_sq[e]), static_cast<uint32_t>(kept)));
  }
  return Status::Ok();
}

bool RemovesChannels(const Program& program, const Structure& structure) {
  for (size_t t = 0; t < structure.tables.size(); ++t) {
    const TableStructure& table = structure.tables[t];
    for (size_t e = 0; e < table.channels.size(); ++e) {
      if (table.channels[e].size() < program.expert_tables[t].intermediate[table.experts[e]]) return true;
    }
  }
  return false;
}

std::vector<float> SliceRows(const std::vector<float>& values, uint64_t cols, const std::vector<uint32_t>& rows) {
  std::vector<float> out;
  out.reserve(rows.size() * cols);
  for (uint32_t r : rows)
    out.insert(out.end(), values.begin() + static_cast<ptrdiff_t>(r * cols),
               values.begin() + static_cast<ptrdiff_t>((r + 1) * cols));
  return out;
}

std::vector<float> SliceColumns(const std::vector<float>& values, uint64_t cols, const std::vector<uint32_t>& kept) {
  std::vector<float> out;
  out.reserve(values.size() / cols * kept.size());
  for (size_t r = 0; r < values.size() / cols; ++r) {
    for (uint32_t c : kept) out.push_back(values[r * cols + c]);
  }
  return out;
}

uint64_t WidestChannels(const TableStructure& kept) {
  uint64_t widest = 0;
  for (const auto& channels : kept.channels) widest = std::max<uint64_t>(widest, channels.size());
  return widest;
}

// [kept experts, widest]: each row holds its expert's kept channels, then zeros.
std::vector<float> CutChannelBias(const std::vector<float>& values, uint64_t cols, const TableStructure& kept) {
  const uint64_t widest = kept.channels.empty() ? cols : WidestChannels(kept);
  std::vector<float> out(kept.experts.size() * widest, 0.0f);
  for (size_t e = 0; e < kept.experts.size(); ++e) {
    const float* from = values.data() + kept.experts[e] * cols;
    float* to = out.data() + e * widest;
    for (uint64_t c = 0; c < (kept.channels.empty() ? cols : kept.channels[e].size()); ++c) {
      to[c] = from[kept.channels.empty() ? c : kept.channels[e][c]];
    }
  }
  return out;
}

class CutTensors : public TensorSource {
 public:
  CutTensors(const Program& original, const Structure& structure, std::shared_ptr<const TensorSource> source)
      : original_(original), structure_(structure), source_(std::move(source)) {
    for (uint32_t t = 0; t < structure_.tables.size(); ++t) {
      const auto router = FindRouter(original_, t);
      if (!router.ok()) continue;
      const MoeNode& moe = router->moe->moe;
      row_an_expert_[router->linear->linear.weight] = t;
      if (moe.down_bias != kNone) row_an_expert_[moe.down_bias] = t;
      for (const TensorId id : {router->linear->linear.bias, moe.selection_bias}) {
        if (id != kNone) column_an_expert_[id] = t;
      }
      for (const TensorId id : {moe.gate_bias, moe.up_bias}) {
        if (id != kNone) channel_bias_of_[id] = t;
      }
    }
  }

  Result<std::vector<float>> Load(TensorId tensor) const override {
    auto values = source_->Load(tensor);
    if (!values.ok()) return values;
    const uint64_t cols = original_.tensors[tensor].cols;
    if (const auto bias = channel_bias_of_.find(tensor); bias != channel_bias_of_.end())
      return CutChannelBias(*values, cols, structure_.tables[bias->second]);
    if (const auto rows = row_an_expert_.find(tensor); rows != row_an_expert_.end())
      return SliceRows(*values, cols, structure_.tables[rows->second].experts);
    if (const auto columns = column_an_expert_.find(tensor); columns != column_an_expert_.end())
      return SliceColumns(*values, cols, structure_.tables[columns->second].experts);
    return values;
  }

  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    const TableStructure& kept = structure_.tables[table];
    const uint32_t original = kept.experts[expert];
    auto values = source_->LoadExpert(table, original, matrix);
    if (!values.ok() || kept.channels.empty()) return values;
    const ExpertTableDecl& decl = original_.expert_tables[table];
    return matrix == ExpertMatrix::kDown ? SliceColumns(*values, decl.intermediate[original], kept.channels[expert])
                                         : SliceRows(*values, decl.hidden, kept.channels[expert]);
  }

  Codec StoredCodec(TensorId tensor) const override { return source_->StoredCodec(tensor); }
  Codec StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return source_->StoredExpertCodec(table, structure_.tables[table].experts[expert], matrix);
  }

 private:
  const Program original_;
  const Structure structure_;
  const std::shared_ptr<const TensorSource> source_;
  // Table of the tensors that have one of them.
  std::map<TensorId, uint32_t> row_an_expert_, column_an_expert_;
  std::map<TensorId, uint32_t> channel_bias_of_;  // gate and up biases: a row an expert, a column a channel
};

}  // namespace

Result<Structure> ChooseStructure(const Recipe& recipe, const Model& model, const Profile* profile) {
  Structure out;
  const bool channels = recipe.prune_channels > 0;
  out.changed = recipe.drop_experts.has_value() || channels;
  if (out.changed && (profile == nullptr || model.tensors == nullptr)) {
    return Status(ErrorCode::kUsage, "dropping experts and pruning channels need the model's weights and --profile");
  }
  for (uint32_t t = 0; t < model.program.expert_tables.size(); ++t) {
    TableStructure kept;
    kept.experts.resize(model.program.expert_tables[t].experts());
    std::iota(kept.experts.begin(), kept.experts.end(), 0u);
    if (recipe.drop_experts) {
      MOEPACK_ASSIGN_OR_RETURN(const uint32_t count, DropCount(*recipe.drop_experts, model.program, t));
      kept.experts = KeepExpertsByReap(profile->tables[t], count);
    }
    if (channels) MOEPACK_RETURN_IF_ERROR(ChooseChannels(recipe.prune_channels, model, profile->tables[t], t, &kept));
    out.tables.push_back(std::move(kept));
  }
  if (channels && !RemovesChannels(model.program, out)) {
    return Status(ErrorCode::kRecipe,
                  StrFormat("prune_channels: a share of %g rounds to no channel of any expert; channels go "
                            "in steps of %llu",
                            recipe.prune_channels, static_cast<unsigned long long>(kChannelStep)));
  }
  return out;
}

Result<Program> ApplyStructure(const Program& program, const Structure& structure) {
  Program out = program;
  for (uint32_t t = 0; structure.changed && t < out.expert_tables.size(); ++t) {
    const TableStructure& kept = structure.tables[t];
    const ExpertTableDecl& before = program.expert_tables[t];
    ExpertTableDecl& after = out.expert_tables[t];
    after.intermediate.clear();
    after.original.clear();
    for (size_t i = 0; i < kept.experts.size(); ++i) {
      after.intermediate.push_back(kept.channels.empty() ? before.intermediate[kept.experts[i]] : kept.channels[i].size());
      after.original.push_back(before.original[kept.experts[i]]);
    }
    const MoeNode& moe = MoeOf(program, t);
    for (const TensorId id : {moe.gate_bias, moe.up_bias}) {
      if (id == kNone) continue;
      out.tensors[id].rows = kept.experts.size();
      if (!kept.channels.empty()) out.tensors[id].cols = WidestChannels(kept);
    }
    if (kept.experts.size() == before.experts()) continue;
    if (moe.selection_bias != kNone) out.tensors[moe.selection_bias].cols = kept.experts.size();
    if (moe.down_bias != kNone) out.tensors[moe.down_bias].rows = kept.experts.size();
    MOEPACK_ASSIGN_OR_RETURN(const RouterPath router, FindRouter(program, t));
    out.tensors[router.linear->linear.weight].rows = kept.experts.size();
    if (router.linear->linear.bias != kNone) out.tensors[router.linear->linear.bias].cols = kept.experts.size();
    for (ValueId value : router.values) out.values[value].width = kept.experts.size();
  }
  MOEPACK_RETURN_IF_ERROR(ValidateProgram(out));
  return out;
}

std::shared_ptr<const TensorSource> CutSource(const Program& original, const Structure& structure,
                                              std::shared_ptr<const TensorSource> source) {
  if (!structure.changed) return source;
  return std::make_shared<CutTensors>(original, structure, std::move(source));
}

}  // namespace moepack
