// The runtime on the golden checkpoints, weights as they are: logits as the reference's, whatever the tile.
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "model/model.h"
#include "runtime-min/engine.h"
#include "runtime-min/testing/fake_source.h"

namespace moepack {
namespace {

constexpr uint32_t kRowsARun = 7;

Bytes ReadOrDie(const std::string& path) {
  auto bytes = ReadFile(PosixEnv(), path, 1 << 26);
  EXPECT_TRUE(bytes.ok()) << bytes.status().message();
  return bytes.ok() ? std::move(*bytes) : Bytes{};
}

std::unique_ptr<runtime::UnitSource> SourceOf(const Model& model) {
  return std::make_unique<testing::FakeSource>(
      model.program, Codec{}, [&model](bool expert, uint32_t table_or_tensor, uint32_t index, ExpertMatrix matrix) {
        return expert ? model.tensors->LoadExpert(table_or_tensor, index, matrix).value()
                      : model.tensors->Load(table_or_tensor).value();
      });
}

class GoldenRuntimeTest : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenRuntimeTest, LogitsAreTheReferences) {
  const std::string folder = std::string(MOEPACK_SOURCE_DIR) + "/tests/golden/" + GetParam();
  auto model = OpenModel(PosixEnv(), folder);
  ASSERT_TRUE(model.ok()) << model.status().message();
  const std::vector<int32_t> tokens =
      nlohmann::json::parse(AsText(ReadOrDie(folder + "/golden.json")))["tokens"].get<std::vector<int32_t>>();
  const Bytes raw = ReadOrDie(folder + "/golden_logits.f32");
  std::vector<float> expected(raw.size() / sizeof(float));
  std::memcpy(expected.data(), raw.data(), raw.size());
  float largest = 0;
  for (const float v : expected) largest = std::max(largest, std::abs(v));
  ThreadPool pool(2);
  runtime::EngineOptions options;
  options.context = static_cast<uint32_t>(tokens.size());
  options.tile_tokens = options.logit_rows = kRowsARun;
  auto engine = runtime::Engine::Create(SourceOf(*model), pool, options);
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  float error = 0;
  for (size_t t = 0; t < tokens.size(); t += kRowsARun) {
    const size_t rows = std::min<size_t>(kRowsARun, tokens.size() - t);
    const Status status = (*engine)->Run({tokens.data() + t, rows}, static_cast<uint32_t>(rows));
    ASSERT_TRUE(status.ok()) << status.message();
    const std::span<const float> logits = (*engine)->logits();
    for (size_t i = 0; i < logits.size(); ++i) {
      error = std::max(error, std::abs(logits[i] - expected[t * (*engine)->vocab_size() + i]));
    }
  }
  EXPECT_LT(error, 2e-5f * largest) << "the bar of the project is 1e-3";
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenRuntimeTest,
                         ::testing::Values("qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "granitemoe", "deepseek_v2",
                                           "gpt_oss", "llama4", "deepseek_v3", "ernie4_5_moe", "glm4_moe", "lfm2_moe",
                                           "phimoe", "phimoe_long"));

}  // namespace
}  // namespace moepack
