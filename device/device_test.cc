#include "device/device.h"

#include <gtest/gtest.h>

#include "device/testing/device_handle.h"

namespace moepack::device {
namespace {

TEST(Device, InstallsConfirmsAndRefusesOlder) {
  auto disk = NewDisk();
  EXPECT_EQ(Handle(*disk).Counter().value(), 0u);
  ASSERT_TRUE(Handle(*disk).Install(Bundle(8)).ok());
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
  EXPECT_EQ(Handle(*disk).Install(Bundle(9)).code(), ErrorCode::kPolicy);  // 8 is on trial
  ASSERT_TRUE(Handle(*disk).Confirm().ok());
  EXPECT_EQ(Handle(*disk).Install(Bundle(7)).code(), ErrorCode::kRollback);
  EXPECT_EQ(Handle(*disk).Rollback().code(), ErrorCode::kRollback);  // confirmed
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
}

TEST(Device, RollsBackFromTrialOnly) {
  auto disk = DiskInUse();
  ASSERT_TRUE(Handle(*disk).Install(Bundle(9)).ok());
  EXPECT_EQ(Handle(*disk).Counter().value(), 9u);
  ASSERT_TRUE(Handle(*disk).Rollback().ok());
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
  ASSERT_TRUE(Handle(*disk).Install(Bundle(9)).ok());  // the floor did not rise
  auto fresh = NewDisk();
  ASSERT_TRUE(Handle(*fresh).Install(Bundle(9)).ok());
  ASSERT_TRUE(Handle(*fresh).Rollback().ok());
  EXPECT_EQ(Handle(*fresh).Counter().value(), 0u);
}

TEST(Device, BundlesShareChunksAndGarbageGoes) {
  auto disk = DiskInUse();
  const size_t before = disk->List("/device/chunks").value().size();
  ASSERT_TRUE(Handle(*disk).Install(Bundle(9)).ok());
  EXPECT_EQ(disk->List("/device/chunks").value().size(), before + 1);
  ASSERT_TRUE(Handle(*disk).CollectGarbage().ok());  // both are needed while 9 is on trial
  EXPECT_EQ(disk->List("/device/chunks").value().size(), before + 1);
  ASSERT_TRUE(Handle(*disk).Confirm().ok());
  ASSERT_TRUE(Handle(*disk).CollectGarbage().ok());
  EXPECT_EQ(disk->List("/device/chunks").value().size(), before);
  EXPECT_EQ(disk->List("/device/bundles").value().size(), 1u);
  EXPECT_EQ(Handle(*disk).Counter().value(), 9u);
}

TEST(Device, TakesASuccessorOfItsAnchorAndNoEarlierOneAgain) {
  auto disk = DiskInUse();
  EXPECT_EQ(Handle(*disk).Rotate(Anchor(3)).code(), ErrorCode::kUntrusted);  // not by root key 11
  ASSERT_TRUE(Handle(*disk).Rotate(Anchor(2)).ok());
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
  EXPECT_EQ(Handle(*disk)->anchor().root_version, 2u);
  EXPECT_TRUE(Handle(*disk).Rotate(Anchor(2)).ok());  // again, as after an interruption
  EXPECT_EQ(Handle(*disk).Rotate(Anchor(1)).code(), ErrorCode::kUntrusted);
  ASSERT_TRUE(WriteFileAtomically(*disk, "/device/anchor.trust", Anchor(1)).ok());
  EXPECT_EQ(Handle(*disk).status().code(), ErrorCode::kRollback);
}

TEST(Device, ABundleThatTheSuccessorDoesNotTrustIsRefused) {
  auto disk = DiskInUse();
  ASSERT_TRUE(Handle(*disk).Rotate(Anchor(2, 2)).ok());
  EXPECT_EQ(Handle(*disk).Counter().status().code(), ErrorCode::kUntrusted);
  EXPECT_EQ(Handle(*disk).Install(Bundle(9)).code(), ErrorCode::kUntrusted);
}

TEST(Device, InstallsWhatTheHeadOffersOnly) {
  auto disk = DiskInUse();
  EXPECT_EQ(Handle(*disk).Install(Bundle(9), OfferOf(Bundle(10))).code(), ErrorCode::kPolicy);
  const auto none = [](ChannelHead& head) { head.rollout_permille = 0; };
  EXPECT_EQ(Handle(*disk).Install(Bundle(9), OfferOf(Bundle(9), none)).code(), ErrorCode::kPolicy);
  EXPECT_EQ(Handle(*disk).store().Read()->head_version, 0u);
  ASSERT_TRUE(Handle(*disk).Install(Bundle(9), OfferOf(Bundle(9))).ok());
  ASSERT_TRUE(Handle(*disk).Confirm().ok());
  EXPECT_EQ(Handle(*disk).store().Read()->head_version, 5u);
  const auto older = [](ChannelHead& head) { head.head_version = 4; };
  EXPECT_EQ(Handle(*disk).Install(Bundle(10), OfferOf(Bundle(10), older)).code(), ErrorCode::kRollback);
  EXPECT_TRUE(Handle(*disk).Install(Bundle(10), OfferOf(Bundle(10))).ok());
}

TEST(Device, DamagedChunkInTheStoreIsNotShared) {
  auto disk = DiskInUse();
  const std::vector<std::string> names = disk->List("/device/chunks").value();
  for (const std::string& name : names) {
    Bytes bytes = ReadFile(*disk, "/device/chunks/" + name, 1 << 20).value();
    bytes[0] ^= 1;
    ASSERT_TRUE(WriteFileAtomically(*disk, "/device/chunks/" + name, bytes).ok());
  }
  EXPECT_EQ(Handle(*disk).Counter().status().code(), ErrorCode::kDigest);
  ASSERT_TRUE(Handle(*disk).Install(Bundle(9)).ok());  // writes all of its chunks again, the shared ones too
  EXPECT_EQ(Handle(*disk).Counter().value(), 9u);
}

TEST(Device, UnsignedAndForeignBundlesLeaveNothing) {
  auto disk = DiskInUse();
  const size_t chunks = disk->List("/device/chunks").value().size();
  EXPECT_EQ(Handle(*disk).Install(MakeTinyBundle({.keys = {MakeTestKey(5)}})).code(), ErrorCode::kUntrusted);
  const auto foreign = [](Manifest& m) { m.product = "camera"; };
  EXPECT_EQ(Handle(*disk).Install(MakeTinyBundle({.edit_manifest = foreign})).code(), ErrorCode::kPolicy);
  EXPECT_EQ(disk->List("/device/chunks").value().size(), chunks);
}

// Every byte of a file changed that follows `from`, as a failing disk does.
void Damage(SimDisk& disk, const std::string& path, size_t from = 0) {
  Bytes bytes = ReadFile(disk, path, 1 << 20).value();
  for (size_t i = from; i < bytes.size(); ++i) bytes[i] ^= 0x5a;
  ASSERT_TRUE(WriteFileAtomically(disk, path, bytes).ok());
}

TEST(Device, InstallingTheBundleInUseRepairsIt) {
  auto disk = DiskInUse();
  const std::string record = "/device/bundles/" + disk->List("/device/bundles").value()[0];
  const Active before = *Handle(*disk)->ReadActive().value();
  const std::vector<std::string> chunks = disk->List("/device/chunks").value();
  for (const std::string& name : chunks) Damage(*disk, "/device/chunks/" + name);
  EXPECT_FALSE(Handle(*disk).Counter().ok());
  ASSERT_TRUE(Handle(*disk).Install(Bundle(8)).ok());
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
  for (const size_t from : {0, 40, 2000}) {
    Damage(*disk, record, from);
    EXPECT_FALSE(Handle(*disk).Counter().ok()) << from;
    ASSERT_TRUE(Handle(*disk).Install(Bundle(8)).ok()) << from;
    EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
  }
  ASSERT_TRUE(disk->Remove(record).ok());
  ASSERT_TRUE(Handle(*disk).Install(Bundle(8)).ok());
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
  EXPECT_EQ(*Handle(*disk)->ReadActive().value(), before);  // confirmed as it was
}

TEST(Device, RepairKeepsTheTrial) {
  auto disk = DiskOnTrial();
  const Active before = *Handle(*disk)->ReadActive().value();
  Damage(*disk, "/device/bundles/" + ToHex(ByteSpan(before.current)));
  ASSERT_TRUE(Handle(*disk).Install(Bundle(9)).ok());
  EXPECT_EQ(*Handle(*disk)->ReadActive().value(), before);
  ASSERT_TRUE(Handle(*disk).Rollback().ok());
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
}

TEST(Device, DamagedRecordInUseDoesNotBlockAnotherBundle) {
  auto disk = DiskInUse();
  Damage(*disk, "/device/bundles/" + disk->List("/device/bundles").value()[0]);
  ASSERT_TRUE(Handle(*disk).Install(Bundle(9)).ok());
  EXPECT_EQ(Handle(*disk).Counter().value(), 9u);
}

TEST(Device, DamagedActiveIsMendedByInstallAndFloorsHold) {
  for (const Bytes& damaged : {Bytes(), Bytes(112, 1), Bytes(113, 1)}) {
    auto disk = DiskInUse();
    ASSERT_TRUE(WriteFileAtomically(*disk, "/device/active", damaged).ok());
    EXPECT_EQ(Handle(*disk).Counter().status().code(), ErrorCode::kTrustRecord);
    EXPECT_EQ(Handle(*disk).Install(Bundle(7)).code(), ErrorCode::kRollback);
    ASSERT_TRUE(Handle(*disk).Install(Bundle(8)).ok());
    ASSERT_TRUE(Handle(*disk).Confirm().ok());
    EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
  }
}

TEST(Device, OlderAnchorThanTheOneUsedIsRefused) {
  SimDisk disk;
  ASSERT_TRUE(Provision(disk, 7, Anchor(2)).ok());
  ASSERT_TRUE(Handle(disk).status().ok());
  ASSERT_TRUE(WriteFileAtomically(disk, "/device/anchor.trust", Anchor(3)).ok());
  ASSERT_TRUE(Handle(disk).Install(Bundle(8)).ok());
  ASSERT_TRUE(Handle(disk).Confirm().ok());  // which is when the store sees version 3
  ASSERT_TRUE(WriteFileAtomically(disk, "/device/anchor.trust", Anchor(2)).ok());
  EXPECT_EQ(Handle(disk).status().code(), ErrorCode::kRollback);
}

TEST(Device, ProvisionedOnce) {
  auto disk = NewDisk();
  EXPECT_EQ(Provision(*disk).code(), ErrorCode::kPolicy);
  TrustAnchor anchor;
  EXPECT_EQ(CreateFileStore(*disk, kRoot, {8}, anchor).code(), ErrorCode::kPolicy);
  EXPECT_EQ(Handle(*disk).Counter().value(), 0u);  // its store is as it was
  SimDisk empty;
  EXPECT_EQ(Handle(empty).status().code(), ErrorCode::kNotFound);
}

TEST(Device, GarbageIsAlsoWhatKilledProcessesLeft) {
  auto disk = DiskInUse();
  const auto put = [&](const std::string& path) { ASSERT_TRUE(WriteFileAtomically(*disk, path, Bytes{1}).ok()); };
  for (const char* name : {"active", "anchor.trust", "rollback.key", "state/rollback.0"}) {
    put(std::string("/device/") + name + ".tmp-0123456789abcdef");
  }
  for (const char* name : {"notes.tmp-", "notes.tmp-0123456789abcdeg", "x.tmp-0123456789abcdef.txt"}) {
    put(std::string("/device/") + name);
  }
  EXPECT_EQ(Handle(*disk)->CollectGarbage().value().files_removed, 4u);
  EXPECT_EQ(disk->List(kRoot).value().size(), 3u + 3u);  // anchor, key, active; those that are not ours
  EXPECT_EQ(disk->List("/device/state").value().size(), 2u);
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
}

}  // namespace
}  // namespace moepack::device
