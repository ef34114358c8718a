// Graphs as onnxruntime-genai's builder writes them: operators of com.microsoft, quantized weights, genai_config.json.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "model/frontend/onnx.h"
#include "model/frontend/onnx_testing.h"
#include "model/model_testing.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;

class OnnxGenaiTest : public OnnxFixture {
 protected:
  OnnxGenaiTest() : OnnxFixture("node ") {}
  Result<Model> Open(const TinyOnnx& tiny) override {
    const Bytes bytes = tiny.Serialize();
    std::ofstream(folder_.At("model.onnx"), std::ios::binary) << AsText(bytes);
    return OpenModel(PosixEnv(), folder_.At("model.onnx"));
  }
};

const Node& FirstOf(const Program& program, NodeKind kind) {
  for (const Node& node : program.nodes) {
    if (node.kind == kind) return node;
  }
  return program.nodes[0];
}

int Nibble(const std::string& data, size_t i) { return (static_cast<uint8_t>(data[i / 2]) >> (i % 2 * 4)) & 15; }

// Layer 0's query projection in codes of 4 bits, one block a row.
void QuantizeQuery(TinyOnnx* tiny) {
  tiny->Codes("model.layers.0.attn.q_proj.MatMulNBits.qweight", {16, 1, 8}, 128);
  tiny->Floats("q.scales", {16});
  onnx::NodeProto& node = tiny->Giving("l0.q");
  node.set_domain("com.microsoft");
  node.set_op_type("MatMulNBits");
  node.set_input(1, "model.layers.0.attn.q_proj.MatMulNBits.qweight");
  node.add_input("q.scales");
  for (const auto& [name, value] : {std::pair("K", 16), {"N", 16}, {"bits", 4}, {"block_size", 16}, {"accuracy_level", 4}}) {
    TinyOnnx::SetInt(&node, name, value);
  }
}

TEST_F(OnnxGenaiTest, MatMulNBitsIsALinearNode) {
  TinyOnnx tiny;
  QuantizeQuery(&tiny);
  const Model model = MustOpen(tiny);
  EXPECT_EQ(model.program.nodes, MustOpen(TinyOnnx()).program.nodes);
  const TensorId q = model.program.nodes[2].linear.weight;
  EXPECT_EQ(model.program.tensors[q].name, "layers.0.attn.q_proj");
  const auto values = model.tensors->Load(q);
  ASSERT_TRUE(values.ok()) << values.status().message();
  const std::string codes = tiny.Constant("model.layers.0.attn.q_proj.MatMulNBits.qweight").raw_data();
  for (size_t i = 0; i < 256; ++i) {
    const float scale = tiny.Constant("q.scales").float_data(static_cast<int>(i / 16));
    EXPECT_EQ((*values)[i], static_cast<float>(Nibble(codes, i) - 8) * scale) << i;
  }
}

TEST_F(OnnxGenaiTest, MatMulNBitsMayHaveABias) {
  TinyOnnx tiny;
  QuantizeQuery(&tiny);
  tiny.Floats("q.bias", {16});
  for (const char* name : {"", "", "q.bias"}) tiny.Giving("l0.q").add_input(name);
  const Model model = MustOpen(tiny);
  const auto bias = model.tensors->Load(model.program.nodes[2].linear.bias);
  ASSERT_TRUE(bias.ok()) << bias.status().message();
  EXPECT_EQ((*bias)[7], tiny.Constant("q.bias").float_data(7));
}

