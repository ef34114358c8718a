#include "format/manifest/program_wire.h"

#include "format/manifest/program_schema.h"
#include "format/manifest/wire_io.h"
#include "format/proto/program.pb.h"

namespace moepack {
namespace {

constexpr uint32_t kProgramVersion = 1;
constexpr uint32_t kNodeSemantics = 1;

uint32_t PlusOne(TensorId id) { return id + 1; }       // kNone -> 0
TensorId MinusOne(uint32_t wire) { return wire - 1; }  // 0 -> kNone

void WriteRecord(const RotaryNode& in, wire::Rotary* out) {
  out->set_heads(in.heads);
  out->set_head_dim(in.head_dim);
  out->set_rotary_dim(in.rotary_dim);
  out->set_interleaved(in.interleaved);
  out->set_magnitude(in.magnitude);
  out->mutable_inv_freq()->Add(in.inv_freq.begin(), in.inv_freq.end());
  out->set_offset(in.offset);
  out->set_long_from(in.long_from);
  out->set_long_magnitude(in.long_magnitude);
  out->mutable_long_inv_freq()->Add(in.long_inv_freq.begin(), in.long_inv_freq.end());
}

void WriteRecord(const AttentionNode& in, wire::Attention* out) {
  out->set_heads(in.heads);
  out->set_kv_heads(in.kv_heads);
  out->set_head_dim(in.head_dim);
  out->set_scale(in.scale);
  out->set_window(in.window);
  out->set_softcap(in.softcap);
  out->set_state_slot(in.state_slot);
  out->set_value_dim(in.value_dim);
  out->set_chunk(in.chunk);
  out->set_sinks_plus_one(PlusOne(in.sinks));
  out->set_position_scale(in.position_scale);
  out->set_position_floor(in.position_floor);
}

void WriteRecord(const NormNode& in, wire::Norm* out) {
  out->set_kind(static_cast<uint32_t>(in.kind));
  out->set_weight_plus_one(PlusOne(in.weight));
  out->set_bias_plus_one(PlusOne(in.bias));
  out->set_group(in.group);
  out->set_eps(in.eps);
  out->set_one_plus_weight(in.one_plus_weight);
}

void WriteRecord(const MoeNode& in, wire::Moe* out) {
  wire::Routing* routing = out->mutable_routing();
  routing->set_score(static_cast<uint32_t>(in.routing.score));
  routing->set_score_before_topk(in.routing.score_before_topk);
  routing->set_k(in.routing.k);
  routing->set_renormalise(in.routing.renormalise);
  routing->set_eps(in.routing.eps);
  routing->set_scale(in.routing.scale);
  routing->set_group_size(in.routing.group_size);
  routing->set_top_groups(in.routing.top_groups);
  routing->set_group_rule(static_cast<uint32_t>(in.routing.group_rule));
  routing->set_mixer_eps(in.routing.mixer_eps);
  routing->set_weight_on_input(in.routing.weight_on_input);
  wire::ExpertActivation* activation = out->mutable_activation();
  activation->set_function(static_cast<uint32_t>(in.activation.function));
  activation->set_gated(in.activation.gated);
  activation->set_limit(in.activation.limit);
  activation->set_sigmoid_scale(in.activation.sigmoid_scale);
  activation->set_up_offset(in.activation.up_offset);
  out->set_table(in.table);
  out->set_selection_bias_plus_one(PlusOne(in.selection_bias));
  out->set_gate_bias_plus_one(PlusOne(in.gate_bias));
  out->set_up_bias_plus_one(PlusOne(in.up_bias));
  out->set_down_bias_plus_one(PlusOne(in.down_bias));
}

void WriteKind(const Node& in, wire::Node* out) {
  switch (in.kind) {
    case NodeKind::kEmbedding:
      out->mutable_embedding()->set_table(in.embedding.table);
      break;
    case NodeKind::kLinear:
      out->mutable_linear()->set_weight(in.linear.weight);
      out->mutable_linear()->set_bias_plus_one(PlusOne(in.linear.bias));
      break;
    case NodeKind::kNorm:
      WriteRecord(in.norm, out->mutable_norm());
      break;
    case NodeKind::kRotary:
      WriteRecord(in.rotary, out->mutable_rotary());
      break;
    case NodeKind::kAttention:
      WriteRecord(in.attention, out->mutable_attention());
      break;
    case NodeKind::kMoe:
      WriteRecord(in.moe, out->mutable_moe());
      break;
    case NodeKind::kElementwise:
      out->mutable_elementwise()->set_op(static_cast<uint32_t>(in.elementwise.op));
      out->mutable_elementwise()->set_alpha(in.elementwise.alpha);
      break;
    case NodeKind::kSlice:
      out->mutable_slice()->set_begin(in.slice.begin);
      break;
    case NodeKind::kConcat:
      out->mutable_concat()->set_heads(in.concat.heads);
      out->mutable_concat()->set_shared(in.concat.shared);
      break;
    case NodeKind::kConvolution:
      out->mutable_convolution()->set_weight(in.convolution.weight);
      out->mutable_convolution()->set_bias_plus_one(PlusOne(in.convolution.bias));
      out->mutable_convolution()->set_state_slot(in.convolution.state_slot);
      break;
  }
}

void WriteNode(const Node& in, wire::Node* out) {
  out->set_semantics(kNodeSemantics);
  out->set_block(static_cast<uint32_t>(in.block));
  out->mutable_inputs()->Add(in.inputs.begin(), in.inputs.end());
  out->set_output(in.output);
  WriteKind(in, out);
}

void WriteTensor(const TensorDecl& in, wire::Tensor* out) {
  out->set_name(in.name);
  out->set_rows(in.rows);
  out->set_cols(in.cols);
  out->set_role(static_cast<uint32_t>(in.role));
  out->set_layer(in.layer);
}

void WriteTable(const ExpertTableDecl& in, wire::ExpertTableDecl* out) {
  out->set_layer(static_cast<uint32_t>(in.layer));
  out->set_hidden(in.hidden);
  out->mutable_intermediate()->Add(in.intermediate.begin(), in.intermediate.end());
  out->mutable_original()->Add(in.original.begin(), in.original.end());
  out->set_gated(in.gated);
}

// wire_check has refused numbers outside the enums, so the casts below cut nothing.
RotaryNode ReadRecord(const wire::Rotary& in) {
  RotaryNode out;
  out.heads = in.heads();
  out.head_dim = in.head_dim();
  out.rotary_dim = in.rotary_dim();
  out.interleaved = in.interleaved();
  out.magnitude = in.magnitude();
  out.inv_freq.assign(in.inv_freq().begin(), in.inv_freq().end());
  out.offset = in.offset();
  out.long_from = in.long_from();
  out.long_magnitude = in.long_magnitude();
  out.long_inv_freq.assign(in.long_inv_freq().begin(), in.long_inv_freq().end());
  return out;
}

AttentionNode ReadRecord(const wire::Attention& in) {
  AttentionNode out;
  out.heads = in.heads();
  out.kv_heads = in.kv_heads();
  out.head_dim = in.head_dim();
  out.scale = in.scale();
  out.window = in.window();
  out.softcap = in.softcap();
  out.state_slot = in.state_slot();
  out.value_dim = in.value_dim();
  out.chunk = in.chunk();
  out.sinks = MinusOne(in.sinks_plus_one());
  out.position_scale = in.position_scale();
  out.position_floor = in.position_floor();
  return out;
}

NormNode ReadRecord(const wire::Norm& in) {
  NormNode out;
  out.kind = static_cast<NormKind>(in.kind());
  out.weight = MinusOne(in.weight_plus_one());
  out.bias = MinusOne(in.bias_plus_one());
  out.group = in.group();
  out.eps = in.eps();
  out.one_plus_weight = in.one_plus_weight();
  return out;
}

RoutingRecord ReadRecord(const wire::Routing& in) {
  RoutingRecord out;
  out.score = static_cast<ScoreFunction>(in.score());
  out.score_before_topk = in.score_before_topk();
  out.k = in.k();
  out.renormalise = in.renormalise();
  out.eps = in.eps();
  out.scale = in.scale();
  out.group_size = in.group_size();
  out.top_groups = in.top_groups();
  out.group_rule = static_cast<GroupRule>(in.group_rule());
  out.mixer_eps = in.mixer_eps();
  out.weight_on_input = in.weight_on_input();
  return out;
}

MoeNode ReadRecord(const wire::Moe& in) {
  MoeNode out;
  out.routing = ReadRecord(in.routing());
  out.activation.function = static_cast<Activation>(in.activation().function());
  out.activation.gated = in.activation().gated();
  out.activation.limit = in.activation().limit();
  out.activation.sigmoid_scale = in.activation().sigmoid_scale();
  out.activation.up_offset = in.activation().up_offset();
  out.table = in.table();
  out.selection_bias = MinusOne(in.selection_bias_plus_one());
  out.gate_bias = MinusOne(in.gate_bias_plus_one());
  out.up_bias = MinusOne(in.up_bias_plus_one());
  out.down_bias = MinusOne(in.down_bias_plus_one());
  return out;
}

void ReadKind(const wire::Node& in, Node* out) {
  switch (in.kind_case()) {
    case wire::Node::kEmbedding:
      out->kind = NodeKind::kEmbedding;
      out->embedding.table = in.embedding().table();
      return;
    case wire::Node::kLinear:
      out->kind = NodeKind::kLinear;
      out->linear = {in.linear().weight(), MinusOne(in.linear().bias_plus_one())};
      return;
    case wire::Node::kNorm:
      out->kind = NodeKind::kNorm, out->norm = ReadRecord(in.norm());
      return;
    case wire::Node::kRotary:
      out->kind = NodeKind::kRotary, out->rotary = ReadRecord(in.rotary());
      return;
    case wire::Node::kAttention:
      out->kind = NodeKind::kAttention, out->attention = ReadRecord(in.attention());
      return;
    case wire::Node::kMoe:
      out->kind = NodeKind::kMoe, out->moe = ReadRecord(in.moe());
      return;
    case wire::Node::kElementwise:
      out->kind = NodeKind::kElementwise;
      out->elementwise = {static_cast<ElementOp>(in.elementwise().op()), in.elementwise().alpha()};
      return;
    case wire::Node::kSlice:
      out->kind = NodeKind::kSlice;
      out->slice.begin = in.slice().begin();
      return;
    case wire::Node::kConcat:
      out->kind = NodeKind::kConcat;
      out->concat = {in.concat().heads(), in.concat().shared()};
      return;
    case wire::Node::kConvolution:
      out->kind = NodeKind::kConvolution;
      out->convolution = {in.convolution().weight(), MinusOne(in.convolution().bias_plus_one()),
                          in.convolution().state_slot()};
      return;
    case wire::Node::KIND_NOT_SET:
      return;  // wire_check has refused it
  }
}

Node ReadNode(const wire::Node& in) {
  Node out;
  out.block = static_cast<int32_t>(in.block());
  out.inputs.assign(in.inputs().begin(), in.inputs().end());
  out.output = in.output();
  ReadKind(in, &out);
  return out;
}

ExpertTableDecl ReadTable(const wire::ExpertTableDecl& in) {
  ExpertTableDecl out;
  out.layer = static_cast<int32_t>(in.layer());
  out.hidden = in.hidden();
  out.intermediate.assign(in.intermediate().begin(), in.intermediate().end());
  out.original.assign(in.original().begin(), in.original().end());
  out.gated = in.gated();
  return out;
}

Status CheckSemantics(const wire::Program& message) {
  for (int i = 0; i < message.nodes_size(); ++i) {
    if (message.nodes(i).semantics() == kNodeSemantics) continue;
    return Status(ErrorCode::kVersion, StrFormat("program: node %d has semantics version %u, this build knows %u", i,
                                                 message.nodes(i).semantics(), kNodeSemantics));
  }
  return Status::Ok();
}

Program ReadProgram(const wire::Program& message) {
  Program out;
  for (const wire::Value& v : message.values())
    out.values.push_back({v.name(), static_cast<ValueKind>(v.kind()), v.width()});
  out.inputs.assign(message.inputs().begin(), message.inputs().end());
  out.output = message.output();
  for (const wire::Node& node : message.nodes()) out.nodes.push_back(ReadNode(node));
  for (const wire::Tensor& t : message.tensors()) {
    out.tensors.push_back({t.name(), t.rows(), t.cols(), static_cast<TensorRole>(t.role()), t.layer()});
  }
  for (const wire::ExpertTableDecl& table : message.expert_tables()) out.expert_tables.push_back(ReadTable(table));
  out.state_slots = message.state_slots();
  out.max_positions = message.max_positions();
  out.original_parameters = message.original_parameters();
  return out;
}

}  // namespace

Bytes SerializeProgram(const Program& program) {
  wire::Program message;
  message.set_version(kProgramVersion);
  for (const ValueDecl& v : program.values) {
    wire::Value* value = message.add_values();
    value->set_name(v.name);
    value->set_kind(static_cast<uint32_t>(v.kind));
    value->set_width(v.width);
  }
  message.mutable_inputs()->Add(program.inputs.begin(), program.inputs.end());
  message.set_output(program.output);
  for (const Node& node : program.nodes) WriteNode(node, message.add_nodes());
  for (const TensorDecl& tensor : program.tensors) WriteTensor(tensor, message.add_tensors());
  for (const ExpertTableDecl& table : program.expert_tables) WriteTable(table, message.add_expert_tables());
  message.set_state_slots(program.state_slots);
  message.set_max_positions(program.max_positions);
  message.set_original_parameters(program.original_parameters);
  return SerializeMessage(message);
}

Result<Program> ParseProgram(ByteSpan bytes) {
  wire::Program message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(wire_check::kProgram, kProgramVersion, bytes, &message));
  MOEPACK_RETURN_IF_ERROR(CheckSemantics(message));
  Program program = ReadProgram(message);
  MOEPACK_RETURN_IF_ERROR(ValidateProgram(program));
  return program;
}

}  // namespace moepack
