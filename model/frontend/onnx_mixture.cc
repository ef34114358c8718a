// Parts of a mixture, and the operators that only move their dimensions.
#include "model/frontend/onnx_mixture.h"

#include <algorithm>

namespace moepack {

uint64_t MixturePart::Kept() const {
  uint64_t kept = terms.size() + rest.size() + list.size();
  for (const ExpertProduct* product : {&steps.up, &steps.gate, &steps.down})
    kept += product->weight.size() + product->bias.size();
  return kept;
}

bool SameChoices(const MixturePart& a, const MixturePart& b) {
  return a.router.routing.k == b.router.routing.k &&
         (a.router.logits == b.router.logits || a.router.logits == kNone || b.router.logits == kNone);
}

bool OfOneExpert(const Axes& axes) {
  return std::any_of(axes.begin(), axes.end(), [](Axis axis) { return axis == Axis::kHits || axis == Axis::kRun; });
}

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
      {"ScatterND", &OnnxMixtures::ImportScatterNd},
      {"GatherND", &OnnxMixtures::ImportGatherNd},
      {"NonZero", &OnnxMixtures::ImportNonZero},
      {"Range", &OnnxMixtures::ImportRange},
      {"Expand", &OnnxMixtures::ImportExpand},
      {"Gemm", &OnnxMixtures::ImportGemm},
      {"OneHot", &OnnxMixtures::ImportOneHot},
      {"Div", &OnnxMixtures::ImportDiv},
      {"CumSum", &OnnxMixtures::ImportCumSum},
      {"Sub", &OnnxMixtures::ImportSub},
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
  const bool adds = node.op() == "ScatterElements" || node.op() == "ScatterND";
  for (int i = adds ? 1 : 0; i < node.inputs(); ++i) {
    if (Find(node.input(i), Kind::kScattered) != nullptr) return node.Error(ErrorCode::kShape, WhyNoValue(node.input(i)));
  }
  const auto handler = Handlers().find(node.op());
  return handler == Handlers().end() ? false : (this->*handler->second)(node);
}

