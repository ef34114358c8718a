#include "model/export/onnx.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/testing/fault_env.h"
#include "model/frontend/onnx.h"

namespace moepack {
namespace {

class OnnxExportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "onnx_export_" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  Model Golden(const std::string& name) const {
    auto model = OpenModel(PosixEnv(), std::string(MOEPACK_SOURCE_DIR) + "/tests/golden/" + name);
    EXPECT_TRUE(model.ok()) << model.status().message();
    return std::move(model).value();
  }

  std::string folder_;
};

// The same node but for value names and what the caches only hold approximately.
void ExpectSameNode(const Node& a, const Node& b) {
  Node want = a, have = b;
  ASSERT_EQ(want.rotary.inv_freq.size(), have.rotary.inv_freq.size());
  for (size_t i = 0; i < want.rotary.inv_freq.size(); ++i) {
    EXPECT_NEAR(want.rotary.inv_freq[i] / have.rotary.inv_freq[i], 1, 3e-7);
  }
  have.rotary.inv_freq = want.rotary.inv_freq;
  EXPECT_EQ(want.kind, have.kind);
  EXPECT_EQ(want.block, have.block);
  EXPECT_EQ(want.inputs, have.inputs);
  EXPECT_EQ(want.norm.group, have.norm.group);
  EXPECT_EQ(want.norm.eps, have.norm.eps);
  EXPECT_EQ(want.rotary, have.rotary);
  EXPECT_EQ(want.attention, have.attention);
  EXPECT_EQ(want.moe, have.moe);
  EXPECT_EQ(want.elementwise, have.elementwise);
  EXPECT_EQ(want.slice, have.slice);
}

// Tensors of both programs by name: the same shape, role, layer and values.
void ExpectSameTensors(const Model& want, const Model& have) {
  ASSERT_EQ(want.program.tensors.size(), have.program.tensors.size());
  for (TensorId i = 0; i < want.program.tensors.size(); ++i) {
    const TensorDecl& tensor = want.program.tensors[i];
    const auto& others = have.program.tensors;
    const auto other =
        std::find_if(others.begin(), others.end(), [&](const TensorDecl& t) { return t.name == tensor.name; });
    ASSERT_NE(other, others.end()) << tensor.name;
    EXPECT_EQ(*other, tensor) << tensor.name << " " << TensorRoleName(other->role) << " " << other->layer;
    const auto a = want.tensors->Load(i), b = have.tensors->Load(static_cast<TensorId>(other - others.begin()));
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(*a, *b) << tensor.name;
  }
}

void ExpectSameExperts(const Model& want, const Model& have) {
  EXPECT_EQ(want.program.expert_tables, have.program.expert_tables);
  for (uint32_t t = 0; t < want.program.expert_tables.size(); ++t) {
    for (uint32_t e = 0; e < want.program.expert_tables[t].experts(); ++e) {
      for (const ExpertMatrix m : {ExpertMatrix::kGate, ExpertMatrix::kUp, ExpertMatrix::kDown}) {
        const auto a = want.tensors->LoadExpert(t, e, m), b = have.tensors->LoadExpert(t, e, m);
        ASSERT_TRUE(a.ok() && b.ok());
        EXPECT_EQ(*a, *b) << t << " " << e << " " << ExpertMatrixName(m);
      }
    }
  }
}

class OnnxRoundTripTest : public OnnxExportTest, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "onnx_round_trip_" + GetParam();
    std::filesystem::create_directories(folder_);
  }
};

