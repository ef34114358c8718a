#include "model/frontend/onnx.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "model/frontend/onnx_file.h"
#include "model/frontend/onnx_rotary.h"
#include "model/frontend/onnx_testing.h"
#include "model/model_testing.h"

namespace moepack {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class OnnxTest : public OnnxFixture {
 protected:
  OnnxTest() : OnnxFixture("m.onnx") {}
  Result<Model> Open(const TinyOnnx& tiny) override { return OpenBytes(tiny.Serialize()); }
  // Not through AtomicFile: hundreds of syncs take seconds.
  Result<Model> OpenBytes(ByteSpan bytes) {
    std::ofstream(folder_.At("m.onnx"), std::ios::binary) << AsText(bytes);
    return OpenOnnx(PosixEnv(), folder_.At("m.onnx"), {});
  }
};

std::vector<NodeKind> Kinds(const Program& program) {
  std::vector<NodeKind> kinds;
  for (const Node& node : program.nodes) kinds.push_back(node.kind);
  return kinds;
}

TEST_F(OnnxTest, GraphBecomesAProgramInBlocks) {
  const Model model = MustOpen(TinyOnnx());
  const Program& program = model.program;
  const auto E = NodeKind::kEmbedding;
  const auto N = NodeKind::kNorm, L = NodeKind::kLinear, R = NodeKind::kRotary, A = NodeKind::kAttention, M = NodeKind::kMoe,
             S = NodeKind::kElementwise;
  EXPECT_THAT(Kinds(program),
              ElementsAre(E, N, L, L, L, R, R, A, L, S, N, L, M, S, N, L, L, L, R, R, A, L, S, N, L, M, S, N, L));
  std::vector<int32_t> blocks;
  for (const Node& node : program.nodes) blocks.push_back(node.block);
  const std::vector<int32_t> want = {0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3};
  EXPECT_EQ(blocks, want);
  EXPECT_EQ(program.max_positions, 32u);
  EXPECT_EQ(program.state_slots, 2u);
  EXPECT_EQ(program.original_parameters, 12 * 16 + 5 * 16 + 2 * (16 * 16 * 2 + 8 * 16 * 2 + 3 * 16 + 3 * 3 * 4 * 16));
  EXPECT_EQ(program.nodes.back().linear.weight, program.nodes[0].embedding.table);  // tied
}

TEST_F(OnnxTest, TensorRolesFollowFromTheGraph) {
  const Program program = MustOpen(TinyOnnx()).program;
  const auto role = [&](const std::string& name) {
    for (const TensorDecl& tensor : program.tensors) {
      if (tensor.name == name) return std::make_pair(std::string(TensorRoleName(tensor.role)), tensor.layer);
    }
    return std::make_pair(std::string("missing"), -2);
  };
  EXPECT_EQ(role("embed"), std::make_pair(std::string("embedding"), -1));
  EXPECT_EQ(role("l1.q"), std::make_pair(std::string("attention"), 1));
  EXPECT_EQ(role("l0.o"), std::make_pair(std::string("attention"), 0));
  EXPECT_EQ(role("l0.router"), std::make_pair(std::string("router"), 0));
  EXPECT_EQ(role("l1.post"), std::make_pair(std::string("norm"), 1));
  EXPECT_EQ(role("final"), std::make_pair(std::string("norm"), -1));
}

TEST_F(OnnxTest, SkipNormsArePlainSumsAndNorms) {
  TinyOnnx::Options options;
  options.skip_norm = true;
  const Program skip = MustOpen(TinyOnnx(options)).program, plain = MustOpen(TinyOnnx()).program;
  EXPECT_EQ(skip.nodes, plain.nodes);
}

TEST_F(OnnxTest, PackedHeadsAreSlices) {
  TinyOnnx::Options options;
  options.packed_attention = true;
  const Program program = MustOpen(TinyOnnx(options)).program;
  std::vector<uint64_t> begins;
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kSlice && node.block == 1) begins.push_back(node.slice.begin);
  }
  EXPECT_THAT(begins, ElementsAre(0, 16, 24));
}