std::string OnnxMixtures::WhyNoValue(const std::string& name) const {
  const MixturePart* part = Find(name);
  if (part == nullptr) return "";
  if (part->kind == Kind::kScattered) {
    return StrFormat(
        "'%s' adds up %zu experts, but the router has %llu: experts that were stripped when the model was "
        "traced cannot be brought back",
        name.c_str(), part->branches->size(), static_cast<unsigned long long>(part->router.experts));
  }
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

std::optional<MixturePart> OnnxMixtures::TakeOperand(const std::string& name) {
  if (Find(name, Kind::kTerms) == nullptr || !in_.UsedOnce(name)) return Operand(name);
  MixturePart part = std::move(parts_.at(name));
  parts_.erase(name);
  kept_ -= part.Kept();
  return part;
}

Result<bool> OnnxMixtures::Define(OnnxNode& node, MixturePart part) {
  if (part.kind == Kind::kView && part.axes == Axes{Axis::kRows, Axis::kColumns}) {
    MOEPACK_RETURN_IF_ERROR(in_.Define(node, 0, part.value));
  } else {
    MOEPACK_RETURN_IF_ERROR(Store(node, 0, std::move(part)));
  }
  return true;
}

Status OnnxMixtures::Store(const OnnxNode& node, int i, MixturePart part) {
  constexpr uint64_t kMostKept = 1 << 22;
  const std::string& name = node.output(i);
  if (name.empty()) return node.Bad(StrFormat("output %d has no name", i));
  if (!in_.defined_.insert(name).second) return node.Bad("'" + name + "' is produced twice");
  if (part.kind == Kind::kView) in_.AddName(name, part.value.id);
  kept_ += part.Kept();
  constexpr size_t kMostAxes = 2 * kMaxOnnxRank;
  if (part.axes.size() > kMostAxes) return node.Error(ErrorCode::kLimit, "too many dimensions");
  if (kept_ > kMostKept) return node.Error(ErrorCode::kLimit, "too many steps of too many experts");
  parts_.emplace(name, std::move(part));
  return Status::Ok();
}

// 0: not known before the model runs.
uint64_t OnnxMixtures::SizeOf(const MixturePart& part, Axis axis) const {
  switch (axis) {
    case Axis::kOne:
      return 1;
    case Axis::kParts:
      return part.coordinates.size();
    case Axis::kExperts:
      return part.router.experts;
    case Axis::kChoices:
      return part.router.routing.k;
    case Axis::kColumns:
      return part.columns;
    default:
      return 0;
  }
}

Result<bool> OnnxMixtures::ImportIdentity(OnnxNode& node) {
  const MixturePart* part = Find(node.input(0));
  if (part == nullptr) return false;
  if (node.op() == "Cast") {
    const int64_t to = node.Int("to", 0);
    node.Int("saturate", 1);
    const bool ids = part->kind == Kind::kIds || part->kind == Kind::kShape || part->kind == Kind::kRowIds ||
                     part->kind == Kind::kChoiceIds || part->kind == Kind::kCoordinates || part->kind == Kind::kOrder ||
                     part->kind == Kind::kPlaces || part->counted();
    const bool truth = part->kind == Kind::kMask || part->kind == Kind::kOneHot;
    const bool integer = to == onnx::TensorProto::INT32 || to == onnx::TensorProto::INT64;
    const bool real =
        to == onnx::TensorProto::FLOAT || to == onnx::TensorProto::FLOAT16 || to == onnx::TensorProto::BFLOAT16;
    if (!(truth && (integer || to == onnx::TensorProto::BOOL)) && (ids ? !integer : !real))
      return node.Unsupported(StrFormat("to element type %lld", static_cast<long long>(to)));
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
  if (part->kind == Kind::kShape) return Define(node, std::move(*part));  // a number becomes a list of one
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
  if (part.kind == Kind::kShape) return Define(node, std::move(part));
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
  for (size_t i = 0; i < sorted.size(); ++i) {
    if (sorted.size() != part->axes.size() || sorted[i] != static_cast<int64_t>(i))
      return node.Bad("perm is no permutation");
  }
  Axes axes;
  for (size_t i = 0; i < perm.size(); ++i) {
    axes.push_back(part->axes[static_cast<size_t>(perm[i])]);
    const bool of_matrix = part->kind == Kind::kPicked && i + 2 >= perm.size();
    if (of_matrix && perm[i] != static_cast<int64_t>(i)) return node.Unsupported("of the experts' matrices");
  }
  part->axes = std::move(axes);
  return Define(node, std::move(*part));
}

// Input i: constant numbers, or sizes of dimensions.
Result<std::vector<OnnxMixtures::Entry>> OnnxMixtures::ShapeInput(const OnnxNode& node, int i) const {
  std::vector<Entry> shape;
  if (const MixturePart* sizes = Find(node.input(i), Kind::kShape); sizes != nullptr) {
    for (const Axis axis : sizes->axes) {
      const bool number = axis == Axis::kColumns || axis == Axis::kAny;
      shape.push_back({axis == Axis::kAny ? -1 : static_cast<int64_t>(sizes->columns), axis, !number});
    }
    return shape;
  }
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> numbers, in_.IntsInput(node, i));
  if (numbers.size() > kMaxOnnxRank) return node.Error(ErrorCode::kLimit, "more than 8 dimensions");
  for (const int64_t number : numbers) shape.push_back({number, Axis::kOne, false});
  return shape;
}

// The dimensions that a shape names: those of the part in their order, ones, and rows times choices as one.
std::optional<Axes> OnnxMixtures::Reshaped(const MixturePart& part, const std::vector<Entry>& shape) const {
  Axes left;
  for (const Axis axis : part.axes) {
    if (axis != Axis::kOne) left.push_back(axis);
  }
  const auto copies_one = [&](size_t i) {
    return !shape[i].named && shape[i].number == 0 && i < part.axes.size() && part.axes[i] == Axis::kOne;
  };
  size_t wide = 0;
  for (size_t i = 0; i < shape.size(); ++i) wide += !shape[i].one() && !copies_one(i);
  const auto pairs = std::find(left.begin(), left.end(), Axis::kPairs);
  for (size_t i = 0; wide + 1 == left.size() && i + 1 < left.size(); ++i) {
    if (left[i] != Axis::kRows || left[i + 1] != Axis::kChoices) continue;
    left[i] = Axis::kPairs;
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(i) + 1);
  }
  if (wide == left.size() + 1 && pairs != left.end()) {
    *pairs = Axis::kRows;
    left.insert(std::find(left.begin(), left.end(), Axis::kRows) + 1, Axis::kChoices);
  }
  Axes out;
  size_t next = 0;
  for (size_t i = 0; i < shape.size(); ++i) {
    const Entry& entry = shape[i];
    const bool more = next < left.size();
    const uint64_t size = more ? SizeOf(part, left[next]) : 0;
    const bool copied = !entry.named && entry.number == 0 && more && i < part.axes.size() && part.axes[i] == left[next];
    const bool inferred = !entry.named && entry.number == -1 && more;
    const bool same =
        more && (entry.named ? entry.axis == left[next] : entry.number > 0 && size == static_cast<uint64_t>(entry.number));
    if (copied || inferred || (same && !entry.one())) {
      out.push_back(left[next++]);
    } else if (entry.one() || copies_one(i)) {
      out.push_back(Axis::kOne);
    } else {
      return std::nullopt;
    }
  }
  return next == left.size() ? std::optional<Axes>(out) : std::nullopt;
}

