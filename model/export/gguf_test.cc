#include "model/export/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "model/frontend/huggingface.h"
#include "model/model_testing.h"
#include "tokenizer/tokenizer_blob.h"

namespace moepack {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A second reader of the format, written from its description: every key as text, every tensor's place.
class GgufFile {
 public:
  struct Tensor {
    std::vector<uint64_t> dims;
    uint32_t type = 0;
    uint64_t offset = 0;
  };

  explicit GgufFile(Bytes bytes) : bytes_(std::move(bytes)), reader_(bytes_) {
    EXPECT_EQ(AsText(reader_.Take(4)), "GGUF");
    EXPECT_EQ(reader_.U32(), 3u);
    const uint64_t tensors = reader_.U64(), keys = reader_.U64();
    for (uint64_t i = 0; i < keys && reader_.ok(); ++i) {
      const std::string key = String();
      values_[key] = Value(reader_.U32());
    }
    for (uint64_t i = 0; i < tensors && reader_.ok(); ++i) {
      Tensor& tensor = tensors_[String()];
      tensor.dims.resize(reader_.U32());
      for (uint64_t& d : tensor.dims) d = reader_.U64();
      tensor.type = reader_.U32();
      tensor.offset = reader_.U64();
    }
    EXPECT_TRUE(reader_.ok());
    data_ = (reader_.offset() + 31) / 32 * 32;
  }

  const std::string& value(const std::string& key) const { return values_.at(key)[0]; }
  const std::vector<std::string>& list(const std::string& key) const { return values_.at(key); }
  bool Has(const std::string& key) const { return values_.count(key) != 0; }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  size_t size() const { return bytes_.size(); }
  uint64_t data() const { return data_; }

  std::vector<float> Floats(const std::string& name) const {
    const Tensor& tensor = tensors_.at(name);
    uint64_t count = 1;
    for (uint64_t d : tensor.dims) count *= d;
    ByteReader reader(ByteSpan(bytes_).subspan(data_ + tensor.offset));
    std::vector<float> out(count);
    if (tensor.type >= 2 && tensor.type <= 8) {
      EXPECT_EQ(tensor.dims[0] % 32, 0u) << name;
      for (uint64_t begin = 0; begin < count; begin += 32) Block(tensor.type, &reader, &out[begin]);
      EXPECT_TRUE(reader.ok()) << name;
      return out;
    }
    for (float& value : out) {
      if (tensor.type == 30) {
        value = Bf16ToF32(reader.U16());
      } else if (tensor.type == 1) {
        value = F16ToF32(reader.U16());
      } else {
        const uint32_t bits = reader.U32();
        std::memcpy(&value, &bits, 4);
      }
    }
    EXPECT_TRUE(reader.ok()) << name;
    return out;
  }

 private:
  // Q4_0 2, Q4_1 3, Q5_0 6, Q5_1 7, Q8_0 8.
  static void Block(uint32_t type, ByteReader* reader, float* out) {
    const float d = F16ToF32(reader->U16()), m = type == 3 || type == 7 ? F16ToF32(reader->U16()) : 0.0f;
    if (type == 8) {
      for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(reader->U8()));
      return;
    }
    const uint32_t high = type >= 6 ? reader->U32() : 0;
    for (int i = 0; i < 16; ++i) {
      const uint8_t pair = reader->U8();
      const int codes[2] = {(pair & 15) + static_cast<int>((high >> i & 1) << 4),
                            (pair >> 4) + static_cast<int>((high >> (i + 16) & 1) << 4)};
      const int middle = type == 2 ? 8 : type == 6 ? 16 : 0;
      for (int half = 0; half < 2; ++half) out[i + 16 * half] = d * static_cast<float>(codes[half] - middle) + m;
    }
  }
  std::string String() { return std::string(AsText(reader_.Take(reader_.U64()))); }
  std::vector<std::string> Value(uint32_t type) {
    if (type == 4 || type == 5) return {std::to_string(reader_.U32())};
    if (type == 7) return {reader_.U8() ? "true" : "false"};
    if (type == 8) return {String()};
    if (type == 6) {
      const uint32_t bits = reader_.U32();
      float value;
      std::memcpy(&value, &bits, 4);
      return {StrFormat("%g", static_cast<double>(value))};
    }
    EXPECT_EQ(type, 9u);
    const uint32_t element = reader_.U32();
    std::vector<std::string> out;
    for (uint64_t n = reader_.U64(); n > 0 && reader_.ok(); --n) out.push_back(Value(element)[0]);
    return out;
  }

