// Mixtures of experts in plain operators, on a table of floats. What the forms compute is compared with numpy in
// tests/e2e/tabular_test.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <onnx/onnx_pb.h>

#include <cmath>
#include <filesystem>

#include "format/program_input.h"
#include "model/frontend/onnx.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kFeatures = 3, kHidden = 4, kExperts = 3;

// rows [n, 3] -> enter -> experts of 5, 6 and 7 one by one -> 2 classes.
class Classifier {
 public:
  Classifier() {
    model.set_ir_version(8);
    model.add_opset_import()->set_version(18);
    auto* input = graph().add_input();
    input->set_name("rows");
    auto* type = input->mutable_type()->mutable_tensor_type();
    type->set_elem_type(onnx::TensorProto::FLOAT);
    type->mutable_shape()->add_dim()->set_dim_param("n");
    type->mutable_shape()->add_dim()->set_dim_value(kFeatures);
    Linear("rows", "h", kFeatures, kHidden);
    Linear("h", "logits", kHidden, kExperts);
    SetInt(Node("Softmax", {"logits"}, {"scores"}), "axis", -1);
    Ints("k", {2});
    SetInt(Node("TopK", {"scores", "k"}, {"weights", "ids"}), "axis", -1);
  }

  onnx::GraphProto& graph() { return *model.mutable_graph(); }

  onnx::NodeProto* Node(const std::string& op, const std::vector<std::string>& inputs,
                        const std::vector<std::string>& outputs) {
    onnx::NodeProto* node = graph().add_node();
    node->set_op_type(op);
    node->set_name(op + std::to_string(graph().node_size()));
    for (const std::string& name : inputs) node->add_input(name);
    for (const std::string& name : outputs) node->add_output(name);
    return node;
  }

  void Floats(const std::string& name, const std::vector<int64_t>& shape) {
    onnx::TensorProto* tensor = graph().add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::FLOAT);
    int64_t count = 1;
    for (const int64_t dim : shape) {
      tensor->add_dims(dim);
      count *= dim;
    }
    for (int64_t i = 0; i < count; ++i)
      tensor->add_float_data(std::sin(static_cast<float>(i + 5 * graph().initializer_size())));
  }

  void Ints(const std::string& name, const std::vector<int64_t>& values) {
    onnx::TensorProto* tensor = graph().add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::INT64);
    tensor->add_dims(static_cast<int64_t>(values.size()));
    for (const int64_t value : values) tensor->add_int64_data(value);
  }

  static void SetInt(onnx::NodeProto* node, const std::string& name, int64_t value) {
    auto* attribute = node->add_attribute();
    attribute->set_name(name);
    attribute->set_type(onnx::AttributeProto::INT);
    attribute->set_i(value);
  }

  void Linear(const std::string& in, const std::string& out, int64_t from, int64_t to) {
    Floats(out + ".weight", {from, to});
    Node("MatMul", {in, out + ".weight"}, {out});
  }

  // Gates [n, experts] by scatter, then one column an expert.
  void Gates() {
    Node("Shape", {"logits"}, {"shape"});
    Node("ConstantOfShape", {"shape"}, {"zeros"});
    SetInt(Node("ScatterElements", {"zeros", "ids", "weights"}, {"gates"}), "axis", 1);
    SetInt(Node("Split", {"gates"}, {"g0", "g1", "g2"}), "axis", 1);
  }

  // Expert e of 5 + e columns inside; with a bias of its second product when asked for.
  void Expert(int e, int64_t out = kHidden, bool bias = false, const char* activation = "Relu") {
    const std::string p = "e" + std::to_string(e);
    Linear("h", p + ".up", kHidden, 5 + e);
    Node(activation, {p + ".up"}, {p + ".active"});
    Linear(p + ".active", p + ".out", 5 + e, out);
    std::string given = p + ".out";
    if (bias) {
      Floats(p + ".bias", {out});
      Node("Add", {given, p + ".bias"}, {p + ".biased"});
      given = p + ".biased";
    }
    Node("Mul", {given, "g" + std::to_string(e)}, {p + ".weighed"});
  }

  void Output(const std::string& name) { graph().add_output()->set_name(name); }

  onnx::ModelProto model;
};

