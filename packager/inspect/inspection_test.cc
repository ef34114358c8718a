#include "packager/inspect/inspection.h"

#include <gtest/gtest.h>

#include "packager/testing/tiny_folder.h"

namespace moepack {
namespace {

// The keys that scripts rely on, with values worked out by hand.
TEST(Inspection, CountsBytesAndParameters) {
  const Program program = testing::TinyFolderProgram();
  Inspection inspection("folder", program);
  ASSERT_TRUE(inspection.AddTensor(TensorRole::kEmbedding, Codec(), {10'000, 32}).ok());
  const Codec codec = ParseCodec("i4g16").value();
  ASSERT_TRUE(inspection.AddUnit(program, true, {{0, codec, {48, 32}}, {1, codec, {48, 32}}, {2, codec, {32, 48}}}).ok());
  inspection.SetStoredBytes(4'000'000);
  const nlohmann::json json = inspection.ToJson();
  // 2 * 10000 * 32 + 4 * 32 + 32 + 4 * 3 * 48 * 32
  EXPECT_EQ(json["parameters"], 658'592);
  EXPECT_EQ(json["bytes_stored"], 4'000'000);
  EXPECT_DOUBLE_EQ(json["bits_per_weight"].get<double>(), 32'000'000.0 / 658'592);
  const uint64_t expert = 2 * ResidentBytes(codec, {48, 32}).value() + ResidentBytes(codec, {32, 48}).value();
  EXPECT_EQ(json["expert_bytes_resident"], expert);
  EXPECT_EQ(json["bytes_resident"], expert + ResidentBytes(Codec(), {10'000, 32}).value());
  EXPECT_EQ(json["codecs"]["i4g16"]["tensors"], 3);
  EXPECT_EQ(json["codecs"]["i4g16"]["bytes_plain"], 3 * (48 * 32 / 2 + 48 * 32 / 16 * 2));
  EXPECT_EQ(json["roles"]["embedding"]["bytes_plain"], 10'000 * 32 * 4);
  EXPECT_EQ(json["layers"], 1);
  EXPECT_EQ(json["experts"], 4);
  EXPECT_EQ(json["expert_tables"][0]["top_k"], 2);
  EXPECT_NE(inspection.ToText().find("i4g16"), std::string::npos);
}

TEST(Inspection, CountsStandInsApart) {
  const Program program = testing::TinyFolderProgram();
  const Codec high = ParseCodec("i8g32").value(), low = ParseCodec("i2g32").value();
  const std::vector<UnitTensor> first = {{1, high, {48, 32}}}, second = {{1, low, {48, 32}}};
  // Expert 0 has a lower precision, expert 1 has expert 0 as a twin.
  const std::vector<ExpertEntry> experts = {{{{0}, {2}}}, {{{1}, {0}}}};
  Inspection inspection("folder", program);
  ASSERT_TRUE(inspection.AddExpertUnits(program, experts, {&first, &first, &second}).ok());
  const nlohmann::json json = inspection.ToJson();
  EXPECT_EQ(json["bytes_resident"], 2 * ResidentBytes(high, {48, 32}).value());
  EXPECT_FALSE(json["codecs"].contains("i2g32"));
  EXPECT_EQ(json["stand_ins"]["experts_lower"], 1);
  EXPECT_EQ(json["stand_ins"]["experts_twin"], 1);
  EXPECT_EQ(json["stand_ins"]["bytes_resident"], ResidentBytes(low, {48, 32}).value());
  EXPECT_EQ(json["stand_ins"]["experts_dense"], 0);
  EXPECT_NE(inspection.ToText().find("1 experts with a lower precision"), std::string::npos);
}

TEST(Inspection, UnknownSizesAreNull) {
  Inspection inspection("model", testing::TinyFolderProgram());
  inspection.SetWithoutWeights();
  const nlohmann::json json = inspection.ToJson();
  for (const char* key : {"bytes_stored", "bytes_resident", "expert_bytes_resident", "bits_per_weight"}) {
    ASSERT_TRUE(json.contains(key)) << key;
    EXPECT_TRUE(json[key].is_null()) << key;
  }
}

TEST(Inspection, RefusesTensorsThatDoNotExist) {
  const Program program = testing::TinyFolderProgram();
  Inspection inspection("bundle", program);
  EXPECT_EQ(inspection.AddUnit(program, false, {{99, Codec(), {1, 1}}}).code(), ErrorCode::kMalformed);
}

}  // namespace
}  // namespace moepack
