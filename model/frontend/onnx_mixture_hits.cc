// Experts that read only the rows that chose them: which these are, what they give, and its way back to the rows. The same
// for all (row, choice) pairs at once.
#include <algorithm>

#include "model/frontend/onnx_mixture.h"

namespace moepack {
namespace {

using Stage = ExpertSteps::Stage;

}  // namespace

// Where an expert was chosen.
Result<bool> OnnxMixtures::ImportNonZero(OnnxNode& node) {
  const MixturePart* mask = Find(node.input(0), Kind::kMask);
  if (mask == nullptr) return false;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const bool both = mask->axes == Axes{Axis::kRows, Axis::kChoices} || mask->axes == Axes{Axis::kChoices, Axis::kRows};
  if (mask->number != 0 || !both) return node.Unsupported("only of where one expert was chosen, rows and choices");
  MixturePart hits = *mask;
  hits.kind = Kind::kCoordinates;
  hits.coordinates = mask->axes;
  hits.by_choice = mask->axes[0] == Axis::kChoices;
  hits.axes = {Axis::kParts, Axis::kHits};
  return Define(node, std::move(hits));
}

// One expert of a one-hot, or one coordinate of all hits.
Result<bool> OnnxMixtures::GatherMask(OnnxNode& node, const MixturePart& all) {
  const int64_t rank = static_cast<int64_t>(all.axes.size());
  int64_t axis = node.Int("axis", 0);
  axis += axis < 0 ? rank : 0;
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* which, in_.ConstantInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> index, in_.IntsInput(node, 1));
  const Axis over = all.kind == Kind::kOneHot ? Axis::kExperts : Axis::kParts;
  if (axis < 0 || axis >= rank || all.axes[static_cast<size_t>(axis)] != over || index.size() != 1) {
    return node.Unsupported("only one expert of a one-hot, or one coordinate of its hits");
  }
  const bool keep = !which->shape.empty();
  if (all.kind == Kind::kCoordinates) return TakeCoordinate(node, all, index[0], keep, 0);
  const int64_t expert = index[0] < 0 ? index[0] + static_cast<int64_t>(all.router.experts) : index[0];
  if (expert < 0 || static_cast<uint64_t>(expert) >= all.router.experts) return node.Bad("there is no such expert");
  MixturePart mask = all;
  mask.kind = Kind::kMask;
  mask.number = 0;
  mask.expert = static_cast<uint32_t>(expert);
  mask.axes[static_cast<size_t>(axis)] = Axis::kOne;
  if (!keep) mask.axes.erase(mask.axes.begin() + axis);
  return Define(node, std::move(mask));
}

Result<bool> OnnxMixtures::TakeCoordinate(OnnxNode& node, const MixturePart& all, int64_t which, bool keep, int output) {
  const auto count = static_cast<int64_t>(all.coordinates.size());
  which += which < 0 ? count : 0;
  if (which < 0 || which >= count) return node.Bad("a hit has two coordinates");
  MixturePart one = all;
  one.kind = all.coordinates[static_cast<size_t>(which)] == Axis::kRows ? Kind::kRowIds : Kind::kChoiceIds;
  const auto parts = std::find(one.axes.begin(), one.axes.end(), Axis::kParts);
  *parts = Axis::kOne;
  if (!keep) one.axes.erase(parts);
  MOEPACK_RETURN_IF_ERROR(Store(node, output, std::move(one)));
  return true;
}

