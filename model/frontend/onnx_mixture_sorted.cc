// Experts that read runs of (row, choice) pairs sorted by expert: the sort, how many pairs chose each expert and where its
// run begins, the runs, what the experts give one behind the other, and its way back to the order of the rows.
#include <algorithm>
#include <numeric>

#include "model/frontend/onnx_mixture.h"

namespace moepack {
namespace {

// Larger than any number of pairs: the end of a slice that takes all.
constexpr int64_t kPastAll = 1 << 30;

const std::vector<uint32_t> kFirst = {0};
constexpr size_t kMostNumbers = size_t{kMaxExperts} + 1;  // bounds of as many experts as there may be

// The first run is as long as where it ends.
MixturePart EndOfFirst(MixturePart part) {
  if (part.kind == MixturePart::Kind::kCounts && part.list == kFirst) {
    part.kind = MixturePart::Kind::kBounds;
    part.list = {1};
  }
  return part;
}

bool RisesFromZero(const std::vector<uint32_t>& list) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i] != i) return false;
  }
  return true;
}

}  // namespace

// All chosen experts in rising order; of equal ones ONNX puts the earlier first. Or the places that this gave to the pairs:
// the order, sorted.
Result<bool> OnnxMixtures::SortPairs(OnnxNode& node, MixturePart part) {
  const int64_t axis = node.Int("axis", -1), largest = node.Int("largest", 1), sorted = node.Int("sorted", 1);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const bool ids = part.kind == Kind::kIds && part.axes == Axes{Axis::kPairs};
  const bool order = part.kind == Kind::kOrder && part.axes == Axes{Axis::kSorted};
  const MixturePart* count = Find(node.input(1), Kind::kShape);
  const bool all = count != nullptr && count->axes == part.axes && SameChoices(*count, part);
  if ((!ids && !order) || !all || largest != 0 || sorted != 1 || (axis != -1 && axis != 0)) {
    return node.Unsupported("of a mixture's parts only all chosen experts, in one dimension and in rising order");
  }
  part.axes = {order ? Axis::kPairs : Axis::kSorted};
  if (ids && !node.output(0).empty()) MOEPACK_RETURN_IF_ERROR(Store(node, 0, part));
  part.kind = order ? Kind::kPlaces : Kind::kOrder;
  if (!node.output(1).empty()) MOEPACK_RETURN_IF_ERROR(Store(node, 1, std::move(part)));
  return true;
}

// Sorted pairs / k: their rows.
Result<bool> OnnxMixtures::DivideOrder(OnnxNode& node, MixturePart order) {
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> k, in_.IntsInput(node, 1));
  if (k != std::vector<int64_t>{order.router.routing.k} || in_.file_.Find(node.input(1))->shape.size() > order.axes.size()) {
    return node.Unsupported("of a mixture's parts only sorted pairs by the number of choices");
  }
  order.kind = Kind::kRowIds;
  return Define(node, std::move(order));
}

