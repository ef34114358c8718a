// Experts of a decoder in plain operators: what exporters write for a loop over experts and for gathered matrices. Each
// graph must give the program and the weights that com.microsoft.MoE gives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>

#include "model/frontend/onnx.h"
#include "model/frontend/onnx_testing.h"
#include "model/model_testing.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;

// A TinyOnnx whose first MoE node is spelled out.
class Spelled {
 public:
  enum class Rows : uint8_t { kElements, kNd };         // how outputs return to their rows
  enum class Pairs : uint8_t { kSum, kElements, kNd };  // the same for all pairs at once

  enum class Count : uint8_t { kScatter, kHot, kHotPairs, kCompare, kEach };  // how pairs of each expert are counted
  enum class Runs : uint8_t { kEnds, kOffsets, kChain, kSplit };              // how they are told apart
  enum class Back : uint8_t { kPut, kPutElements, kPlaces, kAdd, kAddRuns };  // how outputs return to their rows
  enum class Numbers : uint8_t { kDivide, kRange };                           // how rows of sorted pairs are found

  Spelled() {
    Constants();
    const auto nodes = tiny.graph().node();
    for (const onnx::NodeProto& node : nodes) {
      if (node.op_type() == "MoE" && tail_.empty() && !found_) {
        found_ = true;
        continue;
      }
      (found_ ? tail_ : head_).push_back(node);
    }
    tiny.graph().clear_node();
    for (const onnx::NodeProto& node : head_) *tiny.graph().add_node() = node;
    N("Reshape", {"l0.f", "to_rows"}, {"x"});
    TinyOnnx::SetInt(N("Softmax", {"l0.logits"}, {"scores"}), "axis", -1);
    TinyOnnx::SetInt(N("TopK", {"scores", "two"}, {"w", "ids"}), "axis", -1);
    N("Shape", {"x"}, {"x_shape"});
    N("ConstantOfShape", {"x_shape"}, {"sum0"});
  }

  // The sum `name`, seen in the dimensions of before.
  TinyOnnx& Finish(const std::string& name) {
    N("Shape", {"l0.f"}, {"f_shape"});
    N("Reshape", {name, "f_shape"}, {"l0.moe"});
    for (const onnx::NodeProto& node : tail_) *tiny.graph().add_node() = node;
    return tiny;
  }

  // As torch.onnx exports Hugging Face's Mixtral: one-hot, where, gather, index_add for each expert.
  std::string Loop(int experts, Rows rows) {
    TinyOnnx::SetInt(N("OneHot", {"ids", "three", "off_on"}, {"hot"}), "axis", -1);
    TinyOnnx::SetInts(N("Transpose", {"hot"}, {"mask"}), "perm", {2, 1, 0});
    std::string sum = "sum0";
    for (int e = 0; e < experts; ++e) {
      const std::string p = "e" + std::to_string(e) + ".";
      TinyOnnx::SetInt(N("Gather", {"mask", p + "id"}, {p + "mask"}), "axis", 0);
      N("NonZero", {p + "mask"}, {p + "where"});
      TinyOnnx::SetInts(N("Transpose", {p + "where"}, {p + "hits"}), "perm", {1, 0});
      TinyOnnx::SetInt(N("Split", {p + "hits"}, {p + "choice1", p + "row1"}), "axis", 1);
      N("Squeeze", {p + "choice1", "axis1"}, {p + "choice"});
      N("Squeeze", {p + "row1", "axis1"}, {p + "row"});
      N("Unsqueeze", {"x", "axis0"}, {p + "x3"});
      TinyOnnx::SetInt(N("Gather", {p + "x3", p + "row"}, {p + "taken3"}), "axis", 1);
      N("Reshape", {p + "taken3", "to_rows"}, {p + "taken"});
      Feed(p, p + "taken", false);
      N("Unsqueeze", {p + "row", "last"}, {p + "row_column"});
      N("Unsqueeze", {p + "choice", "last"}, {p + "choice_column"});
      TinyOnnx::SetInt(N("Concat", {p + "row_column", p + "choice_column"}, {p + "pair"}), "axis", -1);
      N("GatherND", {"w", p + "pair"}, {p + "weight1"});
      N("Unsqueeze", {p + "weight1", "last"}, {p + "weight"});
      N("Mul", {p + "down", p + "weight"}, {p + "weighed"});
      sum = Scatter(p, sum, rows);
    }
    return sum;
  }

