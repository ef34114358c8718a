// The end of a mixture: sums over experts, and the MoE node that takes their place.
#include <algorithm>

#include "model/frontend/onnx_mixture.h"

namespace moepack {
namespace {

using ull = unsigned long long;
using Stage = ExpertSteps::Stage;

std::optional<Activation> ActivationOf(ElementOp op) {
  switch (op) {
    case ElementOp::kSilu:
      return Activation::kSilu;
    case ElementOp::kGelu:
      return Activation::kGelu;
    case ElementOp::kGeluTanh:
      return Activation::kGeluTanh;
    case ElementOp::kRelu:
      return Activation::kRelu;
    default:
      return std::nullopt;
  }
}

void Append(ExpertProduct&& one, ExpertProduct* all) {
  all->weight.push_back(one.weight[0]);
  all->bias.push_back(one.bias.empty() ? OnnxMatrix() : one.bias[0]);
}

// [rows, columns], with dimensions of 1.
bool RowsAndColumns(Axes axes) {
  std::erase(axes, Axis::kOne);
  return axes == Axes{Axis::kRows, Axis::kColumns};
}

}  // namespace

void ExpertSteps::Complete() {
  for (ExpertProduct* product : {&up, &gate, &down}) {
    if (std::all_of(product->bias.begin(), product->bias.end(), [](const OnnxMatrix& row) { return row.rows == 0; }))
      product->bias.clear();
  }
  stage = Stage::kOutput;
}

Status OnnxMixtures::CheckExperts(const OnnxNode& node, const MixtureRouter& router, uint64_t experts) const {
  if (router.experts == experts) return Status::Ok();
  return node.Error(ErrorCode::kShape,
                    StrFormat("the router is %llu wide, but there are %llu experts: experts that were stripped when the "
                              "model was traced cannot be brought back",
                              static_cast<ull>(router.experts), static_cast<ull>(experts)));
}

Result<bool> OnnxMixtures::ImportReduceSum(OnnxNode& node) {
  const MixturePart* found = Find(node.input(0));
  if (found == nullptr) return false;
  MixturePart part = *found;
  if (part.kind == Kind::kOneHot || (part.kind == Kind::kMask && part.number == 0)) return CountPairs(node, std::move(part));
  const int64_t keep = node.Int("keepdims", 1);
  node.Int("noop_with_empty_axes", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int64_t> axes, AxesInput(node, part.axes.size()));
  if (axes.size() != 1) return node.Unsupported("of a mixture's parts only over one dimension");
  const auto at = part.axes.begin() + axes[0];
  const Axis over = *at;
  if (over != Axis::kExperts && over != Axis::kChoices) return node.Unsupported("only over experts");
  if (keep != 0) {
    *at = Axis::kOne;
  } else {
    part.axes.erase(at);
  }
  const bool weights = part.kind == Kind::kWeights || part.kind == Kind::kGates || part.kind == Kind::kScores;
  if (weights)
    part.kind = Kind::kSum, part.number = 0;
  else if (part.kind == Kind::kSpread && over == Axis::kChoices)
    part.kind = Kind::kGates;
  else if (part.kind == Kind::kMask && part.number == 1)
    part.kind = Kind::kGate;
  else if (part.kind == Kind::kTerms)
    return DefineTerms(node, std::move(part));
  else if (part.kind == Kind::kWeighted && RowsAndColumns(part.axes))
    return DefineSum(node, part, Axes(part.axes));
  else
    return node.Unsupported("a sum of a mixture's parts in a form that is not known");
  return Define(node, std::move(part));
}

// Outputs of experts computed one by one, side by side in a dimension of their own; weighed already or not.
Result<bool> OnnxMixtures::ImportConcat(OnnxNode& node) {
  bool sizes = false, ids = false, numbers = false;
  for (const std::string& name : node.proto().input()) {
    sizes = sizes || Find(name, Kind::kShape) != nullptr;
    ids = ids || Find(name, Kind::kRowIds) != nullptr || Find(name, Kind::kChoiceIds) != nullptr;
    const MixturePart* part = Find(name);
    numbers = numbers || (part != nullptr && part->counted());
  }
  if (numbers) return ConcatNumbers(node);
  if (sizes) return ConcatSizes(node);
  if (ids) return ConcatIds(node);
  const MixturePart* first = Find(node.input(0));
  if (first == nullptr) return false;
  if (!first->axes.empty() && first->axes[0] == Axis::kRun) return ConcatRuns(node, MixturePart(*first));
  const int64_t axis = node.Int("axis", 0);
  MOEPACK_RETURN_IF_ERROR(node.Finish());
  MixturePart all = *first;
  const int64_t rank = static_cast<int64_t>(all.axes.size());
  const int64_t place = axis < 0 ? axis + rank : axis;
  if (place < 0 || place >= rank || all.axes[static_cast<size_t>(place)] != Axis::kOne)
    return node.Unsupported("experts are put side by side in a dimension of their own only");
  const Axes each = all.axes;
  const bool weighed = all.kind == Kind::kTerms;
  std::map<uint32_t, ValueId> outputs;
  all.terms.clear();
  all.rest.clear();
  for (int i = 0; i < node.inputs(); ++i) {
    const MixturePart* part = Find(node.input(i));
    const bool fits = part != nullptr && part->axes == each && part->columns == all.columns &&
                      part->kind == (weighed ? Kind::kTerms : Kind::kView);
    if (!fits) return node.Unsupported("experts are put side by side with experts only");
    if (!weighed) outputs.emplace(static_cast<uint32_t>(i), part->value.id);
    if (weighed) MOEPACK_RETURN_IF_ERROR(AddTerms(node, *part, &all));
  }
  all.axes = each;
  all.axes[static_cast<size_t>(place)] = Axis::kExperts;
  if (weighed) return Define(node, std::move(all));
  all.kind = Kind::kStack;
  all.router.experts = outputs.size();
  MOEPACK_ASSIGN_OR_RETURN(all.steps, StepsOfTerms(node, outputs));
  return Define(node, std::move(all));
}

// Adds a term, terms or a value to a sum that may be empty.
Status OnnxMixtures::AddTerms(const OnnxNode& node, MixturePart part, MixturePart* all) const {
  const uint64_t columns = part.columns;
  if (part.kind == Kind::kView) {
    if (part.axes != Axes{Axis::kRows, Axis::kColumns}) return node.Unsupported("a value of other dimensions is added");
    if (all->kind != Kind::kTerms && all->rest.empty()) all->columns = columns;
    all->rest.push_back(part.value.id);
  } else if (all->kind != Kind::kTerms) {
    std::vector<ValueId> rest = std::move(all->rest);
    const bool fits = rest.empty() || all->columns == columns;
    *all = std::move(part);
    all->rest.insert(all->rest.begin(), rest.begin(), rest.end());
    if (!fits) return node.Error(ErrorCode::kShape, "summands of different widths");
  } else {
    if (!(part.router == all->router) || part.axes != all->axes)
      return node.Unsupported("experts of two routers are added up before either is complete");
    if (part.terms.size() > all->terms.size()) part.terms.swap(all->terms);
    for (const auto& [expert, value] : part.terms) {
      if (!all->terms.emplace(expert, value).second) return node.Unsupported(StrFormat("expert %u is added twice", expert));
    }
    all->rest.insert(all->rest.end(), part.rest.begin(), part.rest.end());
  }
  return columns == all->columns ? Status::Ok() : node.Error(ErrorCode::kShape, "summands of different widths");
}

Result<bool> OnnxMixtures::DefineTerms(OnnxNode& node, MixturePart terms) {
  if (terms.kind != Kind::kTerms) {  // the operator Sum, of values alone
    if (terms.rest.empty()) return node.Bad("has no inputs");
    ValueId sum = terms.rest[0];
    for (size_t i = 1; i < terms.rest.size(); ++i) sum = AddValues(sum, terms.rest[i]);
    MOEPACK_RETURN_IF_ERROR(in_.Define(node, 0, {sum, terms.columns, 2, false, false}));
    return true;
  }
  const bool summed = std::find(terms.axes.begin(), terms.axes.end(), Axis::kExperts) == terms.axes.end();
  if (!summed || terms.terms.size() != terms.router.experts) return Define(node, std::move(terms));
  MOEPACK_ASSIGN_OR_RETURN(terms.steps, StepsOfTerms(node, terms.terms));
  const Axes axes = terms.axes;
  return DefineSum(node, terms, axes);
}

Result<bool> OnnxMixtures::DefineSum(OnnxNode& node, const MixturePart& weighed, const Axes& axes) {
  MOEPACK_ASSIGN_OR_RETURN(ValueId sum, EmitMoe(node, weighed.router, weighed.steps));
  for (const ValueId value : weighed.rest) sum = AddValues(value, sum);
  MixturePart view;
  view.axes = axes;
  view.columns = weighed.columns;
  view.value = {sum, weighed.columns, 2, false, false};
  return Define(node, std::move(view));
}

ValueId OnnxMixtures::AddValues(ValueId a, ValueId b) {
  Node add;
  add.kind = NodeKind::kElementwise;
  add.inputs = {a, b};
  add.elementwise.op = ElementOp::kAdd;
  return in_.Emit(std::move(add), in_.program.values[a].width);
}

// Of one expert, from the nodes that made its output.
Result<ExpertSteps> OnnxMixtures::StepsOf(const OnnxNode& node, ValueId output) const {
  const Status unknown = node.Unsupported("an expert is down(act(up(x))) or down(act(gate(x)) * up(x))");
  const auto linear = [&](ValueId id, ExpertProduct* product) -> const Node* {
    const Node* made = in_.ProducerOf(id);
    if (made == nullptr || made->kind != NodeKind::kLinear) return nullptr;
    const std::vector<OnnxMatrix>& parts = in_.tensors[made->linear.weight].parts;
    if (parts.size() != 1) return nullptr;
    product->weight = {parts[0]};
    if (made->linear.bias != kNone) product->bias = in_.tensors[made->linear.bias].parts;
    return product->bias.size() <= 1 ? made : nullptr;
  };
  ExpertSteps steps;
  const Node* down = linear(output, &steps.down);
  const Node* middle = down == nullptr ? nullptr : in_.ProducerOf(down->inputs[0]);
  if (middle == nullptr) return unknown;
  ValueId active = down->inputs[0];
  if (middle->kind == NodeKind::kElementwise && middle->elementwise.op == ElementOp::kMul) {
    const bool first = linear(middle->inputs[0], &steps.up) != nullptr;
    const Node* up = linear(middle->inputs[first ? 0 : 1], &steps.up);
    if (up == nullptr) return unknown;
    steps.gated = true;
    steps.x = up->inputs[0];
    active = middle->inputs[first ? 1 : 0];
  }
  const Node* function = in_.ProducerOf(active);
  ExpertProduct& before = steps.gated ? steps.gate : steps.up;
  const Node* product = linear(active, &before);
  if (product == nullptr) {
    if (function == nullptr || function->kind != NodeKind::kElementwise) return unknown;
    const std::optional<Activation> known = ActivationOf(function->elementwise.op);
    product = linear(function->inputs[0], &before);
    if (!known || product == nullptr) return unknown;
    steps.function = *known;
  }
  // A layer that others read too is before the experts, not the first half of one.
  const auto reads = [&](const Node& other) {
    return std::find(other.inputs.begin(), other.inputs.end(), active) != other.inputs.end();
  };
  const bool direct = !steps.gated && product == function;
  if (direct && std::count_if(in_.program.nodes.begin(), in_.program.nodes.end(), reads) != 1) return unknown;
  if (steps.gated && product->inputs[0] != steps.x) return unknown;
  steps.x = product->inputs[0];
  return steps;
}

Status OnnxMixtures::AppendSteps(const OnnxNode& node, uint32_t expert, ExpertSteps one, ExpertSteps* all) const {
  const bool first = all->up.weight.empty();
  if (!first && (one.x != all->x || one.gated != all->gated || one.function != all->function))
    return node.Unsupported(StrFormat("expert %u reads another value or has another activation than those before", expert));
  all->x = one.x;
  all->gated = one.gated;
  all->function = one.function;
  Append(std::move(one.up), &all->up);
  Append(std::move(one.down), &all->down);
  if (one.gated) Append(std::move(one.gate), &all->gate);
  return Status::Ok();
}

// Experts 0, 1, 2 ...; each once.
Result<ExpertSteps> OnnxMixtures::StepsOfTerms(const OnnxNode& node, const std::map<uint32_t, ValueId>& terms) const {
  ExpertSteps all;
  for (const auto& [expert, value] : terms) {
    auto found = StepsOf(node, value);
    if (!found.ok()) return found.status().With(StrFormat("expert %u", expert));
    MOEPACK_RETURN_IF_ERROR(AppendSteps(node, expert, std::move(found).value(), &all));
  }
  all.Complete();
  return all;
}

// [experts, columns]
TensorId OnnxMixtures::AddBiases(const char* name, const ExpertProduct& product, uint64_t columns, uint64_t experts) {
  std::vector<OnnxMatrix> parts;
  for (size_t e = 0; e < experts; ++e) {
    OnnxMatrix zeros;
    zeros.rows = 1;
    zeros.cols = columns;
    if (e < product.bias.size() && product.bias[e].rows > 0) {
      parts.push_back(product.bias[e]);
      zeros.cols -= product.bias[e].cols;
    }
    if (zeros.cols > 0) parts.push_back(zeros);
  }
  return in_.AddTensor(StrFormat("moe.%zu.%s", in_.program.expert_tables.size(), name), experts, columns, std::move(parts));
}

// x with zeros behind its columns.
ValueId OnnxMixtures::Widen(ValueId x, uint64_t width) {
  const uint64_t own = in_.program.values[x].width;
  Node zero;
  zero.kind = NodeKind::kElementwise;
  zero.inputs = {x};
  zero.elementwise.op = ElementOp::kScale;
  const ValueId zeros = in_.Emit(std::move(zero), own);
  Node wide;
  wide.kind = NodeKind::kConcat;
  wide.inputs = {x};
  uint64_t at = own;
  for (; at + own <= width; at += own) wide.inputs.push_back(zeros);
  if (at < width) {
    Node rest;
    rest.kind = NodeKind::kSlice;
    rest.inputs = {zeros};
    wide.inputs.push_back(in_.Emit(std::move(rest), width - at));
  }
  return in_.Emit(std::move(wide), width);
}

// An expert's width is one number in a program: where it takes fewer columns than it gives, or gives fewer, the rest are
// zeros.
Result<ValueId> OnnxMixtures::EmitMoe(OnnxNode& node, const MixtureRouter& router, const ExpertSteps& steps) {
  const uint64_t experts = steps.up.weight.size(), in = in_.program.values[steps.x].width, out = steps.down.weight[0].rows;
  MOEPACK_RETURN_IF_ERROR(CheckExperts(node, router, experts));
  if (!router.scored) return node.Unsupported("a router's logits weigh experts before softmax or sigmoid");
  if (experts > kMaxExperts || in_.program.expert_tables.size() == kMaxExpertTables || std::max(in, out) > kMaxCols)
    return node.Error(ErrorCode::kLimit, "too many experts or columns");
  ExpertTableDecl table;
  table.hidden = std::max(in, out);
  table.gated = steps.gated;
  OnnxExperts weights;
  uint64_t widest = 0;
  for (size_t e = 0; e < experts; ++e) {
    OnnxMatrix up = steps.up.weight[e], down = steps.down.weight[e];
    OnnxMatrix gate = steps.gated ? steps.gate.weight[e] : OnnxMatrix();
    const bool fits = up.cols == in && down.cols == up.rows && down.rows == out &&
                      (!steps.gated || (gate.cols == in && gate.rows == up.rows));
    if (!fits) return node.Error(ErrorCode::kShape, StrFormat("the matrices of expert %zu do not fit each other", e));
    table.intermediate.push_back(up.rows);
    table.original.push_back(static_cast<uint32_t>(e));
    widest = std::max(widest, up.rows);
    gate.zero_cols = up.zero_cols = table.hidden - in;
    down.zero_rows = table.hidden - out;
    weights.push_back({gate, up, down});
    padding_ += up.rows * ((table.hidden - in) * (steps.gated ? 2 : 1) + (table.hidden - out));
  }
  Node moe;
  moe.kind = NodeKind::kMoe;
  moe.inputs = {in < table.hidden ? Widen(steps.x, table.hidden) : steps.x, router.logits};
  moe.moe.routing = router.routing;
  if (router.routing.k == 0) {  // every expert, always
    moe.moe.routing.k = static_cast<uint32_t>(experts);
    moe.moe.routing.score_before_topk = true;
  }
  moe.moe.activation.gated = steps.gated;
  moe.moe.activation.function = steps.function;
  moe.moe.table = static_cast<uint32_t>(in_.program.expert_tables.size());
  if (!steps.up.bias.empty() || !steps.gate.bias.empty() || !steps.down.bias.empty()) {
    if (steps.gated) moe.moe.gate_bias = AddBiases("gate_bias", steps.gate, widest, experts);
    moe.moe.up_bias = AddBiases("up_bias", steps.up, widest, experts);
    moe.moe.down_bias = AddBiases("down_bias", steps.down, table.hidden, experts);
  }
  in_.program.expert_tables.push_back(std::move(table));
  in_.experts.push_back(std::move(weights));
  found_ = true;
  const uint64_t hidden = in_.program.expert_tables.back().hidden;
  const ValueId sum = in_.Emit(std::move(moe), hidden);
  if (out == hidden) return sum;
  Node narrow;
  narrow.kind = NodeKind::kSlice;
  narrow.inputs = {sum};
  return in_.Emit(std::move(narrow), out);
}

}  // namespace moepack