// Embedding and head read the same codes of 8 bits; the embedding through a Reshape.
TEST_F(OnnxGenaiTest, TiedQuantizedEmbeddingIsOneTensor) {
  TinyOnnx tiny;
  tiny.Codes("lm_head.MatMul.weight_Q8G16", {12, 1, 16}, 12 * 16);
  tiny.Floats("lm_head.MatMul.weight_scale", {12, 1});
  tiny.Codes("lm_head.MatMul.weight_zp", {12, 1}, 12);
  tiny.Ints("table_shape", {12, 16});
  onnx::NodeProto& gather = tiny.Giving("x0");
  gather.set_domain("com.microsoft");
  gather.set_op_type("GatherBlockQuantized");
  gather.clear_attribute();
  TinyOnnx::SetInt(&gather, "bits", 8);
  TinyOnnx::SetInt(&gather, "block_size", 16);
  gather.set_input(0, "table");
  gather.add_input("lm_head.MatMul.weight_scale");
  gather.add_input("lm_head.MatMul.weight_zp");
  onnx::NodeProto& head = tiny.Giving("logits");
  head.set_domain("com.microsoft");
  head.set_op_type("MatMulNBits");
  head.set_input(1, "lm_head.MatMul.weight_Q8G16");
  head.add_input("lm_head.MatMul.weight_scale");
  head.add_input("lm_head.MatMul.weight_zp");
  for (const auto& [name, value] : {std::pair("K", 16), {"N", 12}, {"bits", 8}, {"block_size", 16}}) {
    TinyOnnx::SetInt(&head, name, value);
  }
  tiny.Node("", "Reshape", {"lm_head.MatMul.weight_Q8G16", "table_shape"}, {"table"});
  auto* nodes = tiny.graph().mutable_node();
  for (int i = nodes->size() - 1; i > 0; --i) nodes->SwapElements(i, i - 1);
  const Model model = MustOpen(tiny);
  const TensorId table = model.program.nodes[0].embedding.table;
  EXPECT_EQ(model.program.nodes.back().linear.weight, table);
  const auto values = model.tensors->Load(table);
  ASSERT_TRUE(values.ok()) << values.status().message();
  const auto byte = [&](const char* name, int i) {
    return static_cast<uint8_t>(tiny.Constant(name).raw_data()[static_cast<size_t>(i)]);
  };
  for (int i = 0; i < 12 * 16; ++i) {
    const int code = byte("lm_head.MatMul.weight_Q8G16", i) - byte("lm_head.MatMul.weight_zp", i / 16);
    EXPECT_EQ((*values)[static_cast<size_t>(i)],
              static_cast<float>(code) * tiny.Constant("lm_head.MatMul.weight_scale").float_data(i / 16));
  }
}

// Layer 0's experts in codes of 4 bits, a scale and a zero point a row.
void QuantizeExperts(TinyOnnx* tiny) {
  tiny->Codes("fc1.codes", {3, 8, 8}, 3 * 8 * 8);
  tiny->Codes("fc2.codes", {3, 16, 2}, 3 * 16 * 2);
  tiny->Floats("fc1.scales", {3, 8});
  tiny->Floats("fc2.scales", {3, 16});
  tiny->Codes("fc1.zeros", {3, 4}, 12);
  onnx::NodeProto& moe = tiny->First("MoE");
  moe.set_op_type("QMoE");
  moe.clear_input();
  for (const char* name :
       {"l0.f", "l0.logits", "fc1.codes", "fc1.scales", "", "fc2.codes", "fc2.scales", "", "", "", "", "fc1.zeros"}) {
    moe.add_input(name);
  }
  TinyOnnx::SetInt(&moe, "expert_weight_bits", 4);
}

TEST_F(OnnxGenaiTest, QuantizedExpertsAreExperts) {
  TinyOnnx tiny;
  QuantizeExperts(&tiny);
  const Model model = MustOpen(tiny);
  EXPECT_EQ(model.program.nodes, MustOpen(TinyOnnx()).program.nodes);
  const std::string fc1 = tiny.Constant("fc1.codes").raw_data(), fc2 = tiny.Constant("fc2.codes").raw_data();
  const std::string zeros = tiny.Constant("fc1.zeros").raw_data();
  const auto up = model.tensors->LoadExpert(0, 2, ExpertMatrix::kUp),
             down = model.tensors->LoadExpert(0, 1, ExpertMatrix::kDown);
  ASSERT_TRUE(up.ok() && down.ok()) << up.status().message() << down.status().message();
  for (size_t i = 0; i < 64; ++i) {
    const size_t row = 2 * 8 + 2 * (i / 16) + 1;  // of expert 2, gate and up in turn
    const int code = Nibble(fc1, row * 16 + i % 16) - Nibble(zeros, row);
    EXPECT_EQ((*up)[i], static_cast<float>(code) * tiny.Constant("fc1.scales").float_data(static_cast<int>(row)));
    const int other = Nibble(fc2, 64 + i) - 8;
    EXPECT_EQ((*down)[i], static_cast<float>(other) * tiny.Constant("fc2.scales").float_data(static_cast<int>(16 + i / 4)));
  }
}

