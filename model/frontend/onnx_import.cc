#include "model/frontend/onnx_import.h"

#include <algorithm>
#include <cmath>

#include "model/frontend/onnx_layers.h"
#include "model/frontend/onnx_mixture.h"

namespace moepack {
namespace {

// Every operator's meaning that is relied on has been the same since.
constexpr int64_t kOldestOpset = 13;

bool IsFloatInput(const onnx::ValueInfoProto& input) {
  switch (input.type().tensor_type().elem_type()) {
    case onnx::TensorProto::FLOAT:
    case onnx::TensorProto::FLOAT16:
    case onnx::TensorProto::BFLOAT16:
      return true;
    default:
      return false;
  }
}

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() > end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// The name of a tensor in the program: the exporter's own names come back unchanged, the customary prefixes and suffixes
// of other exporters go, and characters that a program may not hold become '_'.
std::string ProgramName(std::string name) {
  for (const char* suffix : {".MatMul.weight", ".MatMulNBits.qweight", ".MatMul.weight_quant", ".MatMul.weight_Q4",
                             ".Gemm.weight", ".weight", ".qweight"}) {
    if (EndsWith(name, suffix)) name.resize(name.size() - std::string(suffix).size());
  }
  if (EndsWith(name, ".Add.bias")) name = name.substr(0, name.size() - 9) + ".bias";
  if (name.rfind("model.", 0) == 0 && name.size() > 6) name = name.substr(6);
  for (char& c : name) {
    const bool allowed = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                         std::string("._/-").find(c) != std::string::npos;
    if (!allowed) c = '_';
  }
  return name.substr(0, kMaxNameBytes - 16);  // room for a number
}

// Operators by which graphs compute sequence lengths from shapes and masks.
bool IsBookkeeping(const std::string& op) {
  static const std::set<std::string> kOps = {"ReduceSum", "ReduceMax", "Sub",       "Add",      "Mul",    "Cast",  "Shape",
                                             "Gather",    "Squeeze",   "Unsqueeze", "Constant", "CumSum", "Where", "Equal",
                                             "Range",     "Reshape",   "Expand",    "Slice",    "Concat"};
  return kOps.contains(op);
}

}  // namespace

OnnxImporter::OnnxImporter(const OnnxFile& file, uint64_t context)
    : file_(file), graph_(file.model().graph()), context_(context), mixtures_(std::make_unique<OnnxMixtures>(*this)) {}
OnnxImporter::~OnnxImporter() = default;

const std::map<std::string, OnnxImporter::Handler>& OnnxImporter::Handlers() {
  static const std::map<std::string, Handler> kHandlers = {
      {"Gather", &OnnxImporter::ImportGather},
      {"MatMul", &OnnxImporter::ImportMatMul},
      {"Gemm", &OnnxImporter::ImportGemm},
      {"Transpose", &OnnxImporter::ImportTranspose},
      {"Add", &OnnxImporter::ImportAdd},
      {"Mul", &OnnxImporter::ImportMul},
      {"Sigmoid", &OnnxImporter::ImportUnary},
      {"Relu", &OnnxImporter::ImportUnary},
      {"Gelu", &OnnxImporter::ImportGelu},
      {"com.microsoft.Gelu", &OnnxImporter::ImportUnary},
      {"com.microsoft.FastGelu", &OnnxImporter::ImportUnary},
      {"Clip", &OnnxImporter::ImportClip},
      {"Cast", &OnnxImporter::ImportCast},
      {"Identity", &OnnxImporter::ImportCast},
      {"Reshape", &OnnxImporter::ImportReshape},
      {"Slice", &OnnxImporter::ImportSlice},
      {"Concat", &OnnxImporter::ImportConcat},
      {"Constant", &OnnxImporter::ImportConstant},
      {"RMSNormalization", &OnnxImporter::ImportRmsNorm},
      {"SimplifiedLayerNormalization", &OnnxImporter::ImportRmsNorm},
      {"LayerNormalization", &OnnxImporter::ImportLayerNorm},
      {"com.microsoft.SkipSimplifiedLayerNormalization", &OnnxImporter::ImportSkipRmsNorm},
      {"com.microsoft.SkipLayerNormalization", &OnnxImporter::ImportSkipLayerNorm},
      {"RotaryEmbedding", &OnnxImporter::ImportRotary},
      {"com.microsoft.RotaryEmbedding", &OnnxImporter::ImportRotary},
      {"com.microsoft.GatherBlockQuantized", &OnnxImporter::ImportGatherBlocks},
      {"com.microsoft.MatMulNBits", &OnnxImporter::ImportMatMulNBits},
      {"com.microsoft.MoE", &OnnxImporter::ImportMoe},
      {"com.microsoft.QMoE", &OnnxImporter::ImportMoe},
      {"com.microsoft.GroupQueryAttention", &OnnxImporter::ImportAttention},
  };
  return kHandlers;
}

Status OnnxImporter::Run() {
  MOEPACK_RETURN_IF_ERROR(CheckGraph());
  MOEPACK_RETURN_IF_ERROR(FindBookkeeping());
  MOEPACK_RETURN_IF_ERROR(DeclareInput());
  for (int i = 0; i < graph_.node_size(); ++i) MOEPACK_RETURN_IF_ERROR(ImportNode(i));
  MOEPACK_RETURN_IF_ERROR(SetOutput());
  MOEPACK_RETURN_IF_ERROR(CheckLength());
  if (mixtures_->any()) RemoveUnread();
  MOEPACK_RETURN_IF_ERROR(AssignLayers(&program));
  program.original_parameters = CountParameters(program) - mixtures_->padding();
  return ValidateProgram(program);
}

// Tokens, unless floats are all that goes in.
Status OnnxImporter::DeclareInput() {
  std::vector<const onnx::ValueInfoProto*> inputs;
  for (const onnx::ValueInfoProto& input : graph_.input()) {
    if (file_.Find(input.name()) == nullptr) inputs.push_back(&input);
  }
  producer_.push_back(kNone);
  program.inputs = {0};
  if (inputs.size() == 1 && IsFloatInput(*inputs[0])) return DeclareRows(*inputs[0]);
  program.values.push_back({"tokens", ValueKind::kTokens, 0});
  program.max_positions = kMaxPositions;
  if (context_ != 0) program.max_positions = static_cast<uint32_t>(std::min<uint64_t>(context_, kMaxPositions));
  return Status::Ok();
}

Status OnnxImporter::DeclareRows(const onnx::ValueInfoProto& input) {
  const onnx::TensorShapeProto& shape = input.type().tensor_type().shape();
  const int64_t width = shape.dim_size() == 2 ? shape.dim(1).dim_value() : 0;
  if (width < 1 || static_cast<uint64_t>(width) > kMaxCols) {
    return Status(
        ErrorCode::kUnsupported,
        "graph input '" + input.name() + "': a table of floats must be [rows, columns] with a fixed number of columns");
  }
  program.values.push_back({"rows", ValueKind::kFloat, static_cast<uint64_t>(width)});
  program.max_positions = 1;
  values_.emplace(input.name(), Value{0, static_cast<uint64_t>(width), 2, false, false});
  return Status::Ok();
}

Status OnnxImporter::CheckLength() const {
  if (program.values[0].kind == ValueKind::kFloat || !rotary_.empty() || context_ != 0) return Status::Ok();
  return Status(ErrorCode::kUnsupported,
                "no attention has cos and sin caches: the longest sequence is not known (context_length of a "
                "genai_config.json beside the file says it too)");
}

Status OnnxImporter::CheckGraph() {
  for (const auto& opset : file_.model().opset_import()) {
    const bool standard = opset.domain().empty() || opset.domain() == "ai.onnx";
    if (standard && opset.version() < kOldestOpset) {
      return Status(ErrorCode::kUnsupported,
                    StrFormat("operator set %lld, need 13 or newer", static_cast<long long>(opset.version())));
    }
  }
  for (const onnx::ValueInfoProto& input : graph_.input()) {
    if (file_.Find(input.name()) != nullptr) continue;  // an initializer that may be overridden; ours is not
    if (!IsFloatInput(input)) integers_.insert(input.name());
    if (!defined_.insert(input.name()).second)
      return Status(ErrorCode::kBadInput, "two inputs are named '" + input.name() + "'");
  }
  for (const onnx::NodeProto& node : graph_.node()) {
    if (node.input_size() > static_cast<int>(kMaxNodeInputs) || node.output_size() > 64) {
      return Status(ErrorCode::kLimit, "node '" + node.name() + "' has too many inputs or outputs");
    }
    for (const std::string& name : node.input()) ++uses_[name];
  }
  for (const onnx::ValueInfoProto& output : graph_.output()) ++uses_[output.name()];
  return Status::Ok();
}

// Walks back from the length and position inputs of attention nodes through operators on shapes and masks.
Status OnnxImporter::FindBookkeeping() {
  std::set<std::string> wanted;
  for (int i = graph_.node_size() - 1; i >= 0; --i) {
    const onnx::NodeProto& proto = graph_.node(i);
    const OnnxNode node(proto, i);
    if (node.op() == "com.microsoft.GroupQueryAttention") {
      for (const int input : {5, 6, 9}) wanted.insert(node.input(input));
      continue;
    }
    if (node.op() == "com.microsoft.RotaryEmbedding" || node.op() == "RotaryEmbedding") {
      wanted.insert(node.input(node.op() == "RotaryEmbedding" ? 3 : 1));
      continue;
    }
    const bool reached = std::any_of(proto.output().begin(), proto.output().end(),
                                     [&](const std::string& name) { return !name.empty() && wanted.contains(name); });
    if (!reached || !IsBookkeeping(node.op())) continue;
    bookkeeping_.insert(i);
    lengths_.insert(proto.output().begin(), proto.output().end());
    wanted.insert(proto.input().begin(), proto.input().end());
  }
  return Status::Ok();
}

Status OnnxImporter::ImportNode(int index) {
  OnnxNode node(graph_.node(index), index);
  if (bookkeeping_.contains(index)) return Status::Ok();
  if (file_.IsFolded(node.output(0))) {
    return defined_.insert(node.output(0)).second ? Status::Ok() : node.Bad("'" + node.output(0) + "' is produced twice");
  }
  MOEPACK_ASSIGN_OR_RETURN(const bool mixture, mixtures_->Import(node));
  if (mixture) return Status::Ok();
  const auto handler = Handlers().find(node.op());
  if (handler == Handlers().end()) return node.Unsupported("this operator is not supported");
  return (this->*handler->second)(node);
}

Status OnnxImporter::SetOutput() {
  for (const onnx::ValueInfoProto& output : graph_.output()) {
    if (kv_outputs_.contains(output.name())) continue;
    const Value* value = FindValue(output.name());
    if (value == nullptr) {
      if (const std::string why = mixtures_->WhyNoValue(output.name()); !why.empty())
        return Status(ErrorCode::kUnsupported, "graph output: " + why);
      return Status(ErrorCode::kBadInput, "graph output '" + output.name() + "' is not computed by the graph");
    }
    if (program.output != kNone && program.output != value->id) {
      return Status(ErrorCode::kUnsupported,
                    "graph output '" + output.name() + "': only logits and key-value caches may leave the graph");
    }
    program.output = value->id;
  }
  if (program.output == kNone) return Status(ErrorCode::kBadInput, "the graph has no logits output");
  return Status::Ok();
}

Status OnnxImporter::CheckOutputs(const OnnxNode& node, int allowed) const {
  for (int i = 0; i < node.outputs(); ++i) {
    if (i >= allowed && !node.output(i).empty()) return node.Unsupported(StrFormat("output %d is not supported", i));
  }
  return Status::Ok();
}

const OnnxImporter::Value* OnnxImporter::FindValue(const std::string& name) const {
  const auto it = values_.find(name);
  return it == values_.end() ? nullptr : &it->second;
}

Result<OnnxImporter::Value> OnnxImporter::Input(const OnnxNode& node, int i) const {
  if (const Value* value = FindValue(node.input(i)); value != nullptr) return *value;
  if (node.input(i).empty()) return node.Bad(StrFormat("input %d is missing", i));
  if (const std::string why = mixtures_->WhyNoValue(node.input(i)); !why.empty()) return node.Unsupported(why);
  return node.Bad(StrFormat("input %d '%s' is not a float value that an earlier node computes", i, node.input(i).c_str()));
}

Result<OnnxImporter::Value> OnnxImporter::PlainInput(const OnnxNode& node, int i) const {
  MOEPACK_ASSIGN_OR_RETURN(const Value value, Input(node, i));
  if (value.columns != Width(value)) return node.Unsupported(StrFormat("input %d is split by heads", i));
  return value;
}

Result<const OnnxTensor*> OnnxImporter::ConstantInput(const OnnxNode& node, int i) const {
  if (const OnnxTensor* tensor = file_.Find(node.input(i)); tensor != nullptr) return tensor;
  return node.Unsupported(StrFormat("input %d '%s' must be a constant", i, node.input(i).c_str()));
}

Result<std::vector<int64_t>> OnnxImporter::IntsInput(const OnnxNode& node, int i) const {
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* tensor, ConstantInput(node, i));
  auto values = file_.ReadInts(*tensor);
  if (!values.ok()) return node.Error(values.status().code(), values.status().message());
  return values;
}

