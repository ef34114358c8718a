// From the router's logits to gates: scores, the k largest, renormalisation, their places among all experts.
#include <algorithm>
#include <cmath>

#include "model/frontend/onnx_mixture.h"

namespace moepack {
namespace {

bool IsLast(int64_t axis, size_t rank) { return axis == -1 || axis == static_cast<int64_t>(rank) - 1; }

}  // namespace

// [rows, experts]: what a softmax gave, or a value. A sigmoid is a score function here.
std::optional<MixturePart> OnnxMixtures::ScoresOf(const std::string& name) const {
  if (const MixturePart* part = Find(name, Kind::kScores); part != nullptr) return *part;
  if (Find(name) != nullptr) return std::nullopt;
  std::optional<MixturePart> part = Operand(name);
  if (!part) return part;
  part->kind = Kind::kScores;
  part->axes = {Axis::kRows, Axis::kExperts};
  part->router.logits = part->value.id;
  part->router.experts = part->columns;
  const Node* made = in_.ProducerOf(part->value.id);
  if (made != nullptr && made->kind == NodeKind::kElementwise && made->elementwise.op == ElementOp::kSigmoid) {
    part->router.logits = made->inputs[0];
    part->router.routing.score = ScoreFunction::kSigmoid;
    part->router.scored = true;
  }
  return part;
}

Result<bool> OnnxMixtures::ImportSoftmax(OnnxNode& node) {
  const int64_t axis = node.Int("axis", -1);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const MixturePart* found = Find(node.input(0));
  const bool chosen = found != nullptr && !found->router.scored && found->router.routing.k > 0 &&
                      (found->kind == Kind::kWeights || (found->kind == Kind::kGates && std::isinf(found->number)));
  if (chosen) {
    const Axis over = found->kind == Kind::kWeights ? Axis::kChoices : Axis::kExperts;
    if (!IsLast(axis, found->axes.size()) || found->axes.back() != over) return node.Unsupported("only over the experts");
    MixturePart part = *found;
    part.router.scored = true;
    return Define(node, std::move(part));
  }
  std::optional<MixturePart> scores = found == nullptr ? ScoresOf(node.input(0)) : std::nullopt;
  if (!scores || scores->router.scored || !IsLast(axis, 2))
    return node.Unsupported("only over the last dimension of rows of logits");
  // Classes are told by their logits: the last softmax changes neither their order nor what they stand for.
  if (in_.IsGraphOutput(node.output(0))) {
    MOEPACK_RETURN_IF_ERROR(in_.Define(node, 0, scores->value));
    return true;
  }
  scores->router.scored = true;
  return Define(node, std::move(*scores));
}

Result<bool> OnnxMixtures::ImportTopK(OnnxNode& node) {
  for (const Kind kind : {Kind::kIds, Kind::kOrder}) {
    if (const MixturePart* part = Find(node.input(0), kind); part != nullptr) return SortPairs(node, *part);
  }
  const int64_t axis = node.Int("axis", -1), largest = node.Int("largest", 1);
  node.Int("sorted", 1);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  std::optional<MixturePart> part = ScoresOf(node.input(0));
  if (!part || !IsLast(axis, 2) || largest != 1) return node.Unsupported("only the largest of a router's logits or scores");
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> k, in_.IntsInput(node, 1));
  if (k.size() != 1 || k[0] < 1 || static_cast<uint64_t>(k[0]) > part->router.experts) {
    return node.Bad("k must be one number from 1 to the number of experts");
  }
  part->axes = {Axis::kRows, Axis::kChoices};
  part->router.routing.k = static_cast<uint32_t>(k[0]);
  choices_.insert(part->router.routing.k);
  part->router.routing.score_before_topk = part->router.scored;
  for (const Kind kind : {Kind::kWeights, Kind::kIds}) {
    const std::string& name = node.output(kind == Kind::kWeights ? 0 : 1);
    if (name.empty()) continue;
    if (!in_.defined_.insert(name).second) return node.Bad("'" + name + "' is produced twice");
    part->kind = kind;
    parts_.emplace(name, *part);
  }
  return true;
}