class OnnxMixtureTest : public testing::Test {
 protected:
  Result<Model> Open(const Classifier& classifier) {
    EXPECT_TRUE(WriteFileAtomically(PosixEnv(), path_, AsBytes(classifier.model.SerializeAsString())).ok());
    return OpenOnnx(PosixEnv(), path_, {});
  }
  void ExpectRefused(const Classifier& classifier, const std::string& says) {
    const auto model = Open(classifier);
    ASSERT_FALSE(model.ok()) << says;
    EXPECT_THAT(model.status().message(), HasSubstr(says));
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string path_ = testing::TempDir() + testing::UnitTest::GetInstance()->current_test_info()->name() + ".onnx";
};

const Node& MoeOf(const Model& model) {
  for (const Node& node : model.program.nodes) {
    if (node.kind == NodeKind::kMoe) return node;
  }
  return model.program.nodes[0];
}

Classifier Unrolled(int64_t out = kHidden, bool bias = false) {
  Classifier c;
  c.Gates();
  for (int e = 0; e < kExperts; ++e) c.Expert(e, out, bias);
  c.Node("Add", {"e2.weighed", "e0.weighed"}, {"sum1"});
  c.Node("Add", {"sum1", "e1.weighed"}, {"sum2"});
  return c;
}

TEST_F(OnnxMixtureTest, ExpertsOneByOneBecomeOneNode) {
  Classifier c = Unrolled();
  c.Linear("sum2", "classes", kHidden, 2);
  c.Output("classes");
  const auto model = Open(c);
  ASSERT_TRUE(model.ok()) << model.status().message();
  const Program& program = model->program;
  EXPECT_EQ(InputWidth(program), 3u);
  EXPECT_EQ(program.max_positions, 1u);
  EXPECT_EQ(program.nodes.size(), 4u) << "enter, router, experts, classes";
  const Node& moe = MoeOf(*model);
  EXPECT_EQ(moe.moe.routing.k, 2u);
  EXPECT_TRUE(moe.moe.routing.score_before_topk);
  EXPECT_FALSE(moe.moe.routing.renormalise);
  EXPECT_EQ(moe.moe.activation.function, Activation::kRelu);
  EXPECT_EQ(moe.moe.up_bias, kNone);
  EXPECT_EQ(program.expert_tables[0].intermediate, (std::vector<uint64_t>{5, 6, 7}));
  EXPECT_EQ(program.expert_tables[0].layer, 0);
  EXPECT_EQ(program.tensors[program.nodes[1].linear.weight].role, TensorRole::kRouter);
  EXPECT_EQ(program.tensors[program.nodes[3].linear.weight].role, TensorRole::kHead);
  // Expert 1's matrices are the constants transposed.
  const auto up = model->tensors->LoadExpert(0, 1, ExpertMatrix::kUp);
  ASSERT_TRUE(up.ok());
  ASSERT_EQ(up->size(), 6u * 4);
  for (const onnx::TensorProto& constant : c.graph().initializer()) {
    if (constant.name() != "e1.up.weight") continue;
    for (int r = 0; r < 6; ++r) {
      for (int col = 0; col < 4; ++col) EXPECT_EQ((*up)[static_cast<size_t>(r * 4 + col)], constant.float_data(col * 6 + r));
    }
  }
}

TEST_F(OnnxMixtureTest, ExpertsThatGiveTheClassesArePadded) {
  Classifier c = Unrolled(2, true);
  c.Output("sum2");
  const auto model = Open(c);
  ASSERT_TRUE(model.ok()) << model.status().message();
  const Program& program = model->program;
  EXPECT_EQ(program.expert_tables[0].hidden, 4u);
  EXPECT_EQ(program.values[program.output].width, 2u);
  EXPECT_EQ(program.original_parameters, 3u * 4 + 4 * 3 + (5 + 6 + 7) * (4 + 2) + 3 * 4 + 3 * 7) << "zeros do not count";
  const auto down = model->tensors->LoadExpert(0, 0, ExpertMatrix::kDown);
  ASSERT_TRUE(down.ok());
  ASSERT_EQ(down->size(), 4u * 5);
  EXPECT_NE((*down)[9], 0);
  for (size_t i = 10; i < 20; ++i) EXPECT_EQ((*down)[i], 0);
  const auto bias = model->tensors->Load(MoeOf(*model).moe.down_bias);
  ASSERT_TRUE(bias.ok());
  ASSERT_EQ(bias->size(), 3u * 4);
  EXPECT_NE((*bias)[1], 0);
  EXPECT_EQ((*bias)[2], 0);
  const auto up_bias = model->tensors->Load(MoeOf(*model).moe.up_bias);
  ASSERT_TRUE(up_bias.ok());
  EXPECT_EQ(*up_bias, std::vector<float>(3 * 7, 0.0f));
}

TEST_F(OnnxMixtureTest, SoftmaxBehindTheClassesIsLeftOut) {
  Classifier c = Unrolled();
  c.Linear("sum2", "classes", kHidden, 2);
  c.Node("Softmax", {"classes"}, {"probabilities"});
  c.Output("probabilities");
  const auto model = Open(c);
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->program.nodes.size(), 4u);
}

