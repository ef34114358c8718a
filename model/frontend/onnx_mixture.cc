// Parts of a mixture, and the operators that only move their dimensions.
#include "model/frontend/onnx_mixture.h"

#include <algorithm>

namespace moepack {

std::optional<Axes> Broadcast(const Axes& a, const Axes& b) {
  Axes out(std::max(a.size(), b.size()), Axis::kOne);
  for (size_t i = 0; i < out.size(); ++i) {
    const Axis left = i < a.size() ? a[a.size() - 1 - i] : Axis::kOne,
               right = i < b.size() ? b[b.size() - 1 - i] : Axis::kOne;
    if (left != right && left != Axis::kOne && right != Axis::kOne) return std::nullopt;
    out[out.size() - 1 - i] = left == Axis::kOne ? right : left;
  }
  return out;
}

const std::map<std::string, OnnxMixtures::Handler>& OnnxMixtures::Handlers() {
  static const std::map<std::string, Handler> kHandlers = {
      {"Softmax", &OnnxMixtures::ImportSoftmax},
      {"TopK", &OnnxMixtures::ImportTopK},
      {"ScatterElements", &OnnxMixtures::ImportScatter},
      {"OneHot", &OnnxMixtures::ImportOneHot},
      {"Div", &OnnxMixtures::ImportDiv},
      {"Equal", &OnnxMixtures::ImportEqual},
      {"Where", &OnnxMixtures::ImportWhere},
      {"Shape", &OnnxMixtures::ImportShape},
      {"ConstantOfShape", &OnnxMixtures::ImportConstantOfShape},
      {"Slice", &OnnxMixtures::ImportSlice},
      {"Split", &OnnxMixtures::ImportSplit},
      {"Gather", &OnnxMixtures::ImportGather},
      {"MatMul", &OnnxMixtures::ImportMatMul},
      {"Sigmoid", &OnnxMixtures::ImportActivation},
      {"Relu", &OnnxMixtures::ImportActivation},
      {"Gelu", &OnnxMixtures::ImportActivation},
      {"com.microsoft.Gelu", &OnnxMixtures::ImportActivation},
      {"com.microsoft.FastGelu", &OnnxMixtures::ImportActivation},
      {"Add", &OnnxMixtures::ImportAdd},
      {"Sum", &OnnxMixtures::ImportAdd},
      {"Mul", &OnnxMixtures::ImportMul},
      {"Concat", &OnnxMixtures::ImportConcat},
      {"ReduceSum", &OnnxMixtures::ImportReduceSum},
      {"Identity", &OnnxMixtures::ImportIdentity},
      {"Cast", &OnnxMixtures::ImportIdentity},
      {"Unsqueeze", &OnnxMixtures::ImportUnsqueeze},
      {"Squeeze", &OnnxMixtures::ImportSqueeze},
      {"Transpose", &OnnxMixtures::ImportTranspose},
      {"Reshape", &OnnxMixtures::ImportReshape},
  };
  return kHandlers;
}

Result<bool> OnnxMixtures::Import(OnnxNode& node) {
  const auto handler = Handlers().find(node.op());
  return handler == Handlers().end() ? false : (this->*handler->second)(node);
}

std::string OnnxMixtures::WhyNoValue(const std::string& name) const {
  const MixturePart* part = Find(name);
  if (part == nullptr) return "";
  if (part->kind == Kind::kTerms) {
    return StrFormat(
        "'%s' adds up %zu experts, but the router has %llu: experts that were stripped when the model was "
        "traced cannot be brought back",
        name.c_str(), part->terms.size(), static_cast<unsigned long long>(part->router.experts));
  }
  return "'" + name + "' is part of a mixture of experts in a form that is not known (docs/families.md)";
}

const MixturePart* OnnxMixtures::Find(const std::string& name) const {
  const auto it = parts_.find(name);
  return it == parts_.end() ? nullptr : &it->second;
}

const MixturePart* OnnxMixtures::Find(const std::string& name, Kind kind) const {
  const MixturePart* part = Find(name);
  return part != nullptr && part->kind == kind ? part : nullptr;
}

// A part, or a value of rows and columns as one.
std::optional<MixturePart> OnnxMixtures::Operand(const std::string& name) const {
  if (const MixturePart* part = Find(name); part != nullptr) return *part;
  const OnnxImporter::Value* value = in_.FindValue(name);
  if (value == nullptr || value->rank != 2 || value->columns != in_.Width(*value)) return std::nullopt;
  MixturePart view;
  view.axes = {Axis::kRows, Axis::kColumns};
  view.columns = value->columns;
  view.value = *value;
  return view;
}

Result<bool> OnnxMixtures::Define(OnnxNode& node, MixturePart part) {
  const std::string& name = node.output(0);
  if (part.kind == Kind::kView && part.axes == Axes{Axis::kRows, Axis::kColumns}) {
    MOEPACK_RETURN_IF_ERROR(in_.Define(node, 0, part.value));
    return true;
  }
  if (name.empty()) return node.Bad("output 0 has no name");
  if (!in_.defined_.insert(name).second) return node.Bad("'" + name + "' is produced twice");
  parts_.emplace(name, std::move(part));
  return true;
}

// 0: not known before the model runs.
uint64_t OnnxMixtures::SizeOf(const MixturePart& part, Axis axis) const {
  switch (axis) {
    case Axis::kOne:
      return 1;
    case Axis::kRows:
      return 0;
    case Axis::kExperts:
      return part.router.experts;
    case Axis::kChoices:
      return part.router.routing.k;
    case Axis::kColumns:
      return part.columns;
  }
  return 0;
}

Result<bool> OnnxMixtures::ImportIdentity(OnnxNode& node) {
  const MixturePart* part = Find(node.input(0));
  if (part == nullptr) return false;
  if (node.op() == "Cast") {
    const int64_t to = node.Int("to", 0);
    node.Int("saturate", 1);
    const bool ids = part->kind == Kind::kIds;
    const bool integer = to == onnx::TensorProto::INT32 || to == onnx::TensorProto::INT64;
    const bool real =
        to == onnx::TensorProto::FLOAT || to == onnx::TensorProto::FLOAT16 || to == onnx::TensorProto::BFLOAT16;
    if (ids ? !integer : !real) return node.Unsupported(StrFormat("to element type %lld", static_cast<long long>(to)));
  }
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  return Define(node, *part);
}

// Input 1, counted from the front, in [0, rank), rising.
Result<std::vector<int64_t>> OnnxMixtures::AxesInput(OnnxNode& node, size_t rank) const {
  MOEPACK_ASSIGN_OR_RETURN(std::vector<int64_t> axes, in_.IntsInput(node, 1));
  const auto size = static_cast<int64_t>(rank);
  for (int64_t& axis : axes) {
    if (axis < -size || axis >= size) return node.Bad(StrFormat("axis %lld is out of range", static_cast<long long>(axis)));
    if (axis < 0) axis += size;
  }
  std::sort(axes.begin(), axes.end());
  if (axes.empty() || std::adjacent_find(axes.begin(), axes.end()) != axes.end())
    return node.Bad("axes are empty or stand twice");
  return axes;
}

Result<bool> OnnxMixtures::ImportUnsqueeze(OnnxNode& node) {
  std::optional<MixturePart> part = Operand(node.input(0));
  if (!part) return false;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const OnnxTensor* added = in_.file_.Find(node.input(1));
  if (added == nullptr || added->elements > kMaxOnnxRank) return node.Unsupported("axes must be constant and few");
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> axes, AxesInput(node, part->axes.size() + added->elements));
  for (const int64_t axis : axes) part->axes.insert(part->axes.begin() + axis, Axis::kOne);
  return Define(node, std::move(*part));
}

