#include "verify/moepack_verify_c.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "verify/testing/tiny_bundle.h"

namespace moepack {
namespace {

class CInterface : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + StrFormat("moepack-c-%d.moeb", static_cast<int>(::getpid()));
    Write(testing::MakeTinyBundle());
    key_ = testing::MakeTestKey(1).public_key;
    trust_.struct_bytes = sizeof(trust_);
    trust_.threshold = 1;
    trust_.product = "tiny";
    trust_.release_keys = key_.data();
    trust_.release_key_count = 1;
    trust_.key_epoch = 3;
    trust_.minimum_security_counter = 7;
  }
  void TearDown() override {
    moepack_bundle_close(bundle_);
    (void)PosixEnv().Remove(path_);
  }
  void Write(const Bytes& bytes) { ASSERT_TRUE(WriteFileAtomically(PosixEnv(), path_, bytes).ok()); }
  int Open() { return moepack_bundle_open(path_.c_str(), &trust_, &bundle_, message_, sizeof(message_)); }

  std::string path_;
  std::array<uint8_t, 32> key_{};
  moepack_trust trust_ = {};
  moepack_bundle* bundle_ = nullptr;
  char message_[200] = "untouched";
};

TEST_F(CInterface, OpensVerifiesAndTellsAboutABundle) {
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  EXPECT_STREQ(message_, "");
  EXPECT_EQ(moepack_bundle_verify(bundle_, 2, message_, sizeof(message_)), MOEPACK_OK);
  EXPECT_EQ(moepack_bundle_verify_expert(bundle_, 0, 3, message_, sizeof(message_)), MOEPACK_OK);
  EXPECT_EQ(moepack_bundle_verify_expert(bundle_, 0, 4, message_, sizeof(message_)), static_cast<int>(ErrorCode::kUsage));
  moepack_bundle_info info = {};
  info.struct_bytes = sizeof(info);
  ASSERT_EQ(moepack_bundle_get_info(bundle_, &info, message_, sizeof(message_)), MOEPACK_OK);
  EXPECT_EQ(info.security_counter, 7u);
  EXPECT_EQ(info.key_epoch, 3u);
  EXPECT_EQ(info.valid_signatures, 1u);
  EXPECT_EQ(info.chunk_count, 7u);
  EXPECT_EQ(info.file_bytes, testing::MakeTinyBundle().size());
  EXPECT_EQ(moepack_verify_abi_version(), uint32_t{MOEPACK_VERIFY_ABI_VERSION});
  EXPECT_STREQ(moepack_error_name(401), "Digest");
  EXPECT_STREQ(moepack_error_name(-5), "Unknown");
  EXPECT_STREQ(moepack_error_name(1 << 20), "Unknown");
}

TEST_F(CInterface, RefusesWithCodeAndMessage) {
  trust_.minimum_security_counter = 8;
  EXPECT_EQ(Open(), static_cast<int>(ErrorCode::kRollback));
  EXPECT_EQ(bundle_, nullptr);
  EXPECT_NE(std::strstr(message_, "counter"), nullptr) << message_;
  trust_.minimum_security_counter = 7;
  Bytes bytes = testing::MakeTinyBundle();
  bytes.back() ^= 1;
  Write(bytes);
  ASSERT_EQ(Open(), MOEPACK_OK);
  EXPECT_EQ(moepack_bundle_verify(bundle_, 0, message_, sizeof(message_)), static_cast<int>(ErrorCode::kDigest));
  EXPECT_EQ(moepack_bundle_verify_expert(bundle_, 0, 3, nullptr, 0), static_cast<int>(ErrorCode::kDigest));
}

TEST_F(CInterface, MessageIsCutToItsBuffer) {
  trust_.product = "other";
  char small[9] = "xxxxxxxx";
  EXPECT_EQ(moepack_bundle_open(path_.c_str(), &trust_, &bundle_, small, sizeof(small)),
            static_cast<int>(ErrorCode::kPolicy));
  EXPECT_EQ(std::strlen(small), sizeof(small) - 1);
  EXPECT_EQ(moepack_bundle_open(path_.c_str(), &trust_, &bundle_, nullptr, 0), static_cast<int>(ErrorCode::kPolicy));
}

TEST_F(CInterface, MisuseIsAnErrorNotACrash) {
  const int usage = static_cast<int>(ErrorCode::kUsage);
  EXPECT_EQ(moepack_bundle_open(nullptr, &trust_, &bundle_, message_, sizeof(message_)), usage);
  EXPECT_EQ(moepack_bundle_open(path_.c_str(), nullptr, &bundle_, message_, sizeof(message_)), usage);
  EXPECT_EQ(moepack_bundle_open(path_.c_str(), &trust_, nullptr, message_, sizeof(message_)), usage);
  trust_.struct_bytes -= 8;
  EXPECT_EQ(Open(), usage);
  trust_.struct_bytes += 8;
  trust_.release_keys = nullptr;
  EXPECT_EQ(Open(), usage);
  trust_.release_key_count = 0;
  EXPECT_EQ(Open(), static_cast<int>(ErrorCode::kTrustRecord));
  EXPECT_EQ(moepack_bundle_verify(nullptr, 0, message_, sizeof(message_)), usage);
  EXPECT_EQ(moepack_bundle_verify_expert(nullptr, 0, 0, message_, sizeof(message_)), usage);
  EXPECT_EQ(moepack_bundle_get_info(nullptr, nullptr, message_, sizeof(message_)), usage);
  moepack_bundle_close(nullptr);
}

}  // namespace
}  // namespace moepack
