#include "model/export/onnx_graph.h"

#include <algorithm>
#include <cmath>

#include "model/plain_nodes.h"

namespace moepack {
namespace {

// A dimension is a number, or a name when it begins with a letter.
void Declare(onnx::ValueInfoProto* value, const std::string& name, int32_t type, const std::vector<std::string>& dims) {
  value->set_name(name);
  auto* tensor = value->mutable_type()->mutable_tensor_type();
  tensor->set_elem_type(type);
  for (const std::string& dim : dims) {
    const bool number = dim[0] >= '0' && dim[0] <= '9';
    if (number) {
      tensor->mutable_shape()->add_dim()->set_dim_value(std::stoll(dim));
    } else {
      tensor->mutable_shape()->add_dim()->set_dim_param(dim);
    }
  }
}

// The node without what its operator has beyond plain decoders: sinks, and of SwiGLU experts biases and clamping.
Node WithoutAttributes(Node node) {
  node.attention.sinks = kNone;
  if (node.kind != NodeKind::kMoe) return node;
  node.moe.gate_bias = node.moe.up_bias = node.moe.down_bias = kNone;
  ActivationRecord& activation = node.moe.activation;
  if (activation.gated && activation.function == Activation::kSilu) {
    activation.limit = activation.sigmoid_scale = activation.up_offset = 0;
  }
  return node;
}

// The same angles and size: one pair of caches serves both.
bool SameCache(const RotaryNode& a, const RotaryNode& b) { return a.inv_freq == b.inv_freq && a.magnitude == b.magnitude; }

bool SameRotation(const RotaryNode& a, const RotaryNode& b) {
  return SameCache(a, b) && a.head_dim == b.head_dim && a.interleaved == b.interleaved;
}

}  // namespace

void OnnxGraphWriter::SetInt(onnx::NodeProto* node, const char* name, int64_t value) {
  auto* attribute = node->add_attribute();
  attribute->set_name(name);
  attribute->set_type(onnx::AttributeProto::INT);
  attribute->set_i(value);
}

void OnnxGraphWriter::SetFloat(onnx::NodeProto* node, const char* name, float value) {
  auto* attribute = node->add_attribute();
  attribute->set_name(name);
  attribute->set_type(onnx::AttributeProto::FLOAT);
  attribute->set_f(value);
}

void OnnxGraphWriter::SetText(onnx::NodeProto* node, const char* name, const std::string& value) {
  auto* attribute = node->add_attribute();
  attribute->set_name(name);
  attribute->set_type(onnx::AttributeProto::STRING);
  attribute->set_s(value);
}

Status OnnxGraphWriter::Run() {
  graph_.set_name("moepack");
  WriteInterface();
  if (program_.state_slots > 0) WriteLengths();
  MOEPACK_RETURN_IF_ERROR(FindRotaries());
  for (size_t i = 0; i < program_.nodes.size(); ++i) MOEPACK_RETURN_IF_ERROR(WriteNode(i));
  return Status::Ok();
}

void OnnxGraphWriter::WriteInterface() {
  const int32_t integer = onnx::TensorProto::INT64, real = onnx::TensorProto::FLOAT;
  Declare(graph_.add_input(), "input_ids", integer, {"batch_size", "sequence_length"});
  if (program_.state_slots > 0)
    Declare(graph_.add_input(), "attention_mask", integer, {"batch_size", "total_sequence_length"});
  Declare(graph_.add_output(), "logits", real,
          {"batch_size", "sequence_length", std::to_string(program_.values[program_.output].width)});
  for (const Node& node : program_.nodes) {
    if (node.kind != NodeKind::kAttention) continue;
    const std::string heads = std::to_string(node.attention.kv_heads), width = std::to_string(node.attention.head_dim);
    for (const char* part : {".key", ".value"}) {
      const std::string name = std::to_string(node.attention.state_slot) + part;
      Declare(graph_.add_input(), "past_key_values." + name, real, {"batch_size", heads, "past_sequence_length", width});
      Declare(graph_.add_output(), "present." + name, real, {"batch_size", heads, "total_sequence_length", width});
    }
  }
}

// seqlens_k = tokens a sequence has in all, less 1; total_sequence_length = the longest of them.
void OnnxGraphWriter::WriteLengths() {
  SetInt(Add(kStandard, "ReduceSum", {"attention_mask", Ints({1})}, "lengths"), "keepdims", 0);
  Add(kStandard, "Sub", {"lengths", Ints({1}, true)}, "lengths_less_one");
  SetInt(Add(kStandard, "Cast", {"lengths_less_one"}, "seqlens_k"), "to", onnx::TensorProto::INT32);
  Add(kStandard, "Shape", {"attention_mask"}, "mask_shape");
  SetInt(Add(kStandard, "Gather", {"mask_shape", Ints({1}, true)}, "total_length"), "axis", 0);
  SetInt(Add(kStandard, "Cast", {"total_length"}, "total_sequence_length"), "to", onnx::TensorProto::INT32);
}

// Rotations are done by the attention node that reads them.
Status OnnxGraphWriter::FindRotaries() {
  rotated_.assign(program_.values.size(), nullptr);
  before_rotation_.assign(program_.values.size(), kNone);
  for (const Node& node : program_.nodes) {
    if (node.kind != NodeKind::kRotary) continue;
    rotated_[node.output] = &node.rotary;
    before_rotation_[node.output] = node.inputs[0];
  }
  for (size_t i = 0; i < program_.nodes.size(); ++i) {
    index_ = i;
    const Node& node = program_.nodes[i];
    for (size_t input = 0; input < node.inputs.size(); ++input) {
      const bool by_attention = node.kind == NodeKind::kAttention && input < 2;
      if (rotated_[node.inputs[input]] != nullptr && !by_attention) return Unsupported("a rotation outside of attention");
    }
  }
  if (program_.output != kNone && rotated_[program_.output] != nullptr)
    return Unsupported("a rotation outside of attention");
  return Status::Ok();
}

Status OnnxGraphWriter::WriteNode(size_t index) {
  index_ = index;
  const Node& node = program_.nodes[index];
  if (const char* what = BeyondPlain(WithoutAttributes(node))) return Unsupported(what);
  switch (node.kind) {
    case NodeKind::kEmbedding:
      SetInt(Add(kStandard, "Gather", {Tensor(node.embedding.table, OnnxBlobKind::kTensor), "input_ids"},
                 ValueName(node.output)),
             "axis", 0);
      return Status::Ok();
    case NodeKind::kLinear:
      return WriteLinear(node);
    case NodeKind::kNorm:
      return WriteNorm(node);
    case NodeKind::kRotary:
      return Status::Ok();
    case NodeKind::kAttention:
      return WriteAttention(node);
    case NodeKind::kMoe:
      return WriteMoe(node);
    case NodeKind::kElementwise:
      return WriteElementwise(node);
    case NodeKind::kSlice:
      WriteSlice(node);
      return Status::Ok();
    case NodeKind::kConcat:
      WriteConcat(node);
      return Status::Ok();
    case NodeKind::kConvolution:
      break;
  }
  return Unsupported("unknown node kind");
}

Status OnnxGraphWriter::WriteLinear(const Node& node) {
  const TensorId id = node.linear.weight;
  const bool tied = std::any_of(program_.nodes.begin(), program_.nodes.end(), [id](const Node& other) {
    return other.kind == NodeKind::kEmbedding && other.embedding.table == id;
  });
  std::string weight;
  if (tied) {
    weight = Temporary("transposed");
    auto* transpose = Add(kStandard, "Transpose", {Tensor(id, OnnxBlobKind::kTensor)}, weight);
    auto* perm = transpose->add_attribute();
    perm->set_name("perm");
    perm->set_type(onnx::AttributeProto::INTS);
    perm->add_ints(1);
    perm->add_ints(0);
  } else {
    weight = Tensor(id, OnnxBlobKind::kTensorTransposed);
  }
  const std::string out = ValueName(node.output), in = ValueName(node.inputs[0]);
  if (node.linear.bias == kNone) {
    Add(kStandard, "MatMul", {in, weight}, out);
    return Status::Ok();
  }
  const std::string product = Temporary("product");
  Add(kStandard, "MatMul", {in, weight}, product);
  Add(kStandard, "Add", {product, Tensor(node.linear.bias, OnnxBlobKind::kTensor)}, out);
  return Status::Ok();
}

Status OnnxGraphWriter::WriteNorm(const Node& node) {
  const NormNode& norm = node.norm;
  const bool rms = norm.kind == NormKind::kRms;
  if (rms && norm.bias != kNone) return Unsupported("an RMS norm with a bias");
  const uint64_t width = program_.values[node.output].width;
  const bool grouped = norm.group != width;
  std::string in = ValueName(node.inputs[0]), out = ValueName(node.output);
  if (grouped) {
    const std::string split = Temporary("split");
    Add(kStandard, "Reshape", {in, Ints({0, 0, -1, static_cast<int64_t>(norm.group)})}, split);
    in = split;
    out = Temporary("normed");
  }
  const OnnxBlobKind kind = norm.one_plus_weight ? OnnxBlobKind::kTensorPlusOne : OnnxBlobKind::kTensor;
  std::vector<std::string> inputs = {in, norm.weight == kNone ? Ones(norm.group) : Tensor(norm.weight, kind)};
  if (norm.bias != kNone) inputs.push_back(Tensor(norm.bias, OnnxBlobKind::kTensor));
  auto* proto = Add(kStandard, rms ? "SimplifiedLayerNormalization" : "LayerNormalization", inputs, out);
  SetInt(proto, "axis", -1);
  SetFloat(proto, "epsilon", norm.eps);
  SetInt(proto, "stash_type", 1);
  if (grouped) Add(kStandard, "Reshape", {out, Ints({0, 0, static_cast<int64_t>(width)})}, ValueName(node.output));
  return Status::Ok();
}

Status OnnxGraphWriter::WriteAttention(const Node& node) {
  const AttentionNode& a = node.attention;
  const RotaryNode *q = rotated_[node.inputs[0]], *k = rotated_[node.inputs[1]];
  if ((q == nullptr) != (k == nullptr) || (q != nullptr && !SameRotation(*q, *k))) {
    return Unsupported("query and key that are not rotated alike");
  }
  const auto source = [&](ValueId id) { return ValueName(rotated_[id] == nullptr ? id : before_rotation_[id]); };
  const std::string slot = std::to_string(a.state_slot);
  std::vector<std::string> inputs = {source(node.inputs[0]),
                                     source(node.inputs[1]),
                                     ValueName(node.inputs[2]),
                                     "past_key_values." + slot + ".key",
                                     "past_key_values." + slot + ".value",
                                     "seqlens_k",
                                     "total_sequence_length"};
  if (q != nullptr) {
    auto cache = std::find_if(caches_.begin(), caches_.end(), [&](const RotaryNode* r) { return SameCache(*r, *q); });
    if (cache == caches_.end()) cache = caches_.insert(caches_.end(), q);
    const std::string name = cache == caches_.begin() ? "" : "." + std::to_string(cache - caches_.begin());
    const std::vector<uint64_t> shape = {program_.max_positions, q->inv_freq.size()};
    inputs.push_back(Blob({OnnxBlobKind::kCos, "cos_cache" + name, shape, kNone, 0, q}));
    inputs.push_back(Blob({OnnxBlobKind::kSin, "sin_cache" + name, shape, kNone, 0, q}));
  }
  if (a.sinks != kNone) {
    inputs.resize(11);  // no positions and no attention bias
    inputs.push_back(Tensor(a.sinks, OnnxBlobKind::kTensor));
  }
  auto* proto = Add(kContrib, "GroupQueryAttention", inputs, ValueName(node.output));
  proto->add_output("present." + slot + ".key");
  proto->add_output("present." + slot + ".value");
  SetInt(proto, "num_heads", a.heads);
  SetInt(proto, "kv_num_heads", a.kv_heads);
  SetFloat(proto, "scale", a.scale);
  SetFloat(proto, "softcap", a.softcap);
  SetInt(proto, "local_window_size", a.window == 0 ? -1 : static_cast<int64_t>(a.window));
  SetInt(proto, "do_rotary", q == nullptr ? 0 : 1);
  SetInt(proto, "rotary_interleaved", q != nullptr && q->interleaved ? 1 : 0);
  return Status::Ok();
}

Status OnnxGraphWriter::WriteElementwise(const Node& node) {
  const std::string a = ValueName(node.inputs[0]), out = ValueName(node.output);
  const float alpha = node.elementwise.alpha;
  switch (node.elementwise.op) {
    case ElementOp::kAdd:
      Add(kStandard, "Add", {a, ValueName(node.inputs[1])}, out);
      break;
    case ElementOp::kMul:
      Add(kStandard, "Mul", {a, ValueName(node.inputs[1])}, out);
      break;
    case ElementOp::kScale:
      Add(kStandard, "Mul", {a, Scalar(alpha)}, out);
      break;
    case ElementOp::kSigmoid:
      Add(kStandard, "Sigmoid", {a}, out);
      break;
    case ElementOp::kSilu: {
      const std::string sigmoid = Temporary("sigmoid");
      Add(kStandard, "Sigmoid", {a}, sigmoid);
      Add(kStandard, "Mul", {a, sigmoid}, out);
      break;
    }
    case ElementOp::kGelu:
      Add(kContrib, "Gelu", {a}, out);
      break;
    case ElementOp::kGeluTanh:
      Add(kContrib, "FastGelu", {a}, out);
      break;
    case ElementOp::kRelu:
      Add(kStandard, "Relu", {a}, out);
      break;
    case ElementOp::kClamp:
      Add(kStandard, "Clip", {a, Scalar(-alpha), Scalar(alpha)}, out);
      break;
  }
  return Status::Ok();
}

void OnnxGraphWriter::WriteSlice(const Node& node) {
  const int64_t begin = static_cast<int64_t>(node.slice.begin);
  const int64_t end = begin + static_cast<int64_t>(program_.values[node.output].width);
  Add(kStandard, "Slice", {ValueName(node.inputs[0]), Ints({begin}), Ints({end}), Ints({-1})}, ValueName(node.output));
}

void OnnxGraphWriter::WriteConcat(const Node& node) {
  std::vector<std::string> inputs;
  for (const ValueId id : node.inputs) inputs.push_back(ValueName(id));
  SetInt(Add(kStandard, "Concat", inputs, ValueName(node.output)), "axis", -1);
}

onnx::NodeProto* OnnxGraphWriter::Add(const char* domain, const char* op, const std::vector<std::string>& inputs,
                                      const std::string& output) {
  onnx::NodeProto* node = graph_.add_node();
  node->set_name(std::string(op) + "." + std::to_string(graph_.node_size() - 1));
  node->set_domain(domain);
  node->set_op_type(op);
  for (const std::string& input : inputs) node->add_input(input);
  node->add_output(output);
  return node;
}

std::string OnnxGraphWriter::Ints(const std::vector<int64_t>& values, bool scalar) {
  std::string name = scalar ? "int" : "ints";
  for (const int64_t value : values) name += "_" + std::to_string(value);
  if (!names_.insert(name).second) return name;
  onnx::TensorProto* tensor = graph_.add_initializer();
  tensor->set_name(name);
  tensor->set_data_type(onnx::TensorProto::INT64);
  if (!scalar) tensor->add_dims(static_cast<int64_t>(values.size()));
  for (const int64_t value : values) tensor->add_int64_data(value);
  return name;
}

std::string OnnxGraphWriter::Scalar(float value) {
  const std::string name = StrFormat("float_%.9g", static_cast<double>(value));
  if (!names_.insert(name).second) return name;
  onnx::TensorProto* tensor = graph_.add_initializer();
  tensor->set_name(name);
  tensor->set_data_type(onnx::TensorProto::FLOAT);
  tensor->add_float_data(value);
  return name;
}

std::string OnnxGraphWriter::Ones(uint64_t count) {
  const std::string name = "ones_" + std::to_string(count);
  if (!names_.insert(name).second) return name;
  onnx::TensorProto* tensor = graph_.add_initializer();
  tensor->set_name(name);
  tensor->set_data_type(onnx::TensorProto::FLOAT);
  tensor->add_dims(static_cast<int64_t>(count));
  for (uint64_t i = 0; i < count; ++i) tensor->add_float_data(1);
  return name;
}

std::string OnnxGraphWriter::Tensor(TensorId id, OnnxBlobKind kind) {
  const TensorDecl& tensor = program_.tensors[id];
  std::vector<uint64_t> shape = {tensor.rows, tensor.cols};
  if (kind == OnnxBlobKind::kTensorTransposed) shape = {tensor.cols, tensor.rows};
  const bool vector = tensor.role == TensorRole::kNorm || tensor.role == TensorRole::kBias;
  if (vector) shape = {tensor.cols};
  const bool bias = tensor.role == TensorRole::kBias;
  return Blob({kind, bias ? tensor.name : tensor.name + ".weight", shape, id, 0, nullptr});
}

std::string OnnxGraphWriter::Blob(OnnxBlob blob) {
  std::string name = blob.name;
  if (names_.insert(name).second) blobs_.push_back(std::move(blob));
  return name;
}

std::string OnnxGraphWriter::ValueName(ValueId id) const {
  return id == program_.output ? std::string("logits") : "v" + std::to_string(id);
}

std::string OnnxGraphWriter::Temporary(const char* what) { return std::string(what) + "." + std::to_string(temporaries_++); }

Status OnnxGraphWriter::Unsupported(const std::string& what) const {
  return Status(ErrorCode::kUnsupported, StrFormat("node %zu: ONNX Runtime's operators cannot express ", index_) + what);
}

}  // namespace moepack
