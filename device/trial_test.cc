#include <gtest/gtest.h>

#include "device/testing/golden_bundle.h"

namespace moepack::device {
namespace {

uint64_t Floor(SimDisk& disk) { return Handle(disk).store().Read()->security_counter; }

TEST(Trial, ConfirmsABundleThatAnswersAsItSays) {
  auto disk = DiskWithGoodTrial();
  const Result<TrialReport> report = Handle(*disk).Trial();
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_TRUE(report->verdict.ok()) << report->verdict.message();
  EXPECT_TRUE(report->on_trial);
  EXPECT_EQ(report->golden.agreed, 6u);
  EXPECT_EQ(Handle(*disk).Counter().value(), 9u);
  EXPECT_FALSE(Handle(*disk)->ReadActive().value()->on_trial);
  EXPECT_EQ(Floor(*disk), 9u);
}

TEST(Trial, RollsBackABundleThatAnswersOtherwise) {
  auto disk = DiskWithBadTrial();
  const Result<TrialReport> report = Handle(*disk).Trial();
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->verdict.code(), ErrorCode::kGate);
  EXPECT_NE(report->verdict.message().find("prompt 0, step 0"), std::string::npos) << report->verdict.message();
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
  EXPECT_EQ(Floor(*disk), 8u);
  EXPECT_TRUE(Handle(*disk).Install(RunnableBundle(9, Asked::kRight)).ok());  // the floor did not rise
}

TEST(Trial, RollsBackTheFirstBundleToNone) {
  auto disk = NewDisk();
  ASSERT_TRUE(Handle(*disk).Install(RunnableBundle(9, Asked::kWrong)).ok());
  EXPECT_EQ(Handle(*disk).Trial()->verdict.code(), ErrorCode::kGate);
  EXPECT_EQ(Handle(*disk).Counter().value(), 0u);
  EXPECT_EQ(Handle(*disk).Trial().status().code(), ErrorCode::kPolicy);  // nothing is installed
}

TEST(Trial, NothingOnTrialIsFine) {
  auto disk = DiskInUse();
  const Result<TrialReport> report = Handle(*disk).Trial();
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_FALSE(report->on_trial);
  EXPECT_TRUE(report->verdict.ok());
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
}

TEST(Trial, ConfirmsNoBundleUntestedUnlessToldTo) {
  auto disk = DiskWithTrialOf(Asked::kNothing);
  const Status refused = Handle(*disk).Trial().status();
  EXPECT_EQ(refused.code(), ErrorCode::kPolicy);
  EXPECT_NE(refused.message().find("--untested"), std::string::npos) << refused.message();
  EXPECT_TRUE(Handle(*disk)->ReadActive().value()->on_trial);
  for (uint32_t i = 0; i <= kMaxTrialRuns; ++i) EXPECT_FALSE(Handle(*disk).Trial().ok());  // none of these is a run
  ASSERT_TRUE(Handle(*disk).Trial({.untested = true}).ok());
  EXPECT_FALSE(Handle(*disk)->ReadActive().value()->on_trial);
  EXPECT_EQ(Floor(*disk), 9u);
}

TEST(Trial, UntestedDoesNotSkipGoldenPrompts) {
  auto disk = DiskWithBadTrial();
  EXPECT_EQ(Handle(*disk).Trial({.untested = true})->verdict.code(), ErrorCode::kGate);
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
}

TEST(Trial, RollsBackWhenAChunkIsDamaged) {
  auto disk = DiskWithGoodTrial();
  const auto kept = DiskInUse()->List("/device/chunks").value();
  const std::vector<std::string> names = disk->List("/device/chunks").value();
  for (const std::string& name : names) {
    if (std::ranges::find(kept, name) != kept.end()) continue;  // of the bundle to return to
    ASSERT_TRUE(WriteFileAtomically(*disk, "/device/chunks/" + name, Bytes(10, 1)).ok());
  }
  const Result<TrialReport> report = Handle(*disk).Trial();
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->verdict.exit_status(), 4) << report->verdict.message();
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
}

TEST(Trial, RollsBackWhenTheRecordIsDamaged) {
  auto disk = DiskWithGoodTrial();
  const std::string record = "/device/bundles/" + ToHex(ByteSpan(Handle(*disk)->ReadActive().value()->current));
  ASSERT_TRUE(disk->Remove(record).ok());
  EXPECT_EQ(Handle(*disk).Trial()->verdict.code(), ErrorCode::kNotFound);
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
}

TEST(Trial, RollsBackWhenTheBudgetIsTooSmall) {
  auto disk = DiskWithGoodTrial();
  const Result<TrialReport> report = Handle(*disk).Trial({.expert_ram_bytes = 1});
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->verdict.code(), ErrorCode::kNoMemory);
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
}

TEST(Trial, RollsBackAfterRunsThatWereCutOff) {
  auto disk = DiskWithGoodTrial();
  // Each run writes `active` first: a process killed behind it leaves it so.
  Handle probe(*disk);
  const uint64_t before = disk->operations();
  ASSERT_TRUE(WriteFileAtomically(*disk, "/device/probe", Bytes(1)).ok());
  const uint64_t of_one_file = disk->operations() - before;
  for (uint32_t run = 1; run <= kMaxTrialRuns; ++run) {
    disk->PowerCut(of_one_file);
    EXPECT_FALSE(Handle(*disk).Trial().ok());
    disk->PowerOn();
    EXPECT_EQ(Handle(*disk)->ReadActive().value()->trials, run);
    EXPECT_EQ(Handle(*disk).Counter().value(), 9u);
  }
  const Result<TrialReport> report = Handle(*disk).Trial();
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->verdict.code(), ErrorCode::kGate);
  EXPECT_NE(report->verdict.message().find("did not end"), std::string::npos) << report->verdict.message();
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
}

TEST(Trial, SaysBothWhenTheWayBackFailsToo) {
  auto disk = DiskWithBadTrial();
  const std::string record = "/device/bundles/" + ToHex(ByteSpan(*Handle(*disk)->ReadActive().value()->previous));
  ASSERT_TRUE(disk->Remove(record).ok());
  const Status status = Handle(*disk).Trial().status();
  EXPECT_EQ(status.code(), ErrorCode::kNotFound);
  EXPECT_NE(status.message().find("steps differ"), std::string::npos) << status.message();
  EXPECT_TRUE(Handle(*disk)->ReadActive().value()->on_trial);
}

}  // namespace
}  // namespace moepack::device