  // The same with comparisons, weights by the coordinates as they come, and Gemm with biases.
  std::string ComparingLoop() {
    std::string sum = "sum0";
    for (int e = 0; e < 3; ++e) {
      const std::string p = "e" + std::to_string(e) + ".";
      N("Equal", {"ids", p + "id"}, {p + "mask"});
      N("NonZero", {p + "mask"}, {p + "where"});
      TinyOnnx::SetInts(N("Transpose", {p + "where"}, {p + "hits"}), "perm", {1, 0});
      TinyOnnx::SetInt(N("Gather", {p + "where", "zero"}, {p + "row"}), "axis", 0);
      N("Gather", {"x", p + "row"}, {p + "taken"});
      Feed(p, p + "taken", true);
      N("GatherND", {"w", p + "hits"}, {p + "weight1"});
      N("Unsqueeze", {p + "weight1", "last"}, {p + "weight"});
      N("Mul", {p + "weight", p + "down"}, {p + "weighed"});
      N("Unsqueeze", {p + "row", "last"}, {p + "row_column"});
      sum = Scatter(p, sum, Rows::kNd);
    }
    return sum;
  }

  // Matrices of every (row, choice) pair gathered from stacks, products in batches.
  std::string AllPairs(Pairs pairs) {
    N("Reshape", {"ids", "flat"}, {"pair_ids"});
    N("Reshape", {"w", "column"}, {"pair_weights"});
    PairRows("one_two", "rows");
    N("Gather", {"x", "rows"}, {"taken"});
    N("Unsqueeze", {"taken", "last"}, {"taken1"});
    N("Gather", {"l0.fc1", "pair_ids"}, {"w1"});
    N("MatMul", {"w1", "taken1"}, {"both1"});
    N("Squeeze", {"both1", "last"}, {"both"});
    N("Slice", {"both", "axis0", "far", "last", "two"}, {"gate"});
    N("Slice", {"both", "axis1", "far", "last", "two"}, {"up"});
    N("Sigmoid", {"gate"}, {"sigmoid"});
    N("Mul", {"gate", "sigmoid"}, {"active"});
    N("Mul", {"active", "up"}, {"middle"});
    N("Unsqueeze", {"middle", "last"}, {"middle1"});
    N("Gather", {"l0.fc2", "pair_ids"}, {"w2"});
    N("MatMul", {"w2", "middle1"}, {"out1"});
    N("Squeeze", {"out1", "last"}, {"out"});
    N("Mul", {"out", "pair_weights"}, {"weighed"});
    if (pairs == Pairs::kSum) {
      N("Reshape", {"weighed", "by_choice"}, {"apart"});
      TinyOnnx::SetInt(N("ReduceSum", {"apart", "axis1"}, {"pair_sum"}), "keepdims", 0);
      return "pair_sum";
    }
    N("Unsqueeze", {"rows", "last"}, {"rows1"});
    if (pairs == Pairs::kNd) {
      TinyOnnx::SetText(N("ScatterND", {"sum0", "rows1", "weighed"}, {"pair_sum"}), "reduction", "add");
      return "pair_sum";
    }
    N("Shape", {"weighed"}, {"weighed_shape"});
    N("Expand", {"rows1", "weighed_shape"}, {"rows_all"});
    onnx::NodeProto* scatter = N("ScatterElements", {"sum0", "rows_all", "weighed"}, {"pair_sum"});
    TinyOnnx::SetInt(scatter, "axis", 0);
    TinyOnnx::SetText(scatter, "reduction", "add");
    return "pair_sum";
  }