// Row and choice numbers of hits, side by side: their coordinates.
Result<bool> OnnxMixtures::ConcatIds(OnnxNode& node) {
  const int64_t axis = node.Int("axis", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MixturePart all;
  for (int i = 0; i < node.inputs(); ++i) {
    const MixturePart* one = Find(node.input(i));
    const bool ids = one != nullptr && (one->kind == Kind::kRowIds || one->kind == Kind::kChoiceIds);
    if (!ids || one->axes != Axes{Axis::kHits, Axis::kOne} || (axis != -1 && axis != 1) ||
        (i > 0 &&
         (one->expert != all.expert || one->router.logits != all.router.logits || one->by_choice != all.by_choice))) {
      return node.Unsupported("only row and choice numbers of the hits of one expert");
    }
    Axes coordinates = std::move(all.coordinates);
    all = *one;
    coordinates.push_back(one->kind == Kind::kRowIds ? Axis::kRows : Axis::kChoices);
    all.coordinates = std::move(coordinates);
  }
  all.kind = Kind::kCoordinates;
  all.axes = {Axis::kHits, Axis::kParts};
  return Define(node, std::move(all));
}

// Rows of a value by their numbers.
Result<bool> OnnxMixtures::GatherRows(OnnxNode& node, const MixturePart& ids) {
  const std::optional<MixturePart> from = Operand(node.input(0));
  int64_t axis = node.Int("axis", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const bool view = from && from->kind == Kind::kView;
  if (!view) return node.Unsupported("row numbers pick rows of a value only");
  const auto rank = static_cast<int64_t>(from->axes.size());
  axis += axis < 0 ? rank : 0;
  if (axis < 0 || axis >= rank || from->axes[static_cast<size_t>(axis)] != Axis::kRows) {
    return node.Unsupported("row numbers pick rows only");
  }
  MixturePart taken = ids;
  taken.kind = Kind::kView;
  taken.value = from->value;
  taken.columns = from->columns;
  taken.axes = from->axes;
  const auto at = taken.axes.erase(taken.axes.begin() + axis);
  taken.axes.insert(at, ids.axes.begin(), ids.axes.end());
  return Define(node, std::move(taken));
}

// Rows of a value, or weights, by the coordinates of hits.
Result<bool> OnnxMixtures::ImportGatherNd(OnnxNode& node) {
  const MixturePart* ids = Find(node.input(1));
  if (ids == nullptr) return false;
  const int64_t batch = node.Int("batch_dims", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const MixturePart* weights = Find(node.input(0), Kind::kWeights);
  if (batch != 0) return node.Unsupported("batch_dims");
  if (ids->kind == Kind::kRowIds && !ids->axes.empty() && ids->axes.back() == Axis::kOne) {
    MixturePart rows = *ids;
    rows.axes.pop_back();
    return GatherRows(node, rows);
  }
  const bool fits = ids->kind == Kind::kCoordinates && ids->axes == Axes{Axis::kHits, Axis::kParts} && weights != nullptr &&
                    ids->coordinates == weights->axes && ids->router.logits == weights->router.logits;
  if (!fits) return node.Unsupported("only of weights by the coordinates of their own hits");
  MixturePart some = *weights;
  some.expert = ids->expert;
  some.by_choice = ids->by_choice;
  some.axes = {Axis::kHits};
  return Define(node, std::move(some));
}

// x W^T + b, rows that chose the expert.
Result<bool> OnnxMixtures::MultiplyBranch(OnnxNode& node, const MixturePart& x, const OnnxMatrix& weight,
                                          const OnnxTensor* bias) {
  if (!OfOneExpert(x.axes) || x.axes.back() != Axis::kColumns) {
    return node.Unsupported("of a mixture's parts only the rows that chose an expert are multiplied by its matrix");
  }
  if (weight.cols != x.columns) return node.Error(ErrorCode::kShape, "the matrix does not fit its input");
  MixturePart stack = x;
  stack.kind = Kind::kStack;
  stack.columns = weight.rows;
  stack.router.experts = 1;
  ExpertSteps& steps = stack.steps;
  if (x.kind == Kind::kView) {
    steps = ExpertSteps();
    steps.x = x.value.id;
    steps.up.weight = {weight};
  } else if (x.kind == Kind::kStack && steps.stage != Stage::kSigmoid && steps.stage != Stage::kOutput) {
    steps.down.weight = {weight};
    steps.stage = Stage::kOutput;
  } else {
    return node.Unsupported("an expert is down(act(up(x))) or down(act(gate(x)) * up(x))");
  }
  ExpertProduct& product = steps.stage == Stage::kOutput ? steps.down : steps.up;
  if (bias != nullptr) product.bias = {DenseMatrix(*bias, 1, bias->elements)};
  return Define(node, std::move(stack));
}

Result<bool> OnnxMixtures::ImportGemm(OnnxNode& node) {
  const MixturePart* x = Find(node.input(0));
  if (x == nullptr) return false;
  const bool plain = node.Float("alpha", 1) == 1 && node.Float("beta", 1) == 1 && node.Int("transA", 0) == 0;
  const bool turned = node.Int("transB", 0) != 0;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* weight, in_.ConstantInput(node, 1));
  Codec codec;
  if (!plain || weight->shape.size() != 2 || !DtypeCodec(weight->dtype, &codec)) {
    return node.Unsupported("alpha, beta and transA must have their defaults, and input 1 be a matrix");
  }
  const OnnxTensor* bias = nullptr;
  const uint64_t out = weight->shape[turned ? 0 : 1], in = weight->shape[turned ? 1 : 0];
  if (!node.input(2).empty()) {
    MOEPACK_ASSIGN_OR_RETURN(bias, in_.VectorInput(node, 2));
    if (bias->elements != out) return node.Error(ErrorCode::kShape, "the bias does not fit the weight");
  }
  return MultiplyBranch(node, MixturePart(*x), DenseMatrix(*weight, out, in, !turned), bias);
}

Result<bool> OnnxMixtures::ImportScatterNd(OnnxNode& node) {
  const bool order = Find(node.input(1), Kind::kOrder) != nullptr;
  if (!order && Find(node.input(1), Kind::kRowIds) == nullptr) return false;
  const std::string reduction = node.Text("reduction", "none");
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (order) return reduction == "none" ? Unsort(node, false) : node.Unsupported("pairs are put to their places, not added");
  if (reduction != "add") return node.Unsupported("only with reduction 'add'");
  return ScatterAdd(node, false);
}

// Weighted outputs to the rows that they belong to. `by_element`: a row number for each column too.
Result<bool> OnnxMixtures::ScatterAdd(OnnxNode& node, bool by_element) {
  const MixturePart *rows = Find(node.input(1), Kind::kRowIds), *update = Find(node.input(2), Kind::kWeighted);
  const bool one = update != nullptr && OfOneExpert(update->axes);
  const bool sorted = update != nullptr && !update->axes.empty() && update->axes[0] == Axis::kSorted;
  const Axis over = one ? update->axes[0] : sorted ? Axis::kSorted : Axis::kPairs;
  const Axes want = {over, by_element ? Axis::kColumns : Axis::kOne};
  if (update == nullptr || rows == nullptr || update->axes != Axes{over, Axis::kColumns} || rows->axes != want) {
    return node.Unsupported("only weighted outputs of experts, each to its own row");
  }
  const bool same_router = !(one || sorted) || rows->router.logits == update->router.logits;
  const bool same_pairs = !one || (rows->expert == update->expert && rows->by_choice == update->by_choice);
  const bool own = same_router && same_pairs && rows->router.routing.k == update->router.routing.k;
  if (!own) return node.Unsupported("the rows are those of other outputs");
  const MixturePart* sum = Find(node.input(0), Kind::kScattered);
  const OnnxImporter::Value* value = in_.FindValue(node.input(0));
  const MixturePart* fill = Find(node.input(0), Kind::kFill);
  const bool shaped =
      (fill != nullptr && fill->axes == Axes{Axis::kRows, Axis::kColumns} && fill->columns == update->columns) ||
      (value != nullptr && value->columns == update->columns);
  const bool zeros = shaped && IsFill(node.input(0), 0);
  if (one && (sum != nullptr || zeros)) return AddBranch(node, MixturePart(*update));
  if (!zeros) return node.Unsupported("only into zeros [rows, columns], or what other experts gave");
  return DefineSum(node, MixturePart(*update), {Axis::kRows, Axis::kColumns});
}

// One more expert; when all are there, the mixture is complete. A sum goes on from one place only, so what it holds is
// shared.
Result<bool> OnnxMixtures::AddBranch(OnnxNode& node, const MixturePart& update) {
  MixturePart sum = update;
  const MixturePart* before = Find(node.input(0), Kind::kScattered);
  if (before != nullptr &&
      (!in_.UsedOnce(node.input(0)) || !(before->router == update.router) || before->columns != update.columns)) {
    return node.Unsupported("experts of two routers, or of a sum that is used twice");
  }
  sum.kind = Kind::kScattered;
  sum.axes = {Axis::kRows, Axis::kColumns};
  sum.steps = ExpertSteps();
  sum.branches = before != nullptr ? before->branches : std::make_shared<std::map<uint32_t, ExpertSteps>>();
  if (!sum.branches->emplace(update.expert, update.steps).second) {
    return node.Unsupported(StrFormat("expert %u is added twice", update.expert));
  }
  if (sum.branches->size() != update.router.experts) return Define(node, std::move(sum));
  for (const auto& [expert, steps] : *sum.branches) {
    MOEPACK_RETURN_IF_ERROR(AppendSteps(node, expert, steps, &sum.steps));
  }
  sum.steps.Complete();
  return DefineSum(node, sum, {Axis::kRows, Axis::kColumns});
}

}  // namespace moepack
