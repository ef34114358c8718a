// A checkpoint exported to ONNX and read back computes what its golden says.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "forward/forward.h"
#include "model/export/onnx.h"
#include "model/frontend/onnx.h"

namespace moepack {
namespace {

const std::string kSource = MOEPACK_SOURCE_DIR;

struct Case {
  const char* name;
  const char* model;
  const char* tokens;  // JSON with "tokens"
  const char* logits;  // float32
};

Bytes ReadOrDie(const std::string& path) {
  auto bytes = ReadFile(PosixEnv(), path, 1 << 26);
  EXPECT_TRUE(bytes.ok()) << bytes.status().message();
  return bytes.ok() ? std::move(*bytes) : Bytes();
}

std::vector<float> RunForward(const Model& model, const std::vector<int32_t>& tokens) {
  TokenBatch batch;
  batch.tokens = tokens;
  batch.sequence_start = {0};
  ThreadPool pool(1);
  std::vector<float> logits;
  const auto sink = [&](uint64_t, const Matrix& rows) {
    logits.insert(logits.end(), rows.data(), rows.data() + rows.size());
    return Status::Ok();
  };
  const Status status = Forward(model.program, pool).Run(*model.tensors, batch, sink, NoProgress());
  EXPECT_TRUE(status.ok()) << status.message();
  return logits;
}

class OnnxRoundTripTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "onnx_e2e_" + GetParam().name;
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

TEST_P(OnnxRoundTripTest, LogitsEqualTheGolden) {
  const auto model = OpenModel(PosixEnv(), kSource + GetParam().model);
  ASSERT_TRUE(model.ok()) << model.status().message();
  const std::string path = folder_ + "/model.onnx";
  const Status exported = ExportOnnx(PosixEnv(), *model, path);
  ASSERT_TRUE(exported.ok()) << exported.message();
  const auto imported = OpenModel(PosixEnv(), path);
  ASSERT_TRUE(imported.ok()) << imported.status().message();
  EXPECT_EQ(imported->source, ModelSource::kOnnx);

  const Bytes json = ReadOrDie(kSource + GetParam().tokens), bytes = ReadOrDie(kSource + GetParam().logits);
  const auto tokens = nlohmann::json::parse(json.begin(), json.end())["tokens"].get<std::vector<int32_t>>();
  std::vector<float> golden(bytes.size() / sizeof(float));
  std::memcpy(golden.data(), bytes.data(), bytes.size());
  const std::vector<float> logits = RunForward(*imported, tokens);
  ASSERT_EQ(logits.size(), golden.size());
  float worst = 0, largest = 0;
  for (size_t i = 0; i < golden.size(); ++i) {
    worst = std::max(worst, std::abs(logits[i] - golden[i]));
    largest = std::max(largest, std::abs(golden[i]));
  }
  EXPECT_LT(worst, 1e-4f * largest);
}

constexpr Case kCases[] = {
    {"qwen2_moe", "/tests/golden/qwen2_moe", "/tests/golden/qwen2_moe/golden.json",
     "/tests/golden/qwen2_moe/golden_logits.f32"},
    {"mixtral", "/tests/golden/mixtral", "/tests/golden/mixtral/golden.json", "/tests/golden/mixtral/golden_logits.f32"},
    {"olmoe", "/tests/golden/olmoe", "/tests/golden/olmoe/golden.json", "/tests/golden/olmoe/golden_logits.f32"},
    {"qwen3_moe", "/tests/golden/qwen3_moe", "/tests/golden/qwen3_moe/golden.json",
     "/tests/golden/qwen3_moe/golden_logits.f32"},
    {"gpt_oss", "/tests/golden/gpt_oss", "/tests/golden/gpt_oss/golden.json", "/tests/golden/gpt_oss/golden_logits.f32"},
    {"granitemoe", "/tests/golden/granitemoe", "/tests/golden/granitemoe/golden.json",
     "/tests/golden/granitemoe/golden_logits.f32"},
    {"wren", "/examples/wren/model", "/tests/golden/wren/python.json", "/tests/golden/wren/python.f32"},
};
INSTANTIATE_TEST_SUITE_P(Goldens, OnnxRoundTripTest, testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace moepack
