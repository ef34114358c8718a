// Mixtures of experts that a graph spells out in plain operators. Internal to the ONNX front-end.
//
// Values that only make sense inside of a mixture (scores, chosen experts, gates, stacks of what every expert gives) are
// kept as parts: what they stand for, and what each of their dimensions runs over. When the last part, the weighted sum, is
// reached, one MoE node takes its place. Forms: all experts computed as one stack of matrices, or one by one, and weighed by
// gates [rows, experts]; or the matrices of the chosen experts gathered and weighed by [rows, k]; or for each expert the
// rows that chose it gathered, and what it gives added back to them; or all choices sorted by expert, a run for each. An
// expert is down(act(up(x))) or down(act(gate(x)) * up(x)), with biases or without. The rows come in one dimension.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "model/frontend/onnx_import.h"

namespace moepack {

// What a dimension runs over.
// kPairs: rows times choices, choices fastest. kHits: the (row, choice) pairs of one expert. kParts: coordinates of such a
// pair. kSorted: all pairs by rising expert. kRun: those of one expert among them. kBatch, kSequence: of a value that is not
// in rows yet. kAny: the -1 of a shape.
enum class Axis : uint8_t {
  kOne,
  kRows,
  kExperts,
  kChoices,
  kColumns,
  kPairs,
  kHits,
  kParts,
  kSorted,
  kRun,
  kBatch,
  kSequence,
  kAny
};
using Axes = std::vector<Axis>;

// Dimensions of an elementwise result by NumPy's rules; nothing when they do not fit.
std::optional<Axes> Broadcast(const Axes& a, const Axes& b);

// x W^T + b of every expert.
struct ExpertProduct {
  std::vector<OnnxMatrix> weight;
  std::vector<OnnxMatrix> bias;  // [1, out] one an expert, without rows where there is none; empty: none at all
};

// How far the experts have been computed.
struct ExpertSteps {
  // kProduct: one product. kSigmoid, kActive: the sigmoid, the activation of it. kMiddle: act(gate) * up. kOutput: all.
  enum class Stage : uint8_t { kProduct, kSigmoid, kActive, kMiddle, kOutput };
  Stage stage = Stage::kProduct;
  ValueId x = kNone;  // what all read
  ExpertProduct up, gate, down;
  bool gated = false;
  Activation function = Activation::kIdentity;

  // All experts are there and computed to the end; biases that none of them has are dropped.
  void Complete();
};

// Which router decides, and how.
struct MixtureRouter {
  ValueId logits = kNone;
  uint64_t experts = 0;
  RoutingRecord routing;
  bool scored = false;  // a score function was applied
  bool operator==(const MixtureRouter&) const = default;
};

struct MixturePart {
  enum class Kind : uint8_t {
    kView,         // a value of the program with dimensions of 1
    kScores,       // [rows, experts], all of them
    kIds,          // [rows, k] chosen experts
    kWeights,      // [rows, k] their weights
    kMask,         // [rows, k] where `expert` was chosen
    kOneHot,       // [rows, k, experts]
    kSpread,       // the same times the weights
    kGates,        // [rows, experts], 0 where not chosen
    kGate,         // [rows] of `expert`
    kSum,          // of weights or gates over experts
    kPicked,       // constants of the chosen experts: [rows, k, ...]
    kStack,        // what every (chosen) expert gives
    kWeighted,     // the same times weights or gates
    kTerms,        // weighted outputs of experts computed one by one
    kShape,        // a list of sizes: of the dimensions in `axes`
    kFill,         // as many equal numbers
    kRowIds,       // numbers of rows: of a hit, or of a row itself
    kChoiceIds,    // numbers of choices of a hit
    kCoordinates,  // [kParts, kHits]: both of them
    kScattered,    // what some experts gave, added to their rows
    kOrder,        // [kSorted] the pair that stands there
    kPlaces,       // [kPairs] where a pair stands among the sorted
    kCounts,       // how many pairs chose the experts of `list`
    kBounds,       // how many chose an expert below those of `list`: where their runs begin
  };
  Kind kind = Kind::kView;
  Axes axes;
  uint64_t columns = 0;  // entries of kColumns
  MixtureRouter router;
  OnnxImporter::Value value;                                  // kView
  uint32_t expert = 0;                                        // kMask, kGate, and what runs over kHits or kRun
  std::vector<uint32_t> list;                                 // kCounts, kBounds
  bool by_choice = false;                                     // what runs over kHits: in the order of choices, then rows
  float number = 0;                                           // kFill; what was added to a kSum
  const OnnxTensor* tensor = nullptr;                         // kPicked
  ExpertSteps steps;                                          // kStack, kWeighted
  std::map<uint32_t, ValueId> terms;                          // by expert
  std::vector<ValueId> rest;                                  // what is added beside the terms
  Axes coordinates;                                           // kCoordinates: what each counts
  std::shared_ptr<std::map<uint32_t, ExpertSteps>> branches;  // kScattered, by expert; of the last one of a chain