TEST_F(OnnxGenaiTest, BlocksOfExpertsHaveScalesOfTheirOwn) {
  TinyOnnx tiny;
  QuantizeExperts(&tiny);
  onnx::NodeProto& moe = tiny.First("QMoE");
  TinyOnnx::SetInt(&moe, "block_size", 16);
  for (const char* name : {"fc1.scales", "fc2.scales"}) tiny.Constant(name).add_dims(1);
  tiny.Codes("fc1.block_zeros", {3, 8, 1}, 24);
  moe.set_input(11, "fc1.block_zeros");
  const Model model = MustOpen(tiny);
  const auto gate = model.tensors->LoadExpert(0, 1, ExpertMatrix::kGate);
  ASSERT_TRUE(gate.ok()) << gate.status().message();
  const size_t row = 8 + 2 * 3;
  const int code = Nibble(tiny.Constant("fc1.codes").raw_data(), row * 16 + 5) -
                   Nibble(tiny.Constant("fc1.block_zeros").raw_data(), 2 * row);
  EXPECT_EQ((*gate)[3 * 16 + 5], static_cast<float>(code) * tiny.Constant("fc1.scales").float_data(static_cast<int>(row)));
}

TEST_F(OnnxGenaiTest, ClampedSwigluWithBiases) {
  TinyOnnx tiny;
  tiny.Floats("fc1.bias", {3, 8});
  onnx::NodeProto& moe = tiny.First("MoE");
  moe.set_input(3, "fc1.bias");
  TinyOnnx::SetFloat(&moe, "activation_alpha", 1.702f);
  TinyOnnx::SetFloat(&moe, "activation_beta", 1);
  TinyOnnx::SetFloat(&moe, "swiglu_limit", 7);
  const Model model = MustOpen(tiny);
  const MoeNode& node = FirstOf(model.program, NodeKind::kMoe).moe;
  EXPECT_EQ(node.activation.sigmoid_scale, 1.702f);
  EXPECT_EQ(node.activation.up_offset, 1);
  EXPECT_EQ(node.activation.limit, 7);
  const auto gate = model.tensors->Load(node.gate_bias), up = model.tensors->Load(node.up_bias),
             down = model.tensors->Load(node.down_bias);
  ASSERT_TRUE(gate.ok() && up.ok() && down.ok());
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ((*gate)[static_cast<size_t>(i)], tiny.Constant("fc1.bias").float_data(2 * i));
    EXPECT_EQ((*up)[static_cast<size_t>(i)], tiny.Constant("fc1.bias").float_data(2 * i + 1));
  }
  EXPECT_EQ(*down, std::vector<float>(3 * 16, 0.0f));
  EXPECT_EQ(model.program.tensors[node.gate_bias].role, TensorRole::kBias);
}

// The builder writes them where a device's operator wants a bias.
TEST_F(OnnxGenaiTest, BiasesOfZerosAreNone) {
  TinyOnnx tiny;
  for (const auto& [name, width] : {std::pair("fc1.bias", 8), {"fc2.bias", 16}}) {
    auto* bias = tiny.Floats(name, {3, width});
    for (float& value : *bias->mutable_float_data()) value = 0;
  }
  tiny.First("MoE").set_input(3, "fc1.bias");
  tiny.First("MoE").add_input("fc2.bias");
  EXPECT_EQ(MustOpen(tiny).program, MustOpen(TinyOnnx()).program);
}

TEST_F(OnnxGenaiTest, HeadSinks) {
  TinyOnnx tiny;
  tiny.Floats("sinks", {2});
  for (const char* name : {"", "", "sinks"}) tiny.First("GroupQueryAttention").add_input(name);
  const Model model = MustOpen(tiny);
  const TensorId sinks = FirstOf(model.program, NodeKind::kAttention).attention.sinks;
  ASSERT_NE(sinks, kNone);
  EXPECT_EQ(model.tensors->Load(sinks)->at(1), tiny.Constant("sinks").float_data(1));
}

TEST_F(OnnxGenaiTest, RotationsInNodesOfTheirOwn) {
  const Program inside = MustOpen(TinyOnnx()).program;
  for (const auto rotary : {TinyOnnx::Options::Rotary::kContrib, TinyOnnx::Options::Rotary::kStandard}) {
    TinyOnnx::Options options;
    options.rotary = rotary;
    EXPECT_EQ(MustOpen(TinyOnnx(options)).program, inside);
  }
  TinyOnnx::Options options;
  options.rotary = TinyOnnx::Options::Rotary::kContrib;
  TinyOnnx computed(options);
  computed.First("RotaryEmbedding").set_input(1, "l0.q");
  ExpectRefused(computed, ErrorCode::kUnsupported, "positions must be");
  TinyOnnx scaled(options);
  TinyOnnx::SetFloat(&scaled.First("RotaryEmbedding"), "scale", 2);
  ExpectRefused(scaled, ErrorCode::kUnsupported, "scale");
  TinyOnnx wide(options);
  TinyOnnx::SetInt(&wide.First("RotaryEmbedding"), "num_heads", 4);
  ExpectRefused(wide, ErrorCode::kShape, "heads as wide as the caches");
}

