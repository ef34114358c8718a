#include "model/frontend/huggingface.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/digest/sha256.h"
#include "format/manifest/program_wire.h"
#include "model/model_testing.h"
#include "tokenizer/tokenizer.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;

constexpr const char* kGoldenFamilies[] = {"qwen2_moe",  "qwen3_moe",   "olmoe",   "mixtral",
                                           "granitemoe", "deepseek_v2", "gpt_oss", "llama4"};

constexpr const char* kAllFamilies[] = {"qwen2_moe",   "qwen3_moe", "olmoe",       "mixtral",     "granitemoe",
                                        "deepseek_v2", "gpt_oss",   "llama4",      "deepseek_v3", "glm4_moe",
                                        "lfm2_moe",    "phimoe",    "ernie4_5_moe"};

std::string GoldenFolder(const std::string& family) { return "tests/golden/" + family; }

TensorId IdOf(const Program& program, const std::string& name) {
  for (size_t i = 0; i < program.tensors.size(); ++i) {
    if (program.tensors[i].name == name) return static_cast<TensorId>(i);
  }
  ADD_FAILURE() << "no tensor " << name;
  return kNone;
}

const Node& FirstOf(const Program& program, NodeKind kind) {
  for (const Node& node : program.nodes) {
    if (node.kind == kind) return node;
  }
  ADD_FAILURE() << "no such node";
  return program.nodes[0];
}

// A checkpoint, changed, written and opened.
class Changed {
 public:
  explicit Changed(const std::string& family) : checkpoint(Checkpoint::Read(GoldenFolder(family))) {}
  Result<Model> Open(const OpenOptions& options = {}) {
    checkpoint.WriteTo(folder_);
    return OpenHuggingFace(PosixEnv(), folder_.path(), options);
  }
  void ExpectRefused(ErrorCode code, const std::string& part, const OpenOptions& options = {}) {
    const Result<Model> model = Open(options);
    ASSERT_FALSE(model.ok());
    EXPECT_EQ(model.status().code(), code) << model.status().message();
    EXPECT_THAT(model.status().message(), HasSubstr(part));
  }
  Program OpenProgram() {
    Result<Model> model = Open();
    EXPECT_TRUE(model.ok()) << model.status().message();
    return model.ok() ? std::move(model->program) : Program();
  }
  Checkpoint checkpoint;

 private:
  TempFolder folder_;
};

TEST(HuggingFace, OpensWren) {
  const Result<Model> model = OpenHuggingFace(PosixEnv(), SourcePath("examples/wren/model"), {.digests = true});
  ASSERT_TRUE(model.ok()) << model.status().message();
  const Program& program = model->program;
  EXPECT_EQ(model->family, "qwen2_moe");
  EXPECT_EQ(program.original_parameters, 16274688u);
  EXPECT_EQ(CountParameters(program), 16274688u);
  EXPECT_EQ(program.max_positions, 1024u);
  EXPECT_EQ(program.blocks(), 6);
  EXPECT_EQ(program.expert_tables.size(), 4u);
  EXPECT_EQ(program.expert_tables[3].experts(), 16u);
  EXPECT_EQ(program.values[program.output].width, 4096u);
  const auto tokenizer = Tokenizer::Parse(model->tokenizer);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_TRUE((*tokenizer)->IsEndOfText(4093));
  ASSERT_EQ(model->input_digests.size(), 5u);
  EXPECT_EQ(model->input_digests[0].first, "config.json");
  EXPECT_EQ(model->input_digests[0].second, ToHex(Sha256(ReadAll(SourcePath("examples/wren/model/config.json")))));
}