Result<float> OnnxImporter::ScalarInput(const OnnxNode& node, int i) const {
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* tensor, ConstantInput(node, i));
  if (tensor->elements != 1) return node.Unsupported(StrFormat("input %d must be one number", i));
  auto values = file_.ReadFloats(*tensor, 0, 1);
  if (!values.ok()) return node.Error(values.status().code(), values.status().message());
  return (*values)[0];
}

Result<const OnnxTensor*> OnnxImporter::VectorInput(const OnnxNode& node, int i) const {
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* tensor, ConstantInput(node, i));
  if (tensor->shape.empty() || tensor->shape.back() != tensor->elements) {
    return node.Error(ErrorCode::kShape, StrFormat("input %d must be a vector", i));
  }
  Codec codec;
  if (!DtypeCodec(tensor->dtype, &codec)) return node.Bad(StrFormat("input %d must be of floats", i));
  return tensor;
}

const Node* OnnxImporter::ProducerOf(ValueId id) const {
  return producer_[id] == kNone ? nullptr : &program.nodes[producer_[id]];
}

bool OnnxImporter::IsGraphOutput(const std::string& name) const {
  return std::any_of(graph_.output().begin(), graph_.output().end(),
                     [&](const auto& output) { return output.name() == name; });
}

bool OnnxImporter::UsedOnce(const std::string& name) const {
  const auto it = uses_.find(name);
  return it != uses_.end() && it->second == 1;
}