  Bytes bytes_;
  ByteReader reader_;
  std::map<std::string, std::vector<std::string>> values_;
  std::map<std::string, Tensor> tensors_;
  uint64_t data_ = 0;
};

Model Open(const std::string& folder) {
  Result<Model> model = OpenHuggingFace(PosixEnv(), SourcePath(folder), {});
  EXPECT_TRUE(model.ok()) << model.status().message();
  return std::move(*model);
}

GgufFile Export(const Model& model, GgufType type) {
  TempFolder folder;
  const Status status = ExportGguf(PosixEnv(), model, folder.At("m.gguf"), type, NoProgress());
  EXPECT_TRUE(status.ok()) << status.message();
  return GgufFile(ReadAll(folder.At("m.gguf")));
}

std::vector<float> Source(const std::string& family, const std::string& name) {
  auto file = SafetensorsFile::Open(PosixEnv(), SourcePath("tests/golden/" + family + "/model.safetensors"));
  EXPECT_TRUE(file.ok());
  return (*file)->LoadFloats(*(*file)->Find(name)).value();
}

TEST(Gguf, WrenHasTheKeysThatLlamaCppReads) {
  const Model model = Open("examples/wren/model");
  const GgufFile file = Export(model, GgufType::kF32);
  EXPECT_EQ(file.value("general.architecture"), "qwen2moe");
  EXPECT_EQ(file.value("qwen2moe.block_count"), "4");
  EXPECT_EQ(file.value("qwen2moe.embedding_length"), "256");
  EXPECT_EQ(file.value("qwen2moe.context_length"), "1024");
  EXPECT_EQ(file.value("qwen2moe.attention.head_count"), "8");
  EXPECT_EQ(file.value("qwen2moe.attention.head_count_kv"), "4");
  EXPECT_EQ(file.value("qwen2moe.attention.layer_norm_rms_epsilon"), "1e-06");
  EXPECT_EQ(file.value("qwen2moe.rope.freq_base"), "10000");
  EXPECT_EQ(file.value("qwen2moe.expert_count"), "16");
  EXPECT_EQ(file.value("qwen2moe.expert_used_count"), "2");
  EXPECT_EQ(file.value("qwen2moe.expert_feed_forward_length"), "256");
  EXPECT_EQ(file.value("qwen2moe.expert_shared_feed_forward_length"), "256");
  EXPECT_FALSE(file.Has("qwen2moe.rope.scaling.type"));
}

TEST(Gguf, WrenHasItsTokenizer) {
  const GgufFile file = Export(Open("examples/wren/model"), GgufType::kF16);
  const Bytes text = ReadAll(SourcePath("examples/wren/model/tokenizer.json"));
  const nlohmann::json tokenizer = nlohmann::json::parse(text.begin(), text.end());
  const std::vector<std::string>& tokens = file.list("tokenizer.ggml.tokens");
  ASSERT_EQ(tokens.size(), 4096u);
  for (const auto& [token, id] : tokenizer["model"]["vocab"].items()) EXPECT_EQ(tokens[id.get<size_t>()], token);
  EXPECT_EQ(tokens[4094], "<|im_start|>");
  const std::vector<std::string>& merges = file.list("tokenizer.ggml.merges");
  EXPECT_EQ(merges, tokenizer["model"]["merges"].get<std::vector<std::string>>());
  const std::vector<std::string>& types = file.list("tokenizer.ggml.token_type");
  EXPECT_EQ(types[0], "1");
  EXPECT_EQ(types[4093], "3");
  EXPECT_EQ(file.value("tokenizer.ggml.model"), "gpt2");
  EXPECT_EQ(file.value("tokenizer.ggml.pre"), "qwen2");
  EXPECT_EQ(file.value("tokenizer.ggml.eos_token_id"), "4093");
  EXPECT_EQ(file.value("tokenizer.ggml.add_bos_token"), "false");
}

// Wren with another tokenizer.
Model WithTokenizer(const TokenizerData& data) {
  Model model = Open("examples/wren/model");
  model.tokenizer = SerializeTokenizer(data);
  return model;
}

