// com.microsoft.MoE and QMoE. MoE: input, router logits, then weight and bias of fc1, fc2 and fc3. QMoE: input, router
// logits, then codes, scales and bias of fc1, fc2 and fc3, then their zero points.
#include <algorithm>
#include <cmath>

#include "model/frontend/onnx_import.h"

namespace moepack {
namespace {

using Unsigned = unsigned long long;

// How gate and up lie in fc1 and fc3.
enum class Fc1Layout : uint8_t {
  kUpOnly,        // fc1 is up
  kSeparate,      // fc1 is gate, fc3 is up
  kInterleaved,   // fc1 rows: gate 0, up 0, gate 1, up 1 ...
  kConcatenated,  // fc1 rows: all of gate, all of up
};

}  // namespace

// Matrices [rows, cols] of all experts.
struct OnnxImporter::ExpertStack {
  const OnnxTensor* tensor = nullptr;
  std::shared_ptr<const OnnxBlocks> blocks;
  uint64_t experts = 0, rows = 0, cols = 0;

  // Rows first, first + step ... of one expert.
  OnnxMatrix Rows(uint64_t expert, uint64_t first, uint64_t step, uint64_t count) const {
    return {tensor, blocks, count, cols, (expert * rows + first) * cols, step * cols, 1};
  }
};

struct OnnxImporter::Moe {
  MoeNode node;
  bool quantized = false, swiglu = false;
  int64_t fusion = 0, bits = 0, block = 0;
  Fc1Layout layout = Fc1Layout::kUpOnly;
  uint64_t experts = 0, hidden = 0, intermediate = 0;
  OnnxExperts weights;
};

Status OnnxImporter::ReadMoeAttributes(OnnxNode& node, Moe* moe) const {
  moe->quantized = node.op() == "com.microsoft.QMoE";
  const std::string activation = node.Text("activation_type", "relu");
  const int64_t k = node.Int("k", 1), normalize = node.Int("normalize_routing_weights", 0);
  moe->fusion = node.Int("swiglu_fusion", 0);
  const int64_t sparse_mixer = node.Int("use_sparse_mixer", 0);
  const float alpha = node.Float("activation_alpha", 1), beta = node.Float("activation_beta", 0);
  const float limit = node.Float("swiglu_limit", INFINITY);
  std::string quant_type = "int";
  int64_t prepacked = 0;
  if (moe->quantized) {
    moe->bits = node.Int("expert_weight_bits", 4);
    moe->block = node.Int("block_size", 0);
    quant_type = node.Text("quant_type", "int");
    prepacked = node.Int("weights_prepacked", 0);
  }
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  static const std::map<std::string, Activation> kActivations = {{"silu", Activation::kSilu},
                                                                 {"swiglu", Activation::kSilu},
                                                                 {"gelu", Activation::kGeluTanh},
                                                                 {"relu", Activation::kRelu},
                                                                 {"identity", Activation::kIdentity}};
  const auto function = kActivations.find(activation);
  if (function == kActivations.end()) return node.Unsupported("activation_type '" + activation.substr(0, 40) + "'");
  moe->swiglu = activation == "swiglu";
  if (sparse_mixer != 0) return node.Unsupported("use_sparse_mixer");
  if (quant_type != "int") return node.Unsupported("quant_type '" + quant_type.substr(0, 40) + "'");
  if (prepacked != 0 && prepacked != -1) return node.Unsupported("weights_prepacked, which only one device reads");
  if (!moe->swiglu && (alpha != 1 || beta != 0 || !std::isinf(limit)))
    return node.Unsupported("activation_alpha, activation_beta and swiglu_limit of another activation than swiglu");
  if (!(limit > 0) || !(alpha > 0) || !std::isfinite(alpha) || !std::isfinite(beta))
    return node.Bad("swiglu_limit and activation_alpha must be positive, activation_beta finite");
  if (moe->fusion < 0 || moe->fusion > 2 || (moe->fusion != 0 && !moe->swiglu))
    return node.Unsupported(StrFormat("swiglu_fusion %lld", static_cast<long long>(moe->fusion)));
  if (normalize != 0 && normalize != 1) return node.Bad("normalize_routing_weights must be 0 or 1");
  if (k < 1 || k > kMaxExperts) return node.Bad(StrFormat("k is %lld", static_cast<long long>(k)));
  moe->node.routing.k = static_cast<uint32_t>(k);
  moe->node.routing.renormalise = normalize == 1;
  moe->node.activation.function = function->second;
  moe->node.activation.sigmoid_scale = alpha == 1 ? 0 : alpha;
  moe->node.activation.up_offset = beta;
  moe->node.activation.limit = std::isinf(limit) ? 0 : limit;
  return Status::Ok();
}

// The matrices of fc1, fc2 or fc3, as far as they can be checked alone.
Result<OnnxImporter::ExpertStack> OnnxImporter::ReadStack(const OnnxNode& node, const Moe& moe, int fc) const {
  const int weight = moe.quantized ? 3 * fc - 1 : 2 * fc;
  ExpertStack stack;
  MOEPACK_ASSIGN_OR_RETURN(stack.tensor, ConstantInput(node, weight));
  const OnnxTensor& tensor = *stack.tensor;
  const auto shape_error = [&] {
    return node.Error(ErrorCode::kShape,
                      StrFormat("input %d '%s' must be [experts, rows, columns]", weight, tensor.name.c_str()));
  };
  if (tensor.shape.size() != 3) return shape_error();
  stack.experts = tensor.shape[0];
  stack.rows = tensor.shape[1];
  stack.cols = tensor.shape[2];
  const bool in_range = stack.experts >= 1 && stack.experts <= kMaxExperts && stack.rows >= 1 &&
                        stack.rows <= 2 * kMaxCols && stack.cols >= 1 && stack.cols <= kMaxCols;
  if (!in_range) return shape_error();
  if (!moe.quantized) {
    Codec codec;
    if (!DtypeCodec(tensor.dtype, &codec)) return node.Error(ErrorCode::kShape, "'" + tensor.name + "' must be of floats");
    return stack;
  }
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* scales, ConstantInput(node, weight + 1));
  const OnnxTensor* zeros = nullptr;
  if (!node.input(10 + fc).empty()) {
    MOEPACK_ASSIGN_OR_RETURN(zeros, ConstantInput(node, 10 + fc));
  }
  const bool known = moe.bits == 2 || moe.bits == 4 || moe.bits == 8;
  OnnxBlockShape shape;
  shape.rows = stack.experts * stack.rows;
  shape.cols = known ? stack.cols * static_cast<uint64_t>(8 / moe.bits) : stack.cols;
  shape.bits = moe.bits;
  shape.block = std::max<int64_t>(moe.block, 0);
  shape.dense_zeros = shape.block == 0;
  auto blocks = BindBlocks(tensor, *scales, zeros, shape);
  if (!blocks.ok()) return node.Error(blocks.status().code(), blocks.status().message());
  stack.blocks = std::move(blocks).value();
  stack.cols = shape.cols;
  return stack;
}