  bool counted() const { return kind == Kind::kCounts || kind == Kind::kBounds; }
  // Matrices and terms that it holds, some 50 to 100 bytes each.
  uint64_t Kept() const;
};

// Whether both are of the choices of one router; numbers of all rows are of every router with as many choices.
bool SameChoices(const MixturePart& a, const MixturePart& b);

// Whether a part holds pairs of one expert.
bool OfOneExpert(const Axes& axes);

class OnnxMixtures {
 public:
  explicit OnnxMixtures(OnnxImporter& importer) : in_(importer) {}

  // Whether the node belongs to a mixture; then it was imported.
  Result<bool> Import(OnnxNode& node);
  // Why a part of a mixture cannot be read as a value; empty for other names.
  std::string WhyNoValue(const std::string& name) const;
  bool any() const { return found_; }
  // Weights that are zeros of ours: experts that give more or fewer columns than they take.
  uint64_t padding() const { return padding_; }

 private:
  using Kind = MixturePart::Kind;
  using Handler = Result<bool> (OnnxMixtures::*)(OnnxNode&);
  static const std::map<std::string, Handler>& Handlers();

  // onnx_mixture.cc
  const MixturePart* Find(const std::string& name) const;
  const MixturePart* Find(const std::string& name, Kind kind) const;
  std::optional<MixturePart> Operand(const std::string& name) const;
  // The same; partial sums that nobody else reads are given away, so that each is not copied into the next.
  std::optional<MixturePart> TakeOperand(const std::string& name);
  Result<bool> Define(OnnxNode& node, MixturePart part);
  // Keeps the part that output `i` stands for. kLimit when parts would take too much memory.
  Status Store(const OnnxNode& node, int i, MixturePart part);
  uint64_t SizeOf(const MixturePart& part, Axis axis) const;
  Result<bool> ImportIdentity(OnnxNode& node);
  Result<bool> ImportUnsqueeze(OnnxNode& node);
  Result<bool> ImportSqueeze(OnnxNode& node);
  Result<bool> ImportTranspose(OnnxNode& node);
  Result<bool> ImportReshape(OnnxNode& node);
  // An entry of a shape: a number, or the size of a dimension.
  struct Entry {
    int64_t number = 0;
    Axis axis = Axis::kOne;
    bool named = false;  // `axis` counts
    bool one() const { return named ? axis == Axis::kOne : number == 1; }
  };
  Result<std::vector<Entry>> ShapeInput(const OnnxNode& node, int i) const;
  std::optional<Axes> Reshaped(const MixturePart& part, const std::vector<Entry>& shape) const;
  Result<bool> ReshapeValue(OnnxNode& node, const std::vector<Entry>& shape);
  Result<std::vector<int64_t>> AxesInput(OnnxNode& node, size_t rank) const;

  // onnx_mixture_router.cc
  std::optional<MixturePart> ScoresOf(const std::string& name) const;
  Result<bool> ImportSoftmax(OnnxNode& node);
  Result<bool> ImportTopK(OnnxNode& node);
  Result<bool> ImportScatter(OnnxNode& node);
  Result<bool> ImportOneHot(OnnxNode& node);
  Result<bool> ImportDiv(OnnxNode& node);
  Result<bool> CompareAll(OnnxNode& node, const MixturePart& ids, const std::vector<int64_t>& experts, int constant);
  Result<bool> ImportEqual(OnnxNode& node);
  Result<bool> ImportWhere(OnnxNode& node);
  Result<int64_t> StepInput(const OnnxNode& node) const;
  Result<bool> ImportSlice(OnnxNode& node);
  Result<bool> ImportSplit(OnnxNode& node);
  Result<bool> ImportGather(OnnxNode& node);
  Result<bool> DefineGate(OnnxNode& node, const MixturePart& gates, int64_t expert, int output);
  // Constant numbers, integers or floats.
  Result<std::vector<float>> NumbersInput(const OnnxNode& node, int i) const;
  bool IsFill(const std::string& name, float number) const;
  bool OfAllExperts(const MixturePart& part, uint64_t experts) const;

  // onnx_mixture_experts.cc
  Result<bool> SliceProduct(OnnxNode& node, const MixturePart& stack, int64_t begin, int64_t end, int64_t step, int output);
  Result<bool> ImportMatMul(OnnxNode& node);
  Result<bool> ImportActivation(OnnxNode& node);
  Result<bool> ImportAdd(OnnxNode& node);
  Result<bool> ImportMul(OnnxNode& node);
  Result<bool> AddBias(OnnxNode& node, MixturePart stack, const std::string& bias);
  Result<bool> MultiplyStacks(OnnxNode& node, const MixturePart& a, const MixturePart& b);
  Result<MixturePart> Weighed(const OnnxNode& node, const MixturePart& stack, const MixturePart& by) const;
  Result<bool> MultiplyMatrices(OnnxNode& node, const MixturePart& x, const MixturePart& matrices, bool matrix_first);