  // Pairs sorted by expert, a slice and matrices for each, put behind each other: DeepSeek's inference as traced.
  std::string Sorted(int experts, Count count, Runs runs, Back back, Numbers numbers, bool gemm = false) {
    N("Reshape", {"ids", "flat"}, {"pair_ids"});
    N("Shape", {"pair_ids"}, {"pairs_shape"});
    N("Gather", {"pairs_shape", "last"}, {"pairs"});
    TinyOnnx::SetInt(N("TopK", {"pair_ids", "pairs"}, {"sorted_ids", "order"}), "largest", 0);
    if (numbers == Numbers::kDivide) {
      N("Div", {"order", "two_number"}, {"rows64"});
      TinyOnnx::SetInt(N("Cast", {"rows64"}, {"rows"}), "to", onnx::TensorProto::INT32);
    } else {
      onnx::TensorProto* one = TinyOnnx::SetTensor(N("ConstantOfShape", {"two"}, {"ones"}), "value");  // expand(-1, 2)
      one->set_data_type(onnx::TensorProto::INT64);
      one->add_int64_data(1);
      N("Mul", {"ones", "last"}, {"minus"});
      N("Equal", {"any_two", "minus"}, {"is_any"});
      N("Where", {"is_any", "ones", "any_two"}, {"sizes"});
      PairRows("sizes", "pair_rows");
      N("Gather", {"pair_rows", "order"}, {"rows"});
    }
    N("Gather", {"x", "rows"}, {"taken"});
    CountPairs(count);
    Bounds(runs);
    if (back == Back::kAdd || back == Back::kAddRuns) {
      N("Reshape", {"w", "flat"}, {"pair_weights"});
      N("Gather", {"pair_weights", "order"}, {"weights"});
      N("Unsqueeze", {"weights", "last"}, {"weights1"});
      N("Unsqueeze", {"rows", "last"}, {"rows1"});
    }
    std::vector<std::string> outputs;
    std::string sum = "sum0";
    for (int e = 0; e < experts; ++e) {
      const std::string p = "e" + std::to_string(e) + ".";
      Run(p, e, runs, "taken", p + "taken");
      Feed(p, p + "taken", gemm);
      outputs.push_back(p + "down");
      if (back != Back::kAddRuns) continue;
      Run(p, e, Runs::kEnds, "weights1", p + "weights");
      Run(p, e, Runs::kEnds, "rows1", p + "rows");
      N("Mul", {p + "down", p + "weights"}, {p + "weighed"});
      TinyOnnx::SetText(N("ScatterND", {sum, p + "rows", p + "weighed"}, {p + "sum"}), "reduction", "add");
      sum = p + "sum";
    }
    if (back == Back::kAddRuns) return sum;
    TinyOnnx::SetInt(N("Concat", outputs, {"out"}), "axis", 0);
    if (back == Back::kAdd) {
      N("Mul", {"out", "weights1"}, {"weighed"});
      TinyOnnx::SetText(N("ScatterND", {sum, "rows1", "weighed"}, {"pair_sum"}), "reduction", "add");
      return "pair_sum";
    }
    if (back == Back::kPlaces) {
      TinyOnnx::SetInt(N("TopK", {"order", "order_count"}, {"", "places"}), "largest", 0);
      N("Gather", {"out", "places"}, {"pair_out"});
    } else {
      N("Shape", {"out"}, {"out_shape"});
      N("ConstantOfShape", {"out_shape"}, {"empty"});
      N("Unsqueeze", {"order", "last"}, {"order1"});
      N("Expand", {"order1", "out_shape"}, {"order_all"});
      const bool whole = back == Back::kPut;
      auto* put = N(whole ? "ScatterND" : "ScatterElements", {"empty", whole ? "order1" : "order_all", "out"}, {"pair_out"});
      if (!whole) TinyOnnx::SetInt(put, "axis", 0);
    }
    N("Reshape", {"pair_out", "by_choice"}, {"apart"});
    N("Unsqueeze", {"w", "last"}, {"w1"});
    N("Mul", {"apart", "w1"}, {"weighed"});
    TinyOnnx::SetInt(N("ReduceSum", {"weighed", "axis1"}, {"pair_sum"}), "keepdims", 0);
    return "pair_sum";
  }

  onnx::NodeProto* N(const std::string& op, const std::vector<std::string>& inputs,
                     const std::vector<std::string>& outputs) {
    return tiny.Node("", op, inputs, outputs);
  }

  TinyOnnx tiny;