TEST_F(OnnxGenaiTest, SkipNormsWithABiasOrACentre) {
  TinyOnnx::Options options;
  options.skip_norm = true;
  TinyOnnx biased(options);
  biased.Floats("o.bias", {16});
  biased.First("SkipSimplifiedLayerNormalization").add_input("o.bias");
  const Model model = MustOpen(biased);
  EXPECT_EQ(model.program.nodes[8].kind, NodeKind::kLinear);
  EXPECT_EQ(model.tensors->Load(model.program.nodes[8].linear.bias)->at(3), biased.Constant("o.bias").float_data(3));

  TinyOnnx centred(options);
  onnx::NodeProto& norm = centred.First("SkipSimplifiedLayerNormalization");
  norm.set_op_type("SkipLayerNormalization");
  norm.add_input("l1.in.weight");
  const Program program = MustOpen(centred).program;
  EXPECT_EQ(program.nodes[10].norm.kind, NormKind::kLayer);
  EXPECT_NE(program.nodes[10].norm.bias, kNone);

  TinyOnnx nowhere(options);  // the second sum is of a sum and a MoE's result
  nowhere.Floats("bias", {16});
  nowhere.Giving("l1.a").add_input("bias");
  ExpectRefused(nowhere, ErrorCode::kUnsupported, "a bias");
}

TEST_F(OnnxGenaiTest, RefusesByName) {
  const auto with = [&](ErrorCode code, const std::string& part, auto prepare, auto change) {
    TinyOnnx tiny;
    prepare(&tiny);
    change(tiny);
    ExpectRefused(tiny, code, part);
  };
  const auto unsupported = ErrorCode::kUnsupported, shape = ErrorCode::kShape, bad = ErrorCode::kBadInput;
  const auto query = [](TinyOnnx& t) -> onnx::NodeProto& { return t.Giving("l0.q"); };
  with(unsupported, "must be 2, 4 or 8", QuantizeQuery, [&](TinyOnnx& t) { TinyOnnx::SetInt(&query(t), "bits", 3); });
  with(unsupported, "power of two", QuantizeQuery, [&](TinyOnnx& t) { TinyOnnx::SetInt(&query(t), "block_size", 17); });
  with(unsupported, "power of two", QuantizeQuery,
       [&](TinyOnnx& t) { TinyOnnx::SetInt(&query(t), "block_size", int64_t{1} << 62); });
  with(bad, "must be positive", QuantizeQuery, [&](TinyOnnx& t) { TinyOnnx::SetInt(&query(t), "block_size", 0); });
  with(bad, "must be positive", QuantizeQuery, [&](TinyOnnx& t) { TinyOnnx::SetInt(&query(t), "K", -16); });
  with(shape, "bytes of codes", QuantizeQuery, [&](TinyOnnx& t) { TinyOnnx::SetInt(&query(t), "N", 17); });
  with(shape, "takes 17 columns", QuantizeQuery, [&](TinyOnnx& t) {
    TinyOnnx::SetInt(&query(t), "K", 17);
    t.Codes("codes17", {16, 2, 8}, 256);
    t.Floats("scales17", {32});
    query(t).set_input(1, "codes17");
    query(t).set_input(2, "scales17");
  });
  with(unsupported, "weight_prepacked", QuantizeQuery,
       [&](TinyOnnx& t) { TinyOnnx::SetInt(&query(t), "weight_prepacked", 1); });
  with(unsupported, "group index", QuantizeQuery, [&](TinyOnnx& t) {
    query(t).add_input("");
    query(t).add_input("one");
  });
  with(unsupported, "must be a constant", QuantizeQuery, [&](TinyOnnx& t) { query(t).set_input(1, "l0.a"); });
  const auto moe = [](TinyOnnx& t) -> onnx::NodeProto& { return t.First("QMoE"); };
  with(unsupported, "must be 2, 4 or 8", QuantizeExperts,
       [&](TinyOnnx& t) { TinyOnnx::SetInt(&moe(t), "expert_weight_bits", 5); });
  with(unsupported, "quant_type 'fp4'", QuantizeExperts,
       [&](TinyOnnx& t) { TinyOnnx::SetText(&moe(t), "quant_type", "fp4"); });
  with(unsupported, "weights_prepacked", QuantizeExperts,
       [&](TinyOnnx& t) { TinyOnnx::SetInt(&moe(t), "weights_prepacked", 1); });
  with(unsupported, "use_sparse_mixer", QuantizeExperts,
       [&](TinyOnnx& t) { TinyOnnx::SetInt(&moe(t), "use_sparse_mixer", 1); });
  with(unsupported, "input 14", QuantizeExperts, [&](TinyOnnx& t) {
    for (const char* name : {"", "", "l0.logits"}) moe(t).add_input(name);
  });
  with(shape, "24 scales", QuantizeExperts, [&](TinyOnnx& t) { moe(t).set_input(3, "fc2.scales"); });
  with(shape, "fc1 must be", QuantizeExperts, [&](TinyOnnx& t) {
    TinyOnnx::SetInt(&moe(t), "swiglu_fusion", 0), moe(t).set_input(8, "fc1.codes"), moe(t).set_input(9, "fc1.scales");
  });
  with(shape, "stripped", QuantizeExperts, [&](TinyOnnx& t) {
    t.Codes("two.fc1", {2, 8, 8}, 128);
    t.Codes("two.fc2", {2, 16, 2}, 64);
    t.Floats("two.scales1", {2, 8});
    t.Floats("two.scales2", {2, 16});
    moe(t).set_input(2, "two.fc1"), moe(t).set_input(3, "two.scales1");
    moe(t).set_input(5, "two.fc2"), moe(t).set_input(6, "two.scales2"), moe(t).set_input(11, "");
  });
}

