#include "format/validate_node.h"

#include <cmath>

namespace moepack {
namespace {

Status Malformed(std::string message) { return Status(ErrorCode::kMalformed, "program: " + std::move(message)); }

const char* NodeKindName(NodeKind kind) {
  switch (kind) {
    case NodeKind::kEmbedding:
      return "embedding";
    case NodeKind::kLinear:
      return "linear";
    case NodeKind::kNorm:
      return "norm";
    case NodeKind::kRotary:
      return "rotary";
    case NodeKind::kAttention:
      return "attention";
    case NodeKind::kMoe:
      return "moe";
    case NodeKind::kElementwise:
      return "elementwise";
    case NodeKind::kSlice:
      return "slice";
    case NodeKind::kConcat:
      return "concat";
    case NodeKind::kConvolution:
      return "convolution";
  }
  return "unknown";
}

}  // namespace

NodeChecker::NodeChecker(const Program& program)
    : program_(program),
      produced_(program.values.size(), false),
      slot_used_(program.state_slots, false),
      table_used_(program.expert_tables.size(), false),
      uses_(program.tensors.size()) {}

Status NodeChecker::Bad(const std::string& rule) const {
  return Malformed(StrFormat("node %zu (%s): %s", index_, NodeKindName(program_.nodes[index_].kind), rule.c_str()));
}

Status NodeChecker::OverLimit(const std::string& rule) const { return Status(ErrorCode::kLimit, Bad(rule).message()); }

Status NodeChecker::Arity(const Node& node, size_t inputs) const {
  if (node.inputs.size() == inputs) return Status::Ok();
  return Bad(StrFormat("has %zu inputs, must have %zu", node.inputs.size(), inputs));
}

Status NodeChecker::Width(const char* what, uint64_t have, uint64_t want) const {
  if (have == want) return Status::Ok();
  return Bad(StrFormat("%s is %llu wide, must be %llu", what, static_cast<unsigned long long>(have),
                       static_cast<unsigned long long>(want)));
}

Status NodeChecker::UseTensor(const char* what, TensorId id, uint64_t rows, uint64_t cols) {
  if (id >= program_.tensors.size()) return Bad(StrFormat("%s: tensor %u does not exist", what, id));
  const TensorDecl& tensor = program_.tensors[id];
  if (tensor.rows != rows || tensor.cols != cols) {
    return Bad(StrFormat("%s: tensor '%s' is [%llu, %llu], must be [%llu, %llu]", what, tensor.name.c_str(),
                         static_cast<unsigned long long>(tensor.rows), static_cast<unsigned long long>(tensor.cols),
                         static_cast<unsigned long long>(rows), static_cast<unsigned long long>(cols)));
  }
  const Node& node = program_.nodes[index_];
  TensorUse& use = uses_[id];
  if (use.block < 0) {
    use.block = node.block;
    use.by_embedding = node.kind == NodeKind::kEmbedding;
  } else if (use.block != node.block && !(use.by_embedding && node.kind == NodeKind::kLinear && id == node.linear.weight)) {
    return Bad(StrFormat("%s: tensor '%s' belongs to block %d; only an embedding table may be a weight of a later block",
                         what, tensor.name.c_str(), use.block));
  }
  return Status::Ok();
}

Status NodeChecker::UseVector(const char* what, TensorId id, uint64_t cols) {
  return id == kNone ? Status::Ok() : UseTensor(what, id, 1, cols);
}

Status NodeChecker::CheckInputs() {
  if (program_.inputs.size() != 1) return Malformed(StrFormat("%zu inputs, must be one", program_.inputs.size()));
  const ValueId input = program_.inputs[0];
  if (input >= program_.values.size()) return Malformed(StrFormat("input: value %u does not exist", input));
  if (program_.values[input].kind == ValueKind::kFloat && (program_.max_positions != 1 || program_.state_slots != 0))
    return Malformed("an input of floats takes max_positions 1 and no state slots: each row is a sequence of its own");
  produced_[input] = true;
  return Status::Ok();
}

Status NodeChecker::CheckNode(size_t index) {
  index_ = index;
  const Node& node = program_.nodes[index];
  MOEPACK_RETURN_IF_ERROR(CheckBlock(node));
  MOEPACK_RETURN_IF_ERROR(CheckEdges(node));
  MOEPACK_RETURN_IF_ERROR(CheckUnusedFields(node));
  MOEPACK_RETURN_IF_ERROR(CheckKind(node));
  produced_[node.output] = true;
  return Status::Ok();
}

Status NodeChecker::CheckBlock(const Node& node) const {
  const int32_t before = index_ == 0 ? 0 : program_.nodes[index_ - 1].block;
  const int32_t highest = index_ == 0 ? 0 : before + 1;
  if (node.block >= before && node.block <= highest) return Status::Ok();
  return Bad(StrFormat("block %d after block %d: blocks start at 0, never fall and rise by one", node.block, before));
}

Status NodeChecker::CheckEdges(const Node& node) const {
  if (node.inputs.size() > kMaxNodeInputs) return Bad(StrFormat("more than %u inputs", kMaxNodeInputs));
  for (const ValueId id : node.inputs) {
    if (id >= program_.values.size()) return Bad(StrFormat("input value %u does not exist", id));
    if (!produced_[id]) return Bad(StrFormat("reads value %u before it is produced", id));
    const bool tokens = program_.values[id].kind == ValueKind::kTokens;
    if (tokens != (node.kind == NodeKind::kEmbedding)) {
      return Bad(StrFormat("value %u: an embedding reads tokens, every other node reads floats", id));
    }
  }
  if (node.output >= program_.values.size()) return Bad(StrFormat("output value %u does not exist", node.output));
  if (produced_[node.output]) return Bad(StrFormat("value %u is produced twice", node.output));
  if (program_.values[node.output].kind != ValueKind::kFloat)
    return Bad(StrFormat("output value %u is not a float", node.output));
  return Status::Ok();
}

Status NodeChecker::CheckUnusedFields(const Node& node) const {
  const auto unused = [&](NodeKind kind, bool is_default) { return node.kind == kind || is_default; };
  const bool clean =
      unused(NodeKind::kEmbedding, node.embedding == EmbeddingNode()) &&
      unused(NodeKind::kLinear, node.linear == LinearNode()) && unused(NodeKind::kNorm, node.norm == NormNode()) &&
      unused(NodeKind::kRotary, node.rotary == RotaryNode()) &&
      unused(NodeKind::kAttention, node.attention == AttentionNode()) && unused(NodeKind::kMoe, node.moe == MoeNode()) &&
      unused(NodeKind::kElementwise, node.elementwise == ElementwiseNode()) &&
      unused(NodeKind::kSlice, node.slice == SliceNode()) && unused(NodeKind::kConcat, node.concat == ConcatNode()) &&
      unused(NodeKind::kConvolution, node.convolution == ConvolutionNode());
  return clean ? Status::Ok() : Bad("has fields of another kind");
}

Status NodeChecker::CheckKind(const Node& node) {
  switch (node.kind) {
    case NodeKind::kEmbedding:
      return CheckEmbedding(node);
    case NodeKind::kLinear:
      return CheckLinear(node);
    case NodeKind::kNorm:
      return CheckNorm(node);
    case NodeKind::kRotary:
      return CheckRotary(node);
    case NodeKind::kAttention:
      return CheckAttention(node);
    case NodeKind::kMoe:
      return CheckMoe(node);
    case NodeKind::kElementwise:
      return CheckElementwise(node);
    case NodeKind::kSlice:
      return CheckSlice(node);
    case NodeKind::kConcat:
      return CheckConcat(node);
    case NodeKind::kConvolution:
      return CheckConvolution(node);
  }
  return Bad("unknown kind");
}

Status NodeChecker::CheckEmbedding(const Node& node) {
  MOEPACK_RETURN_IF_ERROR(Arity(node, 1));
  const TensorId table = node.embedding.table;
  const uint64_t vocabulary = table < program_.tensors.size() ? program_.tensors[table].rows : 0;
  return UseTensor("table", table, vocabulary, OutputWidth(node));
}

Status NodeChecker::CheckLinear(const Node& node) {
  MOEPACK_RETURN_IF_ERROR(Arity(node, 1));
  MOEPACK_RETURN_IF_ERROR(UseTensor("weight", node.linear.weight, OutputWidth(node), InputWidth(node, 0)));
  return UseVector("bias", node.linear.bias, OutputWidth(node));
}

Status NodeChecker::CheckNorm(const Node& node) {
  MOEPACK_RETURN_IF_ERROR(Arity(node, 1));
  const NormNode& norm = node.norm;
  if (norm.kind > NormKind::kLayer) return Bad(StrFormat("unknown norm kind %d", static_cast<int>(norm.kind)));
  MOEPACK_RETURN_IF_ERROR(Width("output", OutputWidth(node), InputWidth(node, 0)));
  if (norm.group == 0 || InputWidth(node, 0) % norm.group != 0) return Bad("group must divide the width");
  if (!NotNegative(norm.eps)) return Bad("eps must be finite and not negative");
  if (norm.one_plus_weight && norm.weight == kNone) return Bad("1 + weight without a weight");
  MOEPACK_RETURN_IF_ERROR(UseVector("weight", norm.weight, norm.group));
  return UseVector("bias", norm.bias, norm.group);
}

Status NodeChecker::CheckRotary(const Node& node) const {
  MOEPACK_RETURN_IF_ERROR(Arity(node, 1));
  const RotaryNode& rotary = node.rotary;
  MOEPACK_RETURN_IF_ERROR(Width("input", InputWidth(node, 0), static_cast<uint64_t>(rotary.heads) * rotary.head_dim));
  MOEPACK_RETURN_IF_ERROR(Width("output", OutputWidth(node), InputWidth(node, 0)));
  if (rotary.rotary_dim == 0 || rotary.rotary_dim % 2 != 0 || rotary.rotary_dim > rotary.head_dim) {
    return Bad("rotary_dim must be even, 2 to head_dim");
  }
  if (rotary.offset > rotary.head_dim - rotary.rotary_dim) return Bad("offset + rotary_dim reach past head_dim");
  if (rotary.rotary_dim / 2 > kMaxInvFreq || rotary.inv_freq.size() != rotary.rotary_dim / 2) {
    return Bad(
        StrFormat("%zu inverse frequencies, must be rotary_dim / 2 and at most %u", rotary.inv_freq.size(), kMaxInvFreq));
  }
  if (!std::isfinite(rotary.magnitude)) return Bad("magnitude is not finite");
  for (const float f : rotary.inv_freq) {
    if (!std::isfinite(f)) return Bad("an inverse frequency is not finite");
  }
  return CheckLongRotary(rotary);
}

Status NodeChecker::CheckLongRotary(const RotaryNode& rotary) const {
  if (rotary.long_from == 0) {
    const bool clean = rotary.long_magnitude == 0 && rotary.long_inv_freq.empty();
    return clean ? Status::Ok() : Bad("frequencies of long sequences without long_from");
  }
  if (rotary.long_from > kMaxPositions)
    return OverLimit(StrFormat("long_from %u, at most %u", rotary.long_from, kMaxPositions));
  if (rotary.long_inv_freq.size() != rotary.inv_freq.size())
    return Bad("long_inv_freq must have as many entries as inv_freq");
  if (!std::isfinite(rotary.long_magnitude)) return Bad("long_magnitude is not finite");
  for (const float f : rotary.long_inv_freq) {
    if (!std::isfinite(f)) return Bad("an inverse frequency of long sequences is not finite");
  }
  return Status::Ok();
}

Status NodeChecker::CheckAttention(const Node& node) {
  MOEPACK_RETURN_IF_ERROR(Arity(node, 3));
  const AttentionNode& a = node.attention;
  if (a.heads == 0 || a.kv_heads == 0 || a.heads % a.kv_heads != 0)
    return Bad("kv_heads must divide heads, both at least 1");
  const uint64_t q_width = static_cast<uint64_t>(a.heads) * a.head_dim,
                 kv_width = static_cast<uint64_t>(a.kv_heads) * a.head_dim;
  if (a.head_dim == 0 || a.value_dim == a.head_dim) return Bad("head_dim must not be 0 and value_dim must differ from it");
  MOEPACK_RETURN_IF_ERROR(Width("q", InputWidth(node, 0), q_width));
  MOEPACK_RETURN_IF_ERROR(Width("k", InputWidth(node, 1), kv_width));
  MOEPACK_RETURN_IF_ERROR(Width("v", InputWidth(node, 2), static_cast<uint64_t>(a.kv_heads) * a.value_width()));
  MOEPACK_RETURN_IF_ERROR(Width("output", OutputWidth(node), static_cast<uint64_t>(a.heads) * a.value_width()));
  MOEPACK_RETURN_IF_ERROR(UseVector("sinks", a.sinks, a.heads));
  if (!std::isfinite(a.scale)) return Bad("scale is not finite");
  if (!NotNegative(a.softcap)) return Bad("softcap must be finite and not negative");
  if (a.window > kMaxPositions) return OverLimit(StrFormat("window %u, at most %u", a.window, kMaxPositions));
  if (a.chunk > kMaxPositions) return OverLimit(StrFormat("chunk %u, at most %u", a.chunk, kMaxPositions));
  if (!NotNegative(a.position_scale)) return Bad("position_scale must be finite and not negative");
  if ((a.position_scale == 0) != (a.position_floor == 0)) return Bad("position_scale and position_floor go together");
  return UseSlot(a.state_slot);
}

Status NodeChecker::UseSlot(uint32_t slot) {
  if (slot >= slot_used_.size()) return Bad(StrFormat("state slot %u, only %zu declared", slot, slot_used_.size()));
  if (slot_used_[slot]) return Bad(StrFormat("state slot %u belongs to another node", slot));
  slot_used_[slot] = true;
  return Status::Ok();
}

Status NodeChecker::CheckConvolution(const Node& node) {
  MOEPACK_RETURN_IF_ERROR(Arity(node, 1));
  const uint64_t channels = InputWidth(node, 0);
  MOEPACK_RETURN_IF_ERROR(Width("output", OutputWidth(node), channels));
  const TensorId weight = node.convolution.weight;
  const uint64_t width = weight < program_.tensors.size() ? program_.tensors[weight].cols : 0;
  if (width > kMaxConvolution) {
    return OverLimit(
        StrFormat("reaches over %llu positions, at most %u", static_cast<unsigned long long>(width), kMaxConvolution));
  }
  MOEPACK_RETURN_IF_ERROR(UseTensor("weight", weight, channels, width));
  MOEPACK_RETURN_IF_ERROR(UseVector("bias", node.convolution.bias, channels));
  return UseSlot(node.convolution.state_slot);
}

Status NodeChecker::CheckElementwise(const Node& node) const {
  const ElementwiseNode& e = node.elementwise;
  if (e.op > ElementOp::kClamp) return Bad("unknown operation");
  const bool binary = e.op == ElementOp::kAdd || e.op == ElementOp::kMul;
  MOEPACK_RETURN_IF_ERROR(Arity(node, binary ? 2 : 1));
  MOEPACK_RETURN_IF_ERROR(Width("output", OutputWidth(node), InputWidth(node, 0)));
  if (binary && InputWidth(node, 1) != 1)
    MOEPACK_RETURN_IF_ERROR(Width("second input", InputWidth(node, 1), InputWidth(node, 0)));
  if (!std::isfinite(e.alpha)) return Bad("alpha is not finite");
  if (e.op == ElementOp::kClamp && e.alpha <= 0) return Bad("alpha of a clamp must be positive");
  if (e.op != ElementOp::kClamp && e.op != ElementOp::kScale && e.alpha != 0) return Bad("alpha is set but not used");
  return Status::Ok();
}

Status NodeChecker::CheckSlice(const Node& node) const {
  MOEPACK_RETURN_IF_ERROR(Arity(node, 1));
  const uint64_t width = InputWidth(node, 0);
  if (node.slice.begin <= width && OutputWidth(node) <= width - node.slice.begin) return Status::Ok();
  return Bad("reaches past the columns of its input");
}

Status NodeChecker::CheckConcat(const Node& node) const {
  if (node.inputs.empty()) return Bad("has no inputs");
  const ConcatNode& concat = node.concat;
  if (concat.heads == 0 && concat.shared != 0) return Bad("shared inputs without heads");
  if (concat.shared >= node.inputs.size() && concat.shared != 0) return Bad("at least one input must not be shared");
  if (concat.heads > kMaxConcatHeads) return OverLimit(StrFormat("%u heads, at most %u", concat.heads, kMaxConcatHeads));
  uint64_t width = 0;  // at most kMaxNodeInputs * kMaxRows * kMaxConcatHeads
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const bool shared = i + concat.shared >= node.inputs.size();
    if (!shared && concat.heads > 0 && InputWidth(node, i) % concat.heads != 0) return Bad("heads must divide every input");
    width += InputWidth(node, i) * (shared ? concat.heads : 1);
  }
  return Width("output", OutputWidth(node), width);
}

Status NodeChecker::CheckCompleteness() const {
  for (size_t i = 0; i < produced_.size(); ++i) {
    if (!produced_[i]) return Malformed(StrFormat("value %zu is never produced", i));
  }
  for (size_t i = 0; i < uses_.size(); ++i) {
    if (uses_[i].block < 0)
      return Malformed(StrFormat("tensor %zu '%s' is never used", i, program_.tensors[i].name.c_str()));
  }
  for (size_t i = 0; i < table_used_.size(); ++i) {
    if (!table_used_[i]) return Malformed(StrFormat("expert table %zu is never used", i));
  }
  for (size_t i = 0; i < slot_used_.size(); ++i) {
    if (!slot_used_[i]) return Malformed(StrFormat("state slot %zu is never used", i));
  }
  if (program_.output >= produced_.size()) return Malformed(StrFormat("output: value %u does not exist", program_.output));
  if (program_.values[program_.output].kind != ValueKind::kFloat) return Malformed("output is not a float value");
  return Status::Ok();
}

}  // namespace moepack