 private:
  void Constants() {
    for (const auto& [name, values] :
         std::vector<std::pair<std::string, std::vector<int64_t>>>{{"to_rows", {-1, 16}},
                                                                   {"two", {2}},
                                                                   {"three", {3}},
                                                                   {"off_on", {0, 1}},
                                                                   {"axis0", {0}},
                                                                   {"axis1", {1}},
                                                                   {"last", {-1}},
                                                                   {"flat", {-1}},
                                                                   {"column", {-1, 1}},
                                                                   {"one_two", {1, 2}},
                                                                   {"far", {1 << 30}},
                                                                   {"experts", {0, 1, 2}},
                                                                   {"any_two", {-1, 2}},
                                                                   {"both_axes", {0, 1}},
                                                                   {"by_choice", {-1, 2, 16}}}) {
      tiny.Ints(name, values);
    }
    tiny.Int("zero", 0);
    tiny.Int("one_number", 1);
    tiny.Int("two_number", 2);
    for (int e = 0; e < 3; ++e) Matrices(e);
  }

  // The row of every (row, choice) pair; `sizes` repeat a row for each choice.
  void PairRows(const std::string& sizes, const std::string& name) {
    N("Gather", {"x_shape", "zero"}, {"tokens"});
    N("Range", {"zero", "tokens", "one_number"}, {"numbers"});
    N("Unsqueeze", {"numbers", "axis1"}, {"numbers1"});
    N("Expand", {"numbers1", sizes}, {"repeated"});
    N("Reshape", {"repeated", "flat"}, {name});
  }

  // "counts" of all experts.
  void CountPairs(Count count) {
    std::string hot = "hot";
    std::vector<std::string> over = {"axis0"};
    if (count == Count::kEach) {
      std::vector<std::string> each;
      for (int e = 0; e < 3; ++e) {
        const std::string p = "e" + std::to_string(e) + ".";
        N("Equal", {"pair_ids", p + "id"}, {p + "is"});
        TinyOnnx::SetInt(N("Cast", {p + "is"}, {p + "is64"}), "to", onnx::TensorProto::INT64);
        TinyOnnx::SetInt(N("ReduceSum", {p + "is64"}, {p + "count"}), "keepdims", 0);
        N("Unsqueeze", {p + "count", "axis0"}, {p + "count1"});
        each.push_back(p + "count1");
      }
      TinyOnnx::SetInt(N("Concat", each, {"counts"}), "axis", 0);
      return;
    }
    if (count == Count::kScatter) {
      N("Gather", {"x_shape", "axis0"}, {"tokens1"});
      TinyOnnx::SetInt(N("Concat", {"tokens1", "three"}, {"hot_shape"}), "axis", 0);
      N("ConstantOfShape", {"hot_shape"}, {"no_hot"});
      N("Shape", {"ids"}, {"ids_shape"});
      N("Expand", {"one_number", "ids_shape"}, {"ones"});
      TinyOnnx::SetInt(N("ScatterElements", {"no_hot", "ids", "ones"}, {"hot"}), "axis", 1);
    } else if (count == Count::kCompare) {
      N("Unsqueeze", {"pair_ids", "last"}, {"pair_ids1"});
      N("Equal", {"pair_ids1", "experts"}, {"is"});
      TinyOnnx::SetInt(N("Cast", {"is"}, {"hot"}), "to", onnx::TensorProto::INT64);
    } else {
      const bool pairs = count == Count::kHotPairs;
      TinyOnnx::SetInt(N("OneHot", {pairs ? "pair_ids" : "ids", "three", "off_on"}, {"hot"}), "axis", -1);
      if (!pairs) over = {"both_axes"};
    }
    TinyOnnx::SetInt(N("ReduceSum", {hot, over[0]}, {"counts"}), "keepdims", 0);
  }

  // Where the runs begin and end.
  void Bounds(Runs runs) {
    N("Shape", {"order"}, {"order_shape"});
    N("Gather", {"order_shape", "last"}, {"order_count"});
    N("CumSum", {"counts", "zero"}, {"ends"});
    if (runs == Runs::kOffsets) {
      TinyOnnx::SetInt(N("Concat", {"axis0", "ends"}, {"offsets"}), "axis", 0);
      N("Slice", {"offsets", "axis0", "last", "axis0"}, {"begins"});
    } else {
      N("Sub", {"ends", "counts"}, {"begins"});
    }
    if (runs == Runs::kSplit) {
      TinyOnnx::SetInt(N("Split", {"taken", "counts"}, {"e0.taken", "e1.taken", "e2.taken"}), "axis", 0);
    }
  }