TokenizerData WrenTokenizer() { return ParseTokenizerBlob(Open("examples/wren/model").tokenizer).value(); }

TEST(Gguf, ABeginningOfOneTokenIsTheBeginningOfText) {
  TokenizerData data = WrenTokenizer();
  data.beginning = {4094};
  const GgufFile file = Export(WithTokenizer(data), GgufType::kF16);
  EXPECT_EQ(file.value("tokenizer.ggml.bos_token_id"), "4094");
  EXPECT_EQ(file.value("tokenizer.ggml.add_bos_token"), "true");
  EXPECT_EQ(file.value("tokenizer.ggml.eos_token_id"), "4093");
}

TEST(Gguf, WholePiecesAreKnownByThePreTokenizersName) {
  TokenizerData data = WrenTokenizer();
  data.pre_tokenizer = PreTokenizer::kLlama3;
  EXPECT_EQ(Export(WithTokenizer(data), GgufType::kF16).value("tokenizer.ggml.pre"), "smaug-bpe");
  data.whole_pieces = true;
  EXPECT_EQ(Export(WithTokenizer(data), GgufType::kF16).value("tokenizer.ggml.pre"), "llama-bpe");
}

TEST(Gguf, RefusesByNameATokenizerThatLlamaCppWouldReadOtherwise) {
  TokenizerData two = WrenTokenizer(), whole = two, pieces = two;
  two.beginning = {4094, 4093};
  whole.whole_pieces = true;
  pieces.pre_tokenizer = PreTokenizer::kSentencePiece;
  pieces.bytes.resize(256);
  const std::pair<const TokenizerData*, const char*> cases[] = {
      {&two, "begins a prompt with 2 tokens"}, {&whole, "ignore_merges"}, {&pieces, "SentencePiece"}};
  for (const auto& [data, named] : cases) {
    TempFolder folder;
    const Status status = ExportGguf(PosixEnv(), WithTokenizer(*data), folder.At("m.gguf"), GgufType::kF16, NoProgress());
    EXPECT_EQ(status.code(), ErrorCode::kTokenizer);
    EXPECT_NE(status.message().find(named), std::string::npos) << status.message();
  }
}

TEST(Gguf, EveryParameterIsThereOnceAndAligned) {
  for (const char* family : {"qwen2_moe", "qwen3_moe", "olmoe", "mixtral"}) {
    const Model model = Open(std::string("tests/golden/") + family);
    const GgufFile file = Export(model, GgufType::kF32);
    uint64_t parameters = 0, end = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      uint64_t count = 1;
      for (uint64_t d : tensor.dims) count *= d;
      parameters += count;
      EXPECT_EQ(tensor.offset % 32, 0u);
      end = std::max(end, file.data() + tensor.offset + (4 * count + 31) / 32 * 32);
    }
    EXPECT_EQ(parameters, model.program.original_parameters) << family;
    EXPECT_EQ(end, file.size()) << family;
    EXPECT_EQ(file.value("tokenizer.ggml.model"), "no_vocab");
  }
}

TEST(Gguf, EachFamilyHasItsArchitecture) {
  EXPECT_EQ(Export(Open("tests/golden/qwen3_moe"), GgufType::kF32).value("general.architecture"), "qwen3moe");
  EXPECT_EQ(Export(Open("tests/golden/olmoe"), GgufType::kF32).value("general.architecture"), "olmoe");
  const GgufFile mixtral = Export(Open("tests/golden/mixtral"), GgufType::kF32);
  EXPECT_EQ(mixtral.value("general.architecture"), "llama");
  EXPECT_EQ(mixtral.value("llama.rope.freq_base"), "1e+06");
}

TEST(Gguf, ExpertsAreStacked) {
  const GgufFile file = Export(Open("tests/golden/qwen2_moe"), GgufType::kF32);
  EXPECT_THAT(file.tensors().at("blk.1.ffn_up_exps.weight").dims, ElementsAre(64, 32, 8));
  EXPECT_THAT(file.tensors().at("blk.1.ffn_down_exps.weight").dims, ElementsAre(32, 64, 8));
  EXPECT_THAT(file.tensors().at("blk.1.ffn_gate_inp_shexp.weight").dims, ElementsAre(64));
  const std::vector<float> stacked = file.Floats("blk.1.ffn_up_exps.weight");
  const std::vector<float> fifth = Source("qwen2_moe", "model.layers.1.mlp.experts.5.up_proj.weight");
  EXPECT_TRUE(std::equal(fifth.begin(), fifth.end(), stacked.begin() + 5 * 64 * 32));
}

