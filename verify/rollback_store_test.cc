#include "verify/rollback_store.h"

#include <gtest/gtest.h>

#include "base/testing/fault_env.h"

namespace moepack::verify {
namespace {

constexpr RollbackState kOld = {1, 3, 7, 20};
constexpr RollbackState kNew = {1, 3, 8, 21};

class FileRollbackStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(FileRollbackStore::Create(PosixEnv(), directory_, key_, kOld).ok()); }
  FileRollbackStore Store(Env& env = PosixEnv()) { return FileRollbackStore(env, directory_, key_); }
  std::string Slot(int number) const { return JoinPath(directory_, number == 0 ? "rollback.0" : "rollback.1"); }
  void Flip(int slot, size_t at) {
    Bytes bytes = ReadFile(PosixEnv(), Slot(slot), 1000).value();
    bytes[at] ^= 1;
    ASSERT_TRUE(WriteFileAtomically(PosixEnv(), Slot(slot), bytes).ok());
  }

  const moepack::testing::TempDirectory parent_{::testing::TempDir()};
  const std::string directory_ = parent_.Path("state");
  const FileRollbackStore::Key key_ = {1, 2, 3};
};

TEST_F(FileRollbackStoreTest, KeepsWhatWasCommitted) {
  EXPECT_EQ(Store().Read().value(), kOld);
  EXPECT_TRUE(Store().Commit(kNew).ok());
  EXPECT_EQ(Store().Read().value(), kNew);
  EXPECT_EQ(FileRollbackStore::Create(PosixEnv(), directory_, key_, kOld).code(), ErrorCode::kPolicy);
}

TEST_F(FileRollbackStoreTest, NeverGoesBack) {
  for (const RollbackState& lower : {RollbackState{0, 3, 7, 20}, {1, 2, 99, 20}, {1, 3, 6, 20}, {1, 3, 7, 19}}) {
    EXPECT_EQ(Store().Commit(lower).code(), ErrorCode::kRollback);
  }
  EXPECT_TRUE(Store().Commit({1, 4, 0, 20}).ok());  // a new epoch starts afresh
  EXPECT_EQ(Store().Read().value(), (RollbackState{1, 4, 0, 20}));
}

TEST_F(FileRollbackStoreTest, OneDamagedSlotLosesNothing) {
  ASSERT_TRUE(Store().Commit(kNew).ok());
  for (const int slot : {0, 1}) {
    Flip(slot, 30);
    EXPECT_EQ(Store().Read().value(), kNew);
    ASSERT_TRUE(Store().Commit(kNew).ok());
  }
  Flip(0, 87);
  Flip(1, 0);
  EXPECT_EQ(Store().Read().status().code(), ErrorCode::kTrustRecord);
  EXPECT_EQ(Store().Commit(kNew).code(), ErrorCode::kTrustRecord);
}

TEST_F(FileRollbackStoreTest, OtherKeyAndCopiedSlotAreRefused) {
  FileRollbackStore::Key other = key_;
  other[31] = 1;
  EXPECT_EQ(FileRollbackStore(PosixEnv(), directory_, other).Read().status().code(), ErrorCode::kTrustRecord);
  const Bytes old = ReadFile(PosixEnv(), Slot(0), 1000).value();
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), Slot(1), old).ok());
  EXPECT_EQ(Store().Read().value(), kOld);  // slot 0 is still good, the copy does not count
  ASSERT_TRUE(PosixEnv().Remove(Slot(0)).ok());
  EXPECT_EQ(Store().Read().status().code(), ErrorCode::kTrustRecord);
}

TEST_F(FileRollbackStoreTest, UnfinishedCreateIsRepeated) {
  FileRollbackStore::Key other = key_;
  other[0] = 9;
  ASSERT_TRUE(PosixEnv().Remove(Slot(1)).ok());  // as if stopped after slot 0
  ASSERT_TRUE(FileRollbackStore::Create(PosixEnv(), directory_, other, kNew).ok());
  EXPECT_EQ(FileRollbackStore(PosixEnv(), directory_, other).Read().value(), kNew);
  EXPECT_EQ(FileRollbackStore::Create(PosixEnv(), directory_, key_, kOld).code(), ErrorCode::kPolicy);
  ASSERT_TRUE(FileRollbackStore::Discard(PosixEnv(), directory_).ok());
  ASSERT_TRUE(FileRollbackStore::Discard(PosixEnv(), directory_).ok());
  ASSERT_TRUE(FileRollbackStore::Create(PosixEnv(), directory_, key_, kOld).ok());
  EXPECT_EQ(Store().Read().value(), kOld);
}

TEST_F(FileRollbackStoreTest, AfterAnyFailedOperationOldOrNewIsThere) {
  moepack::testing::FaultEnv env(PosixEnv());
  RollbackState old = kOld;
  for (uint64_t operation = 1;; ++operation) {
    RollbackState next = old;
    ++next.security_counter;
    env.FailAt(operation, ErrorCode::kNoSpace, moepack::testing::FaultEnv::Duration::kFromThenOn);
    const Status status = Store(env).Commit(next);
    const RollbackState left = Store().Read().value();
    EXPECT_TRUE(left == old || left == next) << operation;
    EXPECT_TRUE(!status.ok() || left == next) << operation;
    if (status.ok()) {
      EXPECT_GT(operation, 8u);
      return;
    }
    old = left;
  }
}

}  // namespace
}  // namespace moepack::verify
