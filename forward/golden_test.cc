// The forward against checkpoints on which a plain reference and a second engine agree (tests/golden), and the rule that
// nothing that executes programs knows a family by name.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "forward/forward.h"

namespace moepack {
namespace {

const std::string kSource = MOEPACK_SOURCE_DIR;

struct Golden {
  std::string model, record, logits;  // paths
};

Golden Family(const std::string& name) {
  const std::string folder = kSource + "/tests/golden/" + name;
  return {folder, folder + "/golden.json", folder + "/golden_logits.f32"};
}

Golden Wren(const std::string& text) {
  const std::string stem = kSource + "/tests/golden/wren/" + text;
  return {kSource + "/examples/wren/model", stem + ".json", stem + ".f32"};
}

Bytes ReadOrDie(const std::string& path) {
  auto bytes = ReadFile(PosixEnv(), path, 1 << 26);
  EXPECT_TRUE(bytes.ok()) << bytes.status().message();
  return bytes.ok() ? std::move(*bytes) : Bytes{};
}

// Expert choices of every MoE node, in node order.
struct Choices final : Observer {
  std::vector<std::vector<uint32_t>> layers;
  bool wants_moe() const override { return true; }
  void OnMoe(const MoeCapture& capture) override { layers.push_back(capture.ids); }
};

Matrix RunModel(const Model& model, const std::vector<int32_t>& tokens, int threads, Choices* choices) {
  ThreadPool pool(threads);
  TokenBatch batch{tokens, {0}};
  Matrix logits;
  const Status status = Forward(model.program, pool)
                            .Run(
                                *model.tensors, batch,
                                [&](uint64_t first, const Matrix& rows) {
                                  EXPECT_EQ(first, 0u);
                                  logits = rows;
                                  return Status::Ok();
                                },
                                NoProgress(), choices);
  EXPECT_TRUE(status.ok()) << status.message();
  return logits;
}

void CheckGolden(const Golden& golden) {
  auto model = OpenModel(PosixEnv(), golden.model);
  ASSERT_TRUE(model.ok()) << model.status().message();
  const auto record = nlohmann::json::parse(AsText(ReadOrDie(golden.record)));
  const std::vector<int32_t> tokens = record["tokens"];
  const Bytes raw = ReadOrDie(golden.logits);
  Choices choices, again;
  const Matrix logits = RunModel(*model, tokens, 1, &choices);
  ASSERT_EQ(raw.size(), static_cast<size_t>(logits.size()) * sizeof(float));
  Matrix expected(logits.rows(), logits.cols());
  std::memcpy(expected.data(), raw.data(), raw.size());
  const float largest = expected.cwiseAbs().maxCoeff(), error = (logits - expected).cwiseAbs().maxCoeff();
  EXPECT_LT(error, 2e-5f * largest) << "the bar of the project is 1e-3";
  ASSERT_EQ(choices.layers.size(), record["topk"][0].size());
  for (size_t t = 0; t < tokens.size(); ++t) {
    for (size_t layer = 0; layer < choices.layers.size(); ++layer) {
      std::vector<uint32_t> want = record["topk"][t][layer];
      const auto* got = &choices.layers[layer][t * want.size()];
      EXPECT_EQ(std::vector<uint32_t>(got, got + want.size()), want) << "token " << t << " MoE layer " << layer;
    }
  }
  EXPECT_TRUE((RunModel(*model, tokens, 2, &again).array() == logits.array()).all()) << "two threads change bits";
  EXPECT_EQ(again.layers, choices.layers);
}

TEST(GoldenTest, Qwen2Moe) { CheckGolden(Family("qwen2_moe")); }
TEST(GoldenTest, Qwen3Moe) { CheckGolden(Family("qwen3_moe")); }
TEST(GoldenTest, Mixtral) { CheckGolden(Family("mixtral")); }
TEST(GoldenTest, Olmoe) { CheckGolden(Family("olmoe")); }
TEST(GoldenTest, GraniteMoe) { CheckGolden(Family("granitemoe")); }
TEST(GoldenTest, DeepseekV2) { CheckGolden(Family("deepseek_v2")); }
TEST(GoldenTest, GptOss) { CheckGolden(Family("gpt_oss")); }
TEST(GoldenTest, Llama4) { CheckGolden(Family("llama4")); }
// By tests/golden/reference.py.
TEST(GoldenTest, DeepseekV3InFp8) { CheckGolden(Family("deepseek_v3")); }
TEST(GoldenTest, Ernie45Moe) { CheckGolden(Family("ernie4_5_moe")); }
TEST(GoldenTest, Glm4Moe) { CheckGolden(Family("glm4_moe")); }
TEST(GoldenTest, Lfm2Moe) { CheckGolden(Family("lfm2_moe")); }
TEST(GoldenTest, PhiMoe) { CheckGolden(Family("phimoe")); }
TEST(GoldenTest, PhiMoeBeyondTheOriginalContext) { CheckGolden(Family("phimoe_long")); }
TEST(GoldenTest, WrenSpeech) { CheckGolden(Wren("speech")); }
TEST(GoldenTest, WrenGerman) { CheckGolden(Wren("german")); }
TEST(GoldenTest, WrenPython) { CheckGolden(Wren("python")); }

TEST(LayeringTest, NothingThatExecutesProgramsNamesAFamily) {
  static const char* const kFamilies[] = {"mixtral", "qwen",   "olmoe", "llama4", "deepseek", "granite", "gpt_oss",
                                          "gpt-oss", "phimoe", "ernie", "glm4",   "lfm2",     "gemma"};
  size_t files = 0;
  for (const char* folder : {"forward", "runtime-min"}) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(kSource + "/" + folder)) {
      const std::string path = entry.path().string();
      if ((!path.ends_with(".h") && !path.ends_with(".cc")) || path.ends_with("_test.cc")) continue;
      ++files;
      const Bytes bytes = ReadOrDie(path);
      std::string text(AsText(bytes));
      std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
      for (const char* family : kFamilies) EXPECT_EQ(text.find(family), std::string::npos) << path << " names " << family;
    }
  }
  EXPECT_GT(files, 10u);
}

}  // namespace
}  // namespace moepack
