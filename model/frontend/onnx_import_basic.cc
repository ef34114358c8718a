// Embedding, linear, elementwise and shape operators.
#include <algorithm>
#include <cmath>

#include "model/frontend/onnx_import.h"

namespace moepack {
namespace {

bool IsWeightMatrix(const OnnxTensor& tensor) {
  Codec codec;
  return DtypeCodec(tensor.dtype, &codec) && tensor.shape.size() == 2;
}

}  // namespace

Status OnnxImporter::ImportGather(OnnxNode& node) {
  const int64_t axis = node.Int("axis", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* table, ConstantInput(node, 0));
  if (axis != 0 || !IsWeightMatrix(*table)) return node.Unsupported("only rows of a float matrix may be gathered");
  return EmitEmbedding(node, DenseMatrix(*table, table->shape[0], table->shape[1]));
}

// The rows of `table` that input 1 names.
Status OnnxImporter::EmitEmbedding(OnnxNode& node, const OnnxMatrix& table) {
  const std::string& tokens = node.input(1);
  if (!integers_.contains(tokens)) return node.Unsupported("indices must be the graph's token input");
  if (program.values[0].kind != ValueKind::kTokens) return node.Unsupported("the graph has no input of tokens");
  if (!tokens_.empty() && tokens_ != tokens) return node.Unsupported("a second input of tokens");
  tokens_ = tokens;
  Node out;
  out.kind = NodeKind::kEmbedding;
  out.inputs = {program.inputs[0]};
  out.embedding.table = AddTensor(table.tensor->name, table.rows, table.cols, {table});
  embeddings_.emplace(table.tensor, out.embedding.table);
  return Define(node, 0, {Emit(std::move(out), table.cols), table.cols, 3, true, true});
}

Status OnnxImporter::EmitLinear(OnnxNode& node, const Value& in, const OnnxMatrix& weight, TensorId bias) {
  if (weight.cols != in.columns) {
    return node.Error(ErrorCode::kShape,
                      StrFormat("weight '%s' takes %llu columns, its input has %llu", weight.tensor->name.c_str(),
                                static_cast<unsigned long long>(weight.cols), static_cast<unsigned long long>(in.columns)));
  }
  Node out;
  out.kind = NodeKind::kLinear;
  out.inputs = {in.id};
  out.linear.bias = bias;
  // A head tied to the embedding reads the same tensor.
  const auto tied = embeddings_.find(weight.tensor);
  if (tied != embeddings_.end() && SameMatrix(tensors[tied->second].parts[0], weight)) out.linear.weight = tied->second;
  if (out.linear.weight == kNone) {
    out.linear.weight = AddTensor(weight.tensor->name, weight.rows, weight.cols, {weight});
  }
  return Define(node, 0, Like(in, Emit(std::move(out), weight.rows), weight.rows));
}

Status OnnxImporter::ImportMatMul(OnnxNode& node) {
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const Value in, PlainInput(node, 0));
  if (const auto it = transposed_.find(node.input(1)); it != transposed_.end()) {
    return EmitLinear(node, in, DenseMatrix(*it->second, it->second->shape[0], it->second->shape[1]), kNone);
  }
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* weight, ConstantInput(node, 1));
  if (!IsWeightMatrix(*weight)) return node.Unsupported("the weight must be a matrix of floats");
  return EmitLinear(node, in, DenseMatrix(*weight, weight->shape[1], weight->shape[0], true), kNone);
}