TEST_F(OnnxMixtureTest, RefusesStrippedExperts) {
  Classifier c;
  c.Gates();
  c.Expert(0);
  c.Expert(2);
  c.Node("Add", {"e0.weighed", "e2.weighed"}, {"sum"});
  c.Linear("sum", "classes", kHidden, 2);
  c.Output("classes");
  ExpectRefused(c, "adds up 2 experts, but the router has 3: experts that were stripped");
  Classifier picked;
  picked.Floats("matrices", {2, 4, 4});
  picked.Node("Gather", {"matrices", "ids"}, {"chosen"});
  ExpectRefused(picked, "'matrices' holds 2 experts, the router has 3");
  Classifier stack;
  stack.Floats("up", {2, 4, 5});
  stack.Floats("down", {2, 5, 4});
  stack.Node("MatMul", {"h", "up"}, {"middle"});
  stack.Node("Relu", {"middle"}, {"active"});
  stack.Node("MatMul", {"active", "down"}, {"given"});
  stack.Gates();
  stack.Node("Transpose", {"gates"}, {"by_expert"});
  stack.Ints("axis2", {2});
  stack.Ints("axis0", {0});
  stack.Node("Unsqueeze", {"by_expert", "axis2"}, {"column"});
  stack.Node("Mul", {"given", "column"}, {"weighed"});
  Classifier::SetInt(stack.Node("ReduceSum", {"weighed", "axis0"}, {"sum"}), "keepdims", 0);
  stack.Output("sum");
  ExpectRefused(stack, "there are 2 experts: experts that were stripped");
}

// A value under a second name is the same value: who reads the first must not get what was done to the second.
TEST_F(OnnxMixtureTest, ValuesWithTwoNamesAreReadByBoth) {
  const auto with = [this](const std::vector<std::string>& chain, const std::string& says) {
    Classifier c = Unrolled();
    c.Linear("sum2", "product", kHidden, kHidden);
    c.Ints("axis1", {1});
    c.Floats("bias", {kHidden});
    std::string name = "product";
    for (const std::string& op : chain) {
      const bool axes = op != "Identity";
      c.Node(op, axes ? std::vector<std::string>{name, "axis1"} : std::vector<std::string>{name}, {name + "'"});
      name += "'";
    }
    c.Node("Add", {name, "bias"}, {"biased"});
    c.Node("Add", {"biased", says.empty() ? "sum2" : "product"}, {"both"});
    c.Output("both");
    if (!says.empty()) return ExpectRefused(c, says);
    const auto model = Open(c);
    ASSERT_TRUE(model.ok()) << model.status().message();
    EXPECT_NE(model->program.nodes[3].linear.bias, kNone);
  };
  with({}, "a constant may be added to a MatMul's own result only");
  with({"Identity"}, "a constant may be added to a MatMul's own result only");
  with({"Identity", "Identity"}, "a constant may be added to a MatMul's own result only");
  with({"Unsqueeze", "Squeeze"}, "a constant may be added to a MatMul's own result only");
  with({"Identity"}, "");
  with({"Unsqueeze", "Squeeze"}, "");
}

TEST_F(OnnxMixtureTest, SigmoidWithTwoNamesStaysOne) {
  for (const bool twice : {false, true}) {
    Classifier c = Unrolled();
    c.Node("Sigmoid", {"sum2"}, {"sigmoid"});
    c.Node("Identity", {"sigmoid"}, {"again"});
    c.Node("Mul", {"sum2", "again"}, {"silu"});
    c.Node("Add", {"silu", twice ? "sigmoid" : "sum2"}, {"both"});
    c.Output("both");
    const auto model = Open(c);
    ASSERT_TRUE(model.ok()) << model.status().message();
    EXPECT_EQ(model->program.nodes[3].elementwise.op, twice ? ElementOp::kSigmoid : ElementOp::kSilu);
  }
}