// What belongs to pairs into their order by expert, or back.
Result<bool> OnnxMixtures::Reorder(OnnxNode& node, const MixturePart& by) {
  const MixturePart* found = Find(node.input(0));
  const int64_t axis = node.Int("axis", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const Axis from = by.kind == Kind::kOrder ? Axis::kPairs : Axis::kSorted;
  const bool fits = found != nullptr && found->kind != Kind::kShape && axis == 0 && by.axes.size() == 1 &&
                    !found->axes.empty() && found->axes[0] == from && SameChoices(*found, by);
  if (!fits) return node.Unsupported("an order by expert sorts what belongs to its own pairs, and back");
  MixturePart part = *found;
  part.axes[0] = by.axes[0];
  if (part.router.logits == kNone) part.router = by.router;
  return Define(node, std::move(part));
}

// Sorted rows to the places of their pairs.
Result<bool> OnnxMixtures::Unsort(OnnxNode& node, bool by_element) {
  const MixturePart *into = Find(node.input(0), Kind::kFill), *order = Find(node.input(1), Kind::kOrder),
                    *from = Find(node.input(2));
  const bool whole = into != nullptr && into->axes.size() == 2 &&
                     (into->axes[0] == Axis::kSorted || into->axes[0] == Axis::kPairs) && into->axes[1] == Axis::kColumns;
  const bool fits = whole && from != nullptr && (from->kind == Kind::kStack || from->kind == Kind::kWeighted) &&
                    from->axes == Axes{Axis::kSorted, Axis::kColumns} && into->columns == from->columns &&
                    order->axes == Axes{Axis::kSorted, by_element ? Axis::kColumns : Axis::kOne} &&
                    SameChoices(*order, *from) && SameChoices(*into, *from);
  if (!fits) return node.Unsupported("only what experts give for sorted pairs, each to its own place");
  MixturePart part = *from;
  part.axes[0] = Axis::kPairs;
  return Define(node, std::move(part));
}

// 1 where an expert was chosen, into zeros [rows, experts].
Result<bool> OnnxMixtures::ScatterOnes(OnnxNode& node, const MixturePart& ids, const MixturePart& ones) {
  const MixturePart* zeros = Find(node.input(0), Kind::kFill);
  const Axes chosen = {Axis::kRows, Axis::kChoices};
  const bool wide = zeros != nullptr && OfAllExperts(*zeros, ids.router.experts);
  if (!wide || zeros->number != 0 || ones.number != 1 || ids.axes != chosen || ones.axes != chosen) {
    return node.Unsupported("only ones to the places of chosen experts, into zeros [rows, experts]");
  }
  MixturePart hot = ids;
  hot.kind = Kind::kOneHot;
  hot.axes = {Axis::kRows, Axis::kExperts};
  return Define(node, std::move(hot));
}

// A one-hot, or the mask of one expert, summed over all pairs: how many chose each. Summed over choices alone: a one-hot
// [rows, experts].
Result<bool> OnnxMixtures::CountPairs(OnnxNode& node, MixturePart part) {
  const int64_t keep = node.Int("keepdims", 1);
  const bool nothing = node.Int("noop_with_empty_axes", 0) != 0 && node.input(1).empty();
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  std::vector<int64_t> over(part.axes.size());
  std::iota(over.begin(), over.end(), 0);
  if (!node.input(1).empty()) {
    MOEPACK_ASSIGN_OR_RETURN(over, AxesInput(node, part.axes.size()));
  }
  Axes left;
  bool pairs = false, experts = false;  // are left; were summed
  for (size_t i = 0, next = 0; i < part.axes.size(); ++i) {
    const bool summed = next < over.size() && over[next] == static_cast<int64_t>(i);
    next += summed;
    if (!summed || keep != 0) left.push_back(summed ? Axis::kOne : part.axes[i]);
    pairs = pairs || (!summed && part.axes[i] != Axis::kExperts && part.axes[i] != Axis::kOne);
    experts = experts || (summed && part.axes[i] == Axis::kExperts);
  }
  const bool rows_left = left == Axes{Axis::kRows, Axis::kExperts};  // an expert is chosen once by a row
  if (nothing || experts || (pairs && !rows_left)) {
    return node.Unsupported("of where experts were chosen only over all rows and choices");
  }
  part.axes = std::move(left);
  if (rows_left) return Define(node, std::move(part));
  if (part.router.experts > kMaxExperts) return node.Error(ErrorCode::kLimit, "too many experts");
  part.list = {part.expert};
  if (part.kind == Kind::kOneHot) {
    part.list.resize(part.router.experts);
    std::iota(part.list.begin(), part.list.end(), 0u);
  }
  part.kind = Kind::kCounts;
  return Define(node, std::move(part));
}

// Counts added up: where each run ends, or begins.
Result<bool> OnnxMixtures::ImportCumSum(OnnxNode& node) {
  const MixturePart* counts = Find(node.input(0), Kind::kCounts);
  if (counts == nullptr) return false;
  const int64_t exclusive = node.Int("exclusive", 0), reverse = node.Int("reverse", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> axis, in_.IntsInput(node, 1));
  const bool along = axis == std::vector<int64_t>{0} || axis == std::vector<int64_t>{-1};
  if (counts->axes != Axes{Axis::kExperts} || !RisesFromZero(counts->list) || !along || reverse != 0) {
    return node.Unsupported("only of the counts of all experts, from the first on");
  }
  MixturePart bounds = *counts;
  bounds.kind = Kind::kBounds;
  for (uint32_t& bound : bounds.list) bound += exclusive == 0;
  return Define(node, std::move(bounds));
}

// Where runs begin (0: the first) and how long they are: where they end.
Result<bool> OnnxMixtures::AddCounts(OnnxNode& node) {
  for (const int i : {1, 0}) {  // which of the inputs is the length
    const MixturePart *counts = Find(node.input(i), Kind::kCounts), *found = Find(node.input(1 - i));
    if (node.inputs() != 2 || counts == nullptr) continue;
    MixturePart begins = *counts;
    if (found != nullptr) {
      begins = EndOfFirst(*found);
    } else {
      MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> zero, in_.IntsInput(node, 1 - i));
      if (zero != std::vector<int64_t>{0} || counts->list != kFirst) continue;
      begins.kind = Kind::kBounds;
    }
    if (begins.kind != Kind::kBounds || begins.list != counts->list || begins.axes != counts->axes ||
        !SameChoices(begins, *counts)) {
      continue;
    }
    for (uint32_t& bound : begins.list) ++bound;
    return Define(node, std::move(begins));
  }
  return node.Unsupported("of counts only where a run begins and how long it is");
}