  // The run of expert e of what belongs to sorted pairs.
  void Run(const std::string& p, int e, Runs runs, const std::string& of, const std::string& name) {
    if (runs == Runs::kSplit) return;
    std::string begin = name + ".begin", end = name + ".end";
    if (runs == Runs::kChain) {
      N("Gather", {"counts", p + "id"}, {name + ".count"});
      const std::string before = e == 0 ? "" : "e" + std::to_string(e - 1) + ".taken.end";
      if (e == 0) begin = "axis0", end = name + ".count";
      if (e == 1) begin = "e0.taken.count";
      if (e > 1) begin = before;
      if (e > 0) N("Add", {begin, name + ".count"}, {end});
    } else {
      N("Gather", {"begins", p + "id"}, {begin});
      N("Gather", {"ends", p + "id"}, {end});
    }
    std::string begin1 = begin;
    if (begin != "axis0") N("Unsqueeze", {begin, "axis0"}, {begin1 = name + ".begin1"});
    N("Unsqueeze", {end, "axis0"}, {name + ".end1"});
    N("Slice", {of, begin1, name + ".end1", "axis0"}, {name});
  }

  // What com.microsoft.MoE has in fc1 and fc2, each matrix alone and [in, out].
  void Matrices(int e) {
    const std::string p = "e" + std::to_string(e) + ".";
    tiny.Int(p + "id", e);
    const auto add = [&](const std::string& name, int in, int out, const std::function<float(int, int)>& at) {
      onnx::TensorProto* tensor = tiny.Floats(name, {in, out});
      for (int i = 0; i < in; ++i) {
        for (int o = 0; o < out; ++o) tensor->set_float_data(i * out + o, at(i, o));
      }
    };
    const onnx::TensorProto fc1 = tiny.Constant("l0.fc1"), fc2 = tiny.Constant("l0.fc2");
    add(p + "gate.weight", 16, 4, [&](int i, int o) { return fc1.float_data((e * 8 + 2 * o) * 16 + i); });
    add(p + "up.weight", 16, 4, [&](int i, int o) { return fc1.float_data((e * 8 + 2 * o + 1) * 16 + i); });
    add(p + "down.weight", 4, 16, [&](int i, int o) { return fc2.float_data((e * 16 + o) * 4 + i); });
    tiny.Floats(p + "down.bias", {16});
  }

  void Feed(const std::string& p, const std::string& in, bool gemm) {
    const char* product = gemm ? "Gemm" : "MatMul";
    N(product, {in, p + "gate.weight"}, {p + "gate"});
    N("Sigmoid", {p + "gate"}, {p + "sigmoid"});
    N("Mul", {p + "gate", p + "sigmoid"}, {p + "active"});
    N(product, {in, p + "up.weight"}, {p + "up"});
    N("Mul", {p + "active", p + "up"}, {p + "middle"});
    std::vector<std::string> inputs = {p + "middle", p + "down.weight"};
    if (gemm) inputs.push_back(p + "down.bias");
    N(product, inputs, {p + "down"});
  }

  std::string Scatter(const std::string& p, const std::string& sum, Rows rows) {
    std::string index = p + "row_column";
    if (rows == Rows::kElements) {
      N("Shape", {p + "weighed"}, {p + "weighed_shape"});
      N("Expand", {index, p + "weighed_shape"}, {p + "rows"});
      index = p + "rows";
    }
    onnx::NodeProto* node = N(rows == Rows::kNd ? "ScatterND" : "ScatterElements", {sum, index, p + "weighed"}, {p + "sum"});
    if (rows == Rows::kElements) TinyOnnx::SetInt(node, "axis", 0);
    TinyOnnx::SetText(node, "reduction", "add");
    return p + "sum";
  }

  std::vector<onnx::NodeProto> head_, tail_;
  bool found_ = false;
};