TEST_F(OnnxTest, WeightsComeOutAsTheProgramDeclaresThem) {
  TinyOnnx tiny;
  const Model model = MustOpen(tiny);
  const auto& stored = tiny.Constant("l0.q.weight").float_data();  // [in, out]
  const auto q = model.tensors->Load(model.program.nodes[2].linear.weight);
  ASSERT_TRUE(q.ok());
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 16; ++c) EXPECT_EQ((*q)[static_cast<size_t>(r * 16 + c)], stored.Get(c * 16 + r));
  }
}

// Row r of `matrix` of expert 1, layer 0, must be row `stored` of constant `name` seen as rows of 16.
void ExpectRow(const Model& model, TinyOnnx& tiny, ExpertMatrix matrix, int row, const std::string& name, int stored) {
  const auto values = model.tensors->LoadExpert(0, 1, matrix);
  ASSERT_TRUE(values.ok()) << values.status().message();
  for (int c = 0; c < 16; ++c) {
    EXPECT_EQ((*values)[static_cast<size_t>(row * 16 + c)], tiny.Constant(name).float_data(stored * 16 + c))
        << name << stored;
  }
}

TEST_F(OnnxTest, GateAndUpInEveryLayout) {
  TinyOnnx interleaved;
  const Model a = MustOpen(interleaved);
  ExpectRow(a, interleaved, ExpertMatrix::kGate, 2, "l0.fc1", 8 + 4);
  ExpectRow(a, interleaved, ExpertMatrix::kUp, 2, "l0.fc1", 8 + 5);

  TinyOnnx concatenated;
  TinyOnnx::SetInt(&concatenated.First("MoE"), "swiglu_fusion", 2);
  const Model b = MustOpen(concatenated);
  ExpectRow(b, concatenated, ExpertMatrix::kGate, 2, "l0.fc1", 8 + 2);
  ExpectRow(b, concatenated, ExpertMatrix::kUp, 2, "l0.fc1", 8 + 4 + 2);

  TinyOnnx separate;
  separate.Floats("gate", {3, 4, 16});
  separate.Floats("up", {3, 4, 16});
  onnx::NodeProto& moe = separate.First("MoE");
  moe.set_input(2, "gate");
  moe.add_input("");
  moe.add_input("up");
  TinyOnnx::SetInt(&moe, "swiglu_fusion", 0);
  TinyOnnx::SetText(&moe, "activation_type", "silu");
  const Model c = MustOpen(separate);
  ExpectRow(c, separate, ExpertMatrix::kGate, 2, "gate", 4 + 2);
  ExpectRow(c, separate, ExpertMatrix::kUp, 2, "up", 4 + 2);
}

TEST_F(OnnxTest, ExpertsWithoutAGate) {
  TinyOnnx tiny;
  tiny.Floats("up", {3, 4, 16});
  onnx::NodeProto& moe = tiny.First("MoE");
  moe.set_input(2, "up");
  TinyOnnx::SetInt(&moe, "swiglu_fusion", 0);
  TinyOnnx::SetText(&moe, "activation_type", "relu");
  const Model model = MustOpen(tiny);
  EXPECT_FALSE(model.program.expert_tables[0].gated);
  EXPECT_TRUE(model.program.expert_tables[1].gated);
  ExpectRow(model, tiny, ExpertMatrix::kUp, 3, "up", 4 + 3);
}