// Where runs end less how long they are: where they begin.
Result<bool> OnnxMixtures::ImportSub(OnnxNode& node) {
  const MixturePart *ends = Find(node.input(0)), *counts = Find(node.input(1));
  if ((ends == nullptr || !ends->counted()) && (counts == nullptr || !counts->counted())) return false;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  bool fits = ends != nullptr && counts != nullptr && ends->kind == Kind::kBounds && counts->kind == Kind::kCounts &&
              ends->axes == counts->axes && ends->list.size() == counts->list.size() && SameChoices(*ends, *counts);
  for (size_t i = 0; fits && i < ends->list.size(); ++i) fits = ends->list[i] == counts->list[i] + 1;
  if (!fits) return node.Unsupported("of a mixture's parts only where runs end less how long they are");
  MixturePart begins = *ends;
  begins.list = counts->list;
  return Define(node, std::move(begins));
}

// Some counts or bounds of a list, by constant places.
Result<bool> OnnxMixtures::TakeNumbers(OnnxNode& node, const MixturePart& numbers, const std::vector<int64_t>& places,
                                       Axes axes, int output) {
  std::vector<uint32_t> some;
  const auto size = static_cast<int64_t>(numbers.list.size());
  for (const int64_t place : places) {
    if (place < -size || place >= size) return node.Bad("there is no such expert");
    some.push_back(numbers.list[static_cast<size_t>(place < 0 ? place + size : place)]);
  }
  if (numbers.axes != Axes{Axis::kExperts}) return node.Unsupported("of counts only those of a list");
  MixturePart taken;
  taken.kind = numbers.kind;
  taken.router = numbers.router;
  taken.list = std::move(some);
  taken.axes = std::move(axes);
  MOEPACK_RETURN_IF_ERROR(Store(node, output, std::move(taken)));
  return true;
}

Result<bool> OnnxMixtures::GatherNumbers(OnnxNode& node, const MixturePart& numbers) {
  MOEPACK_ASSIGN_OR_RETURN(const OnnxTensor* which, in_.ConstantInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> places, in_.IntsInput(node, 1));
  return TakeNumbers(node, numbers, places,
                     which->shape.empty() ? Axes{} : Axes{places.size() == 1 ? Axis::kOne : Axis::kExperts}, 0);
}

Result<bool> OnnxMixtures::SliceNumbers(OnnxNode& node, const MixturePart& numbers) {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> begins, in_.IntsInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> ends, in_.IntsInput(node, 2));
  MOEPACK_ASSIGN_OR_RETURN(const int64_t step, StepInput(node));
  if (begins.size() != 1 || ends.size() != 1 || step != 1) {
    return node.Unsupported("of counts only a run");
  }
  const auto size = static_cast<int64_t>(numbers.list.size());
  const int64_t begin = std::clamp<int64_t>(begins[0] < 0 ? begins[0] + size : begins[0], 0, size);
  const int64_t end = std::clamp<int64_t>(ends[0] < 0 ? ends[0] + size : ends[0], begin, size);
  std::vector<int64_t> places(static_cast<size_t>(end - begin));
  std::iota(places.begin(), places.end(), begin);
  return TakeNumbers(node, numbers, places, {Axis::kExperts}, 0);
}

// Counts or bounds one behind the other; the constant 0 is the first bound.
Result<bool> OnnxMixtures::ConcatNumbers(OnnxNode& node) {
  const int64_t axis = node.Int("axis", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MixturePart all;
  std::vector<uint32_t> list;
  size_t zeros = 0;
  for (int i = 0; i < node.inputs(); ++i) {
    const MixturePart* part = Find(node.input(i));
    if (part == nullptr) {
      MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> zero, in_.IntsInput(node, i));
      if (zero != std::vector<int64_t>{0}) return node.Unsupported("beside bounds only the constant 0");
      list.push_back(0);
      ++zeros;
      continue;
    }
    const bool first = all.list.empty() && all.kind == Kind::kView;
    if (!part->counted() || part->axes.size() != 1 || (!first && (part->kind != all.kind || !SameChoices(*part, all)))) {
      return node.Unsupported("counts are put behind counts, and bounds behind bounds");
    }
    if (first) all = *part;
    list.insert(list.end(), part->list.begin(), part->list.end());
    if (list.size() > kMostNumbers) return node.Error(ErrorCode::kLimit, "more bounds than experts");
  }
  if ((axis != 0 && axis != -1) || (zeros > 0 && all.kind != Kind::kBounds)) {
    return node.Unsupported("counts are put behind counts, and bounds behind bounds");
  }
  all.list = std::move(list);
  all.axes = {Axis::kExperts};
  return Define(node, std::move(all));
}