class OnnxLoopTest : public testing::Test {
 protected:
  Result<Model> Open(const TinyOnnx& tiny) {
    const Bytes bytes = tiny.Serialize();
    std::ofstream(folder_.At("m.onnx"), std::ios::binary) << AsText(bytes);
    return OpenOnnx(PosixEnv(), folder_.At("m.onnx"), {});
  }
  // The model of the plain operators is that of com.microsoft.MoE.
  void ExpectTheSame(const TinyOnnx& tiny, bool biased = false) {
    const auto want = Open(TinyOnnx());
    const auto have = Open(tiny);
    ASSERT_TRUE(want.ok() && have.ok()) << have.status().message();
    if (!biased) {
      EXPECT_EQ(have->program, want->program);
      EXPECT_EQ(have->program.nodes, want->program.nodes);
    }
    for (uint32_t e = 0; e < 3; ++e) {
      for (const ExpertMatrix m : {ExpertMatrix::kGate, ExpertMatrix::kUp, ExpertMatrix::kDown}) {
        const auto a = want->tensors->LoadExpert(0, e, m), b = have->tensors->LoadExpert(0, e, m);
        ASSERT_TRUE(a.ok() && b.ok()) << b.status().message();
        EXPECT_EQ(*a, *b) << e << ExpertMatrixName(m);
      }
    }
  }
  void ExpectRefused(const TinyOnnx& tiny, const std::string& part) {
    const auto model = Open(tiny);
    ASSERT_FALSE(model.ok()) << part;
    EXPECT_THAT(model.status().message(), HasSubstr(part));
    EXPECT_THAT(model.status().message(), HasSubstr("node "));
  }
  TempFolder folder_;
};

TEST_F(OnnxLoopTest, LoopOverExperts) {
  for (const auto rows : {Spelled::Rows::kElements, Spelled::Rows::kNd}) {
    Spelled spelled;
    ExpectTheSame(spelled.Finish(spelled.Loop(3, rows)));
  }
}

TEST_F(OnnxLoopTest, LoopThatComparesWithBiases) {
  Spelled spelled;
  const TinyOnnx& tiny = spelled.Finish(spelled.ComparingLoop());
  ExpectTheSame(tiny, true);
  const auto model = Open(tiny);
  ASSERT_TRUE(model.ok());
  for (const Node& node : model->program.nodes) {
    if (node.kind != NodeKind::kMoe || node.moe.table != 0) continue;
    ASSERT_NE(node.moe.down_bias, kNone);
    const auto bias = model->tensors->Load(node.moe.down_bias), none = model->tensors->Load(node.moe.up_bias);
    ASSERT_TRUE(bias.ok() && none.ok());
    EXPECT_EQ((*bias)[16 + 5], spelled.tiny.Constant("e1.down.bias").float_data(5));
    EXPECT_EQ(*none, std::vector<float>(12, 0.0f));
  }
}

TEST_F(OnnxLoopTest, GatheredMatricesOfAllPairs) {
  for (const auto pairs : {Spelled::Pairs::kSum, Spelled::Pairs::kElements, Spelled::Pairs::kNd}) {
    Spelled spelled;
    ExpectTheSame(spelled.Finish(spelled.AllPairs(pairs)));
  }
}

TEST_F(OnnxLoopTest, PairsSortedByExpert) {
  using S = Spelled;
  const struct {
    S::Count count;
    S::Runs runs;
    S::Back back;
    S::Numbers numbers;
  } cases[] = {{S::Count::kScatter, S::Runs::kEnds, S::Back::kPut, S::Numbers::kDivide},
               {S::Count::kHot, S::Runs::kOffsets, S::Back::kPutElements, S::Numbers::kRange},
               {S::Count::kHotPairs, S::Runs::kChain, S::Back::kPlaces, S::Numbers::kDivide},
               {S::Count::kCompare, S::Runs::kSplit, S::Back::kAdd, S::Numbers::kRange},
               {S::Count::kEach, S::Runs::kEnds, S::Back::kAddRuns, S::Numbers::kDivide}};
  for (const auto& c : cases) {
    SCOPED_TRACE(&c - cases);
    Spelled spelled;
    ExpectTheSame(spelled.Finish(spelled.Sorted(3, c.count, c.runs, c.back, c.numbers)));
  }
  Spelled biased;
  ExpectTheSame(biased.Finish(biased.Sorted(3, S::Count::kHot, S::Runs::kEnds, S::Back::kPut, S::Numbers::kDivide, true)),
                true);
}

