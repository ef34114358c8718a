#include "model/frontend/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "model/model_testing.h"

namespace moepack {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Bytes kEight = {0, 0, 128, 63, 0, 0, 0, 64};  // F32 1.0, 2.0

// Expects that the bytes are refused with this code and a message that holds `part`.
void ExpectRefused(const Bytes& file, ErrorCode code, const std::string& part) {
  const Result<SafetensorsHeader> header = ParseSafetensors(file, "f.safetensors");
  ASSERT_FALSE(header.ok());
  EXPECT_EQ(header.status().code(), code) << header.status().message();
  EXPECT_THAT(header.status().message(), HasSubstr(part));
  EXPECT_THAT(header.status().message(), HasSubstr("f.safetensors: "));
}

void ExpectHeaderRefused(const std::string& header, const std::string& part, ErrorCode code = ErrorCode::kBadInput) {
  ExpectRefused(RawSafetensors(header, kEight), code, part);
}

TEST(Safetensors, ReadsAWellFormedFile) {
  const auto header =
      ParseSafetensors(RawSafetensors(R"({"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},)"
                                      R"("a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}   )",
                                      kEight),
                       "f");
  ASSERT_TRUE(header.ok()) << header.status().message();
  ASSERT_EQ(header->entries.size(), 2u);
  EXPECT_EQ(header->entries[0].name, "a");
  EXPECT_THAT(header->entries[0].shape, ElementsAre(1, 1));
  EXPECT_EQ(header->entries[1].begin, 4u);
  EXPECT_EQ(header->metadata.at("k"), "v");
}

TEST(Safetensors, RefusesAFileWithoutLength) { ExpectRefused({1, 2, 3}, ErrorCode::kBadInput, "too short"); }

TEST(Safetensors, RefusesAHeaderAboveTheCap) {
  ByteWriter out;
  out.U64(kMaxSafetensorsHeader + 1);
  ExpectRefused(out.bytes(), ErrorCode::kLimit, "at most 100000000");
}

TEST(Safetensors, RefusesAHeaderPastTheEnd) {
  ByteWriter out;
  out.U64(100);
  out.Append(AsBytes("{}"));
  ExpectRefused(out.bytes(), ErrorCode::kBadInput, "past the end");
}

TEST(Safetensors, RefusesAHeaderThatIsNoObject) {
  ExpectHeaderRefused("[]", "does not begin with '{'");
  ExpectHeaderRefused("", "does not begin with '{'");
}

TEST(Safetensors, RefusesBrokenJson) {
  ExpectHeaderRefused(R"({"a":)", "not valid JSON");
  ExpectHeaderRefused("{\"a\xff\":{}}", "not valid JSON");
  ExpectHeaderRefused("{} x", "not valid JSON");
}

TEST(Safetensors, RefusesDeepNestingAtOnce) {
  std::string header = R"({"a":{"dtype":"F32","shape":)";
  header.append(1 << 20, '[');
  ExpectHeaderRefused(header, "an array");
}

TEST(Safetensors, RefusesATensorThatStandsTwice) {
  ExpectHeaderRefused(
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      "tensor a stands twice");
}

TEST(Safetensors, RefusesAKeyThatStandsTwice) {
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}})", "'dtype' stands twice");
  ExpectHeaderRefused(R"({"__metadata__":{"k":"1","k":"2"}})", "'k' stands twice");
  ExpectHeaderRefused(R"({"__metadata__":{},"__metadata__":{}})", "__metadata__ stands twice");
}

TEST(Safetensors, RefusesUnknownAndMissingKeys) {
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"strides":[1]}})", "unknown key 'strides'");
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[2]}})", "needs dtype, shape and two data_offsets");
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", "needs dtype, shape and two data_offsets");
}

TEST(Safetensors, RefusesTypesOffTheList) {
  ExpectHeaderRefused(R"({"a":{"dtype":"F4","shape":[2],"data_offsets":[0,8]}})", "'F4' is not supported",
                      ErrorCode::kUnsupported);
}

TEST(Safetensors, RefusesNumbersThatAreNotCounts) {
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "negative");
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", "fraction");
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", "more than two");
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]}})", "fraction");
}

TEST(Safetensors, RefusesValuesOfTheWrongKind) {
  ExpectHeaderRefused(R"({"a":null})", "null");
  ExpectHeaderRefused(R"({"a":[1]})", "an array");
  ExpectHeaderRefused(R"({"a":{"dtype":1,"shape":[2],"data_offsets":[0,8]}})", "a number");
  ExpectHeaderRefused(R"({"__metadata__":{"k":{}}})", "an object");
}

TEST(Safetensors, RefusesTooManyDimensions) {
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}})", "more than 8 dimensions");
}