TEST_P(OnnxRoundTripTest, ExportedAndImportedModelIsTheSame) {
  const Model want = Golden(GetParam());
  const Status exported = ExportOnnx(PosixEnv(), want, Path("model.onnx"));
  ASSERT_TRUE(exported.ok()) << exported.message();
  const auto opened = OpenOnnx(PosixEnv(), Path("model.onnx"), {});
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const Model& have = *opened;
  EXPECT_EQ(have.program.max_positions, want.program.max_positions);
  EXPECT_EQ(have.program.state_slots, want.program.state_slots);
  EXPECT_EQ(have.program.original_parameters, want.program.original_parameters);
  EXPECT_EQ(have.program.values.size(), want.program.values.size());
  ASSERT_EQ(have.program.nodes.size(), want.program.nodes.size());
  for (size_t i = 0; i < want.program.nodes.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectSameNode(want.program.nodes[i], have.program.nodes[i]);
  }
  ExpectSameTensors(want, have);
  ExpectSameExperts(want, have);
}

INSTANTIATE_TEST_SUITE_P(Families, OnnxRoundTripTest, ::testing::Values("qwen2_moe", "mixtral", "olmoe", "qwen3_moe"),
                         [](const auto& test) { return std::string(test.param); });

TEST_F(OnnxExportTest, TheSameModelGivesTheSameBytes) {
  const Model model = Golden("qwen2_moe");
  for (const char* folder : {"a", "b"}) {
    std::filesystem::create_directories(Path(folder));
    ASSERT_TRUE(ExportOnnx(PosixEnv(), model, Path(std::string(folder) + "/m.onnx")).ok());
  }
  for (const char* name : {"/m.onnx", "/m.onnx.data"}) {
    const auto a = ReadFile(PosixEnv(), Path("a") + name, 64 << 20), b = ReadFile(PosixEnv(), Path("b") + name, 64 << 20);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(*a, *b) << name;
  }
}

TEST_F(OnnxExportTest, RefusesWhatTheOperatorsCannotExpressAndLeavesNoFile) {
  Model model = Golden("mixtral");
  for (Node& node : model.program.nodes) {
    if (node.kind == NodeKind::kMoe) node.moe.routing.score = ScoreFunction::kSigmoid;
  }
  const Status status = ExportOnnx(PosixEnv(), model, Path("m.onnx"));
  EXPECT_EQ(status.code(), ErrorCode::kUnsupported);
  EXPECT_NE(status.message().find("sigmoid"), std::string::npos) << status.message();
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

// Weights that fail half-way: nothing may stay behind.
class FailingSource final : public TensorSource {
 public:
  explicit FailingSource(std::shared_ptr<const TensorSource> source) : source_(std::move(source)) {}
  Result<std::vector<float>> Load(TensorId tensor) const override {
    if (tensor > 5) return Status(ErrorCode::kNotFinite, "value 3 is NaN");
    return source_->Load(tensor);
  }
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return source_->LoadExpert(table, expert, matrix);
  }
  Codec StoredCodec(TensorId tensor) const override { return source_->StoredCodec(tensor); }
  Codec StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return source_->StoredExpertCodec(table, expert, matrix);
  }

 private:
  std::shared_ptr<const TensorSource> source_;
};