TEST_F(OnnxTest, RefusesOperatorsAndAttributesByName) {
  const auto with = [&](ErrorCode code, const std::string& part, auto change) {
    TinyOnnx tiny;
    change(tiny);
    ExpectRefused(tiny, code, part);
  };
  const auto unsupported = ErrorCode::kUnsupported;
  with(unsupported, "node 7 'Strange'", [](TinyOnnx& t) {
    t.graph().mutable_node(7)->set_op_type("Softsign");
    t.graph().mutable_node(7)->set_name("Strange");
  });
  with(unsupported, "use_sparse_mixer", [](TinyOnnx& t) { TinyOnnx::SetInt(&t.First("MoE"), "use_sparse_mixer", 1); });
  with(ErrorCode::kBadInput, "swiglu_limit", [](TinyOnnx& t) { TinyOnnx::SetFloat(&t.First("MoE"), "swiglu_limit", -7); });
  with(unsupported, "activation_alpha", [](TinyOnnx& t) {
    TinyOnnx::SetText(&t.First("MoE"), "activation_type", "relu");
    TinyOnnx::SetFloat(&t.First("MoE"), "activation_alpha", 1.702f);
  });
  with(unsupported, "activation_type 'swish'",
       [](TinyOnnx& t) { TinyOnnx::SetText(&t.First("MoE"), "activation_type", "swish"); });
  with(unsupported, "'surprise'", [](TinyOnnx& t) { TinyOnnx::SetInt(&t.First("MoE"), "surprise", 1); });
  with(ErrorCode::kShape, "input 3 'l0.fc1' must be [3, 8]", [](TinyOnnx& t) { t.First("MoE").set_input(3, "l0.fc1"); });
  with(unsupported, "smooth_softmax",
       [](TinyOnnx& t) { TinyOnnx::SetInt(&t.First("GroupQueryAttention"), "smooth_softmax", 1); });
  with(unsupported, "attention bias", [](TinyOnnx& t) {
    for (const char* name : {"", "l0.in.weight"}) t.First("GroupQueryAttention").add_input(name);
  });
  with(ErrorCode::kShape, "head sink", [](TinyOnnx& t) {
    for (const char* name : {"", "", "l0.in.weight"}) t.First("GroupQueryAttention").add_input(name);
  });
  with(unsupported, "operator set 11", [](TinyOnnx& t) { t.model.mutable_opset_import(0)->set_version(11); });
  with(unsupported, "functions", [](TinyOnnx& t) { t.model.add_functions(); });
  with(unsupported, "sparse", [](TinyOnnx& t) { t.graph().add_sparse_initializer(); });
  with(unsupported, "only logits", [](TinyOnnx& t) { t.graph().add_output()->set_name("l0.a"); });
  with(ErrorCode::kBadInput, "wrong type",
       [](TinyOnnx& t) { t.First("MoE").mutable_attribute(0)->set_type(onnx::AttributeProto::FLOAT); });
}

TEST_F(OnnxTest, RefusesStrippedExperts) {
  TinyOnnx tiny;
  for (const char* name : {"l1.fc1", "l1.fc2"}) {
    onnx::TensorProto& tensor = tiny.Constant(name);
    tensor.mutable_float_data()->Truncate(tensor.float_data_size() / 3 * 2);
    tensor.set_dims(0, 2);
  }
  ExpectRefused(tiny, ErrorCode::kShape, "stripped");
}

TEST_F(OnnxTest, RefusesBrokenGraphs) {
  const auto with = [&](ErrorCode code, const std::string& part, auto change) {
    TinyOnnx tiny;
    change(tiny);
    ExpectRefused(tiny, code, part);
  };
  const auto bad = ErrorCode::kBadInput;
  with(bad, "has no graph", [](TinyOnnx& t) { t.model.clear_graph(); });
  with(bad, "produced twice", [](TinyOnnx& t) { t.First("Add").set_output(0, "l0.a"); });
  with(bad, "is not a float value", [](TinyOnnx& t) { t.First("Add").set_input(0, "nowhere"); });
  with(bad, "no logits", [](TinyOnnx& t) { t.graph().clear_output(); });
  with(bad, "the name is used twice", [](TinyOnnx& t) { t.Floats("embed", {1}); });
  with(ErrorCode::kShape, "negative", [](TinyOnnx& t) { t.Constant("embed").set_dims(0, -12); });
  with(ErrorCode::kShape, "overflows", [](TinyOnnx& t) {
    t.Constant("embed").set_dims(0, int64_t{1} << 62);
    t.Constant("embed").set_dims(1, 16);
  });
  with(ErrorCode::kShape, "its shape needs", [](TinyOnnx& t) { t.Constant("embed").set_dims(0, 13); });
  with(ErrorCode::kShape, "takes 8 columns", [](TinyOnnx& t) {
    t.Constant("l0.o.weight").set_dims(0, 8);
    t.Constant("l0.o.weight").set_dims(1, 32);
  });
  with(ErrorCode::kShape, "fc1 must be", [](TinyOnnx& t) {
    t.Constant("l0.fc1").set_dims(1, 16);
    t.Constant("l0.fc1").set_dims(2, 8);
  });
  with(ErrorCode::kUnsupported, "element type 11",
       [](TinyOnnx& t) { t.Constant("embed").set_data_type(onnx::TensorProto::DOUBLE); });
  with(ErrorCode::kUnsupported, "does not turn evenly",
       [](TinyOnnx& t) { t.Constant("cos").set_float_data(4 * 20 + 1, 0.5f); });
}

