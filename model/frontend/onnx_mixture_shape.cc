// Sizes that a graph computes of its values' shapes, and what is made with them.
#include <algorithm>

#include "model/frontend/onnx_mixture.h"

namespace moepack {

Result<bool> OnnxMixtures::ImportShape(OnnxNode& node) {
  std::optional<MixturePart> part = Operand(node.input(0));
  const OnnxImporter::Value* value = in_.FindValue(node.input(0));
  if (!part && value != nullptr && value->rank == 3 && value->by_sequence && value->columns == in_.Width(*value)) {
    part = MixturePart();
    part->axes = {Axis::kBatch, Axis::kSequence, Axis::kColumns};
    part->columns = value->columns;
  }
  if (!part && in_.integers_.contains(node.input(0))) {
    part = MixturePart();
    part->axes = {Axis::kBatch, Axis::kSequence};
  }
  if (!part) return false;
  if (part->counted()) return node.Unsupported("of counts");
  const auto rank = static_cast<int64_t>(part->axes.size());
  int64_t begin = node.Int("start", 0), end = node.Int("end", rank);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  begin = std::clamp<int64_t>(begin < 0 ? begin + rank : begin, 0, rank);
  end = std::clamp<int64_t>(end < 0 ? end + rank : end, begin, rank);
  part->axes = Axes(part->axes.begin() + begin, part->axes.begin() + end);
  part->kind = Kind::kShape;
  return Define(node, std::move(*part));
}

Result<bool> OnnxMixtures::ImportConstantOfShape(OnnxNode& node) {
  const MixturePart* shape = Find(node.input(0), Kind::kShape);
  if (shape == nullptr) return false;
  const std::optional<float> number = node.Number("value");
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (!number) return node.Unsupported("value must be one number");
  MixturePart fill = *shape;
  fill.kind = Kind::kFill;
  fill.number = *number;
  return Define(node, std::move(fill));
}

// Whole dimensions of equal numbers, or one entry of them.
Result<bool> OnnxMixtures::SliceFill(OnnxNode& node, MixturePart fill) {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> begins, in_.IntsInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> ends, in_.IntsInput(node, 2));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> axes, in_.IntsInput(node, 3));
  bool fits = begins.size() == axes.size() && ends.size() == axes.size() && node.input(4).empty();
  for (size_t i = 0; fits && i < axes.size(); ++i) {
    const auto axis = static_cast<size_t>(axes[i]);
    constexpr int64_t kAll = 1 << 30;
    fits = axes[i] >= 0 && axis < fill.axes.size() && begins[i] == 0 && (ends[i] == 1 || ends[i] >= kAll);
    if (fits && ends[i] == 1) fill.axes[axis] = Axis::kOne;
  }
  if (!fits) return node.Unsupported("of equal numbers only whole dimensions, or the first entry");
  return Define(node, std::move(fill));
}

Result<bool> OnnxMixtures::GatherSizes(OnnxNode& node, const MixturePart& sizes) {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> which, in_.IntsInput(node, 1));
  MixturePart some = sizes;
  some.axes.clear();
  const auto rank = static_cast<int64_t>(sizes.axes.size());
  for (const int64_t i : which) {
    if (i < -rank || i >= rank) return node.Bad("there is no such dimension");
    some.axes.push_back(sizes.axes[static_cast<size_t>(i < 0 ? i + rank : i)]);
  }
  if (some.axes.size() > kMaxOnnxRank) return node.Error(ErrorCode::kLimit, "more than 8 dimensions");
  return Define(node, std::move(some));
}

Result<bool> OnnxMixtures::SliceSizes(OnnxNode& node, const MixturePart& sizes) {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> begins, in_.IntsInput(node, 1));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> ends, in_.IntsInput(node, 2));
  const auto rank = static_cast<int64_t>(sizes.axes.size());
  if (begins.size() != 1 || ends.size() != 1 || !node.input(4).empty()) return node.Unsupported("of sizes only a run");
  const int64_t begin = std::clamp<int64_t>(begins[0] < 0 ? begins[0] + rank : begins[0], 0, rank);
  const int64_t end = std::clamp<int64_t>(ends[0] < 0 ? ends[0] + rank : ends[0], begin, rank);
  MixturePart some = sizes;
  some.axes = Axes(sizes.axes.begin() + begin, sizes.axes.begin() + end);
  return Define(node, std::move(some));
}

// Sizes and constant numbers: 1, -1, and one number of columns.
Result<bool> OnnxMixtures::ConcatSizes(OnnxNode& node) {
  node.Int("axis", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MixturePart all;
  all.kind = Kind::kShape;
  uint32_t chosen = 0;  // k of the choices among the sizes
  const auto add_columns = [&](uint64_t columns) {
    const bool fits = all.columns == 0 || all.columns == columns;
    all.columns = columns;
    all.axes.push_back(Axis::kColumns);
    return fits;
  };
  for (int i = 0; i < node.inputs(); ++i) {
    if (const MixturePart* sizes = Find(node.input(i), Kind::kShape); sizes != nullptr) {
      const bool choices = std::any_of(sizes->axes.begin(), sizes->axes.end(), [](Axis axis) {
        return axis == Axis::kChoices || axis == Axis::kPairs || axis == Axis::kSorted;
      });
      if (choices && chosen != 0 && chosen != sizes->router.routing.k) {
        return node.Unsupported("a shape of the choices of two routers");
      }
      if (choices) chosen = sizes->router.routing.k;
      if (choices || (sizes->router.experts != 0 && chosen == 0)) all.router = sizes->router;
      for (const Axis axis : sizes->axes) {
        if (axis != Axis::kColumns) {
          all.axes.push_back(axis);
        } else if (!add_columns(sizes->columns)) {
          return node.Unsupported("a shape of two different numbers");
        }
      }
      continue;
    }
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> numbers, in_.IntsInput(node, i));
    for (const int64_t number : numbers) {
      if (number == 1) all.axes.push_back(Axis::kOne);
      if (number == -1) all.axes.push_back(Axis::kAny);
      if (number == 0 || number < -1 || (number > 1 && !add_columns(static_cast<uint64_t>(number)))) {
        return node.Unsupported("a shape of two different numbers, or of 0");
      }
    }
  }
  if (all.axes.size() > kMaxOnnxRank) return node.Error(ErrorCode::kLimit, "more than 8 dimensions");
  return Define(node, std::move(all));
}

