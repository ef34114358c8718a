#include "model/export/safetensors_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/model_testing.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;

constexpr const char* kFamilies[] = {"qwen2_moe",    "qwen3_moe",   "olmoe",   "mixtral", "granitemoe",
                                     "deepseek_v2",  "deepseek_v3", "gpt_oss", "llama4",  "glm4_moe",
                                     "ernie4_5_moe", "lfm2_moe",    "phimoe"};

Model Open(const std::string& path) {
  auto model = OpenModel(PosixEnv(), path);
  EXPECT_TRUE(model.ok()) << model.status().message();
  return std::move(model).value();
}

// Every weight, or every weight rounded to bfloat16.
void ExpectWeights(const Model& have, const Model& want, bool bf16) {
  ASSERT_EQ(have.program, want.program);
  const auto expect = [&](const Result<std::vector<float>>& a, Result<std::vector<float>> b, const std::string& name) {
    ASSERT_TRUE(a.ok() && b.ok()) << name;
    for (float& value : *b) value = bf16 ? Bf16ToF32(F32ToBf16(value)) : value;
    EXPECT_EQ(*a, *b) << name;
  };
  for (TensorId id = 0; id < want.program.tensors.size(); ++id) {
    expect(have.tensors->Load(id), want.tensors->Load(id), want.program.tensors[id].name);
  }
  for (uint32_t t = 0; t < want.program.expert_tables.size(); ++t) {
    for (uint32_t e = 0; e < want.program.expert_tables[t].experts(); ++e) {
      for (const ExpertMatrix m : {ExpertMatrix::kGate, ExpertMatrix::kUp, ExpertMatrix::kDown}) {
        expect(have.tensors->LoadExpert(t, e, m), want.tensors->LoadExpert(t, e, m), StrFormat("expert %u:%u", t, e));
      }
    }
  }
}

TEST(ExportSafetensors, EveryFamilyIsReadBackAsItWas) {
  for (const std::string family : kFamilies) {
    SCOPED_TRACE(family);
    TempFolder folder;
    const std::string source = SourcePath("tests/golden/" + family), out = folder.At("out");
    const Model want = Open(source);
    const auto bytes = ExportSafetensors(PosixEnv(), want, {.checkpoint = source}, out, NoProgress());
    ASSERT_TRUE(bytes.ok()) << bytes.status().message();
    EXPECT_EQ(*bytes, ReadAll(JoinPath(out, "model.safetensors")).size());
    ExpectWeights(Open(out), want, false);
    // Shapes are those of the checkpoint, but for what was quantized there.
    const auto have = SafetensorsSet::Open(PosixEnv(), out), before = SafetensorsSet::Open(PosixEnv(), source);
    ASSERT_TRUE(have.ok() && before.ok());
    for (const auto& [name, location] : (*have)->tensors()) {
      const auto found = (*before)->tensors().find(name);
      if (found == (*before)->tensors().end()) continue;
      EXPECT_EQ(location.entry->shape, found->second.entry->shape) << name;
    }
  }
}

TEST(ExportSafetensors, ShardsAndBfloat16) {
  TempFolder folder;
  const std::string source = SourcePath("tests/golden/olmoe"), out = folder.At("out");
  const Model want = Open(source);
  const auto bytes =
      ExportSafetensors(PosixEnv(), want, {.checkpoint = source, .bf16 = true, .shard_bytes = 40'000}, out, NoProgress());
  ASSERT_TRUE(bytes.ok()) << bytes.status().message();
  const auto set = SafetensorsSet::Open(PosixEnv(), out);
  ASSERT_TRUE(set.ok()) << set.status().message();
  ASSERT_GT((*set)->file_names().size(), 2u);
  uint64_t sum = 0;
  for (size_t i = 1; i < (*set)->file_names().size(); ++i) {
    const uint64_t size = ReadAll(JoinPath(out, (*set)->file_names()[i])).size();
    EXPECT_LT(size, 60'000u);
    sum += size;
  }
  EXPECT_EQ(sum, *bytes);
  ExpectWeights(Open(out), want, true);
}

TEST(ExportSafetensors, AConfigurationAloneIsEnough) {
  TempFolder folder;
  const std::string source = SourcePath("tests/golden/mixtral");
  folder.Write("config.json", ReadAll(JoinPath(source, "config.json")));
  const Model want = Open(source);
  const auto bytes = ExportSafetensors(PosixEnv(), want, {.checkpoint = folder.path()}, folder.At("out"), NoProgress());
  ASSERT_TRUE(bytes.ok()) << bytes.status().message();
  ExpectWeights(Open(folder.At("out")), want, false);
}

TEST(ExportSafetensors, RefusesAnotherCheckpointAndLeavesNothing) {
  TempFolder folder;
  const Model model = Open(SourcePath("tests/golden/olmoe"));
  const auto other = ExportSafetensors(PosixEnv(), model, {.checkpoint = SourcePath("tests/golden/mixtral")},
                                       folder.At("out"), NoProgress());
  EXPECT_EQ(other.status().code(), ErrorCode::kUnsupported);
  EXPECT_THAT(other.status().message(), HasSubstr("describes another program"));
  const auto there =
      ExportSafetensors(PosixEnv(), model, {.checkpoint = SourcePath("tests/golden/olmoe")}, folder.path(), NoProgress());
  EXPECT_EQ(there.status().code(), ErrorCode::kUsage);
  EXPECT_TRUE(PosixEnv().List(folder.path())->empty());
}

}  // namespace
}  // namespace moepack