TEST(Safetensors, RefusesOffsetsOutsideOfTheData) {
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})", "outside of the 8 data bytes");
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "outside of the 8 data bytes");
}

TEST(Safetensors, RefusesAShapeThatOverflows) {
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}})", "overflows");
}

TEST(Safetensors, RefusesASizeThatIsNotTheShapes) {
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})",
                      "8 bytes of data, its shape and type need 4");
}

TEST(Safetensors, RefusesHolesOverlapsAndRests) {
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "a hole before it");
  ExpectHeaderRefused(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      "overlaps");
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "4 data bytes follow the last tensor");
}

TEST(Safetensors, EveryTruncationOfAFileIsRefused) {
  const Bytes file = RawSafetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", kEight);
  for (size_t n = 0; n < file.size(); ++n) EXPECT_FALSE(ParseSafetensors(ByteSpan(file).first(n), "f").ok()) << n;
}

TEST(Safetensors, LoadsEveryFloatType) {
  TempFolder folder;
  const Bytes f16 = {0x00, 0x3c, 0x00, 0xc0}, bf16 = {0x80, 0x3f, 0x00, 0xc0};
  ASSERT_TRUE(WriteSafetensors(
                  PosixEnv(), folder.At("t.safetensors"),
                  {{"f32", Dtype::kF32, {2}, kEight}, {"f16", Dtype::kF16, {2}, f16}, {"bf16", Dtype::kBf16, {2}, bf16}}, {})
                  .ok());
  auto file = SafetensorsFile::Open(PosixEnv(), folder.At("t.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  const auto load = [&](const char* name) { return (*file)->LoadFloats(*(*file)->Find(name)).value(); };
  EXPECT_THAT(load("f32"), ElementsAre(1.0f, 2.0f));
  EXPECT_THAT(load("f16"), ElementsAre(1.0f, -2.0f));
  EXPECT_THAT(load("bf16"), ElementsAre(1.0f, -2.0f));
  EXPECT_EQ((*file)->Find("other"), nullptr);
}

TEST(Safetensors, NamesTheValueThatIsNotFinite) {
  TempFolder folder;
  const Bytes nan = {0x80, 0x3f, 0xc0, 0x7f}, inf = {0x00, 0x7c};
  ASSERT_TRUE(WriteSafetensors(PosixEnv(), folder.At("t.safetensors"),
                               {{"n", Dtype::kBf16, {2}, nan}, {"i", Dtype::kF16, {1}, inf}}, {})
                  .ok());
  auto file = SafetensorsFile::Open(PosixEnv(), folder.At("t.safetensors"));
  ASSERT_TRUE(file.ok());
  const auto n = (*file)->LoadFloats(*(*file)->Find("n")), i = (*file)->LoadFloats(*(*file)->Find("i"));
  EXPECT_EQ(n.status().code(), ErrorCode::kNotFinite);
  EXPECT_THAT(n.status().message(), HasSubstr("tensor n, value 1 is NaN"));
  EXPECT_THAT(i.status().message(), HasSubstr("tensor i, value 0 is infinite"));
}

TEST(Safetensors, IntegersAreNoWeights) {
  TempFolder folder;
  ASSERT_TRUE(WriteSafetensors(PosixEnv(), folder.At("t.safetensors"), {{"n", Dtype::kI64, {1}, kEight}}, {}).ok());
  auto file = SafetensorsFile::Open(PosixEnv(), folder.At("t.safetensors"));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->LoadFloats(*(*file)->Find("n")).status().code(), ErrorCode::kUnsupported);
}

TEST(SafetensorsWriter, SameInputGivesTheSameAlignedBytes) {
  TempFolder folder;
  for (const char* name : {"a", "b"}) {
    ASSERT_TRUE(WriteSafetensors(PosixEnv(), folder.At(name),
                                 {{"x\"y", Dtype::kF32, {2}, kEight}, {"empty", Dtype::kU8, {0}, {}}},
                                 {{"z", "1"}, {"a", "2"}})
                    .ok());
  }
  const Bytes bytes = ReadAll(folder.At("a"));
  EXPECT_EQ(bytes, ReadAll(folder.At("b")));
  const auto header = ParseSafetensors(bytes, "a");
  ASSERT_TRUE(header.ok()) << header.status().message();
  EXPECT_EQ(header->data_offset % 8, 0u);
  EXPECT_EQ(header->entries[1].name, "x\"y");
}

TEST(SafetensorsWriter, RefusesDataThatDoesNotFitAndLeavesNoFile) {
  TempFolder folder;
  EXPECT_EQ(WriteSafetensors(PosixEnv(), folder.At("a"), {{"x", Dtype::kF32, {3}, kEight}}, {}).code(),
            ErrorCode::kInternal);
  EXPECT_EQ(
      WriteSafetensors(PosixEnv(), folder.At("a"), {{"x", Dtype::kF32, {2}, kEight}, {"x", Dtype::kF32, {2}, kEight}}, {})
          .code(),
      ErrorCode::kInternal);
  EXPECT_TRUE(PosixEnv().List(folder.path())->empty());
}

// A folder with two shards and an index.
class Shards : public ::testing::Test {
 protected:
  void Write(const std::string& index) {
    folder_.Write("model.safetensors.index.json", index);
    WriteOne("model-1.safetensors", "a");
    WriteOne("model-2.safetensors", "b");
  }
  void WriteOne(const std::string& file, const std::string& tensor) {
    ASSERT_TRUE(WriteSafetensors(PosixEnv(), folder_.At(file), {{tensor, Dtype::kF32, {2}, kEight}}, {}).ok());
  }
  void ExpectRefused(ErrorCode code, const std::string& part) {
    const auto set = SafetensorsSet::Open(PosixEnv(), folder_.path());
    ASSERT_FALSE(set.ok());
    EXPECT_EQ(set.status().code(), code) << set.status().message();
    EXPECT_THAT(set.status().message(), HasSubstr(part));
  }
  TempFolder folder_;
};

constexpr char kGoodIndex[] = R"({"metadata":{},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}})";

TEST_F(Shards, AreOneCheckpoint) {
  Write(kGoodIndex);
  const auto set = SafetensorsSet::Open(PosixEnv(), folder_.path());
  ASSERT_TRUE(set.ok()) << set.status().message();
  EXPECT_EQ((*set)->tensors().size(), 2u);
  EXPECT_THAT((*set)->file_names(),
              ElementsAre("model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"));
}

TEST_F(Shards, AMissingShardIsNamed) {
  Write(kGoodIndex);
  ASSERT_TRUE(PosixEnv().Remove(folder_.At("model-2.safetensors")).ok());
  ExpectRefused(ErrorCode::kNotFound, "model-2.safetensors: this shard is missing");
}

TEST_F(Shards, ATensorThatItsShardLacksIsNamed) {
  Write(R"({"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-2.safetensors"}})");
  ExpectRefused(ErrorCode::kMissingTensor, "model-2.safetensors: lacks tensor c");
}

TEST_F(Shards, ADoubledTensorIsNamed) {
  Write(kGoodIndex);
  ASSERT_TRUE(WriteSafetensors(PosixEnv(), folder_.At("model-2.safetensors"),
                               {{"a", Dtype::kF32, {2}, kEight}, {"b", Dtype::kF32, {2}, kEight}}, {})
                  .ok());
  ExpectRefused(ErrorCode::kBadInput, "tensor a stands here too");
}

TEST_F(Shards, ATensorThatTheIndexLacksIsNamed) {
  Write(kGoodIndex);
  ASSERT_TRUE(WriteSafetensors(PosixEnv(), folder_.At("model-2.safetensors"),
                               {{"b", Dtype::kF32, {2}, kEight}, {"d", Dtype::kF32, {2}, kEight}}, {})
                  .ok());
  ExpectRefused(ErrorCode::kBadInput, "tensor d is not in");
}

TEST_F(Shards, ShardNamesStayInTheFolder) {
  for (const char* name :
       {"../m.safetensors", "/etc/m.safetensors", "x/m.safetensors", ".m.safetensors", "x\\\\m.safetensors", "m.bin", ""}) {
    Write(R"({"weight_map":{"a":")" + std::string(name) + R"("}})");
    ExpectRefused(ErrorCode::kUnsafePath, "not the plain name");
  }
}

TEST_F(Shards, ABrokenIndexIsRefused) {
  Write(R"({"weight_map":{"a":"model-1.safetensors","a":"model-2.safetensors"}})");
  ExpectRefused(ErrorCode::kBadInput, "key 'a' stands twice");
  Write(R"({"weight_map":[]})");
  ExpectRefused(ErrorCode::kBadInput, "weight_map");
  Write(std::string(200, '[') + std::string(200, ']'));
  ExpectRefused(ErrorCode::kBadInput, "nested deeper");
}

TEST_F(Shards, TwoSourcesOfWeightsAreRefused) {
  Write(kGoodIndex);
  WriteOne("model.safetensors", "a");
  ExpectRefused(ErrorCode::kBadInput, "has both");
}

TEST_F(Shards, AFolderWithoutWeightsIsRefused) { ExpectRefused(ErrorCode::kNotFound, "has neither"); }

}  // namespace
}  // namespace moepack
