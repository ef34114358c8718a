#include "packager/rebuild/compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/testing/fault_env.h"
#include "packager/testing/tiny_folder.h"

namespace moepack {
namespace {

using ::moepack::testing::TempDirectory;
using ::moepack::testing::WriteTinyFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CompareTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.product = "tiny";
    options_.version = "1";
    options_.tool_version = "0.1.0";
    ASSERT_TRUE(WriteTinyFolder(PosixEnv(), folder_).ok());
    const std::string path = directory_.Path("b.moeb");
    ASSERT_TRUE(Pack(PosixEnv(), folder_, options_, {&key_}, path, pool_, NoProgress()).ok());
    verify::TrustPolicy policy;
    policy.product = "tiny";
    policy.release_keys = {key_.public_key()};
    bundle_ = verify::VerifiedBundle::Open(PosixEnv().OpenRead(path).value(), policy).value();
  }
  UnsignedBundle Rebuilt() {
    return PackUnsigned(PosixEnv(), folder_, options_, directory_.Path("scratch"), pool_, NoProgress()).value();
  }
  // Of a rebuild whose parts were changed: its manifest too, then.
  std::vector<std::string> DifferencesOf(UnsignedBundle rebuilt) {
    rebuilt.manifest.push_back(0);
    return Differences(*bundle_, rebuilt);
  }

  TempDirectory directory_{::testing::TempDir()};
  const std::string folder_ = directory_.Path("model");
  ThreadPool pool_{2};
  const SecretKey key_ = SecretKey::Generate().value();
  PackOptions options_;
  std::unique_ptr<verify::VerifiedBundle> bundle_;
};

TEST_F(CompareTest, TheSameHasNone) { EXPECT_THAT(Differences(*bundle_, Rebuilt()), IsEmpty()); }

TEST_F(CompareTest, EachPartIsNamed) {
  UnsignedBundle changed = Rebuilt();
  changed.parts.program.push_back(0);
  changed.parts.tokenizer.clear();
  changed.parts.dense.units[1].chunks[0].plain_digest[0] ^= 1;
  changed.parts.experts[0].experts[1].variants[0].physical = 2;
  changed.parts.experts[0].units[2].tensors[0].codec = Codec();
  changed.parts.hot_list.experts.pop_back();
  changed.parts.provenance.push_back('x');
  EXPECT_THAT(DifferencesOf(changed), ElementsAre("program", "tokenizer", "dense table, unit 1: plain bytes",
                                                  "expert table 0: which unit stands for which expert",
                                                  "expert table 0, unit 2: tensors or codecs", "hot list", "provenance"));
}

TEST_F(CompareTest, AnotherEffortOfTheCoderIsToldFromOtherWeights) {
  options_.zstd_level = 0;
  const std::vector<std::string> differences = Differences(*bundle_, Rebuilt());
  ASSERT_FALSE(differences.empty());
  EXPECT_THAT(differences[0], HasSubstr("dense table, units 0 to 2: stored bytes only"));
}

TEST_F(CompareTest, AnotherVersionOfTheProgramIsNamed) {
  options_.tool_version = "0.2.0";
  EXPECT_THAT(Differences(*bundle_, Rebuilt()), ElementsAre(HasSubstr("this is 0.2.0")));
}

TEST_F(CompareTest, WhatIsInNoPartIsInTheManifest) { EXPECT_THAT(DifferencesOf(Rebuilt()), ElementsAre("manifest")); }

TEST_F(CompareTest, UnitsAndTablesThatAreMissingAreCounted) {
  UnsignedBundle changed = Rebuilt();
  changed.parts.experts[0].units.pop_back();
  EXPECT_THAT(DifferencesOf(changed), ElementsAre("expert table 0: 3 units, made again 2"));
  changed = Rebuilt();
  changed.parts.experts.clear();
  EXPECT_THAT(DifferencesOf(changed), ElementsAre("1 expert tables, made again 0"));
}

}  // namespace
}  // namespace moepack
