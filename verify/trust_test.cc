#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>

#include "verify/testing/tiny_bundle.h"
#include "verify/trust_json.h"

namespace moepack::verify {
namespace {

class TrustJson : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::path(::testing::TempDir()) /
                 StrFormat("moepack-trust-%s", ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  Result<TrustPolicy> Read(const std::string& text) {
    const std::string path = (directory_ / "t.json").string();
    EXPECT_TRUE(WriteFileAtomically(PosixEnv(), path, AsBytes(text)).ok());
    return ReadTrustJson(PosixEnv(), path);
  }
  // The intact file with one piece of text replaced; the message must name `field`.
  void Refused(const std::string& from, const std::string& to, const std::string& field) {
    std::string text = WriteTrustJson(testing::TinyPolicy());
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    const Result<TrustPolicy> policy = Read(text.replace(at, from.size(), to));
    EXPECT_EQ(policy.status().code(), ErrorCode::kTrustRecord) << to;
    EXPECT_NE(policy.status().message().find(field), std::string::npos) << policy.status().message();
  }

  std::filesystem::path directory_;
};

TEST_F(TrustJson, ReadsWhatItWrote) {
  TrustPolicy policy = testing::TinyPolicy();
  policy.release_keys.push_back(testing::MakeTestKey(2).public_key);
  policy.threshold = 2;
  policy.minimum_security_counter = UINT64_MAX;
  const Result<TrustPolicy> read = Read(WriteTrustJson(policy));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->product, policy.product);
  EXPECT_EQ(read->release_keys, policy.release_keys);
  EXPECT_EQ(read->threshold, 2u);
  EXPECT_EQ(read->key_epoch, 3u);
  EXPECT_EQ(read->minimum_security_counter, UINT64_MAX);
}

TEST_F(TrustJson, RefusesByFieldName) {
  Refused("\"threshold\": 1", "\"threshold\": 0", "threshold");
  Refused("\"threshold\": 1", "\"threshold\": 2", "threshold");
  Refused("\"threshold\": 1", "\"threshold\": -1", "threshold");
  Refused("\"threshold\": 1", "\"threshold\": 1.5", "threshold");
  Refused("\"threshold\": 1", "\"threshold\": \"1\"", "threshold");
  Refused("\"threshold\": 1", "\"threshold\": 1, \"threshold\": 1", "threshold");
  Refused("\"threshold\": 1", "\"threshold\": 1, \"treshold\": 1", "treshold");
  Refused("\"moepack_trust\": 1", "\"moepack_trust\": 2", "moepack_trust");
  Refused("\"product\": \"tiny\"", "\"product\": \"Tiny\"", "product");
  Refused("\"product\": \"tiny\"", "\"product\": 5", "product");
  Refused("  \"key_epoch\": 3,\n", "", "key_epoch");
  Refused("  \"minimum_security_counter\": 7,\n", "", "minimum_security_counter");
  const std::string key = ToHex(ByteSpan(testing::MakeTestKey(1).public_key));
  Refused(key, key.substr(2), "release_keys[0]");
  Refused("\"" + key + "\"", "\"" + key + "\", \"" + key + "\"", "twice");
  Refused("\"" + key + "\"", "", "keys");
}

TEST_F(TrustJson, RefusesWhatIsNoObject) {
  for (const char* text : {"", "[]", "{", "null", "{} {}", "\xff\xfe"}) {
    EXPECT_EQ(Read(text).status().code(), ErrorCode::kTrustRecord) << text;
  }
  EXPECT_EQ(Read(std::string(100'000, ' ')).status().code(), ErrorCode::kTrustRecord);
  EXPECT_EQ(ReadTrustJson(PosixEnv(), (directory_ / "none.json").string()).status().code(), ErrorCode::kNotFound);
}

TEST(TrustPolicyTest, PolicyIsCheckedBeforeTheBundle) {
  TrustPolicy policy = testing::TinyPolicy();
  policy.threshold = 0;
  EXPECT_EQ(testing::OpenBytes(testing::MakeTinyBundle(), policy).status().code(), ErrorCode::kTrustRecord);
  policy = testing::TinyPolicy();
  policy.release_keys.push_back(policy.release_keys[0]);
  EXPECT_EQ(ValidateTrustPolicy(policy).code(), ErrorCode::kTrustRecord);
}

}  // namespace
}  // namespace moepack::verify