TEST_F(OnnxTest, ValuesThatAreNotFiniteAreFoundWhenLoaded) {
  TinyOnnx tiny;
  tiny.Constant("l0.q.weight").set_float_data(5, NAN);
  const Model model = MustOpen(tiny);
  const auto values = model.tensors->Load(model.program.nodes[2].linear.weight);
  EXPECT_EQ(values.status().code(), ErrorCode::kNotFinite);
  EXPECT_THAT(values.status().message(), HasSubstr("'l0.q.weight': value 5"));
}

TEST_F(OnnxTest, FilesThatAreNotOnnx) {
  for (const std::string& text : {std::string(), std::string("not protobuf at all"), std::string(100000, '\x0a')}) {
    folder_.Write("m.onnx", text);
    EXPECT_EQ(OpenOnnx(PosixEnv(), folder_.At("m.onnx"), {}).status().code(), ErrorCode::kBadInput);
  }
  EXPECT_EQ(OpenOnnx(PosixEnv(), folder_.At("none.onnx"), {}).status().code(), ErrorCode::kNotFound);
}

TEST_F(OnnxTest, EveryCutIsRefusedOrStillAValidProgram) {
  const Bytes bytes = TinyOnnx().Serialize();
  for (size_t size = 0; size < bytes.size(); size += 151) {
    const auto model = OpenBytes(ByteSpan(bytes).first(size));
    EXPECT_TRUE(!model.ok() || ValidateProgram(model->program).ok());
  }
}

class OnnxExternalDataTest : public OnnxTest {
 protected:
  // The embedding's data (768 bytes) in `location`.
  static void Externalize(TinyOnnx* tiny, const std::string& location, const std::string& offset,
                          const std::string& length) {
    onnx::TensorProto& tensor = tiny->Constant("embed");
    tensor.clear_float_data();
    tensor.set_data_location(onnx::TensorProto::EXTERNAL);
    Set(&tensor, "location", location);
    if (!offset.empty()) Set(&tensor, "offset", offset);
    if (!length.empty()) Set(&tensor, "length", length);
  }
  static void Set(onnx::TensorProto* tensor, const std::string& key, const std::string& value) {
    auto* entry = tensor->add_external_data();
    entry->set_key(key);
    entry->set_value(value);
  }
  void ExpectExternal(const std::string& location, const std::string& offset, const std::string& length, ErrorCode code,
                      const std::string& part) {
    TinyOnnx tiny;
    Externalize(&tiny, location, offset, length);
    ExpectRefused(tiny, code, part);
  }
};

TEST_F(OnnxExternalDataTest, IsReadFromBesideTheGraph) {
  Bytes data(16 + 768, 0);
  data[16 + 3] = 0x40;  // 2.0f
  folder_.Write("w.bin", data);
  TinyOnnx tiny;
  Externalize(&tiny, "w.bin", "16", "768");
  folder_.Write("m.onnx", tiny.Serialize());
  OpenOptions options;
  options.digests = true;
  const auto model = OpenOnnx(PosixEnv(), folder_.At("m.onnx"), options);
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->tensors->Load(0)->front(), 2.0f);
  ASSERT_EQ(model->input_digests.size(), 2u);
  EXPECT_EQ(model->input_digests[1].first, "w.bin");
}

TEST_F(OnnxExternalDataTest, MayNotLeaveItsFolder) {
  std::filesystem::create_directories(folder_.At("sub"));
  folder_.Write("w.bin", Bytes(768, 0));
  const auto unsafe = ErrorCode::kUnsafePath;
  for (const char* location : {"../w.bin", "sub/../w.bin", "./w.bin", "/etc/passwd", "", "sub//w.bin", "w\\bin", "sub/"}) {
    ExpectExternal(location, "", "", unsafe, "external data");
  }
  ExpectExternal(std::string("w.bin\0x", 7), "", "", unsafe, "NUL");
  std::filesystem::create_symlink("/etc/hostname", folder_.At("link.bin"));
  ExpectExternal("link.bin", "", "", unsafe, "a link leads out");
  std::filesystem::create_directory_symlink("/etc", folder_.At("out"));
  ExpectExternal("out/hostname", "", "", unsafe, "a link leads out");
  std::filesystem::create_symlink("round.bin", folder_.At("round.bin"));
  ExpectExternal("round.bin", "", "", ErrorCode::kNotFound, "round.bin");
  ExpectExternal("missing.bin", "", "", ErrorCode::kNotFound, "missing.bin");
  ExpectExternal("sub", "", "", ErrorCode::kBadInput, "not a regular file");
  std::filesystem::create_symlink("w.bin", folder_.At("inside.bin"));
  TinyOnnx tiny;
  Externalize(&tiny, "inside.bin", "", "");
  MustOpen(tiny);  // a link that stays in the folder is fine
}