// Numbers that are all `number`.
bool OnnxMixtures::IsFill(const std::string& name, float number) const {
  if (const MixturePart* fill = Find(name, Kind::kFill); fill != nullptr) return fill->number == number;
  const OnnxImporter::Value* value = in_.FindValue(name);
  const Node* made = value == nullptr ? nullptr : in_.ProducerOf(value->id);
  return made != nullptr && number == 0 && made->kind == NodeKind::kElementwise &&
         made->elementwise.op == ElementOp::kScale && made->elementwise.alpha == 0;
}

// [rows, experts]
bool OnnxMixtures::OfAllExperts(const MixturePart& part, uint64_t experts) const {
  return part.axes.size() == 2 && part.axes[0] == Axis::kRows &&
         (part.axes[1] == Axis::kExperts || part.axes[1] == Axis::kColumns) && SizeOf(part, part.axes[1]) == experts;
}

Result<bool> OnnxMixtures::ImportScatter(OnnxNode& node) {
  const int64_t axis = node.Int("axis", 0);
  const std::string reduction = node.Text("reduction", "none");
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (reduction == "add" && Find(node.input(1), Kind::kRowIds) != nullptr) {
    if (axis != 0) return node.Unsupported("only to rows");
    return ScatterAdd(node, true);
  }
  if (reduction == "none" && Find(node.input(1), Kind::kOrder) != nullptr) {
    if (axis != 0 && axis != -2) return node.Unsupported("only to the places of pairs");
    return Unsort(node, true);
  }
  if (reduction == "none" && Find(node.input(1), Kind::kRowIds) != nullptr) {
    return node.Unsupported(
        "rows that chose several experts would keep one of them: reduction must be 'add', which "
        "torch.onnx leaves out below version 2");
  }
  const MixturePart *ids = Find(node.input(1), Kind::kIds), *weights = Find(node.input(2), Kind::kWeights);
  if (const MixturePart* ones = Find(node.input(2), Kind::kFill);
      ids != nullptr && ones != nullptr && IsLast(axis, 2) && reduction == "none") {
    return ScatterOnes(node, *ids, *ones);
  }
  const Axes chosen = {Axis::kRows, Axis::kChoices};
  if (ids == nullptr || weights == nullptr || ids->axes != chosen || weights->axes != chosen || !IsLast(axis, 2) ||
      ids->router.logits != weights->router.logits || reduction != "none") {
    return node.Unsupported("only of the weights of chosen experts to their places");
  }
  MixturePart gates = *weights;
  gates.kind = Kind::kGates;
  gates.axes = {Axis::kRows, Axis::kExperts};
  const MixturePart* fill = Find(node.input(0));
  const OnnxImporter::Value* value = in_.FindValue(node.input(0));
  const bool wide = fill != nullptr ? OfAllExperts(*fill, gates.router.experts)
                                    : value != nullptr && value->columns == gates.router.experts;
  if (wide && IsFill(node.input(0), -INFINITY) && !gates.router.scored) {
    gates.number = -INFINITY;
  } else if (!wide || !IsFill(node.input(0), 0) || !gates.router.scored) {
    return node.Unsupported("into zeros, or logits into minus infinity before a softmax, of the router's shape");
  }
  return Define(node, std::move(gates));
}

Result<std::vector<float>> OnnxMixtures::NumbersInput(const OnnxNode& node, int i) const {
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* tensor, in_.ConstantInput(node, i));
  constexpr uint64_t kMost = 16;
  if (tensor->elements > kMost) return node.Unsupported(StrFormat("input %d must be a few numbers", i));
  Codec codec;
  if (!DtypeCodec(tensor->dtype, &codec)) {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> integers, in_.IntsInput(node, i));
    return std::vector<float>(integers.begin(), integers.end());
  }
  auto floats = in_.file_.ReadFloats(*tensor, 0, tensor->elements);
  if (!floats.ok()) return node.Error(floats.status().code(), floats.status().message());
  return floats;
}