// Where a run begins or ends: bounds, 0, or what lies behind all pairs.
Result<uint32_t> OnnxMixtures::BoundInput(OnnxNode& node, int i, const MixturePart& sorted) const {
  if (const MixturePart* found = Find(node.input(i)); found != nullptr && found->counted()) {
    const MixturePart bound = EndOfFirst(*found);
    const bool one = bound.kind == Kind::kBounds && bound.list.size() == 1 && bound.axes.size() == 1;
    if (one && SameChoices(bound, sorted)) return bound.list[0];
    return node.Unsupported("a run begins and ends at one bound of its own router");
  }
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> number, in_.IntsInput(node, i));
  if (number == std::vector<int64_t>{0}) return 0u;
  if (number.size() == 1 && number[0] >= kPastAll) return static_cast<uint32_t>(sorted.router.experts);
  return node.Unsupported("a run begins and ends where counts of experts say");
}

// The run of one expert.
Result<bool> OnnxMixtures::SliceRun(OnnxNode& node, const MixturePart& sorted) {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> axes, in_.IntsInput(node, 3));
  MOEPACK_ASSIGN_OR_RETURN(const int64_t step, StepInput(node));
  MOEPACK_ASSIGN_OR_RETURN(const uint32_t begin, BoundInput(node, 1, sorted));
  MOEPACK_ASSIGN_OR_RETURN(const uint32_t end, BoundInput(node, 2, sorted));
  if (axes != std::vector<int64_t>{0} || step != 1 || end != begin + 1) {
    return node.Unsupported("of sorted pairs only the run of one expert");
  }
  MOEPACK_RETURN_IF_ERROR(StoreRun(node, sorted, begin, 0));
  return true;
}

Status OnnxMixtures::StoreRun(OnnxNode& node, MixturePart sorted, uint32_t expert, int output) {
  const bool known = sorted.kind == Kind::kView || sorted.kind == Kind::kWeights || sorted.kind == Kind::kRowIds;
  if (!known) return node.Unsupported("only sorted rows, weights and row numbers are taken apart by expert");
  sorted.axes[0] = Axis::kRun;
  sorted.expert = expert;
  return Store(node, output, std::move(sorted));
}

// The runs of all experts, by their counts.
Result<bool> OnnxMixtures::SplitRuns(OnnxNode& node, const MixturePart& sorted, const MixturePart& counts) {
  const bool all = counts.axes == Axes{Axis::kExperts} && RisesFromZero(counts.list) &&
                   counts.list.size() == sorted.router.experts && SameChoices(sorted, counts);
  const bool pairs = !sorted.axes.empty() && sorted.axes[0] == Axis::kSorted;
  if (!all || !pairs || static_cast<size_t>(node.outputs()) != counts.list.size()) {
    return node.Unsupported("sorted pairs are taken apart by the counts of all experts");
  }
  for (int e = 0; e < node.outputs(); ++e) {
    if (!node.output(e).empty()) MOEPACK_RETURN_IF_ERROR(StoreRun(node, sorted, static_cast<uint32_t>(e), e));
  }
  return true;
}

// What the experts give for their runs, one behind the other: for all sorted pairs.
Result<bool> OnnxMixtures::ConcatRuns(OnnxNode& node, const MixturePart& first) {
  const int64_t axis = node.Int("axis", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const Axes each = {Axis::kRun, Axis::kColumns};
  MixturePart all = first;
  all.steps = ExpertSteps();
  for (int i = 0; i < node.inputs(); ++i) {
    const MixturePart* part = Find(node.input(i));
    const bool done = part != nullptr && part->kind == first.kind && part->steps.stage == ExpertSteps::Stage::kOutput &&
                      (part->kind == Kind::kStack || part->kind == Kind::kWeighted);
    if (!done || (axis != 0 && axis != -2) || part->axes != each || part->columns != first.columns ||
        !(part->router == first.router)) {
      return node.Unsupported("only what experts give for their runs of sorted pairs");
    }
    if (part->expert != static_cast<uint32_t>(i)) {
      return node.Unsupported(StrFormat("expert %u stands in the place of expert %d", part->expert, i));
    }
    MOEPACK_RETURN_IF_ERROR(AppendSteps(node, part->expert, part->steps, &all.steps));
  }
  all.steps.Complete();
  all.axes[0] = Axis::kSorted;
  const auto experts = static_cast<uint64_t>(node.inputs());
  if (all.kind == Kind::kWeighted) MOEPACK_RETURN_IF_ERROR(CheckExperts(node, all.router, experts));
  all.router.experts = experts;
  return Define(node, std::move(all));
}

}  // namespace moepack