  // onnx_mixture_shape.cc
  Result<bool> ImportShape(OnnxNode& node);
  Result<bool> ImportConstantOfShape(OnnxNode& node);
  Result<bool> ImportExpand(OnnxNode& node);
  Result<bool> DefineRepeated(OnnxNode& node, MixturePart part, const Axes& before);
  Result<bool> ImportRange(OnnxNode& node);
  Result<bool> SliceFill(OnnxNode& node, MixturePart fill);
  Result<bool> GatherSizes(OnnxNode& node, const MixturePart& sizes);
  Result<bool> SliceSizes(OnnxNode& node, const MixturePart& sizes);
  Result<bool> ConcatSizes(OnnxNode& node);

  // onnx_mixture_hits.cc
  Result<bool> ImportNonZero(OnnxNode& node);
  Result<bool> ImportGatherNd(OnnxNode& node);
  Result<bool> ImportGemm(OnnxNode& node);
  Result<bool> ImportScatterNd(OnnxNode& node);
  Result<bool> GatherMask(OnnxNode& node, const MixturePart& one_hot);
  Result<bool> GatherRows(OnnxNode& node, const MixturePart& ids);
  Result<bool> ConcatIds(OnnxNode& node);
  Result<bool> TakeCoordinate(OnnxNode& node, const MixturePart& all, int64_t which, bool keep, int output);
  Result<bool> MultiplyBranch(OnnxNode& node, const MixturePart& x, const OnnxMatrix& weight, const OnnxTensor* bias);
  Result<bool> ScatterAdd(OnnxNode& node, bool by_element);
  Result<bool> AddBranch(OnnxNode& node, const MixturePart& update);

  // onnx_mixture_sorted.cc
  Result<bool> SortPairs(OnnxNode& node, MixturePart part);
  Result<bool> DivideOrder(OnnxNode& node, MixturePart order);
  Result<bool> Reorder(OnnxNode& node, const MixturePart& by);
  Result<bool> Unsort(OnnxNode& node, bool by_element);
  Result<bool> ScatterOnes(OnnxNode& node, const MixturePart& ids, const MixturePart& ones);
  Result<bool> CountPairs(OnnxNode& node, MixturePart part);
  Result<bool> ImportCumSum(OnnxNode& node);
  Result<bool> AddCounts(OnnxNode& node);
  Result<bool> ImportSub(OnnxNode& node);
  Result<bool> TakeNumbers(OnnxNode& node, const MixturePart& numbers, const std::vector<int64_t>& places, Axes axes,
                           int output);
  Result<bool> GatherNumbers(OnnxNode& node, const MixturePart& numbers);
  Result<bool> SliceNumbers(OnnxNode& node, const MixturePart& numbers);
  Result<bool> ConcatNumbers(OnnxNode& node);
  Result<uint32_t> BoundInput(OnnxNode& node, int i, const MixturePart& sorted) const;
  Result<bool> SliceRun(OnnxNode& node, const MixturePart& sorted);
  Status StoreRun(OnnxNode& node, MixturePart sorted, uint32_t expert, int output);
  Result<bool> SplitRuns(OnnxNode& node, const MixturePart& sorted, const MixturePart& counts);
  Result<bool> ConcatRuns(OnnxNode& node, const MixturePart& first);

  // onnx_mixture_sum.cc
  Result<bool> ImportConcat(OnnxNode& node);
  Result<bool> ImportReduceSum(OnnxNode& node);
  Status CheckExperts(const OnnxNode& node, const MixtureRouter& router, uint64_t experts) const;
  Status AddTerms(const OnnxNode& node, MixturePart part, MixturePart* all) const;
  Result<bool> DefineTerms(OnnxNode& node, MixturePart terms);
  Result<bool> DefineSum(OnnxNode& node, const MixturePart& weighed, const Axes& axes);
  ValueId AddValues(ValueId a, ValueId b);
  Result<ExpertSteps> StepsOf(const OnnxNode& node, ValueId output) const;
  Status AppendSteps(const OnnxNode& node, uint32_t expert, ExpertSteps one, ExpertSteps* all) const;
  Result<ExpertSteps> StepsOfTerms(const OnnxNode& node, const std::map<uint32_t, ValueId>& terms) const;
  Result<ValueId> EmitMoe(OnnxNode& node, const MixtureRouter& router, const ExpertSteps& steps);
  TensorId AddBiases(const char* name, const ExpertProduct& product, uint64_t columns, uint64_t experts);
  ValueId Widen(ValueId x, uint64_t width);

  OnnxImporter& in_;
  std::map<std::string, MixturePart> parts_;
  uint64_t kept_ = 0;           // MixturePart::Kept() of all parts
  std::set<uint32_t> choices_;  // k of every router
  bool found_ = false;
  uint64_t padding_ = 0;
};

}  // namespace moepack