TEST(HuggingFace, LoadsEveryWeightOfTheGoldens) {
  for (const std::string family : kGoldenFamilies) {
    const Result<Model> model = OpenHuggingFace(PosixEnv(), SourcePath(GoldenFolder(family)), {});
    ASSERT_TRUE(model.ok()) << model.status().message();
    EXPECT_EQ(model->family, family == "llama4" ? "llama4_text" : family);
    EXPECT_TRUE(model->tokenizer.empty());
    uint64_t loaded = 0;
    for (TensorId id = 0; id < model->program.tensors.size(); ++id) {
      const auto values = model->tensors->Load(id);
      ASSERT_TRUE(values.ok()) << values.status().message();
      loaded += values->size();
      EXPECT_EQ(model->tensors->StoredCodec(id).Name(), "bf16");
    }
    for (uint32_t t = 0; t < model->program.expert_tables.size(); ++t) {
      for (uint32_t e = 0; e < model->program.expert_tables[t].experts(); ++e) {
        for (int m = 0; m < kExpertMatrices; ++m)
          loaded += model->tensors->LoadExpert(t, e, static_cast<ExpertMatrix>(m))->size();
      }
    }
    EXPECT_EQ(loaded, model->program.original_parameters);
  }
}

TEST(HuggingFace, TensorsComeFromTheirNames) {
  const Result<Model> model = OpenHuggingFace(PosixEnv(), SourcePath(GoldenFolder("mixtral")), {});
  ASSERT_TRUE(model.ok()) << model.status().message();
  auto file = SafetensorsFile::Open(PosixEnv(), SourcePath("tests/golden/mixtral/model.safetensors"));
  ASSERT_TRUE(file.ok());
  const auto direct = [&](const char* name) { return (*file)->LoadFloats(*(*file)->Find(name)).value(); };
  const Program& p = model->program;
  EXPECT_EQ(model->tensors->LoadExpert(1, 5, ExpertMatrix::kGate).value(),
            direct("model.layers.1.block_sparse_moe.experts.5.w1.weight"));
  EXPECT_EQ(model->tensors->LoadExpert(1, 5, ExpertMatrix::kUp).value(),
            direct("model.layers.1.block_sparse_moe.experts.5.w3.weight"));
  EXPECT_EQ(model->tensors->LoadExpert(1, 5, ExpertMatrix::kDown).value(),
            direct("model.layers.1.block_sparse_moe.experts.5.w2.weight"));
  EXPECT_EQ(model->tensors->Load(IdOf(p, "layers.2.router")).value(), direct("model.layers.2.block_sparse_moe.gate.weight"));
  EXPECT_EQ(p.tensors[IdOf(p, "layers.2.router")].role, TensorRole::kRouter);
  EXPECT_EQ(p.tensors[IdOf(p, "layers.2.router")].layer, 2);
  EXPECT_EQ(model->tensors->Load(IdOf(p, "norm")).value(), direct("model.norm.weight"));
  EXPECT_EQ(model->tensors->Load(IdOf(p, "lm_head")).value(), direct("lm_head.weight"));
}

TEST(HuggingFace, RoutingIsData) {
  const auto routing = [](const char* family) { return FirstOf(Changed(family).OpenProgram(), NodeKind::kMoe).moe.routing; };
  EXPECT_TRUE(routing("mixtral").renormalise);
  EXPECT_FALSE(routing("olmoe").renormalise);
  EXPECT_FALSE(routing("qwen2_moe").renormalise);
  EXPECT_TRUE(routing("qwen3_moe").renormalise);
  Changed flipped("qwen2_moe");
  flipped.checkpoint.config["norm_topk_prob"] = true;
  flipped.checkpoint.config["num_experts_per_tok"] = 3;
  const RoutingRecord record = FirstOf(flipped.OpenProgram(), NodeKind::kMoe).moe.routing;
  EXPECT_TRUE(record.renormalise);
  EXPECT_TRUE(record.score_before_topk);
  EXPECT_EQ(record.k, 3u);
}