Result<bool> OnnxMixtures::ImportOneHot(OnnxNode& node) {
  const int64_t axis = node.Int("axis", -1);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const MixturePart* ids = Find(node.input(0), Kind::kIds);
  if (ids == nullptr || ids->axes.size() > 2 || !IsLast(axis, ids->axes.size() + 1))
    return node.Unsupported("only of chosen experts");
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> depth, in_.IntsInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> numbers, NumbersInput(node, 2));
  if (depth.size() != 1 || depth[0] != static_cast<int64_t>(ids->router.experts)) {
    return node.Unsupported("the depth must be the number of experts");
  }
  if (numbers.size() != 2) return node.Bad("values must be two numbers");
  if (numbers[0] != 0 || numbers[1] != 1) return node.Unsupported("values other than 0 and 1");
  MixturePart part = *ids;
  part.kind = Kind::kOneHot;
  part.axes.push_back(Axis::kExperts);
  return Define(node, std::move(part));
}

// weights / their sum.
Result<bool> OnnxMixtures::ImportDiv(OnnxNode& node) {
  const MixturePart *weights = Find(node.input(0)), *sum = Find(node.input(1), Kind::kSum);
  if (weights == nullptr) return false;
  if (weights->kind == Kind::kOrder) return DivideOrder(node, *weights);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const bool of_experts = weights->kind == Kind::kWeights || weights->kind == Kind::kGates || weights->kind == Kind::kScores;
  if (sum == nullptr || !of_experts || !(sum->router == weights->router) ||
      Broadcast(weights->axes, sum->axes) != weights->axes || !weights->router.scored ||
      weights->router.routing.renormalise || weights->router.routing.scale != 1) {
    return node.Unsupported("of a mixture's parts only weights by their sum");
  }
  MixturePart part = *weights;
  part.router.routing.renormalise = true;
  part.router.routing.eps = sum->number;
  return Define(node, std::move(part));
}

// chosen experts [.., 1] == 0, 1 ... of all experts: a one-hot
Result<bool> OnnxMixtures::CompareAll(OnnxNode& node, const MixturePart& ids, const std::vector<int64_t>& experts,
                                      int constant) {
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* all, in_.ConstantInput(node, constant));
  bool fits = experts.size() == ids.router.experts && all->shape.back() == experts.size();
  for (size_t e = 0; fits && e < experts.size(); ++e) fits = experts[e] == static_cast<int64_t>(e);
  if (!fits) return node.Unsupported("chosen experts may be compared with one expert, or with all in their order");
  MixturePart hot = ids;
  hot.kind = Kind::kOneHot;
  hot.axes.back() = Axis::kExperts;
  return Define(node, std::move(hot));
}

// chosen experts == e
Result<bool> OnnxMixtures::ImportEqual(OnnxNode& node) {
  for (const int constant : {1, 0}) {
    const MixturePart* ids = Find(node.input(1 - constant), Kind::kIds);
    if (ids == nullptr) continue;
    MOEPACK_RETURN_IF_ERROR(node.Finish());
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> expert, in_.IntsInput(node, constant));
    if (in_.file_.Find(node.input(constant))->shape.size() > ids->axes.size())
      return node.Unsupported("chosen experts may be compared with numbers of no more dimensions");
    if (ids->axes.back() == Axis::kOne && expert.size() > 1) return CompareAll(node, *ids, expert, constant);
    if (expert.size() != 1 || expert[0] < 0 || static_cast<uint64_t>(expert[0]) >= ids->router.experts) {
      return node.Unsupported("chosen experts may be compared with one expert only");
    }
    MixturePart mask = *ids;
    mask.kind = Kind::kMask;
    mask.expert = static_cast<uint32_t>(expert[0]);
    return Define(node, std::move(mask));
  }
  return false;
}

// weights where an expert was chosen, 0 elsewhere
Result<bool> OnnxMixtures::ImportWhere(OnnxNode& node) {
  const MixturePart *mask = Find(node.input(0), Kind::kMask), *weights = Find(node.input(1), Kind::kWeights);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (mask == nullptr || weights == nullptr) return node.Unsupported("only of weights where an expert was chosen");
  MOEPACK_ASSIGN_OR_RETURN(const float otherwise, in_.ScalarInput(node, 2));
  if (otherwise != 0 || mask->router.logits != weights->router.logits || mask->axes != weights->axes)
    return node.Unsupported("only of weights where an expert was chosen, and 0 elsewhere");
  MixturePart part = *weights;
  part.kind = Kind::kMask;
  part.expert = mask->expert;
  part.number = 1;  // weighed
  return Define(node, std::move(part));
}

