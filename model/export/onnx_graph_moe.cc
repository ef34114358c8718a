// The com.microsoft.MoE operator.
#include <algorithm>

#include "model/export/onnx_graph.h"

namespace moepack {

// ONNX Runtime (seen in 1.30 on a CPU) lets a MoE node write over its input when both have the same shape and nobody reads
// the input later, and without normalize_routing_weights the node clears its output before it reads. A reshape that changes
// nothing hides from its planner that the shapes are the same.
std::string OnnxGraphWriter::UnsharedInput(ValueId id) {
  const std::string name = Temporary("unshared");
  Add(kStandard, "Reshape", {ValueName(id), Ints({0, -1, static_cast<int64_t>(program_.values[id].width)})}, name);
  return name;
}

// G * sigmoid(alpha * G) * (L + beta) with G and L clamped by the limit: the operator's own words.
void OnnxGraphWriter::WriteSwiglu(const ActivationRecord& activation, onnx::NodeProto* proto) {
  SetInt(proto, "swiglu_fusion", 1);
  if (activation.plain()) return;
  SetFloat(proto, "activation_alpha", activation.sigmoid_scale == 0 ? 1 : activation.sigmoid_scale);
  SetFloat(proto, "activation_beta", activation.up_offset);
  if (activation.limit != 0) SetFloat(proto, "swiglu_limit", activation.limit);
}

// Inputs 3, 5 and, where gate and up are apart, 7.
void OnnxGraphWriter::AddExpertBiases(const Node& node, bool swiglu, uint64_t width, std::vector<std::string>* inputs) {
  const MoeNode& moe = node.moe;
  const ExpertTableDecl& table = program_.expert_tables[moe.table];
  const std::string prefix = "layers." + std::to_string(table.layer) + ".experts.";
  const auto blob = [&](OnnxBlobKind kind, const char* name, TensorId tensor, uint64_t columns) {
    OnnxBlob made = {kind, prefix + name, {table.experts(), columns}, tensor, 0, nullptr};
    made.second = kind == OnnxBlobKind::kTensorPair ? moe.up_bias : kNone;
    return Blob(std::move(made));
  };
  const TensorId first = moe.activation.gated ? moe.gate_bias : moe.up_bias;
  (*inputs)[3] = swiglu
                     ? blob(OnnxBlobKind::kTensorPair, "gate_up_proj.bias", moe.gate_bias, 2 * width)
                     : blob(OnnxBlobKind::kTensor, moe.activation.gated ? "gate_proj.bias" : "up_proj.bias", first, width);
  inputs->resize(std::max<size_t>(inputs->size(), 6));
  (*inputs)[5] = blob(OnnxBlobKind::kTensor, "down_proj.bias", moe.down_bias, table.hidden);
  if (moe.activation.gated && !swiglu) inputs->push_back(blob(OnnxBlobKind::kTensor, "up_proj.bias", moe.up_bias, width));
}

Status OnnxGraphWriter::WriteMoe(const Node& node) {
  const RoutingRecord& routing = node.moe.routing;
  const ActivationRecord& activation = node.moe.activation;
  if (routing.score != ScoreFunction::kSoftmax) return Unsupported("routing by sigmoid");
  if (routing.eps != 0) return Unsupported("an eps in the routing weights");
  static const std::map<Activation, const char*> kNames = {{Activation::kSilu, "silu"},
                                                           {Activation::kGeluTanh, "gelu"},
                                                           {Activation::kRelu, "relu"},
                                                           {Activation::kIdentity, "identity"}};
  const auto name = kNames.find(activation.function);
  if (name == kNames.end()) return Unsupported("experts with an exact GELU");
  const ExpertTableDecl& table = program_.expert_tables[node.moe.table];
  const uint64_t experts = table.experts(), hidden = table.hidden;
  const uint64_t width = *std::max_element(table.intermediate.begin(), table.intermediate.end());
  const std::string prefix = "layers." + std::to_string(table.layer) + ".experts.";
  const auto stack = [&](OnnxBlobKind kind, const char* matrix, uint64_t rows, uint64_t cols) {
    return Blob({kind, prefix + matrix, {experts, rows, cols}, kNone, node.moe.table, nullptr});
  };
  const bool swiglu = activation.gated && activation.function == Activation::kSilu;
  const std::string fc1 = swiglu             ? stack(OnnxBlobKind::kGateUp, "gate_up_proj", 2 * width, hidden)
                          : activation.gated ? stack(OnnxBlobKind::kGate, "gate_proj", width, hidden)
                                             : stack(OnnxBlobKind::kUp, "up_proj", width, hidden);
  const std::string logits = Temporary("router_logits"), out = ValueName(node.output);
  Add(kStandard, "Reshape", {ValueName(node.inputs[1]), Ints({-1, static_cast<int64_t>(experts)})}, logits);
  // Softmax over the chosen experts only is softmax over all of them, renormalised.
  const bool normalize = routing.renormalise || !routing.score_before_topk;
  const std::string in = normalize ? ValueName(node.inputs[0]) : UnsharedInput(node.inputs[0]);
  std::vector<std::string> inputs = {in, logits, fc1, "", stack(OnnxBlobKind::kDown, "down_proj", hidden, width)};
  if (activation.gated && !swiglu) {
    inputs.push_back("");
    inputs.push_back(stack(OnnxBlobKind::kUp, "up_proj", width, hidden));
  }
  if (node.moe.up_bias != kNone) AddExpertBiases(node, swiglu, width, &inputs);
  const std::string routed = routing.scale == 1 ? out : Temporary("routed");
  auto* proto = Add(kContrib, "MoE", inputs, routed);
  SetInt(proto, "k", routing.k);
  SetInt(proto, "normalize_routing_weights", normalize ? 1 : 0);
  SetText(proto, "activation_type", swiglu ? "swiglu" : name->second);
  if (swiglu) WriteSwiglu(activation, proto);
  if (routing.scale != 1) Add(kStandard, "Mul", {routed, Scalar(routing.scale)}, out);
  return Status::Ok();
}

}  // namespace moepack