void OnnxImporter::AddName(const std::string& name, ValueId id) {
  const auto uses = uses_.find(name);
  if (uses != uses_.end() && uses->second > 1) read_twice_.insert(id);
}

Status OnnxImporter::Define(const OnnxNode& node, int output, const Value& value) {
  const std::string& name = node.output(output);
  if (name.empty()) return node.Bad(StrFormat("output %d has no name", output));
  if (!defined_.insert(name).second || file_.Find(name) != nullptr) return node.Bad("'" + name + "' is produced twice");
  values_.emplace(name, value);
  AddName(name, value.id);
  return Status::Ok();
}

ValueId OnnxImporter::Emit(Node node, uint64_t width) {
  node.output = static_cast<ValueId>(program.values.size());
  producer_.push_back(static_cast<uint32_t>(program.nodes.size()));
  program.values.push_back({"v" + std::to_string(node.output), ValueKind::kFloat, width});
  program.nodes.push_back(std::move(node));
  return program.nodes.back().output;
}

TensorId OnnxImporter::AddTensor(const std::string& constant, uint64_t rows, uint64_t cols, std::vector<OnnxMatrix> parts) {
  // A ':' stands in no name that ProgramName returns, so numbered names never meet others.
  std::string name = ProgramName(constant);
  if (const int copy = ++copies_[name]; copy > 1) name += ":" + std::to_string(copy);
  TensorDecl decl;
  decl.name = name;
  decl.rows = rows;
  decl.cols = cols;
  program.tensors.push_back(decl);
  tensors.push_back({std::move(parts)});
  return static_cast<TensorId>(program.tensors.size() - 1);
}

TensorId OnnxImporter::AddVector(const OnnxTensor& tensor) {
  return AddTensor(tensor.name, 1, tensor.elements, {DenseMatrix(tensor, 1, tensor.elements)});
}

}  // namespace moepack
