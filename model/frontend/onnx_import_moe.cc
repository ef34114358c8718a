// com.microsoft.MoE: input, router logits, fc1 and its bias, fc2 and its bias, fc3 and its bias.
#include <cmath>

#include "model/frontend/onnx_import.h"

namespace moepack {
namespace {

using Unsigned = unsigned long long;

// A [experts, rows, cols] stack of float matrices.
bool IsStack(const OnnxTensor& tensor, uint64_t experts, uint64_t rows, uint64_t cols) {
  Codec codec;
  return DtypeCodec(tensor.dtype, &codec) && tensor.shape == std::vector<uint64_t>{experts, rows, cols};
}

}  // namespace

Status OnnxImporter::ReadMoeAttributes(OnnxNode& node, MoeNode* moe, int64_t* fusion, bool* swiglu) const {
  const std::string activation = node.Text("activation_type", "relu");
  const int64_t k = node.Int("k", 1), normalize = node.Int("normalize_routing_weights", 0);
  *fusion = node.Int("swiglu_fusion", 0);
  const int64_t sparse_mixer = node.Int("use_sparse_mixer", 0);
  const float alpha = node.Float("activation_alpha", 1), beta = node.Float("activation_beta", 0);
  const float limit = node.Float("swiglu_limit", INFINITY);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  static const std::map<std::string, Activation> kActivations = {{"silu", Activation::kSilu},
                                                                 {"swiglu", Activation::kSilu},
                                                                 {"gelu", Activation::kGeluTanh},
                                                                 {"relu", Activation::kRelu},
                                                                 {"identity", Activation::kIdentity}};
  const auto function = kActivations.find(activation);
  if (function == kActivations.end()) return node.Unsupported("activation_type '" + activation.substr(0, 40) + "'");
  *swiglu = activation == "swiglu";
  if (sparse_mixer != 0) return node.Unsupported("use_sparse_mixer");
  if (alpha != 1 || beta != 0 || !std::isinf(limit))
    return node.Unsupported("activation_alpha, activation_beta and swiglu_limit must have their defaults");
  if (*fusion < 0 || *fusion > 2 || (*fusion != 0 && !*swiglu))
    return node.Unsupported(StrFormat("swiglu_fusion %lld", static_cast<long long>(*fusion)));
  if (normalize != 0 && normalize != 1) return node.Bad("normalize_routing_weights must be 0 or 1");
  if (k < 1 || k > kMaxExperts) return node.Bad(StrFormat("k is %lld", static_cast<long long>(k)));
  moe->routing.k = static_cast<uint32_t>(k);
  moe->routing.renormalise = normalize == 1;
  moe->activation.function = function->second;
  return Status::Ok();
}

Result<OnnxExperts> OnnxImporter::ReadExperts(const OnnxNode& node, int64_t fusion, bool swiglu) const {
  for (const int bias : {3, 5, 7}) {
    if (!node.input(bias).empty()) return node.Unsupported(StrFormat("expert biases (input %d)", bias));
  }
  OnnxExperts experts;
  MOEPACK_ASSIGN_OR_RETURN(experts.fc1, ConstantInput(node, 2));
  MOEPACK_ASSIGN_OR_RETURN(experts.fc2, ConstantInput(node, 4));
  const bool has_fc3 = !node.input(6).empty();
  if (has_fc3) {
    MOEPACK_ASSIGN_OR_RETURN(experts.fc3, ConstantInput(node, 6));
  }
  if (fusion != 0 && has_fc3) return node.Unsupported("fc3 together with swiglu_fusion");
  if (swiglu && fusion == 0 && !has_fc3) return node.Bad("swiglu needs fc3 or swiglu_fusion");
  experts.layout = fusion == 1   ? Fc1Layout::kInterleaved
                   : fusion == 2 ? Fc1Layout::kConcatenated
                   : has_fc3     ? Fc1Layout::kSeparate
                                 : Fc1Layout::kUpOnly;
  if (experts.fc2->shape.size() != 3) return node.Error(ErrorCode::kShape, "fc2 must be [experts, hidden, intermediate]");
  experts.experts = experts.fc2->shape[0];
  experts.hidden = experts.fc2->shape[1];
  experts.intermediate = experts.fc2->shape[2];
  const uint64_t fused = fusion == 0 ? 1 : 2;
  const bool in_range = experts.experts <= kMaxExperts && experts.hidden <= kMaxCols && experts.intermediate <= kMaxCols;
  if (!in_range || !IsStack(*experts.fc2, experts.experts, experts.hidden, experts.intermediate) ||
      !IsStack(*experts.fc1, experts.experts, fused * experts.intermediate, experts.hidden) ||
      (has_fc3 && !IsStack(*experts.fc3, experts.experts, experts.intermediate, experts.hidden))) {
    return node.Error(ErrorCode::kShape,
                      StrFormat("fc1 must be [%llu, %llu, %llu], as fc2 and swiglu_fusion imply, all of floats",
                                static_cast<Unsigned>(experts.experts), static_cast<Unsigned>(fused * experts.intermediate),
                                static_cast<Unsigned>(experts.hidden)));
  }
  return experts;
}

Status OnnxImporter::ImportMoe(OnnxNode& node) {
  Node out;
  out.kind = NodeKind::kMoe;
  int64_t fusion = 0;
  bool swiglu = false;
  MOEPACK_RETURN_IF_ERROR(ReadMoeAttributes(node, &out.moe, &fusion, &swiglu));
  MOEPACK_RETURN_IF_ERROR(CheckOutputs(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const Value in, PlainInput(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const Value logits, PlainInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const OnnxExperts weights, ReadExperts(node, fusion, swiglu));
  if (program.expert_tables.size() == kMaxExpertTables) return node.Error(ErrorCode::kLimit, "more than 1024 MoE nodes");
  if (Width(in) != weights.hidden) return node.Error(ErrorCode::kShape, "the input does not fit the experts");
  if (logits.rank != 2 || Width(logits) != weights.experts) {
    return node.Error(ErrorCode::kShape,
                      StrFormat("the router is %llu wide, but there are %llu experts: experts that were stripped "
                                "when the model was traced cannot be brought back",
                                static_cast<Unsigned>(Width(logits)), static_cast<Unsigned>(weights.experts)));
  }
  ExpertTableDecl table;
  table.hidden = weights.hidden;
  table.gated = weights.layout != Fc1Layout::kUpOnly;
  table.intermediate.assign(weights.experts, weights.intermediate);
  for (uint32_t e = 0; e < weights.experts; ++e) table.original.push_back(e);
  out.inputs = {in.id, logits.id};
  out.moe.activation.gated = table.gated;
  out.moe.table = static_cast<uint32_t>(program.expert_tables.size());
  program.expert_tables.push_back(std::move(table));
  experts.push_back(weights);
  return Define(node, 0, Like(in, Emit(std::move(out), Width(in))));
}

}  // namespace moepack