Result<bool> OnnxMixtures::ImportSqueeze(OnnxNode& node) {
  const MixturePart* found = Find(node.input(0));
  if (found == nullptr) return false;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MixturePart part = *found;
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> axes, AxesInput(node, part.axes.size()));
  for (size_t i = axes.size(); i-- > 0;) {
    if (part.axes[static_cast<size_t>(axes[i])] != Axis::kOne) return node.Unsupported("of a dimension that is not 1");
    part.axes.erase(part.axes.begin() + axes[i]);
  }
  return Define(node, std::move(part));
}

Result<bool> OnnxMixtures::ImportTranspose(OnnxNode& node) {
  std::optional<MixturePart> part = Operand(node.input(0));
  if (!part) return false;
  std::vector<int64_t> perm = node.Ints("perm", {});
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  for (size_t i = part->axes.size(); perm.size() < part->axes.size() && i-- > 0;) perm.push_back(static_cast<int64_t>(i));
  std::vector<int64_t> sorted = perm;
  std::sort(sorted.begin(), sorted.end());
  Axes axes;
  for (size_t i = 0; i < perm.size(); ++i) {
    if (perm.size() != part->axes.size() || sorted[i] != static_cast<int64_t>(i)) return node.Bad("perm is no permutation");
    axes.push_back(part->axes[static_cast<size_t>(perm[i])]);
  }
  part->axes = std::move(axes);
  return Define(node, std::move(*part));
}

// The dimensions that a shape names: those of the part in their order, and ones.
std::optional<Axes> OnnxMixtures::Reshaped(const MixturePart& part, const std::vector<int64_t>& shape) const {
  Axes left;
  for (const Axis axis : part.axes) {
    if (axis != Axis::kOne) left.push_back(axis);
  }
  Axes out;
  size_t next = 0;
  for (size_t i = 0; i < shape.size(); ++i) {
    const bool more = next < left.size();
    const uint64_t size = more ? SizeOf(part, left[next]) : 0;
    const bool copied = shape[i] == 0 && more && i < part.axes.size() && part.axes[i] == left[next];
    const bool inferred = shape[i] == -1 && more;
    const bool named = shape[i] > 0 && more && size == static_cast<uint64_t>(shape[i]);
    if (copied || inferred || named) {
      out.push_back(left[next++]);
    } else if (shape[i] == 1 || (shape[i] == 0 && i < part.axes.size() && part.axes[i] == Axis::kOne)) {
      out.push_back(Axis::kOne);
    } else {
      return std::nullopt;
    }
  }
  return next == left.size() ? std::optional<Axes>(out) : std::nullopt;
}

Result<bool> OnnxMixtures::ImportReshape(OnnxNode& node) {
  const MixturePart* found = Find(node.input(0));
  if (found == nullptr) return false;
  const int64_t allow_zero = node.Int("allowzero", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, in_.IntsInput(node, 1));
  const std::optional<Axes> axes = allow_zero == 0 ? Reshaped(*found, shape) : std::nullopt;
  if (!axes) return node.Unsupported("a part of a mixture may gain and lose dimensions of 1 only");
  MixturePart part = *found;
  part.axes = *axes;
  return Define(node, std::move(part));
}

}  // namespace moepack