TEST(Gguf, OnlyTheLlamaArchitectureReordersHeads) {
  const GgufFile mixtral = Export(Open("tests/golden/mixtral"), GgufType::kF32);
  const std::vector<float> k =
      Source("mixtral", "model.layers.0.self_attn.k_proj.weight");  // 2 heads of 16 rows, 64 columns
  const std::vector<float> reordered = mixtral.Floats("blk.0.attn_k.weight");
  // Row 16 + 5 is the second of pair 2 in head 1: row 16 + 8 + 2 of the checkpoint.
  EXPECT_TRUE(std::equal(reordered.begin() + 21 * 64, reordered.begin() + 22 * 64, k.begin() + 26 * 64));
  EXPECT_EQ(mixtral.Floats("blk.0.attn_v.weight"), Source("mixtral", "model.layers.0.self_attn.v_proj.weight"));
  EXPECT_EQ(Export(Open("tests/golden/olmoe"), GgufType::kF32).Floats("blk.0.attn_k.weight"),
            Source("olmoe", "model.layers.0.self_attn.k_proj.weight"));
}

TEST(Gguf, HalfPrecisionLeavesNormsBiasesAndRoutersInFull) {
  const GgufFile file = Export(Open("tests/golden/qwen2_moe"), GgufType::kF16);
  EXPECT_EQ(file.value("general.file_type"), "1");
  EXPECT_EQ(file.tensors().at("blk.0.attn_q.weight").type, 1u);
  EXPECT_EQ(file.tensors().at("blk.0.ffn_gate_exps.weight").type, 1u);
  EXPECT_EQ(file.tensors().at("blk.0.attn_q.bias").type, 0u);
  EXPECT_EQ(file.tensors().at("blk.0.attn_norm.weight").type, 0u);
  EXPECT_EQ(file.tensors().at("blk.0.ffn_gate_inp.weight").type, 0u);
  const std::vector<float> full = Source("qwen2_moe", "model.layers.0.self_attn.q_proj.weight"),
                           half = file.Floats("blk.0.attn_q.weight");
  for (size_t i = 0; i < full.size(); ++i) ASSERT_NEAR(full[i], half[i], 1e-3f * std::abs(full[i]) + 1e-7f);
}

// A golden checkpoint with a changed configuration, exported.
Status ExportChanged(const std::string& family, const std::function<void(Checkpoint&)>& change,
                     GgufType type = GgufType::kF32) {
  Checkpoint checkpoint = Checkpoint::Read("tests/golden/" + family);
  change(checkpoint);
  TempFolder folder;
  checkpoint.WriteTo(folder);
  const Result<Model> model = OpenHuggingFace(PosixEnv(), folder.path(), {});
  EXPECT_TRUE(model.ok()) << model.status().message();
  const Status status = ExportGguf(PosixEnv(), *model, folder.At("m.gguf"), type, NoProgress());
  EXPECT_EQ(PosixEnv().Exists(folder.At("m.gguf")).value(), status.ok());
  return status;
}

TEST(Gguf, WhatLlamaCppWouldComputeDifferentlyIsRefused) {
  const auto refused = [](const char* family, const char* key, const nlohmann::json& value, const char* part) {
    const Status status = ExportChanged(family, [&](Checkpoint& c) { c.config[key] = value; });
    EXPECT_EQ(status.code(), ErrorCode::kUnsupported) << key;
    EXPECT_THAT(status.message(), HasSubstr(part));
  };
  refused("qwen2_moe", "norm_topk_prob", true, "routing weights renormalised");
  refused("olmoe", "norm_topk_prob", true, "routing weights renormalised");
  refused("qwen3_moe", "norm_topk_prob", false, "not renormalised");
  refused("olmoe", "clip_qkv", 4.0, "is not what llama.cpp's decoders compute");
  refused("mixtral", "sliding_window", 16, "is not what llama.cpp's decoders compute");
}