TEST(HuggingFace, ShardsGiveTheSameModel) {
  const Checkpoint whole = Checkpoint::Read(GoldenFolder("olmoe"));
  TempFolder folder;
  folder.Write("config.json", whole.config.dump());
  std::map<std::string, Checkpoint::Tensor> shards[2];
  nlohmann::json index;
  size_t i = 0;
  for (const auto& [name, tensor] : whole.tensors) {
    shards[i % 2][name] = tensor;
    index["weight_map"][name] = i++ % 2 == 0 ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  Checkpoint::WriteShard(folder, "model-00001-of-00002.safetensors", shards[0]);
  Checkpoint::WriteShard(folder, "model-00002-of-00002.safetensors", shards[1]);
  folder.Write("model.safetensors.index.json", index.dump());
  const auto sharded = OpenHuggingFace(PosixEnv(), folder.path(), {}),
             single = OpenHuggingFace(PosixEnv(), SourcePath(GoldenFolder("olmoe")), {});
  ASSERT_TRUE(sharded.ok()) << sharded.status().message();
  EXPECT_EQ(sharded->program, single->program);
  EXPECT_EQ(sharded->tensors->LoadExpert(2, 7, ExpertMatrix::kDown).value(),
            single->tensors->LoadExpert(2, 7, ExpertMatrix::kDown).value());
}

TEST(HuggingFace, UnknownKeysAreRefusedByNameInEveryFamily) {
  for (const char* family : kAllFamilies) {
    Changed changed(family);
    changed.checkpoint.config["mystery_multiplier"] = 0.5;
    changed.ExpectRefused(ErrorCode::kUnknownKey, "key 'mystery_multiplier'");
  }
}

TEST(HuggingFace, AcceptedKeysChangeNothingAndAreKept) {
  for (const char* family : kAllFamilies) {
    Changed changed(family);
    const Program before = changed.OpenProgram();
    changed.checkpoint.config["mystery_multiplier"] = 0.5;
    changed.checkpoint.config["another"] = true;
    const Result<Model> model = changed.Open({.accept_keys = {"mystery_multiplier", "another", "mystery_multiplier"}});
    ASSERT_TRUE(model.ok()) << model.status().message();
    EXPECT_EQ(model->program, before) << family;
    EXPECT_EQ(model->accepted_keys, (std::vector<std::string>{"another", "mystery_multiplier"}));
    changed.ExpectRefused(ErrorCode::kUnknownKey, "key 'another'", {.accept_keys = {"mystery_multiplier"}});
  }
}

TEST(HuggingFace, AcceptedKeysInsideAnObjectAreNamedWithIt) {
  Changed changed("phimoe");
  changed.checkpoint.config["rope_scaling"]["twist"] = 1;
  changed.ExpectRefused(ErrorCode::kUnknownKey, "--accept-key rope_scaling.twist");
  changed.ExpectRefused(ErrorCode::kUnknownKey, "key 'twist'", {.accept_keys = {"twist"}});
  EXPECT_TRUE(changed.Open({.accept_keys = {"rope_scaling.twist"}}).ok());
}

// A key that is honoured cannot be switched off, and one that is not there is a slip of the pen.
TEST(HuggingFace, OnlyKeysThatWouldBeRefusedCanBeAccepted) {
  for (const char* key : {"rms_norm_eps", "torch_dtype", "not_there", ""}) {
    Changed("olmoe").ExpectRefused(ErrorCode::kUsage, std::string("--accept-key ") + key, {.accept_keys = {key}});
  }
}

TEST(HuggingFace, ProgramsOfEveryFamilySurviveTheWire) {
  for (const char* family : kAllFamilies) {
    const Program program = Changed(family).OpenProgram();
    const Result<Program> read = ParseProgram(SerializeProgram(program));
    ASSERT_TRUE(read.ok()) << family << ": " << read.status().message();
    EXPECT_EQ(*read, program) << family;
  }
}

// The published layout: the text part below text_config and language_model, beside a part for images.
TEST(HuggingFace, TheTextPartOfAWholeLlama4IsTheSameProgram) {
  Changed text("llama4"), whole("llama4");
  nlohmann::json config = {
      {"model_type", "llama4"}, {"text_config", whole.checkpoint.config}, {"vision_config", {{"hidden_size", 8}}}};
  whole.checkpoint.config = config;
  std::map<std::string, Checkpoint::Tensor> renamed;
  for (auto& [name, tensor] : whole.checkpoint.tensors) renamed["language_model." + name] = std::move(tensor);
  renamed["vision_model.patch_embedding.linear.weight"] = {Dtype::kBf16, {8, 8}, Bytes(128)};
  whole.checkpoint.tensors = std::move(renamed);
  EXPECT_EQ(whole.OpenProgram(), text.OpenProgram());
  whole.checkpoint.config["text_config"]["mystery_scale"] = 2;
  whole.ExpectRefused(ErrorCode::kUnknownKey, "text_config: key 'mystery_scale'");
}

TEST(HuggingFace, StackedWeightsAreTheRowsAndColumnsOfTheirExpert) {
  const auto at = [](const std::vector<float>& stack, uint64_t i) { return stack[i]; };
  const auto open = [](const char* family) { return Changed(family).Open().value(); };
  const auto floats = [](const char* family, const char* name) {
    auto file = SafetensorsFile::Open(PosixEnv(), SourcePath(GoldenFolder(family) + "/model.safetensors"));
    return (*file)->LoadFloats(*(*file)->Find(name)).value();
  };
  // [E, 2I, H], gate first: E 8, I 48, H 64.
  const std::vector<float> granite = floats("granitemoe", "model.layers.0.block_sparse_moe.input_linear.weight");
  const std::vector<float> up = open("granitemoe").tensors->LoadExpert(0, 3, ExpertMatrix::kUp).value();
  EXPECT_EQ(up[5 * 64 + 7], at(granite, (3 * 96 + 48 + 5) * 64 + 7));
  // [E, H, 2I], transposed.
  const std::vector<float> llama = floats("llama4", "model.layers.1.feed_forward.experts.gate_up_proj");
  const std::vector<float> gate = open("llama4").tensors->LoadExpert(0, 3, ExpertMatrix::kGate).value();
  EXPECT_EQ(gate[5 * 64 + 7], at(llama, (3 * 64 + 7) * 96 + 5));
}

TEST(HuggingFace, AKeyOfAnotherFamilyIsUnknown) {
  Changed changed("mixtral");
  changed.checkpoint.config["clip_qkv"] = 8;
  changed.ExpectRefused(ErrorCode::kUnknownKey, "key 'clip_qkv'");
}

TEST(HuggingFace, UnknownFamiliesAreNamedWithTheSupportedOnes) {
  Changed changed("olmoe");
  changed.checkpoint.config["model_type"] = "jamba";
  changed.ExpectRefused(ErrorCode::kUnknownFamily, "'jamba' is not supported (supported: deepseek_v2, ");
}

TEST(HuggingFace, ConfigValuesAreChecked) {
  const auto refused = [](const char* key, nlohmann::json value, ErrorCode code, const char* part) {
    Changed changed("qwen3_moe");
    changed.checkpoint.config[key] = std::move(value);
    changed.ExpectRefused(code, part);
  };
  refused("hidden_act", "gelu", ErrorCode::kUnsupported, "hidden_act: 'gelu' is not supported");
  refused("hidden_size", -1, ErrorCode::kBadInput, "hidden_size: must be a whole number");
  refused("hidden_size", 1ull << 40, ErrorCode::kBadInput, "hidden_size: must be a whole number");
  refused("num_experts_per_tok", 9, ErrorCode::kBadInput, "num_experts_per_tok: must be a whole number from 1 to 8");
  refused("num_key_value_heads", 3, ErrorCode::kBadInput, "does not divide");
  refused("rms_norm_eps", "1e-6", ErrorCode::kBadInput, "rms_norm_eps: must be a finite number");
  refused("rope_scaling", {{"type", "ntk"}, {"factor", 4.0}}, ErrorCode::kUnsupported, "'ntk' is not supported");
  refused("num_hidden_layers", nullptr, ErrorCode::kBadInput, "num_hidden_layers: missing");
  refused("norm_topk_prob", 1, ErrorCode::kBadInput, "norm_topk_prob: must be true or false");
}

TEST(HuggingFace, AMissingTensorIsNamed) {
  Changed changed("qwen2_moe");
  changed.checkpoint.tensors.erase("model.layers.1.self_attn.k_proj.bias");
  changed.ExpectRefused(ErrorCode::kMissingTensor, "lacks tensor model.layers.1.self_attn.k_proj.bias");
}

TEST(HuggingFace, AnExtraTensorIsNamed) {
  Changed changed("mixtral");
  changed.checkpoint.tensors["model.layers.0.self_attn.q_proj.bias"] = {Dtype::kBf16, {64}, Bytes(128)};
  changed.ExpectRefused(ErrorCode::kBadInput, "tensor model.layers.0.self_attn.q_proj.bias is not part of the model");
}

TEST(HuggingFace, AWrongShapeIsNamedWithBothShapes) {
  Changed changed("olmoe");
  changed.checkpoint.tensors["model.layers.0.mlp.experts.3.up_proj.weight"].shape = {64, 48};
  changed.ExpectRefused(ErrorCode::kShape,
                        "experts.3.up_proj.weight has shape [64, 48], the configuration implies [48, 64]");
}

TEST(HuggingFace, ANanIsFoundWhenTheTensorIsLoaded) {
  Changed changed("olmoe");
  Bytes& data = changed.checkpoint.tensors["model.layers.1.mlp.gate.weight"].data;
  data[2 * 77] = 0xc0;
  data[2 * 77 + 1] = 0x7f;
  const Result<Model> model = changed.Open();
  ASSERT_TRUE(model.ok()) << model.status().message();
  const auto values = model->tensors->Load(IdOf(model->program, "layers.1.router"));
  EXPECT_EQ(values.status().code(), ErrorCode::kNotFinite);
  EXPECT_THAT(values.status().message(), HasSubstr("model.layers.1.mlp.gate.weight, value 77 is NaN"));
}

TEST(HuggingFace, ATiedHeadReadsTheEmbedding) {
  Changed changed("olmoe");
  changed.checkpoint.config["tie_word_embeddings"] = true;
  changed.ExpectRefused(ErrorCode::kBadInput, "differs from the embedding");
  changed.checkpoint.tensors.erase("lm_head.weight");
  const Program program = changed.OpenProgram();
  EXPECT_EQ(program.nodes.back().linear.weight, program.nodes.front().embedding.table);
  EXPECT_EQ(program.original_parameters, Changed("olmoe").OpenProgram().original_parameters - 320 * 64);
}

TEST(HuggingFace, SlidingWindowIsActiveOnlyWhereTheConfigSaysSo) {
  const auto windows = [](const Program& program) {
    std::vector<uint32_t> out;
    for (const Node& node : program.nodes) {
      if (node.kind == NodeKind::kAttention) out.push_back(node.attention.window);
    }
    return out;
  };
  Changed changed("qwen2_moe");
  changed.checkpoint.config["sliding_window"] = 7;
  EXPECT_THAT(windows(changed.OpenProgram()), ::testing::ElementsAre(0, 0, 0));
  changed.checkpoint.config["use_sliding_window"] = true;
  changed.checkpoint.config["max_window_layers"] = 2;
  EXPECT_THAT(windows(changed.OpenProgram()), ::testing::ElementsAre(0, 0, 7));
  changed.checkpoint.config["layer_types"] = {"sliding_attention", "full_attention", "full_attention"};
  EXPECT_THAT(windows(changed.OpenProgram()), ::testing::ElementsAre(7, 0, 0));
  Changed mixtral("mixtral");
  mixtral.checkpoint.config["sliding_window"] = 5;
  EXPECT_THAT(windows(mixtral.OpenProgram()), ::testing::ElementsAre(5, 5, 5));
}

TEST(HuggingFace, DenseLayersTakeTheirOwnTensors) {
  Changed changed("qwen3_moe");
  changed.checkpoint.config["mlp_only_layers"] = {1};
  auto& tensors = changed.checkpoint.tensors;
  std::erase_if(tensors, [](const auto& item) { return item.first.find("model.layers.1.mlp.") == 0; });
  changed.ExpectRefused(ErrorCode::kMissingTensor, "model.layers.1.mlp.gate_proj.weight");
  tensors["model.layers.1.mlp.gate_proj.weight"] = {Dtype::kBf16, {128, 64}, Bytes(2 * 128 * 64)};
  tensors["model.layers.1.mlp.up_proj.weight"] = {Dtype::kBf16, {128, 64}, Bytes(2 * 128 * 64)};
  tensors["model.layers.1.mlp.down_proj.weight"] = {Dtype::kBf16, {64, 128}, Bytes(2 * 128 * 64)};
  const Program program = changed.OpenProgram();
  EXPECT_EQ(program.expert_tables.size(), 2u);
  EXPECT_EQ(program.expert_tables[1].layer, 2);
  EXPECT_EQ(program.tensors[IdOf(program, "layers.1.mlp.down_proj")].role, TensorRole::kDenseFfn);
}

TEST(HuggingFace, RotaryFrequenciesFollowBaseAndLinearScaling) {
  Changed changed("qwen3_moe");
  const std::vector<float> plain = FirstOf(changed.OpenProgram(), NodeKind::kRotary).rotary.inv_freq;
  ASSERT_EQ(plain.size(), 16u);
  EXPECT_EQ(plain[0], 1.0f);
  EXPECT_NEAR(plain[8], 0.01f, 1e-9);  // 10000^(-16/32)
  changed.checkpoint.config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 4.0}};
  EXPECT_EQ(FirstOf(changed.OpenProgram(), NodeKind::kRotary).rotary.inv_freq[0], 0.25f);
  changed.checkpoint.config.erase("rope_scaling");
  changed.checkpoint.config.erase("rope_theta");
  changed.checkpoint.config["rope_parameters"] = {{"rope_theta", 10000.0}, {"rope_type", "default"}};
  EXPECT_EQ(FirstOf(changed.OpenProgram(), NodeKind::kRotary).rotary.inv_freq, plain);
}