TEST_F(OnnxLoopTest, RefusesSortedPairsInAnotherForm) {
  using S = Spelled;
  const auto with = [&](const std::string& part, const std::function<void(TinyOnnx&)>& change,
                        S::Back back = S::Back::kPut) {
    Spelled spelled;
    TinyOnnx& tiny = spelled.Finish(spelled.Sorted(3, S::Count::kHot, S::Runs::kEnds, back, S::Numbers::kDivide));
    change(tiny);
    ExpectRefused(tiny, part);
  };
  with("in rising order", [](TinyOnnx& t) { TinyOnnx::SetInt(&t.Giving("sorted_ids"), "largest", 1); });
  with("in rising order", [](TinyOnnx& t) { TinyOnnx::SetInt(&t.Giving("sorted_ids"), "sorted", 0); });
  with("by the number of choices", [](TinyOnnx& t) { t.Constant("two_number").set_int64_data(0, 3); });
  with("only the run of one expert", [](TinyOnnx& t) { t.Giving("e1.taken").set_input(1, "e0.taken.begin1"); });
  with("expert 1 stands in the place of expert 2", [](TinyOnnx& t) { t.Constant("e2.id").set_int64_data(0, 1); });
  with("the router is 3 wide, but there are 2 experts", [](TinyOnnx& t) { t.Giving("out").mutable_input()->RemoveLast(); });
  with("only over all rows and choices", [](TinyOnnx& t) { t.Constant("both_axes").set_int64_data(0, 2); });
  with("from the first on", [](TinyOnnx& t) { TinyOnnx::SetInt(&t.Giving("ends"), "reverse", 1); });
  with("where runs end less how long", [](TinyOnnx& t) { t.Giving("begins").set_input(1, "ends"); });
  with(
      "sorts what belongs to its own pairs", [](TinyOnnx& t) { t.Giving("weights").set_input(0, "weights_of_rows"); },
      S::Back::kAdd);
  with("each to its own place", [](TinyOnnx& t) { t.Giving("pair_out").set_input(2, "taken"); });
  with(
      "weighed by weights of another", [](TinyOnnx& t) { t.Giving("e1.weighed").set_input(1, "e0.weights"); },
      S::Back::kAddRuns);
  with(
      "the rows are those of other outputs", [](TinyOnnx& t) { t.Giving("e1.sum").set_input(1, "e0.rows"); },
      S::Back::kAddRuns);
  with(
      "reduction must be 'add'",
      [](TinyOnnx& t) {
        t.Giving("pair_sum").clear_attribute();
        t.Giving("pair_sum").set_op_type("ScatterElements");
      },
      S::Back::kAdd);
}

// One more node that no mixture has, after a mixture that is read.
TEST_F(OnnxLoopTest, RefusesWhatWouldBeReadAsAnotherThing) {
  using S = Spelled;
  const auto with = [&](const std::string& part, const std::function<void(S&)>& add, S::Back back = S::Back::kAddRuns) {
    S spelled;
    TinyOnnx::SetInt(spelled.N("TopK", {"scores", "axis1"}, {"w_one", "ids_one"}), "axis", -1);
    spelled.N("Reshape", {"ids_one", "flat"}, {"pairs_one"});
    spelled.N("Shape", {"pairs_one"}, {"shape_one"});
    const std::string sum = spelled.Sorted(3, S::Count::kScatter, S::Runs::kEnds, back, S::Numbers::kDivide);
    add(spelled);
    ExpectRefused(spelled.Finish(sum), part);
  };
  with("in rising order", [](S& s) {  // as many as another router chose
    TinyOnnx::SetInt(s.N("TopK", {"pair_ids", "shape_one"}, {"", "bad"}), "largest", 0);
  });
  with("the choices of two routers", [](S& s) { s.N("Concat", {"shape_one", "pairs_shape"}, {"bad"}); });
  with("repeated for each choice only", [](S& s) { s.N("Expand", {"counts", "one_two"}, {"bad"}); });
  with("only rows, and numbers of them", [](S& s) {
    s.N("Unsqueeze", {"hot", "axis0"}, {"hot1"});
    s.tiny.Ints("repeats", {2, 1, 1});
    s.N("Expand", {"hot1", "repeats"}, {"bad"});
  });
  with("of counts", [](S& s) { s.N("Shape", {"counts"}, {"bad"}); });
  with("by the counts of all experts", [](S& s) {
    s.N("Gather", {"counts", "zero"}, {"count"});
    s.N("Split", {"count", "counts"}, {"b0", "b1", "b2"});
  });
  with("only of the weights", [](S& s) {
    onnx::NodeProto* hot = s.N("ScatterElements", {"no_hot", "ids", "ones"}, {"bad"});
    TinyOnnx::SetInt(hot, "axis", 1);
    TinyOnnx::SetText(hot, "reduction", "mul");
  });
  with(
      "put to their places, not added",
      [](S& s) {
        s.N("Unsqueeze", {"order", "last"}, {"order1"});
        TinyOnnx::SetText(s.N("ScatterND", {"sum0", "order1", "weighed"}, {"bad"}), "reduction", "add");
      },
      S::Back::kAdd);
  with("only what experts give for their runs", [](S& s) {  // expert 1 by other weights
    s.tiny.Floats("factor", {1});
    s.N("Mul", {"e1.weights", "factor"}, {"scaled"});
    s.N("Mul", {"e1.down", "scaled"}, {"other"});
    s.N("Concat", {"e0.weighed", "other", "e2.weighed"}, {"bad"});
  });
}

