// Sizes that a graph computes of constants alone. torch.onnx writes expand(-1, n) so: ones as many as the sizes, ones times
// -1, where a size equals that, a one instead.
#include <algorithm>
#include <cmath>

#include "model/frontend/onnx_file.h"
#include "model/frontend/onnx_node.h"

namespace moepack {
namespace {

constexpr uint64_t kMostSizes = 64;

// The one number of a ConstantOfShape, when it is an integer and small.
std::optional<int64_t> ValueOf(const onnx::NodeProto& node) {
  if (node.attribute_size() != 1 || node.attribute(0).name() != "value" ||
      node.attribute(0).type() != onnx::AttributeProto::TENSOR ||
      node.attribute(0).t().data_type() != onnx::TensorProto::INT64) {
    return std::nullopt;
  }
  const std::optional<float> value = OnnxNode(node, 0).Number("value");
  constexpr float kLargest = 1 << 20;
  if (!value || std::abs(*value) > kLargest) return std::nullopt;
  return static_cast<int64_t>(*value);
}

}  // namespace

Status OnnxFile::Fold(const onnx::NodeProto& node) {
  const std::string& op = node.op_type();
  const bool of_shape = op == "ConstantOfShape", three = op == "Where";
  const int wanted = of_shape ? 1 : three ? 3 : op == "Mul" || op == "Equal" ? 2 : 0;
  if (wanted == 0 || node.input_size() != wanted || node.output_size() != 1) return Status::Ok();
  if (!of_shape && node.attribute_size() != 0) return Status::Ok();
  std::vector<std::vector<int64_t>> in;
  uint64_t size = 1;
  size_t rank = 0;
  for (const std::string& name : node.input()) {
    const OnnxTensor* tensor = Find(name);
    const Dtype dtype = three && in.empty() ? Dtype::kBool : Dtype::kI64;
    const bool sizes =
        tensor != nullptr && tensor->shape.size() <= 1 && tensor->elements <= kMostSizes && tensor->dtype == dtype;
    if (!sizes) return Status::Ok();
    const bool fits = tensor->elements == 1 || size == 1 || tensor->elements == size;
    if (!fits) return Status::Ok();
    size = tensor->elements == 1 ? size : tensor->elements;
    rank = std::max(rank, tensor->shape.size());
    MOEPACK_ASSIGN_OR_RETURN(std::vector<int64_t> values, ReadInts(*tensor));
    in.push_back(std::move(values));
  }
  onnx::TensorProto out;
  out.set_data_type(op == "Equal" ? onnx::TensorProto::BOOL : onnx::TensorProto::INT64);
  if (of_shape) {
    const std::optional<int64_t> value = ValueOf(node);
    const bool few = rank == 1 && size == 1 && in[0][0] >= 1 && in[0][0] <= static_cast<int64_t>(kMostSizes);
    if (!value || !few) return Status::Ok();
    out.add_dims(in[0][0]);
    for (int64_t i = 0; i < in[0][0]; ++i) out.add_int64_data(*value);
  } else {
    if (rank == 1) out.add_dims(static_cast<int64_t>(size));
    const auto at = [&](size_t input, uint64_t i) { return in[input][in[input].size() == 1 ? 0 : i]; };
    for (uint64_t i = 0; i < size; ++i) {
      int64_t value = 0;
      if (three) {
        out.add_int64_data(at(0, i) != 0 ? at(1, i) : at(2, i));
      } else if (op == "Equal") {
        out.add_int32_data(at(0, i) == at(1, i));
      } else if (__builtin_mul_overflow(at(0, i), at(1, i), &value)) {
        return Status::Ok();
      } else {
        out.add_int64_data(value);
      }
    }
  }
  folded_.insert(node.output(0));
  return AddConstant(out, node.output(0));
}

}  // namespace moepack