Status OnnxImporter::ReadExperts(const OnnxNode& node, Moe* moe) const {
  MOEPACK_ASSIGN_OR_RETURN(const ExpertStack fc1, ReadStack(node, *moe, 1));
  MOEPACK_ASSIGN_OR_RETURN(const ExpertStack fc2, ReadStack(node, *moe, 2));
  const bool has_fc3 = !node.input(moe->quantized ? 8 : 6).empty();
  ExpertStack fc3;
  if (has_fc3) {
    MOEPACK_ASSIGN_OR_RETURN(fc3, ReadStack(node, *moe, 3));
  }
  if (moe->fusion != 0 && has_fc3) return node.Unsupported("fc3 together with swiglu_fusion");
  if (moe->swiglu && moe->fusion == 0 && !has_fc3) return node.Bad("swiglu needs fc3 or swiglu_fusion");
  moe->layout = moe->fusion == 1   ? Fc1Layout::kInterleaved
                : moe->fusion == 2 ? Fc1Layout::kConcatenated
                : has_fc3          ? Fc1Layout::kSeparate
                                   : Fc1Layout::kUpOnly;
  moe->experts = fc2.experts, moe->hidden = fc2.rows, moe->intermediate = fc2.cols;
  const uint64_t fused = moe->fusion == 0 ? 1 : 2, rows = moe->intermediate;
  const auto fits = [&](const ExpertStack& stack, uint64_t want) {
    return stack.experts == moe->experts && stack.rows == want && stack.cols == moe->hidden;
  };
  if (moe->hidden > kMaxCols || !fits(fc1, fused * rows) || (has_fc3 && !fits(fc3, rows))) {
    return node.Error(ErrorCode::kShape, StrFormat("fc1 must be [%llu, %llu, %llu], as fc2 and swiglu_fusion imply",
                                                   static_cast<Unsigned>(moe->experts), static_cast<Unsigned>(fused * rows),
                                                   static_cast<Unsigned>(moe->hidden)));
  }
  for (uint64_t e = 0; e < moe->experts; ++e) {
    OnnxExpert expert;
    OnnxMatrix &gate = expert[0], &up = expert[1];
    expert[2] = fc2.Rows(e, 0, 1, moe->hidden);
    switch (moe->layout) {
      case Fc1Layout::kUpOnly:
        up = fc1.Rows(e, 0, 1, rows);
        break;
      case Fc1Layout::kSeparate:
        gate = fc1.Rows(e, 0, 1, rows), up = fc3.Rows(e, 0, 1, rows);
        break;
      case Fc1Layout::kInterleaved:
        gate = fc1.Rows(e, 0, 2, rows), up = fc1.Rows(e, 1, 2, rows);
        break;
      case Fc1Layout::kConcatenated:
        gate = fc1.Rows(e, 0, 1, rows), up = fc1.Rows(e, rows, 1, rows);
        break;
    }
    moe->weights.push_back(std::move(expert));
  }
  return Status::Ok();
}