TEST_F(OnnxExportTest, FailedWeightsLeaveNoFile) {
  Model model = Golden("mixtral");
  model.tensors = std::make_shared<FailingSource>(model.tensors);
  EXPECT_EQ(ExportOnnx(PosixEnv(), model, Path("m.onnx")).code(), ErrorCode::kNotFinite);
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(OnnxExportTest, AFailedExportKeepsTheEarlierFiles) {
  Model model = Golden("mixtral");
  ASSERT_TRUE(ExportOnnx(PosixEnv(), model, Path("m.onnx")).ok());
  const Bytes data = ReadFile(PosixEnv(), Path("m.onnx.data"), 64 << 20).value();
  const Bytes graph = ReadFile(PosixEnv(), Path("m.onnx"), 64 << 20).value();
  const auto expect_unchanged = [&](uint64_t n) {
    EXPECT_EQ(ReadFile(PosixEnv(), Path("m.onnx.data"), 64 << 20).value(), data) << n;
    EXPECT_EQ(ReadFile(PosixEnv(), Path("m.onnx"), 64 << 20).value(), graph) << n;
    EXPECT_EQ(PosixEnv().List(folder_)->size(), 2u) << n;
  };
  Model other = Golden("olmoe");
  Model failing = other;
  failing.tensors = std::make_shared<FailingSource>(other.tensors);
  EXPECT_FALSE(ExportOnnx(PosixEnv(), failing, Path("m.onnx")).ok());
  expect_unchanged(0);
  testing::FaultEnv env(PosixEnv(), testing::FaultEnv::Count::kWrites);
  env.FailAt(0, ErrorCode::kNoSpace);
  ASSERT_TRUE(ExportOnnx(env, other, Path("other.onnx")).ok());
  const uint64_t writes = env.operations();
  for (const char* name : {"other.onnx", "other.onnx.data"}) ASSERT_TRUE(PosixEnv().Remove(Path(name)).ok());
  // The last ones: syncing and closing both files; where an earlier one stands, setting it aside; names and their folder.
  for (uint64_t n = writes - 7; n <= writes + 2; ++n) {
    env.FailAt(n, ErrorCode::kNoSpace);
    EXPECT_EQ(ExportOnnx(env, other, Path("m.onnx")).code(), ErrorCode::kNoSpace) << n;
    expect_unchanged(n);
  }
}

TEST_F(OnnxExportTest, WritesTheTokenizerBesideUnlessAnotherOneIsThere) {
  const Model model = Golden("mixtral");
  const Bytes text = {'{', '}'};
  const std::vector<TokenizerFile> beside = {{"tokenizer.json", text}};
  ASSERT_TRUE(ExportOnnx(PosixEnv(), model, Path("m.onnx"), beside).ok());
  EXPECT_EQ(ReadFile(PosixEnv(), Path("tokenizer.json"), 100).value(), text);
  EXPECT_TRUE(ExportOnnx(PosixEnv(), model, Path("n.onnx"), beside).ok()) << "the same one is fine";
  const Status status = ExportOnnx(PosixEnv(), model, Path("o.onnx"), {{"tokenizer.json", {'['}}});
  EXPECT_EQ(status.code(), ErrorCode::kUsage);
  EXPECT_NE(status.message().find("tokenizer.json"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(Path("o.onnx")));
}

// A dropped channel is a row of zeros in the export: the function stays the same.
TEST_F(OnnxExportTest, NarrowExpertsArePadded) {
  Model model = Golden("mixtral");
  class Narrow final : public TensorSource {
   public:
    explicit Narrow(std::shared_ptr<const TensorSource> source) : source_(std::move(source)) {}
    Result<std::vector<float>> Load(TensorId tensor) const override { return source_->Load(tensor); }
    Result<std::vector<float>> LoadExpert(uint32_t, uint32_t expert, ExpertMatrix) const override {
      return std::vector<float>(64 * (expert == 1 ? 40 : 48), 1.0f);
    }
    Codec StoredCodec(TensorId) const override { return Codec(); }
    Codec StoredExpertCodec(uint32_t, uint32_t, ExpertMatrix) const override { return Codec(); }

   private:
    std::shared_ptr<const TensorSource> source_;
  };
  model.tensors = std::make_shared<Narrow>(model.tensors);
  for (ExpertTableDecl& table : model.program.expert_tables) table.intermediate[1] = 40;
  const Status exported = ExportOnnx(PosixEnv(), model, Path("m.onnx"));
  ASSERT_TRUE(exported.ok()) << exported.message();
  const auto opened = OpenOnnx(PosixEnv(), Path("m.onnx"), {});
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const auto up = opened->tensors->LoadExpert(0, 1, ExpertMatrix::kUp),
             down = opened->tensors->LoadExpert(0, 1, ExpertMatrix::kDown);
  ASSERT_TRUE(up.ok() && down.ok());
  EXPECT_EQ(std::count(up->begin(), up->end(), 1.0f), 64 * 40);
  EXPECT_EQ(up->at(40 * 64), 0);
  EXPECT_EQ(down->at(39), 1);
  EXPECT_EQ(down->at(40), 0);
}

}  // namespace
}  // namespace moepack