TEST(Gguf, LinearScalingIsWritten) {
  Checkpoint checkpoint = Checkpoint::Read("tests/golden/qwen3_moe");
  checkpoint.config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 4.0}};
  TempFolder folder;
  checkpoint.WriteTo(folder);
  const GgufFile file = Export(*OpenHuggingFace(PosixEnv(), folder.path(), {}), GgufType::kF32);
  EXPECT_EQ(file.value("qwen3moe.rope.scaling.type"), "linear");
  EXPECT_EQ(file.value("qwen3moe.rope.scaling.factor"), "4");
  EXPECT_EQ(file.value("qwen3moe.rope.freq_base"), "10000");
}

TEST(Gguf, AWeightBeyondHalfPrecisionIsNamed) {
  const Status status = ExportChanged(
      "olmoe",
      [](Checkpoint& c) {
        Bytes& data = c.tensors["model.layers.0.self_attn.q_proj.weight"].data;
        data[6] = 0x00;
        data[7] = 0x48;  // 131072
      },
      GgufType::kF16);
  EXPECT_EQ(status.code(), ErrorCode::kUnsupported);
  EXPECT_THAT(status.message(), HasSubstr("value 3 of blk.0.attn_q.weight is 131072"));
}

TEST(Gguf, ExpertsMustBeUniform) {
  Model model = Open("tests/golden/olmoe");
  model.program.expert_tables[1].intermediate[2] = 24;
  TempFolder folder;
  const Status status = ExportGguf(PosixEnv(), model, folder.At("m.gguf"), GgufType::kF32, NoProgress());
  EXPECT_EQ(status.code(), ErrorCode::kUnsupported);
  EXPECT_THAT(status.message(), HasSubstr("experts of layer 1 differ in width"));
}

TEST(Gguf, AConfigurationAloneIsRefused) {
  const auto model = OpenConfigOnly(PosixEnv(), SourcePath("examples/wren/model/config.json"), {});
  TempFolder folder;
  EXPECT_EQ(ExportGguf(PosixEnv(), *model, folder.At("m.gguf"), GgufType::kF32, NoProgress()).code(), ErrorCode::kBadInput);
}

// A model whose matrices have codecs: random codes in the shapes of another's weights.
class CodedSource final : public TensorSource {
 public:
  CodedSource(const Model& model, std::function<std::string(uint32_t)> codec_of_expert, const std::string& dense)
      : program_(model.program), plain_(model.tensors), of_expert_(std::move(codec_of_expert)), dense_(dense) {}
  Result<std::vector<float>> Load(TensorId tensor) const override {
    return Coded(tensor) ? Values(*LoadCodes(tensor)) : plain_->Load(tensor);
  }
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return Values(*LoadExpertCodes(table, expert, matrix));
  }
  Codec StoredCodec(TensorId tensor) const override { return Coded(tensor) ? *ParseCodec(dense_) : Codec(); }
  Codec StoredExpertCodec(uint32_t, uint32_t expert, ExpertMatrix) const override { return *ParseCodec(of_expert_(expert)); }
  Result<QuantizedMatrix> LoadCodes(TensorId tensor) const override {
    return Random(StoredCodec(tensor), {program_.tensors[tensor].rows, program_.tensors[tensor].cols}, tensor);
  }
  Result<QuantizedMatrix> LoadExpertCodes(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    const ExpertTableDecl& decl = program_.expert_tables[table];
    const bool down = matrix == ExpertMatrix::kDown;
    const MatrixShape shape{down ? decl.hidden : decl.intermediate[expert], down ? decl.intermediate[expert] : decl.hidden};
    return Random(StoredExpertCodec(table, expert, matrix), shape,
                  1000 * expert + 10 * table + static_cast<uint32_t>(matrix));
  }

 private:
  bool Coded(TensorId tensor) const {
    return program_.tensors[tensor].rows > 1 && program_.tensors[tensor].role != TensorRole::kRouter;
  }
  static std::vector<float> Values(const QuantizedMatrix& codes) {
    std::vector<float> out(codes.shape.rows * codes.shape.cols);
    Dequantize(codes, out);
    return out;
  }
  static QuantizedMatrix Random(const Codec& codec, const MatrixShape& shape, uint32_t seed) {
    QuantizedMatrix out{codec, shape, {}, {}, {}, {}, {}};
    uint64_t state = seed + 1;
    const auto next = [&state] { return static_cast<uint32_t>((state = state * 6364136223846793005ull + 1) >> 33); };
    const uint64_t groups = shape.rows * GroupsPerRow(codec, shape.cols);
    for (uint64_t g = 0; g < groups; ++g) out.scales.push_back(F32ToF16(static_cast<float>(next() % 1000 + 1) * 1e-4f));
    for (uint64_t g = 0; codec.has_min && g < groups; ++g)
      out.mins.push_back(F32ToF16(static_cast<float>(next() % 1000) * -1e-3f));
    for (uint64_t i = 0; i < shape.rows * shape.cols; ++i) {
      if (codec.sparsity != Sparsity::kNone) out.mask.push_back(i % shape.cols < codec.kept_per_row);
      out.codes.push_back(static_cast<uint8_t>(next() % (1u << codec.bits)));
      if (!out.mask.empty() && out.mask.back() == 0) out.codes.back() = 0;
    }
    return out;
  }

  const Program& program_;
  std::shared_ptr<const TensorSource> plain_;
  std::function<std::string(uint32_t)> of_expert_;
  std::string dense_;
};