// Null when there is none, or only zeros, which exporters write because some devices want a bias.
Result<const OnnxTensor*> OnnxImporter::ExpertBias(const OnnxNode& node, int input, uint64_t experts, uint64_t width) const {
  if (node.input(input).empty()) return static_cast<const OnnxTensor*>(nullptr);
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* bias, ConstantInput(node, input));
  Codec codec;
  if (bias->shape != std::vector<uint64_t>{experts, width} || !DtypeCodec(bias->dtype, &codec)) {
    return node.Error(ErrorCode::kShape, StrFormat("input %d '%s' must be [%llu, %llu] floats", input, bias->name.c_str(),
                                                   static_cast<Unsigned>(experts), static_cast<Unsigned>(width)));
  }
  for (uint64_t e = 0; e < experts; ++e) {
    const auto row = file_.ReadFloats(*bias, e * width, width);
    if (!row.ok()) return node.Error(row.status().code(), row.status().message());
    if (std::any_of(row->begin(), row->end(), [](float v) { return v != 0; })) return bias;
  }
  return static_cast<const OnnxTensor*>(nullptr);
}

Status OnnxImporter::ReadExpertBiases(const OnnxNode& node, Moe* moe) {
  const uint64_t fused = moe->fusion == 0 ? 1 : 2, width = moe->intermediate;
  const int first = moe->quantized ? 4 : 3, step = moe->quantized ? 3 : 2;
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* fc1, ExpertBias(node, first, moe->experts, fused * width));
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* fc2, ExpertBias(node, first + step, moe->experts, moe->hidden));
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* fc3, ExpertBias(node, first + 2 * step, moe->experts, width));
  if (fc1 == nullptr && fc2 == nullptr && fc3 == nullptr) return Status::Ok();
  const auto matrix = [&](const OnnxTensor* tensor, uint64_t cols, uint64_t base, uint64_t row_stride, uint64_t col_stride) {
    return OnnxMatrix{tensor, nullptr, moe->experts, cols, base, row_stride, col_stride};
  };
  OnnxMatrix gate = matrix(fc1, width, 0, width, 1), up = matrix(fc1, width, 0, width, 1);
  if (moe->layout == Fc1Layout::kSeparate) up.tensor = fc3;
  if (moe->layout == Fc1Layout::kInterleaved)
    gate = matrix(fc1, width, 0, 2 * width, 2), up = matrix(fc1, width, 1, 2 * width, 2);
  if (moe->layout == Fc1Layout::kConcatenated)
    gate = matrix(fc1, width, 0, 2 * width, 1), up = matrix(fc1, width, width, 2 * width, 1);
  const std::string prefix = "layers." + std::to_string(program.expert_tables.size()) + ".experts.";
  if (moe->layout != Fc1Layout::kUpOnly) {
    moe->node.gate_bias = AddTensor(prefix + "gate_proj.bias", moe->experts, width, {gate});
  }
  moe->node.up_bias = AddTensor(prefix + "up_proj.bias", moe->experts, width, {up});
  moe->node.down_bias =
      AddTensor(prefix + "down_proj.bias", moe->experts, moe->hidden, {matrix(fc2, moe->hidden, 0, moe->hidden, 1)});
  return Status::Ok();
}