// The gates of one expert, [rows, 1].
Result<bool> OnnxMixtures::DefineGate(OnnxNode& node, const MixturePart& gates, int64_t expert, int output) {
  if (expert < 0 || static_cast<uint64_t>(expert) >= gates.router.experts) return node.Bad("there is no such expert");
  MixturePart gate = gates;
  gate.kind = Kind::kGate;
  gate.expert = static_cast<uint32_t>(expert);
  std::replace(gate.axes.begin(), gate.axes.end(), Axis::kExperts, Axis::kOne);
  const std::string& name = node.output(output);
  if (!in_.defined_.insert(name).second) return node.Bad("'" + name + "' is produced twice");
  parts_.emplace(name, std::move(gate));
  return true;
}

// Of a slice along one axis; 1 when absent.
Result<int64_t> OnnxMixtures::StepInput(const OnnxNode& node) const {
  if (node.input(4).empty()) return 1;
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> step, in_.IntsInput(node, 4));
  if (step.size() != 1) return node.Bad("one step for one axis is needed");
  return step[0];
}

Result<bool> OnnxMixtures::ImportSlice(OnnxNode& node) {
  const MixturePart* gates = Find(node.input(0));
  if (gates == nullptr) return false;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (gates->kind == Kind::kShape) return SliceSizes(node, *gates);
  if (gates->kind == Kind::kFill) return SliceFill(node, *gates);
  if (gates->counted()) return SliceNumbers(node, *gates);
  const bool bounded = Find(node.input(1)) != nullptr || Find(node.input(2)) != nullptr;
  if (bounded && !gates->axes.empty() && gates->axes[0] == Axis::kSorted) return SliceRun(node, *gates);
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> begin, in_.IntsInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> end, in_.IntsInput(node, 2));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> axes, in_.IntsInput(node, 3));
  if (gates->kind == Kind::kStack && begin.size() == 1 && end.size() == 1 && axes.size() == 1 &&
      IsLast(axes[0], gates->axes.size())) {
    MOEPACK_ASSIGN_OR_RETURN(const int64_t step, StepInput(node));
    return SliceProduct(node, MixturePart(*gates), begin[0], end[0], step, 0);
  }
  const bool one =
      begin.size() == 1 && end.size() == 1 && axes.size() == 1 && begin[0] < INT64_MAX && end[0] == begin[0] + 1;
  if (gates->kind == Kind::kCoordinates && one && node.input(4).empty()) {
    const int64_t rank = static_cast<int64_t>(gates->axes.size()), axis = axes[0] < 0 ? axes[0] + rank : axes[0];
    if (axis < 0 || axis >= rank || gates->axes[static_cast<size_t>(axis)] != Axis::kParts) {
      return node.Unsupported("only one coordinate of all hits");
    }
    return TakeCoordinate(node, MixturePart(*gates), begin[0], true, 0);
  }
  const bool of_gates = gates->kind == Kind::kGates || gates->kind == Kind::kScores;
  if (!one || !of_gates || gates->axes.back() != Axis::kExperts || !IsLast(axes[0], gates->axes.size()) ||
      !node.input(4).empty()) {
    return node.Unsupported("of a mixture's parts only the gates of one expert");
  }
  return DefineGate(node, *gates, begin[0], 0);
}

