// Normalisation operators.
#include "model/frontend/onnx_import.h"

namespace moepack {

Status OnnxImporter::EmitNorm(OnnxNode& node, NormKind kind, const Value& in, int scale, int bias, float eps) {
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* weight, VectorInput(node, scale));
  Node out;
  out.kind = NodeKind::kNorm;
  out.inputs = {in.id};
  out.norm.kind = kind;
  out.norm.group = in.columns;
  out.norm.eps = eps;
  if (weight->elements != in.columns) {
    return node.Error(ErrorCode::kShape, StrFormat("the scale has %llu values for %llu columns",
                                                   static_cast<unsigned long long>(weight->elements),
                                                   static_cast<unsigned long long>(in.columns)));
  }
  out.norm.weight = AddVector(*weight);
  if (bias >= 0 && !node.input(bias).empty()) {
    MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* shift, VectorInput(node, bias));
    if (shift->elements != in.columns) return node.Error(ErrorCode::kShape, "the bias does not fit the scale");
    out.norm.bias = AddVector(*shift);
  }
  return Define(node, 0, Like(in, Emit(std::move(out), Width(in))));
}

Status OnnxImporter::ImportRmsNorm(OnnxNode& node) {
  const int64_t axis = node.Int("axis", -1);
  const float eps = node.Float("epsilon", 1e-5f);
  node.Int("stash_type", 1);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_RETURN_IF_ERROR(CheckOutputs(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const Value in, Input(node, 0));
  if (axis != -1 && axis != static_cast<int64_t>(in.rank) - 1) return node.Unsupported("only over the last axis");
  if (node.inputs() != 2) return node.Unsupported("must have an input and a scale");
  return EmitNorm(node, NormKind::kRms, in, 1, -1, eps);
}

Status OnnxImporter::ImportLayerNorm(OnnxNode& node) {
  const int64_t axis = node.Int("axis", -1);
  const float eps = node.Float("epsilon", 1e-5f);
  node.Int("stash_type", 1);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_RETURN_IF_ERROR(CheckOutputs(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const Value in, Input(node, 0));
  if (axis != -1 && axis != static_cast<int64_t>(in.rank) - 1) return node.Unsupported("only over the last axis");
  return EmitNorm(node, NormKind::kLayer, in, 1, 2, eps);
}

// Outputs: norm(input + skip + bias), -, -, input + skip + bias. A bias goes to whichever of both a MatMul makes.
Result<OnnxImporter::Value> OnnxImporter::SkipSum(OnnxNode& node, int bias) {
  MOEPACK_RETURN_IF_ERROR(CheckOutputs(node, 4));
  if (!node.output(1).empty() || !node.output(2).empty()) return node.Unsupported("mean and variance outputs");
  MOEPACK_ASSIGN_OR_RETURN(const Value a, PlainInput(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const Value b, PlainInput(node, 1));
  if (Width(a) != Width(b) || a.rank != b.rank) return node.Error(ErrorCode::kShape, "input and skip differ in shape");
  if (!node.input(bias).empty()) {
    MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* vector, VectorInput(node, bias));
    if (!AttachBias(a, *vector) && !AttachBias(b, *vector)) {
      return node.Unsupported("a bias, when neither input is a MatMul's own result as wide as it");
    }
  }
  Node sum;
  sum.kind = NodeKind::kElementwise;
  sum.inputs = {a.id, b.id};
  sum.elementwise.op = ElementOp::kAdd;
  const Value total = Like(a, Emit(std::move(sum), Width(a)));
  if (!node.output(3).empty()) MOEPACK_RETURN_IF_ERROR(Define(node, 3, total));
  return total;
}

Status OnnxImporter::ImportSkipRmsNorm(OnnxNode& node) {
  const float eps = node.Float("epsilon", 1e-5f);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const Value total, SkipSum(node, 3));
  return EmitNorm(node, NormKind::kRms, total, 2, -1, eps);
}

Status OnnxImporter::ImportSkipLayerNorm(OnnxNode& node) {
  const float eps = node.Float("epsilon", 1e-5f);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const Value total, SkipSum(node, 4));
  return EmitNorm(node, NormKind::kLayer, total, 2, 3, eps);
}

}  // namespace moepack