// Partial sums are not kept: each would hold all experts before it.
TEST_F(OnnxMixtureTest, SumsOfManyExpertsTakeLittleUnlessReadTwice) {
  constexpr int kMany = 3000;
  for (const bool twice : {false, true}) {
    Classifier c;
    c.Linear("h", "many", kHidden, kMany);
    Classifier::SetInt(c.Node("Softmax", {"many"}, {"all"}), "axis", -1);
    Classifier::SetInt(c.Node("TopK", {"all", "k"}, {"some", "chosen"}), "axis", -1);
    c.Node("Shape", {"many"}, {"shape"});
    c.Node("ConstantOfShape", {"shape"}, {"zeros"});
    Classifier::SetInt(c.Node("ScatterElements", {"zeros", "chosen", "some"}, {"gates"}), "axis", 1);
    std::string sum;
    for (int e = 0; e < kMany; ++e) {
      const std::string p = "e" + std::to_string(e);
      c.Ints(p, {e});
      Classifier::SetInt(c.Node("Gather", {"gates", p}, {p + ".gate"}), "axis", 1);
      c.Linear("h", p + ".up", kHidden, 1);
      c.Node("Relu", {p + ".up"}, {p + ".active"});
      c.Linear(p + ".active", p + ".out", 1, kHidden);
      c.Node("Mul", {p + ".out", p + ".gate"}, {p + ".weighed"});
      if (e > 0) c.Node("Add", {sum, p + ".weighed"}, {p + ".sum"});
      if (e > 0 && twice) c.Node("Identity", {p + ".sum"}, {p + ".again"});
      sum = e > 0 ? p + ".sum" : p + ".weighed";
    }
    c.Output(sum);
    if (twice) {
      ExpectRefused(c, "too many steps of too many experts");
      continue;
    }
    const auto model = Open(c);
    ASSERT_TRUE(model.ok()) << model.status().message();
    EXPECT_EQ(model->program.expert_tables[0].intermediate.size(), static_cast<size_t>(kMany));
  }
}

TEST_F(OnnxMixtureTest, RefusesExpertsThatAProgramCannotHold) {
  Classifier other;
  other.Gates();
  other.Expert(0);
  other.Expert(1, kHidden, false, "Gelu");
  other.Expert(2);
  other.Node("Add", {"e0.weighed", "e1.weighed"}, {"sum"});
  other.Node("Add", {"sum", "e2.weighed"}, {"all"});
  other.Output("all");
  ExpectRefused(other, "expert 1 reads another value or has another activation");
  Classifier twice;
  twice.Gates();
  twice.Expert(0);
  twice.Node("Add", {"e0.weighed", "e0.weighed"}, {"sum"});
  ExpectRefused(twice, "expert 0 is added twice");
  Classifier shallow;
  shallow.Gates();
  for (int e = 0; e < 3; ++e) {
    const std::string p = "e" + std::to_string(e);
    shallow.Linear("h", p, kHidden, kHidden);
    shallow.Node("Mul", {p, "g" + std::to_string(e)}, {p + ".weighed"});
  }
  shallow.Node("Add", {"e0.weighed", "e1.weighed"}, {"sum"});
  shallow.Node("Add", {"sum", "e2.weighed"}, {"all"});
  ExpectRefused(shallow, "an expert is down(act(up(x)))");
}

TEST_F(OnnxMixtureTest, RefusesRoutersWithoutScores) {
  Classifier c;
  Classifier::SetInt(c.Node("TopK", {"logits", "k"}, {"values", "raw_ids"}), "axis", 1);
  c.Node("Shape", {"logits"}, {"shape"});
  c.Node("ConstantOfShape", {"shape"}, {"zeros"});
  Classifier::SetInt(c.Node("ScatterElements", {"zeros", "raw_ids", "values"}, {"gates"}), "axis", 1);
  ExpectRefused(c, "logits into minus infinity");
  Classifier smallest;
  Classifier::SetInt(smallest.Node("TopK", {"logits", "k"}, {"values", "raw_ids"}), "largest", 0);
  ExpectRefused(smallest, "only the largest");
}

TEST_F(OnnxMixtureTest, RefusesTablesWithoutAWidth) {
  Classifier c = Unrolled();
  c.Output("sum2");
  c.graph().mutable_input(0)->mutable_type()->mutable_tensor_type()->mutable_shape()->mutable_dim(1)->set_dim_param("any");
  ExpectRefused(c, "graph input 'rows': a table of floats must be [rows, columns] with a fixed number of columns");
  Classifier no_experts;
  no_experts.Output("h");
  ExpectRefused(no_experts, "the graph has neither attention nor MoE nodes");
}

}  // namespace
}  // namespace moepack