Result<bool> OnnxMixtures::ImportSplit(OnnxNode& node) {
  const MixturePart* found = Find(node.input(0));
  if (found == nullptr) return false;
  const MixturePart gates = *found;
  const int64_t axis = node.Int("axis", 0);
  node.Int("num_outputs", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const int64_t rank = static_cast<int64_t>(gates.axes.size()), at = axis < 0 ? axis + rank : axis;
  const bool sized = !node.input(1).empty();
  if (const MixturePart* counts = Find(node.input(1), Kind::kCounts); counts != nullptr && at == 0)
    return SplitRuns(node, gates, MixturePart(*counts));
  if (gates.counted() && !sized && at == 0 && node.outputs() == static_cast<int>(gates.list.size())) {
    for (int i = 0; i < node.outputs(); ++i)
      MOEPACK_RETURN_IF_ERROR(TakeNumbers(node, gates, {i}, {Axis::kOne}, i).status());
    return true;
  }
  if (gates.kind == Kind::kCoordinates && !sized && at >= 0 && at < rank &&
      gates.axes[static_cast<size_t>(at)] == Axis::kParts && node.outputs() == static_cast<int>(gates.coordinates.size())) {
    for (int i = 0; i < node.outputs(); ++i) MOEPACK_RETURN_IF_ERROR(TakeCoordinate(node, gates, i, true, i).status());
    return true;
  }
  if (gates.kind == Kind::kStack && IsLast(axis, gates.axes.size()) && node.outputs() == 2 && gates.columns % 2 == 0) {
    const auto half = static_cast<int64_t>(gates.columns / 2);
    if (sized) {
      MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> sizes, in_.IntsInput(node, 1));
      if (sizes != std::vector<int64_t>{half, half}) return node.Unsupported("only into halves");
    }
    MOEPACK_RETURN_IF_ERROR(SliceProduct(node, gates, 0, half, 1, 0).status());
    return SliceProduct(node, gates, half, 2 * half, 1, 1);
  }
  const bool of_gates = gates.kind == Kind::kGates || gates.kind == Kind::kScores;
  if (!of_gates || sized || gates.axes.back() != Axis::kExperts || !IsLast(axis, gates.axes.size()) ||
      static_cast<uint64_t>(node.outputs()) != gates.router.experts) {
    return node.Unsupported("of a mixture's parts only gates into those of each expert");
  }
  for (int e = 0; e < node.outputs(); ++e) {
    if (!node.output(e).empty()) MOEPACK_RETURN_IF_ERROR(DefineGate(node, gates, e, e).status());
  }
  return true;
}

// Constants of the chosen experts, or the gates of one.
Result<bool> OnnxMixtures::ImportGather(OnnxNode& node) {
  const int64_t axis = node.Int("axis", 0);
  if (const MixturePart* ids = Find(node.input(1), Kind::kIds); ids != nullptr) {
    MOEPACK_RETURN_IF_ERROR(node.Finish());
    MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* stack, in_.ConstantInput(node, 0));
    Codec codec;
    const bool floats = DtypeCodec(stack->dtype, &codec);
    if (axis != 0 || !floats || stack->shape.size() < 2 || stack->shape.size() > 3)
      return node.Unsupported("chosen experts pick matrices or biases from the first dimension of a constant only");
    if (stack->shape[0] != ids->router.experts) {
      return node.Error(ErrorCode::kShape, StrFormat("'%s' holds %llu experts, the router has %llu", stack->name.c_str(),
                                                     static_cast<unsigned long long>(stack->shape[0]),
                                                     static_cast<unsigned long long>(ids->router.experts)));
    }
    MixturePart part = *ids;
    part.kind = Kind::kPicked;
    part.tensor = stack;
    part.columns = stack->shape.back();
    for (size_t i = 1; i < stack->shape.size(); ++i) part.axes.push_back(Axis::kColumns);
    return Define(node, std::move(part));
  }
  if (const MixturePart* rows = Find(node.input(1), Kind::kRowIds); rows != nullptr) return GatherRows(node, *rows);
  for (const Kind kind : {Kind::kOrder, Kind::kPlaces}) {
    if (const MixturePart* by = Find(node.input(1), kind); by != nullptr) return Reorder(node, *by);
  }
  const MixturePart* gates = Find(node.input(0));
  if (gates == nullptr) return false;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (gates->kind == Kind::kShape) return GatherSizes(node, *gates);
  if (gates->counted()) return GatherNumbers(node, *gates);
  if (gates->kind == Kind::kOneHot || gates->kind == Kind::kCoordinates) return GatherMask(node, MixturePart(*gates));
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* which, in_.ConstantInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> expert, in_.IntsInput(node, 1));
  const bool of_gates = gates->kind == Kind::kGates || gates->kind == Kind::kScores;
  if (!of_gates || expert.size() != 1 || gates->axes != Axes{Axis::kRows, Axis::kExperts} || !IsLast(axis, 2))
    return node.Unsupported("of a mixture's parts only the gates of one expert");
  MixturePart narrow = *gates;
  if (which->shape.empty()) narrow.axes = {Axis::kRows};  // a number takes its dimension away
  const int64_t at = expert[0] < 0 ? expert[0] + static_cast<int64_t>(narrow.router.experts) : expert[0];
  return DefineGate(node, narrow, at, 0);
}

}  // namespace moepack