// Repeats along dimensions of 1: by what another part has, or by a router's number of choices.
Result<bool> OnnxMixtures::ImportExpand(OnnxNode& node) {
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const OnnxTensor* constant = in_.file_.Find(node.input(0));
  const MixturePart* sizes = Find(node.input(1), Kind::kShape);
  if (constant != nullptr && sizes != nullptr) {
    MixturePart fill = *sizes;
    fill.kind = Kind::kFill;
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> number, NumbersInput(node, 0));
    if (number.size() != 1) return node.Unsupported("of constants only one number");
    fill.number = number[0];
    return Define(node, std::move(fill));
  }
  std::optional<MixturePart> part = Operand(node.input(0));
  if (!part) return false;
  const Axes before = part->axes;
  if (sizes != nullptr) {
    const std::optional<Axes> axes = Broadcast(part->axes, sizes->axes);
    const bool choices = axes && std::find(axes->begin(), axes->end(), Axis::kChoices) != axes->end();
    if (!axes) return node.Error(ErrorCode::kShape, "the sizes do not fit");
    if (choices && part->router.routing.k == 0) part->router.routing.k = sizes->router.routing.k;
    if (part->columns == 0) part->columns = sizes->columns;
    part->axes = *axes;
    return DefineRepeated(node, std::move(*part), before);
  }
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, in_.IntsInput(node, 1));
  if (shape.size() > kMaxOnnxRank) return node.Error(ErrorCode::kLimit, "more than 8 dimensions");
  if (shape.size() > part->axes.size()) part->axes.insert(part->axes.begin(), shape.size() - part->axes.size(), Axis::kOne);
  for (size_t i = 0; i < shape.size(); ++i) {
    Axis& axis = part->axes[part->axes.size() - shape.size() + i];
    if (shape[i] == 1 || (shape[i] > 0 && SizeOf(*part, axis) == static_cast<uint64_t>(shape[i]))) continue;
    const bool repeats = axis == Axis::kOne && shape[i] > 0 && choices_.contains(static_cast<uint32_t>(shape[i]));
    if (!repeats) return node.Unsupported("a part of a mixture is repeated for each choice only");
    axis = Axis::kChoices;
    part->router.routing.k = static_cast<uint32_t>(shape[i]);
  }
  return DefineRepeated(node, std::move(*part), before);
}

// A part that Expand may have repeated: rows, their numbers and equal numbers, each dimension once. Sums of other parts
// would not know of it.
Result<bool> OnnxMixtures::DefineRepeated(OnnxNode& node, MixturePart part, const Axes& before) {
  size_t first = 0;  // dimensions of 1 in front change nothing
  while (first < part.axes.size() && part.axes.size() - first > before.size() && part.axes[first] == Axis::kOne) ++first;
  if (Axes(part.axes.begin() + static_cast<std::ptrdiff_t>(first), part.axes.end()) == before)
    return Define(node, std::move(part));
  const bool repeatable = part.kind == Kind::kView || part.kind == Kind::kFill || part.kind == Kind::kRowIds ||
                          part.kind == Kind::kChoiceIds || part.kind == Kind::kOrder || part.kind == Kind::kPlaces;
  const auto has = [&](Axis axis) { return std::count(part.axes.begin(), part.axes.end(), axis); };
  const bool pairs = has(Axis::kPairs) + has(Axis::kSorted) + has(Axis::kHits) + has(Axis::kRun) > 0;
  bool once = !pairs || has(Axis::kRows) + has(Axis::kChoices) == 0;
  for (const Axis axis : part.axes) once = once && (axis == Axis::kOne || has(axis) == 1);
  if (!repeatable || !once) return node.Unsupported("of a mixture's parts only rows, and numbers of them, are repeated");
  return Define(node, std::move(part));
}

// 0, 1 ... for every row.
Result<bool> OnnxMixtures::ImportRange(OnnxNode& node) {
  const MixturePart* limit = Find(node.input(1), Kind::kShape);
  if (limit == nullptr) return false;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> start, in_.IntsInput(node, 0));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> delta, in_.IntsInput(node, 2));
  if (limit->axes != Axes{Axis::kRows} || start != std::vector<int64_t>{0} || delta != std::vector<int64_t>{1}) {
    return node.Unsupported("only from 0 to the number of rows");
  }
  MixturePart rows;
  rows.kind = Kind::kRowIds;
  rows.axes = {Axis::kRows};
  return Define(node, std::move(rows));
}

}  // namespace moepack