TEST_F(OnnxGenaiTest, FolderIsOpenedByItsConfig) {
  const Program plain = MustOpen(TinyOnnx()).program;
  folder_.Write("genai_config.json", R"({"model": {"context_length": 20, "decoder": {"filename": "model.onnx"}}})");
  OpenOptions options;
  options.digests = true;
  const auto model = OpenModel(PosixEnv(), folder_.path(), options);
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->source, ModelSource::kOnnx);
  EXPECT_EQ(model->program.nodes, plain.nodes);
  EXPECT_EQ(model->program.max_positions, 20u);
  ASSERT_EQ(model->input_digests.size(), 2u);
  EXPECT_EQ(model->input_digests[1].first, "genai_config.json");
  EXPECT_EQ(OnnxPath(PosixEnv(), folder_.path()).value(), folder_.At("model.onnx"));
  folder_.Write("genai_config.json", R"({"model": {"context_length": 20, "decoder": {"filename": "other.onnx"}}})");
  EXPECT_EQ(OpenModel(PosixEnv(), folder_.At("model.onnx"))->program.max_positions, 32u) << "it speaks of another graph";
}

// Without caches of rotations the graph does not say how long sequences may be.
TEST_F(OnnxGenaiTest, ContextLengthStandsInForCaches) {
  TinyOnnx tiny;
  for (onnx::NodeProto& node : *tiny.graph().mutable_node()) {
    if (node.op_type() == "GroupQueryAttention") TinyOnnx::SetInt(&node, "do_rotary", 0);
  }
  EXPECT_THAT(Open(tiny).status().message(), HasSubstr("genai_config.json"));
  folder_.Write("genai_config.json", R"({"model": {"context_length": 77, "decoder": {"filename": "model.onnx"}}})");
  EXPECT_EQ(MustOpen(tiny).program.max_positions, 77u);
}

TEST_F(OnnxGenaiTest, RefusesConfigsThatNameNoGraph) {
  MustOpen(TinyOnnx());
  const auto with = [&](const std::string& text, ErrorCode code, const std::string& part) {
    folder_.Write("genai_config.json", text);
    const auto model = OpenModel(PosixEnv(), folder_.path());
    EXPECT_EQ(model.status().code(), code) << model.status().message();
    EXPECT_THAT(model.status().message(), HasSubstr(part));
  };
  const auto bad = ErrorCode::kBadInput;
  with("{}", bad, "model.decoder.filename");
  with("[1]", bad, "model.decoder.filename");
  with(R"({"model": {"decoder": {"filename": 3}}})", bad, "model.decoder.filename");
  with(R"({"model": {"decoder": {"filename": "model.onnx"}, "context_length": 0}})", bad, "context_length");
  with(R"({"model": {"decoder": {"filename": "model.onnx"}, "context_length": -4}})", bad, "context_length");
  with(R"({"model": {"decoder": {"filename": "none.onnx"}}})", ErrorCode::kNotFound, "none.onnx");
  for (const char* name : {"../model.onnx", "/etc/passwd", "a/../model.onnx", ""}) {
    with(R"({"model": {"decoder": {"filename": ")" + std::string(name) + "\"}}}", ErrorCode::kUnsafePath, "external data");
  }
}

}  // namespace
}  // namespace moepack