Status OnnxImporter::ImportGemm(OnnxNode& node) {
  const bool plain = node.Float("alpha", 1) == 1 && node.Float("beta", 1) == 1 && node.Int("transA", 0) == 0;
  const int64_t trans_b = node.Int("transB", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (!plain || (trans_b != 0 && trans_b != 1)) return node.Unsupported("alpha, beta and transA must have their defaults");
  MOEPACK_ASSIGN_OR_RETURN(const Value in, PlainInput(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* weight, ConstantInput(node, 1));
  if (in.rank != 2 || !IsWeightMatrix(*weight)) return node.Error(ErrorCode::kShape, "both factors must be matrices");
  TensorId bias = kNone;
  if (!node.input(2).empty()) {
    const uint64_t rows = weight->shape[trans_b != 0 ? 0 : 1];
    MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* vector, VectorInput(node, 2));
    if (vector->elements != rows) return node.Error(ErrorCode::kShape, "the bias does not fit the weight");
    bias = AddVector(*vector);
  }
  const uint64_t rows = weight->shape[trans_b != 0 ? 0 : 1], cols = weight->shape[trans_b != 0 ? 1 : 0];
  return EmitLinear(node, in, DenseMatrix(*weight, rows, cols, trans_b == 0), bias);
}

Status OnnxImporter::ImportTranspose(OnnxNode& node) {
  const std::vector<int64_t> perm = node.Ints("perm", {1, 0});
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* tensor, ConstantInput(node, 0));
  if (perm != std::vector<int64_t>{1, 0} || !IsWeightMatrix(*tensor)) {
    return node.Unsupported("only of a constant matrix of floats");
  }
  if (!defined_.insert(node.output(0)).second) return node.Bad("'" + node.output(0) + "' is produced twice");
  transposed_.emplace(node.output(0), tensor);
  return Status::Ok();
}

Status OnnxImporter::AddBias(OnnxNode& node, int value_input, int bias_input) {
  MOEPACK_ASSIGN_OR_RETURN(const Value in, PlainInput(node, value_input));
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* bias, VectorInput(node, bias_input));
  if (bias->elements != Width(in)) return node.Error(ErrorCode::kShape, "the bias does not fit its value");
  if (!AttachBias(in, *bias)) {
    return node.Unsupported("a constant may be added to a MatMul's own result only");
  }
  return Define(node, 0, in);
}

// Gives the bias to the linear node that makes `value`, when that has none and only this node reads the value.
bool OnnxImporter::AttachBias(const Value& value, const OnnxTensor& bias) {
  const uint32_t index = producer_[value.id];
  if (index == kNone || program.nodes[index].kind != NodeKind::kLinear) return false;
  if (program.nodes[index].linear.bias != kNone || !ReadOnce(value.id) || bias.elements != Width(value)) return false;
  program.nodes[index].linear.bias = AddVector(bias);
  return true;
}

Status OnnxImporter::AddElementwise(OnnxNode& node, ElementOp op, const Value& a, const Value& b) {
  const bool wide_first = Width(a) >= Width(b);
  const Value &wide = wide_first ? a : b, &narrow = wide_first ? b : a;
  const bool same = Width(a) == Width(b) && a.columns == b.columns;
  const bool broadcast = Width(narrow) == 1 && wide.columns == Width(wide);
  if (a.rank != b.rank || (!same && !broadcast)) {
    return node.Error(ErrorCode::kShape,
                      StrFormat("shapes [..., %llu] and [..., %llu] do not fit", static_cast<unsigned long long>(a.columns),
                                static_cast<unsigned long long>(b.columns)));
  }
  Node out;
  out.kind = NodeKind::kElementwise;
  out.inputs = {wide.id, narrow.id};
  out.elementwise.op = op;
  return Define(node, 0, Like(wide, Emit(std::move(out), Width(wide))));
}

Status OnnxImporter::EmitUnary(OnnxNode& node, ElementOp op, float alpha, const Value& in) {
  Node out;
  out.kind = NodeKind::kElementwise;
  out.inputs = {in.id};
  out.elementwise.op = op;
  out.elementwise.alpha = alpha;
  return Define(node, 0, Like(in, Emit(std::move(out), Width(in))));
}

