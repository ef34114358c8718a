// What every expert gives: products with stacks of matrices, biases, activations, weighing.
#include <algorithm>

#include "model/frontend/onnx_mixture.h"

namespace moepack {
namespace {

using Stage = ExpertSteps::Stage;

bool Twice(const Axes& axes) {
  for (const Axis axis : {Axis::kRows, Axis::kExperts, Axis::kChoices, Axis::kColumns, Axis::kPairs, Axis::kSorted}) {
    if (std::count(axes.begin(), axes.end(), axis) > 1) return true;
  }
  return false;
}

bool Same(const ExpertProduct& a, const ExpertProduct& b) {
  return std::equal(a.weight.begin(), a.weight.end(), b.weight.begin(), b.weight.end(), &SameMatrix) &&
         std::equal(a.bias.begin(), a.bias.end(), b.bias.begin(), b.bias.end(), &SameMatrix);
}

bool IsFloat(const OnnxTensor& tensor) {
  Codec codec;
  return DtypeCodec(tensor.dtype, &codec);
}

// The constants of a stack of matrices, one an expert.
MixturePart AllMatrices(const OnnxTensor* tensor) {
  MixturePart part;
  part.kind = MixturePart::Kind::kPicked;
  part.tensor = tensor;
  part.axes = {Axis::kExperts, Axis::kColumns, Axis::kColumns};
  part.router.experts = tensor->shape[0];
  return part;
}

}  // namespace

Result<bool> OnnxMixtures::ImportMatMul(OnnxNode& node) {
  const MixturePart* x = Find(node.input(0));
  if (x != nullptr && OfOneExpert(x->axes)) {
    const auto transposed = in_.transposed_.find(node.input(1));
    const bool turned = transposed != in_.transposed_.end();
    const OnnxTensor* weight = turned ? transposed->second : in_.file_.Find(node.input(1));
    if (weight != nullptr && weight->shape.size() == 2 && IsFloat(*weight)) {
      MOEPACK_RETURN_IF_ERROR(node.Finish());
      const uint64_t out = weight->shape[turned ? 0 : 1], in = weight->shape[turned ? 1 : 0];
      return MultiplyBranch(node, MixturePart(*x), DenseMatrix(*weight, out, in, !turned), nullptr);
    }
  }
  for (const int i : {0, 1}) {
    if (Find(node.input(i), Kind::kTerms) != nullptr) return node.Error(ErrorCode::kShape, WhyNoValue(node.input(i)));
  }
  std::optional<MixturePart> sides[2];
  bool parts = false;
  for (const int i : {0, 1}) {
    const OnnxTensor* constant = in_.file_.Find(node.input(i));
    if (constant == nullptr) {
      sides[i] = Operand(node.input(i));
      parts = parts || Find(node.input(i)) != nullptr;
    } else if (constant->shape.size() == 3 && IsFloat(*constant)) {
      if (constant->elements == 0 || constant->shape[0] > kMaxExperts)
        return node.Error(ErrorCode::kShape, StrFormat("matrices of %llu experts: expected 1 to %u, none of them empty",
                                                       static_cast<unsigned long long>(constant->shape[0]), kMaxExperts));
      sides[i] = AllMatrices(constant);
      parts = true;
    }
  }
  if (!parts) return false;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  if (!sides[0] || !sides[1]) return node.Unsupported("a product of a mixture's part with something else");
  const MixturePart &a = *sides[0], &b = *sides[1];
  if (b.kind == Kind::kPicked) return MultiplyMatrices(node, a, b, false);
  if (a.kind == Kind::kPicked) return MultiplyMatrices(node, b, a, true);
  const Axis over = a.axes.back();
  const bool weights = (a.kind == Kind::kWeights && over == Axis::kChoices) ||
                       ((a.kind == Kind::kGates || a.kind == Kind::kScores) && over == Axis::kExperts);
  if (!weights || a.axes != Axes{Axis::kRows, Axis::kOne, over} || b.axes.size() != 3 || b.axes[1] != over)
    return node.Unsupported("a product of a mixture's parts in a form that is not known");
  if (a.kind == Kind::kWeights && b.kind == Kind::kOneHot && a.router.logits == b.router.logits) {
    MixturePart gates = a;
    gates.kind = Kind::kGates;
    gates.axes = {Axis::kRows, Axis::kOne, Axis::kExperts};
    return Define(node, std::move(gates));
  }
  MixturePart by = a;
  by.axes = {Axis::kRows, over, Axis::kOne};
  MixturePart weighed;
  MOEPACK_ASSIGN_OR_RETURN(weighed, Weighed(node, b, by));
  return DefineSum(node, weighed, {Axis::kRows, Axis::kOne, Axis::kColumns});
}

// x W^T: the matrix [.., in, out] comes second, or [.., out, in] first.
Result<bool> OnnxMixtures::MultiplyMatrices(OnnxNode& node, const MixturePart& x, const MixturePart& matrices,
                                            bool matrix_first) {
  const size_t rank = x.axes.size();
  const size_t column = rank - (matrix_first ? 2 : 1), other = rank - (matrix_first ? 1 : 2);
  const bool fits = rank >= 2 && matrices.tensor->shape.size() == 3 && matrices.axes.size() >= 3 &&
                    x.axes[column] == Axis::kColumns && matrices.axes[matrices.axes.size() - 1] == Axis::kColumns &&
                    matrices.axes[matrices.axes.size() - 2] == Axis::kColumns;
  if (!fits) return node.Unsupported("a product with a stack of matrices in a form that is not known");
  const uint64_t out = matrices.tensor->shape[matrix_first ? 1 : 2], in = matrices.tensor->shape[matrix_first ? 2 : 1];
  if (in != x.columns) return node.Error(ErrorCode::kShape, "the matrices do not fit their input");
  const std::optional<Axes> batch =
      Broadcast(Axes(x.axes.begin(), x.axes.end() - 2), Axes(matrices.axes.begin(), matrices.axes.end() - 2));
  if (!batch) return node.Error(ErrorCode::kShape, "the matrices do not fit the dimensions of their input");
  const bool rows = x.kind == Kind::kView && x.router.routing.k == 0;  // of all routers
  if (!rows && !SameChoices(x, matrices)) return node.Unsupported("a product with matrices that another router chose");
  ExpertProduct product;
  for (uint64_t e = 0; e < matrices.router.experts; ++e)
    product.weight.push_back(DenseMatrix(*matrices.tensor, out, in, !matrix_first, e * in * out));
  MixturePart stack = x.kind == Kind::kStack ? x : matrices;
  stack.kind = Kind::kStack;
  stack.columns = out;
  stack.axes = *batch;
  stack.axes.insert(stack.axes.end(), matrix_first ? Axis::kColumns : x.axes[other]);
  stack.axes.insert(stack.axes.end(), matrix_first ? x.axes[other] : Axis::kColumns);
  if (Twice(stack.axes)) return node.Error(ErrorCode::kShape, "rows meet the matrices of other rows");
  ExpertSteps& steps = stack.steps;
  if (x.kind == Kind::kView) {
    steps = ExpertSteps();
    steps.x = x.value.id;
    steps.up = std::move(product);
  } else if (x.kind == Kind::kStack &&
             (steps.stage == Stage::kProduct || steps.stage == Stage::kActive || steps.stage == Stage::kMiddle)) {
    if (x.router.experts != matrices.router.experts) return node.Error(ErrorCode::kShape, "stacks of different experts");
    steps.down = std::move(product);
    steps.stage = Stage::kOutput;
  } else {
    return node.Unsupported("an expert is down(act(up(x))) or down(act(gate(x)) * up(x))");
  }
  return Define(node, std::move(stack));
}

// Columns of a product: rows of its matrices and entries of its biases.
Result<bool> OnnxMixtures::SliceProduct(OnnxNode& node, const MixturePart& stack, int64_t begin, int64_t end, int64_t step,
                                        int output) {
  const auto width = static_cast<int64_t>(stack.columns);
  end = std::min(end, width);
  if (stack.steps.stage != Stage::kProduct || begin < 0 || begin >= end || step < 1) {
    return node.Unsupported("only some columns of an expert's first product");
  }
  MixturePart part = stack;
  step = std::min(step, width);
  part.columns = static_cast<uint64_t>((end - begin - 1) / step) + 1;
  const auto first = static_cast<uint64_t>(begin), stride = static_cast<uint64_t>(step);
  for (OnnxMatrix& weight : part.steps.up.weight) {
    weight.base += first * weight.row_stride;
    weight.row_stride *= stride;
    weight.rows = part.columns;
  }
  for (OnnxMatrix& bias : part.steps.up.bias) {
    bias.base += first * bias.col_stride;
    bias.col_stride *= stride;
    bias.cols = part.columns;
  }
  MOEPACK_RETURN_IF_ERROR(Store(node, output, std::move(part)));
  return true;
}

Result<bool> OnnxMixtures::ImportActivation(OnnxNode& node) {
  const MixturePart* found = Find(node.input(0));
  if (found == nullptr) return false;
  MixturePart part = *found;
  const bool tanh = node.op() == "Gelu" && node.Text("approximate", "none") == "tanh";
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const bool sigmoid = node.op() == "Sigmoid";
  if (sigmoid && part.kind == Kind::kWeights && !part.router.scored) {
    part.router.scored = true;
    part.router.routing.score = ScoreFunction::kSigmoid;
    return Define(node, std::move(part));
  }
  if (part.kind != Kind::kStack || part.steps.stage != Stage::kProduct)
    return node.Unsupported("an expert is down(act(up(x))) or down(act(gate(x)) * up(x))");
  part.steps.stage = sigmoid ? Stage::kSigmoid : Stage::kActive;
  part.steps.function = node.op() == "Relu"                             ? Activation::kRelu
                        : tanh || node.op() == "com.microsoft.FastGelu" ? Activation::kGeluTanh
                                                                        : Activation::kGelu;
  return Define(node, std::move(part));
}

// The rows of every expert: from a constant by the dimensions that it has, or what the chosen experts picked.
Result<bool> OnnxMixtures::AddBias(OnnxNode& node, MixturePart stack, const std::string& name) {
  ExpertSteps& steps = stack.steps;
  ExpertProduct& product = steps.stage == Stage::kOutput ? steps.down : steps.up;
  if ((steps.stage != Stage::kOutput && steps.stage != Stage::kProduct) || !product.bias.empty())
    return node.Unsupported("a bias belongs to a product that has none yet");
  const MixturePart* picked = Find(name, Kind::kPicked);
  const OnnxTensor* tensor = picked != nullptr ? picked->tensor : in_.file_.Find(name);
  if (tensor == nullptr || !IsFloat(*tensor))
    return node.Unsupported("a bias must be a constant of floats, or picked from one");
  bool each = picked != nullptr;  // a row for each expert
  bool fits = tensor->shape.size() <= stack.axes.size();
  if (picked != nullptr) {
    fits = tensor->shape.size() == 2 && picked->columns == stack.columns &&
           Broadcast(stack.axes, picked->axes) == stack.axes && SameChoices(stack, *picked);
  }
  for (size_t i = 0; picked == nullptr && fits && i < tensor->shape.size(); ++i) {
    const Axis axis = stack.axes[stack.axes.size() - 1 - i];
    const uint64_t size = tensor->shape[tensor->shape.size() - 1 - i];
    each = each || (axis == Axis::kExperts && size == stack.router.experts);
    fits = axis == Axis::kColumns ? size == stack.columns
                                  : size == 1 || (axis == Axis::kExperts && size == stack.router.experts);
  }
  const uint64_t rows = each ? stack.router.experts : 1;
  if (!fits || tensor->elements != rows * stack.columns)
    return node.Error(ErrorCode::kShape, "the bias does not fit the experts");
  for (uint64_t e = 0; e < stack.router.experts; ++e)
    product.bias.push_back(DenseMatrix(*tensor, 1, stack.columns, false, each ? e * stack.columns : 0));
  return Define(node, std::move(stack));
}

Result<bool> OnnxMixtures::ImportAdd(OnnxNode& node) {
  const bool parts = std::any_of(node.proto().input().begin(), node.proto().input().end(),
                                 [&](const std::string& name) { return Find(name) != nullptr; });
  if (!parts && node.op() != "Sum") return false;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  for (const std::string& name : node.proto().input()) {
    if (const MixturePart* part = Find(name); part != nullptr && part->counted()) return AddCounts(node);
  }
  for (const int i : {0, 1}) {
    if (node.inputs() != 2) break;
    if (const MixturePart* stack = Find(node.input(i), Kind::kStack); stack != nullptr)
      return AddBias(node, *stack, node.input(1 - i));
    if (const MixturePart* sum = Find(node.input(i), Kind::kSum); sum != nullptr) {
      MixturePart part = *sum;
      MOEPACK_ASSIGN_OR_RETURN(part.number, in_.ScalarInput(node, 1 - i));
      if (sum->number != 0 || !(part.number >= 0))
        return node.Unsupported("one small number may be added to a sum of weights");
      return Define(node, std::move(part));
    }
  }
  MixturePart all;
  std::set<uint64_t> zeros;  // widths of zeros [rows, columns] that are added
  for (int i = 0; i < node.inputs(); ++i) {
    std::optional<MixturePart> part = TakeOperand(node.input(i));
    if (part && part->kind == Kind::kFill && part->number == 0 && part->axes == Axes{Axis::kRows, Axis::kColumns}) {
      zeros.insert(part->columns);
      continue;
    }
    const bool known = part && (part->kind == Kind::kTerms || part->kind == Kind::kView);
    if (!known) return node.Unsupported(StrFormat("input %d cannot be added to a part of a mixture", i));
    MOEPACK_RETURN_IF_ERROR(AddTerms(node, *std::move(part), &all));
  }
  zeros.insert(all.columns);
  if (zeros.size() > 1) return node.Error(ErrorCode::kShape, "summands of different widths");
  return DefineTerms(node, std::move(all));
}

Result<bool> OnnxMixtures::MultiplyStacks(OnnxNode& node, const MixturePart& a, const MixturePart& b) {
  if (a.axes != b.axes || a.columns != b.columns || a.steps.x != b.steps.x || !(a.router == b.router) ||
      a.expert != b.expert || a.by_choice != b.by_choice)
    return node.Error(ErrorCode::kShape, "two stacks that do not fit");
  for (const bool swapped : {false, true}) {
    const MixturePart &first = swapped ? b : a, &second = swapped ? a : b;
    if (second.steps.stage != Stage::kProduct) continue;
    MixturePart out = first;
    if (first.steps.stage == Stage::kSigmoid && Same(first.steps.up, second.steps.up)) {
      out.steps.stage = Stage::kActive;
      out.steps.function = Activation::kSilu;
      return Define(node, std::move(out));
    }
    if (first.steps.stage == Stage::kActive) {
      out.steps.stage = Stage::kMiddle;
      out.steps.gated = true;
      out.steps.gate = first.steps.up;
      out.steps.up = second.steps.up;
      return Define(node, std::move(out));
    }
  }
  return node.Unsupported("an expert is down(act(up(x))) or down(act(gate(x)) * up(x))");
}

// The outputs of experts, each times its weight.
Result<MixturePart> OnnxMixtures::Weighed(const OnnxNode& node, const MixturePart& stack, const MixturePart& by) const {
  const bool chosen = by.kind == Kind::kWeights;
  const auto runs_over = [&](Axis axis) {
    return std::find(stack.axes.begin(), stack.axes.end(), axis) != stack.axes.end();
  };
  Axis over = chosen ? Axis::kChoices : Axis::kExperts;
  for (const Axis pairs : {Axis::kHits, Axis::kRun, Axis::kSorted, Axis::kPairs}) {
    if (chosen && runs_over(pairs)) over = pairs;
  }
  const bool hits = OfOneExpert({over});
  const bool known = stack.kind == Kind::kStack && stack.steps.stage == Stage::kOutput &&
                     (chosen || by.kind == Kind::kGates || by.kind == Kind::kScores);
  if (!known) return node.Unsupported("only what experts give can be weighed, by weights of a router");
  const bool fits = Broadcast(stack.axes, by.axes) == stack.axes &&
                    std::count(stack.axes.begin(), stack.axes.end(), over) == 1 &&
                    std::count(by.axes.begin(), by.axes.end(), over) == 1 &&
                    (!chosen || (stack.router.logits == by.router.logits && stack.router.routing.k == by.router.routing.k));
  if (!fits) return node.Error(ErrorCode::kShape, "the weights do not fit what the experts give");
  if (chosen && runs_over(Axis::kExperts)) return node.Unsupported("all experts are weighed by gates");
  if (hits && stack.by_choice != by.by_choice) return node.Unsupported("weights of hits in another order");
  if (hits && stack.expert != by.expert) return node.Unsupported("an expert is weighed by weights of another");
  if (!hits) MOEPACK_RETURN_IF_ERROR(CheckExperts(node, by.router, stack.router.experts));
  MixturePart part = stack;
  part.kind = Kind::kWeighted;
  part.router = by.router;
  return part;
}

Result<bool> OnnxMixtures::ImportMul(OnnxNode& node) {
  if (Find(node.input(0)) == nullptr && Find(node.input(1)) == nullptr) return false;
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  const MixturePart *first = Find(node.input(0)), *second = Find(node.input(1));
  if (first != nullptr && second != nullptr && first->kind == Kind::kShape && second->kind == Kind::kShape) {
    const bool rows = first->axes == Axes{Axis::kBatch} && second->axes == Axes{Axis::kSequence};
    if (!rows) return node.Unsupported("a product of sizes other than batch times sequence");
    MixturePart size = *first;
    size.axes = {Axis::kRows};
    return Define(node, std::move(size));
  }
  if (first != nullptr && second != nullptr && first->kind == Kind::kStack && second->kind == Kind::kStack)
    return MultiplyStacks(node, *first, *second);
  for (const int i : {0, 1}) {
    const MixturePart* part = Find(node.input(i));
    if (part == nullptr) continue;
    const MixturePart* other = Find(node.input(1 - i));
    if (other != nullptr && part->kind == Kind::kStack) {
      MOEPACK_ASSIGN_OR_RETURN(MixturePart weighed, Weighed(node, *part, *other));
      return Define(node, std::move(weighed));
    }
    const bool weights = other != nullptr && other->kind == Kind::kWeights && other->router.logits == part->router.logits;
    if (weights && part->kind == Kind::kOneHot && Broadcast(part->axes, other->axes) == part->axes) {
      MixturePart spread = *part;
      spread.kind = Kind::kSpread;
      spread.router = other->router;
      return Define(node, std::move(spread));
    }
    if (weights && part->kind == Kind::kMask && part->axes == other->axes && part->number == 0) {
      MixturePart mask = *part;
      mask.number = 1;  // weighed
      mask.router = other->router;
      return Define(node, std::move(mask));
    }
    if (other == nullptr && part->kind == Kind::kGate && part->axes == Axes{Axis::kRows, Axis::kOne} &&
        Operand(node.input(1 - i)).has_value()) {
      MixturePart terms = *part;
      terms.kind = Kind::kTerms;
      terms.axes = {Axis::kRows, Axis::kColumns};
      const MixturePart output = *Operand(node.input(1 - i));
      terms.columns = output.columns;
      terms.terms = {{part->expert, output.value.id}};
      return DefineTerms(node, std::move(terms));
    }
    const bool scalable = (part->kind == Kind::kWeights || part->kind == Kind::kGates) && part->router.scored;
    if (scalable && in_.file_.Find(node.input(1 - i)) != nullptr) {
      MixturePart scaled = *part;
      MOEPACK_ASSIGN_OR_RETURN(const float factor, in_.ScalarInput(node, 1 - i));
      scaled.router.routing.scale *= factor;
      return Define(node, std::move(scaled));
    }
  }
  return node.Unsupported("a product of a mixture's parts in a form that is not known");
}

}  // namespace moepack