TEST_F(OnnxExternalDataTest, SaysOnceWhereItIs) {
  folder_.Write("w.bin", Bytes(1000, 0));
  const auto with = [&](const std::string& part, auto change) {
    TinyOnnx tiny;
    Externalize(&tiny, "w.bin", "0", "768");
    change(tiny.Constant("embed"));
    ExpectRefused(tiny, ErrorCode::kBadInput, part);
  };
  with("twice", [](onnx::TensorProto& t) { Set(&t, "offset", "8"); });
  with("data of its own and external data", [](onnx::TensorProto& t) { t.set_raw_data(std::string(768, 'x')); });
  with("not marked external", [](onnx::TensorProto& t) { t.set_data_location(onnx::TensorProto::DEFAULT); });
  TinyOnnx tiny;
  Externalize(&tiny, "w.bin", "0", "768");
  tiny.Constant("embed").mutable_external_data()->DeleteSubrange(0, 1);
  ExpectRefused(tiny, ErrorCode::kUnsafePath, "the name is empty");
}

TEST_F(OnnxExternalDataTest, StaysInsideItsFile) {
  folder_.Write("w.bin", Bytes(1000, 0));
  const auto bad = ErrorCode::kBadInput;
  ExpectExternal("w.bin", "-1", "", bad, "offset '-1'");
  ExpectExternal("w.bin", "0x10", "", bad, "offset");
  ExpectExternal("w.bin", "18446744073709551616", "", bad, "offset");
  ExpectExternal("w.bin", "18446744073709551615", "", bad, "reaches past");
  ExpectExternal("w.bin", "233", "", bad, "reaches past");
  ExpectExternal("w.bin", "0", "-768", bad, "length");
  ExpectExternal("w.bin", "0", "769", ErrorCode::kShape, "length 769");
  TinyOnnx tiny;
  Externalize(&tiny, "w.bin", "0", "768");
  Set(&tiny.Constant("embed"), "format", "zip");
  ExpectRefused(tiny, bad, "'format'");
}

TEST(OnnxRotaryTest, FrequenciesComeBackFromTheirCaches) {
  const std::vector<double> want = {1.0, 0.1, 1e-3, 1e-5, 2.5};
  for (const double magnitude : {1.0, 1.37}) {
    std::vector<float> cos, sin;
    for (int p = 0; p < 2048; ++p) {
      for (const double f : want) {
        cos.push_back(static_cast<float>(magnitude * std::cos(p * f)));
        sin.push_back(static_cast<float>(magnitude * std::sin(p * f)));
      }
    }
    const auto cache = DeriveRotary(cos, sin, want.size(), 2e-5);
    ASSERT_TRUE(cache.ok()) << cache.status().message();
    EXPECT_NEAR(cache->magnitude, magnitude, 1e-6);
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(cache->inv_freq[i] / want[i], 1, 2e-7);
    sin[1000 * want.size() + 2] += 1e-3f;
    EXPECT_EQ(DeriveRotary(cos, sin, want.size(), 2e-5).status().code(), ErrorCode::kUnsupported);
  }
}

TEST(OnnxRotaryTest, RefusesOtherShapes) {
  const std::vector<float> one(4, 1.0f), zero(4, 0.0f);
  EXPECT_FALSE(DeriveRotary(one, zero, 4, 1e-5).ok());
  EXPECT_FALSE(DeriveRotary(zero, one, 2, 1e-5).ok());
  EXPECT_FALSE(DeriveRotary(one, std::vector<float>(2), 2, 1e-5).ok());
  EXPECT_FALSE(DeriveRotary({}, {}, 2, 1e-5).ok());
  EXPECT_TRUE(DeriveRotary(one, zero, 2, 1e-5).ok());
}

}  // namespace
}  // namespace moepack