TEST(GgufStored, CodesStandForTheSameWeights) {
  struct Case {
    std::string even, odd, dense;  // codecs of experts and of dense matrices
    uint32_t experts_type = 0, dense_type = 0;
  };
  // Mixtral has heads to reorder and down matrices of 48 columns, which no block divides.
  for (const auto& [family, down_fits] : {std::pair("qwen2_moe", true), std::pair("mixtral", false)}) {
    for (const Case& c : {Case{"i4g32", "i3g64", "i8r", 2, 8}, Case{"i2mg32", "i4mg64", "i5g64", 3, 6},
                          Case{"i5g32", "i2g32", "i4g32", 6, 2}, Case{"i5mg32", "i3g32", "i4mg32", 7, 3},
                          Case{"i6g32", "i8g64", "i6r", 8, 8}, Case{"i8mg32", "i4g32", "i8mg32", 1, 1},
                          Case{"i4g16", "i4g16", "i4g16", 1, 1}, Case{"i4g32+keep20", "i4g32", "i5mg32", 2, 7},
                          Case{"i4mg32+keep20", "i4mg32", "i4r", 1, 2}}) {
      Model model = Open(std::string("tests/golden/") + family);
      model.tensors = std::make_shared<CodedSource>(
          model, [&c](uint32_t e) { return e % 2 ? c.odd : c.even; }, c.dense);
      const GgufFile stored = Export(model, GgufType::kStored), full = Export(model, GgufType::kF32);
      EXPECT_EQ(stored.tensors().at("blk.1.ffn_up_exps.weight").type, c.experts_type) << c.even;
      EXPECT_EQ(stored.tensors().at("blk.1.ffn_down_exps.weight").type, down_fits ? c.experts_type : 1u) << c.even;
      EXPECT_EQ(stored.tensors().at("blk.1.attn_q.weight").type, c.dense_type) << c.dense;
      EXPECT_LT(stored.size(), full.size());
      for (const auto& [name, tensor] : stored.tensors()) {
        const std::vector<float> got = stored.Floats(name), expected = full.Floats(name);
        const float unit = tensor.type == 1 ? 1.0f / 2048 : 1e-6f;  // f16 rounds; a product and a sum may round once more
        for (size_t i = 0; i < got.size(); ++i)
          ASSERT_NEAR(got[i], expected[i], unit * std::max(1.0f, std::abs(expected[i])))
              << name << " " << i << " " << c.even;
      }
      EXPECT_EQ(stored.value("general.quantization_version"), "2");
    }
  }
}

TEST(GgufStored, ACheckpointKeepsItsElements) {
  const GgufFile file = Export(Open("tests/golden/qwen2_moe"), GgufType::kStored);
  const uint32_t element = Open("tests/golden/qwen2_moe").tensors->StoredCodec(0).Name() == "bf16" ? 30 : 0;
  EXPECT_EQ(file.tensors().at("blk.0.attn_q.weight").type, element);
  EXPECT_EQ(file.tensors().at("blk.0.attn_norm.weight").type, 0u);
}

}  // namespace
}  // namespace moepack