Status OnnxImporter::ImportAdd(OnnxNode& node) {
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (file_.Find(node.input(1)) != nullptr) return AddBias(node, 0, 1);
  if (file_.Find(node.input(0)) != nullptr) return AddBias(node, 1, 0);
  MOEPACK_ASSIGN_OR_RETURN(const Value a, Input(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const Value b, Input(node, 1));
  return AddElementwise(node, ElementOp::kAdd, a, b);
}

Status OnnxImporter::ImportMul(OnnxNode& node) {
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  for (const int constant : {1, 0}) {
    if (file_.Find(node.input(constant)) == nullptr) continue;
    MOEPACK_ASSIGN_OR_RETURN(const float factor, ScalarInput(node, constant));
    MOEPACK_ASSIGN_OR_RETURN(const Value in, Input(node, 1 - constant));
    return EmitUnary(node, ElementOp::kScale, factor, in);
  }
  MOEPACK_ASSIGN_OR_RETURN(const Value a, Input(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const Value b, Input(node, 1));
  // x * sigmoid(x) is one operation when nobody else reads the sigmoid.
  for (const bool sigmoid_first : {false, true}) {
    const Value &x = sigmoid_first ? b : a, &s = sigmoid_first ? a : b;
    if (ProducerOf(s.id) == nullptr) continue;
    Node& made = program.nodes[producer_[s.id]];
    const bool sigmoid = made.kind == NodeKind::kElementwise && made.elementwise.op == ElementOp::kSigmoid;
    if (sigmoid && made.inputs[0] == x.id && s.columns == x.columns && s.rank == x.rank && ReadOnce(s.id)) {
      made.elementwise.op = ElementOp::kSilu;
      return Define(node, 0, s);
    }
  }
  return AddElementwise(node, ElementOp::kMul, a, b);
}

Status OnnxImporter::ImportUnary(OnnxNode& node) {
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  static const std::map<std::string, ElementOp> kOps = {{"Sigmoid", ElementOp::kSigmoid},
                                                        {"Relu", ElementOp::kRelu},
                                                        {"com.microsoft.Gelu", ElementOp::kGelu},
                                                        {"com.microsoft.FastGelu", ElementOp::kGeluTanh}};
  if (node.inputs() != 1) return node.Unsupported("must have one input");
  MOEPACK_ASSIGN_OR_RETURN(const Value in, Input(node, 0));
  return EmitUnary(node, kOps.at(node.op()), 0, in);
}

Status OnnxImporter::ImportGelu(OnnxNode& node) {
  const std::string approximate = node.Text("approximate", "none");
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (approximate != "none" && approximate != "tanh") return node.Unsupported("approximate '" + approximate + "'");
  MOEPACK_ASSIGN_OR_RETURN(const Value in, Input(node, 0));
  return EmitUnary(node, approximate == "tanh" ? ElementOp::kGeluTanh : ElementOp::kGelu, 0, in);
}

Status OnnxImporter::ImportClip(OnnxNode& node) {
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const Value in, Input(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const float low, ScalarInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const float high, ScalarInput(node, 2));
  if (!(high > 0) || low != -high) return node.Unsupported("only to [-a, a]");
  return EmitUnary(node, ElementOp::kClamp, high, in);
}

// Between float types no operation here: everything is computed in float32.
Status OnnxImporter::ImportCast(OnnxNode& node) {
  const bool cast = node.op() == "Cast";
  const int64_t to = cast ? node.Int("to", 0) : 0;
  if (cast) node.Int("saturate", 1);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (integers_.contains(node.input(0))) {
    const bool integer = to == onnx::TensorProto::INT32 || to == onnx::TensorProto::INT64;
    if (cast && !integer) return node.Unsupported("tokens may become int32 or int64 only");
    if (!defined_.insert(node.output(0)).second) return node.Bad("'" + node.output(0) + "' is produced twice");
    integers_.insert(node.output(0));
    return Status::Ok();
  }
  const bool real = to == onnx::TensorProto::FLOAT || to == onnx::TensorProto::FLOAT16 || to == onnx::TensorProto::BFLOAT16;
  if (cast && !real) return node.Unsupported(StrFormat("to element type %lld", static_cast<long long>(to)));
  MOEPACK_ASSIGN_OR_RETURN(const Value in, Input(node, 0));
  return Define(node, 0, in);
}

Status OnnxImporter::ImportReshape(OnnxNode& node) {
  const int64_t allow_zero = node.Int("allowzero", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (const OnnxTensor* codes = file_.Find(node.input(0)); codes != nullptr && codes->dtype == Dtype::kU8) {
    // Codes of a tied embedding; who reads them checks their number.
    if (!defined_.insert(node.output(0)).second) return node.Bad("'" + node.output(0) + "' is produced twice");
    reshaped_.emplace(node.output(0), codes);
    return Status::Ok();
  }
  MOEPACK_ASSIGN_OR_RETURN(const Value in, Input(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, IntsInput(node, 1));
  if (allow_zero != 0 || shape.size() < 2) return node.Unsupported("shape must have two or more dimensions, zeros copy");
  const uint64_t width = Width(in);
  const bool keeps_sequence = in.by_sequence && shape.size() >= 3 && shape[0] == 0 && shape[1] == 0;
  Value out = in;
  out.rank = shape.size();
  if (shape.back() > 0 && width % static_cast<uint64_t>(shape.back()) == 0) {
    out.columns = static_cast<uint64_t>(shape.back());
  } else if (shape.back() == -1 && keeps_sequence && shape.size() == 3) {
    out.columns = width;
  } else {
    return node.Unsupported(StrFormat("last dimension %lld of a value %llu wide", static_cast<long long>(shape.back()),
                                      static_cast<unsigned long long>(width)));
  }
  out.batch_first = in.batch_first && shape[0] == 0;
  const bool rows_of_batch = out.batch_first && shape.size() == 3 && shape[1] == -1 && out.columns == width;
  out.by_sequence = keeps_sequence || rows_of_batch;
  return Define(node, 0, out);
}

Status OnnxImporter::ImportSlice(OnnxNode& node) {
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const Value in, PlainInput(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> begin, IntsInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> end, IntsInput(node, 2));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> axes, IntsInput(node, 3));
  if (!node.input(4).empty()) {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> steps, IntsInput(node, 4));
    if (steps != std::vector<int64_t>{1}) return node.Unsupported("steps other than 1");
  }
  const bool one = begin.size() == 1 && end.size() == 1 && axes.size() == 1;
  if (!one || (axes[0] != -1 && axes[0] != static_cast<int64_t>(in.rank) - 1))
    return node.Unsupported("only along the last axis");
  if (begin[0] < 0 || end[0] <= begin[0] || static_cast<uint64_t>(end[0]) > in.columns) {
    return node.Error(ErrorCode::kShape, "the slice is empty, negative or reaches past its input");
  }
  const uint64_t width = static_cast<uint64_t>(end[0] - begin[0]);
  Node out;
  out.kind = NodeKind::kSlice;
  out.inputs = {in.id};
  out.slice.begin = static_cast<uint64_t>(begin[0]);
  return Define(node, 0, Like(in, Emit(std::move(out), width), width));
}

Status OnnxImporter::ImportConcat(OnnxNode& node) {
  const int64_t axis = node.Int("axis", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  Node out;
  out.kind = NodeKind::kConcat;
  Value first;
  uint64_t width = 0;
  for (int i = 0; i < node.inputs(); ++i) {
    MOEPACK_ASSIGN_OR_RETURN(const Value in, PlainInput(node, i));
    if (i == 0) first = in;
    if (in.rank != first.rank) return node.Error(ErrorCode::kShape, "inputs of different rank");
    out.inputs.push_back(in.id);
    width += in.columns;
  }
  if (out.inputs.empty() || width > kMaxRows || (axis != -1 && axis != static_cast<int64_t>(first.rank) - 1)) {
    return node.Unsupported("only along the last axis");
  }
  return Define(node, 0, Like(first, Emit(std::move(out), width), width));
}

// The file has it among its constants already.
Status OnnxImporter::ImportConstant(OnnxNode& node) { return CheckOutputs(node, 1); }

}  // namespace moepack