TEST(HuggingFace, ClipAndNormsFollowTheFamily) {
  Changed changed("olmoe");
  changed.checkpoint.config["clip_qkv"] = 6.5;
  const Node clamp = FirstOf(changed.OpenProgram(), NodeKind::kElementwise);
  EXPECT_EQ(clamp.elementwise.op, ElementOp::kClamp);
  EXPECT_EQ(clamp.elementwise.alpha, 6.5f);
  const auto q_norm_group = [](const char* family) {
    const Program program = Changed(family).OpenProgram();
    return program.tensors[IdOf(program, "layers.0.q_norm")].cols;
  };
  EXPECT_EQ(q_norm_group("olmoe"), 64u);
  EXPECT_EQ(q_norm_group("qwen3_moe"), 32u);
}

TEST(HuggingFace, ATokenizerLargerThanTheVocabularyIsRefused) {
  Changed changed("qwen2_moe");
  TempFolder folder;
  changed.checkpoint.WriteTo(folder);
  folder.Write("tokenizer.json", ReadAll(SourcePath("examples/wren/model/tokenizer.json")));
  const Result<Model> model = OpenHuggingFace(PosixEnv(), folder.path(), {});
  EXPECT_EQ(model.status().code(), ErrorCode::kTokenizer) << model.status().message();
}

TEST(HuggingFace, AConfigAloneGivesTheProgramOnly) {
  const auto alone = OpenConfigOnly(PosixEnv(), SourcePath("examples/wren/model/config.json"), {});
  ASSERT_TRUE(alone.ok()) << alone.status().message();
  EXPECT_EQ(alone->source, ModelSource::kConfigOnly);
  EXPECT_EQ(alone->tensors, nullptr);
  EXPECT_EQ(alone->program, OpenHuggingFace(PosixEnv(), SourcePath("examples/wren/model"), {})->program);
}

}  // namespace
}  // namespace moepack