Status OnnxImporter::EmitMoe(const OnnxNode& node, Node moe, const Value& in, const Value& logits, OnnxExperts weights) {
  const uint64_t count = weights.size();
  if (program.expert_tables.size() == kMaxExpertTables) return node.Error(ErrorCode::kLimit, "more than 1024 MoE nodes");
  if (Width(in) != weights[0][1].cols) return node.Error(ErrorCode::kShape, "the input does not fit the experts");
  if (logits.columns != Width(logits) || Width(logits) != count) {
    return node.Error(ErrorCode::kShape,
                      StrFormat("the router is %llu wide, but there are %llu experts: experts that were stripped "
                                "when the model was traced cannot be brought back",
                                static_cast<Unsigned>(Width(logits)), static_cast<Unsigned>(count)));
  }
  ExpertTableDecl table;
  table.hidden = Width(in);
  table.gated = weights[0][0].rows != 0;
  for (uint32_t e = 0; e < count; ++e) {
    table.intermediate.push_back(weights[e][1].rows);
    table.original.push_back(e);
  }
  moe.kind = NodeKind::kMoe;
  moe.inputs = {in.id, logits.id};
  moe.moe.activation.gated = table.gated;
  moe.moe.table = static_cast<uint32_t>(program.expert_tables.size());
  program.expert_tables.push_back(std::move(table));
  experts.push_back(std::move(weights));
  return Define(node, 0, Like(in, Emit(std::move(moe), Width(in))));
}

Status OnnxImporter::ImportMoe(OnnxNode& node) {
  Moe moe;
  MOEPACK_RETURN_IF_ERROR(ReadMoeAttributes(node, &moe));
  MOEPACK_RETURN_IF_ERROR(CheckOutputs(node, 1));
  for (int i = moe.quantized ? 14 : 8; i < node.inputs(); ++i) {
    if (!node.input(i).empty())
      return node.Unsupported(StrFormat("input %d (router weights apart from the logits, or scales)", i));
  }
  MOEPACK_ASSIGN_OR_RETURN(const Value in, PlainInput(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const Value logits, PlainInput(node, 1));
  if (logits.rank != 2) return node.Error(ErrorCode::kShape, "the router's logits must be [tokens, experts]");
  MOEPACK_RETURN_IF_ERROR(ReadExperts(node, &moe));
  MOEPACK_RETURN_IF_ERROR(ReadExpertBiases(node, &moe));
  Node out;
  out.moe = moe.node;
  return EmitMoe(node, std::move(out), in, logits, std::move(moe.weights));
}

}  // namespace moepack