TEST_F(OnnxLoopTest, RenormalisedAndScaledWeights) {
  Spelled spelled;
  TinyOnnx::SetInt(spelled.N("ReduceSum", {"w", "last"}, {"weight_sum"}), "keepdims", 1);
  spelled.N("Div", {"w", "weight_sum"}, {"share"});
  std::string sum = spelled.Loop(3, Spelled::Rows::kNd);
  for (onnx::NodeProto& node : *spelled.tiny.graph().mutable_node()) {
    if (node.op_type() == "GatherND") node.set_input(0, "share");
  }
  const auto model = Open(spelled.Finish(sum));
  ASSERT_TRUE(model.ok()) << model.status().message();
  for (const Node& node : model->program.nodes) {
    if (node.kind != NodeKind::kMoe) continue;
    EXPECT_EQ(node.moe.routing.renormalise, node.moe.table == 0);
  }
}

TEST_F(OnnxLoopTest, RefusesExpertsThatWereStripped) {
  Spelled spelled;
  ExpectRefused(spelled.Finish(spelled.Loop(2, Spelled::Rows::kElements)),
                "adds up 2 experts, but the router has 3: experts that were stripped");
  Spelled stack;
  onnx::TensorProto& fc1 = stack.tiny.Constant("l0.fc1");
  fc1.mutable_float_data()->Truncate(2 * 8 * 16);
  fc1.set_dims(0, 2);
  ExpectRefused(stack.Finish(stack.AllPairs(Spelled::Pairs::kSum)), "'l0.fc1' holds 2 experts, the router has 3");
}

TEST_F(OnnxLoopTest, RefusesWhatIsNotAMixture) {
  const auto with = [&](const std::string& part, const std::function<void(TinyOnnx&)>& change) {
    Spelled spelled;
    TinyOnnx& tiny = spelled.Finish(spelled.Loop(3, Spelled::Rows::kElements));
    change(tiny);
    ExpectRefused(tiny, part);
  };
  with("expert 0 is added twice", [](TinyOnnx& t) { t.Constant("e1.id").set_int64_data(0, 0); });
  with("weighed by weights of another", [](TinyOnnx& t) { t.Giving("e1.weighed").set_input(1, "e0.weight"); });
  with("the rows are those of other outputs", [](TinyOnnx& t) { t.Giving("e1.sum").set_input(1, "e0.rows"); });
  with("there is no such expert", [](TinyOnnx& t) { t.Constant("e1.id").set_int64_data(0, 3); });
  with("into zeros", [](TinyOnnx& t) { t.Giving("e0.sum").set_input(0, "x"); });
  with("the depth must be", [](TinyOnnx& t) { t.Constant("three").set_int64_data(0, 4); });
  with("reads another value or has another activation", [](TinyOnnx& t) {
    t.Giving("e1.active").set_op_type("Add"), t.Giving("e1.active").set_op_type("Mul"),
        t.Giving("e1.sigmoid").set_op_type("Relu"), t.Giving("e1.middle").set_input(0, "e1.sigmoid");
  });
  with("perm is no permutation", [](TinyOnnx& t) { t.Giving("mask").mutable_attribute(0)->set_ints(0, 3); });
  with("does not fit its input", [](TinyOnnx& t) { t.Giving("e1.gate").set_input(1, "e1.down.weight"); });
  with("used twice", [](TinyOnnx& t) { t.Giving("e2.sum").set_input(0, "e0.sum"); });
  // Sorted by expert, but no more.
  with("(TopK)", [](TinyOnnx& t) { TinyOnnx::SetInt(&t.First("TopK"), "largest", 0); });
}

}  // namespace
}  // namespace moepack