// A value of the program by sizes that are not constant: into rows, or rows into what they were.
Result<bool> OnnxMixtures::ReshapeValue(OnnxNode& node, const std::vector<Entry>& shape) {
  const OnnxImporter::Value* value = in_.FindValue(node.input(0));
  const bool plain = value != nullptr && value->columns == in_.Width(*value) && !shape.empty();
  if (!plain) return node.Unsupported("of this input, to sizes that are not constant");
  const auto is = [&](size_t i, Axis axis) { return shape[i].named && shape[i].axis == axis; };
  const auto rest = [&](size_t i) { return !shape[i].named && shape[i].number == -1; };
  const Entry& last = shape.back();
  const bool columns = !last.named && (last.number == -1 || static_cast<uint64_t>(last.number) == value->columns);
  OnnxImporter::Value out = *value;
  out.rank = shape.size();
  const bool rows = shape.size() == 2 && columns && (is(0, Axis::kRows) || rest(0));
  const bool sequences =
      shape.size() == 3 && columns && (is(0, Axis::kBatch) || rest(0)) && (is(1, Axis::kSequence) || rest(1));
  if (!rows && !sequences) return node.Unsupported("only to [rows, columns] or [batch, sequence, columns]");
  out.batch_first = out.by_sequence = sequences;
  MOEPACK_RETURN_IF_ERROR(in_.Define(node, 0, out));
  return true;
}

Result<bool> OnnxMixtures::ImportReshape(OnnxNode& node) {
  const MixturePart* found = Find(node.input(0));
  const bool sizes = Find(node.input(1), Kind::kShape) != nullptr;
  if (found == nullptr && !sizes) return false;
  const int64_t allow_zero = node.Int("allowzero", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<Entry> shape, ShapeInput(node, 1));
  if (found == nullptr) return ReshapeValue(node, shape);
  if (found->kind == Kind::kShape) return Define(node, *found);
  const std::optional<Axes> axes = allow_zero == 0 ? Reshaped(*found, shape) : std::nullopt;
  if (!axes) {
    return node.Unsupported("a part of a mixture may gain and lose dimensions of 1, and rows and choices become one, only");
  }
  MixturePart part = *found;
  part.axes = *axes;
  return Define(node, std::move(part));
}

}  // namespace moepack
