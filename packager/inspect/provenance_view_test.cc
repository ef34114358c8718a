#include "packager/inspect/provenance_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/testing/fault_env.h"
#include "packager/testing/tiny_folder.h"

namespace moepack {
namespace {

using ::moepack::testing::TempDirectory;
using ::moepack::testing::TinyBuildRecord;
using ::testing::HasSubstr;

class ProvenanceViewTest : public ::testing::Test {
 protected:
  ProvenanceViewTest() {
    BuildResult result;
    result.kld = 0.25;
    blob_ = MakeProvenance(TinyBuildRecord(), {"tiny", "1", 1, 1, 9, "0.1.0", std::nullopt}, result);
  }
  std::string blob_;
  TempDirectory directory_{::testing::TempDir()};
};

TEST_F(ProvenanceViewTest, ShowsBothDocuments) {
  const nlohmann::json json = ProvenanceJson(AsBytes(blob_));
  EXPECT_EQ(json["statement"]["predicateType"], "https://slsa.dev/provenance/v1");
  EXPECT_EQ(json["bom"]["bomFormat"], "CycloneDX");
  const std::string text = ProvenanceText(AsBytes(blob_));
  for (const char* part : {"model.safetensors: sha256 bbbb", "calibration text novel: sha256 dddd", "2.500e-01"})
    EXPECT_THAT(text, HasSubstr(part));
}

TEST_F(ProvenanceViewTest, ShowsNothingOfWhatIsNone) {
  for (const std::string bad : {"", "x", "{}\n[]\n", "{\n{}\n", "{}\n{}"}) {
    EXPECT_TRUE(ProvenanceJson(AsBytes(bad)).is_null()) << bad;
    EXPECT_EQ(ProvenanceText(AsBytes(bad)), "") << bad;
  }
}

TEST_F(ProvenanceViewTest, ExtractsTheSignedBytesOrNothing) {
  Env& env = PosixEnv();
  const std::string statement = directory_.Path("s.json"), bom = directory_.Path("b.json");
  ASSERT_TRUE(ExtractProvenance(env, AsBytes(blob_), statement, bom).ok());
  const Bytes first = ReadFile(env, statement, 1 << 20).value(), second = ReadFile(env, bom, 1 << 20).value();
  EXPECT_EQ(std::string(AsText(first)) + std::string(AsText(second)), blob_);
  EXPECT_EQ(ExtractProvenance(env, {}, statement, "").code(), ErrorCode::kBadInput);
  EXPECT_EQ(ExtractProvenance(env, AsBytes(blob_), statement, statement).code(), ErrorCode::kUsage);
  const std::string other = directory_.Path("other.json");
  EXPECT_FALSE(ExtractProvenance(env, AsBytes(blob_), other, directory_.Path("no/such.json")).ok());
  EXPECT_FALSE(env.Exists(other).value());
}

}  // namespace
}  // namespace moepack
