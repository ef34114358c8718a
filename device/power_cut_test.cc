// Installation on a disk that forgets: a power cut at every operation, and every loss of what was not synced.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "device/device.h"
#include "device/testing/device_handle.h"
#include "device/testing/golden_bundle.h"

namespace moepack::device {
namespace {

struct Scenario {
  const char* name;
  std::unique_ptr<SimDisk> (*before)();
  Status (*operation)(Handle&);
  uint64_t old_counter, new_counter;
};

std::unique_ptr<SimDisk> DiskWithGarbage() {
  auto disk = DiskOnTrial();
  EXPECT_TRUE(Handle(*disk).Confirm().ok());
  return disk;
}

const Scenario kScenarios[] = {
    {"install", DiskInUse, [](Handle& h) { return h.Install(Bundle(9)); }, 8, 9},
    {"first install", NewDisk, [](Handle& h) { return h.Install(Bundle(9)); }, 0, 9},
    {"confirm", DiskOnTrial, [](Handle& h) { return h.Confirm(); }, 9, 9},
    {"rollback", DiskOnTrial, [](Handle& h) { return h.Rollback(); }, 9, 8},
    {"gc", DiskWithGarbage, [](Handle& h) { return h.CollectGarbage(); }, 9, 9},
    {"install by a head", DiskInUse, [](Handle& h) { return h.Install(Bundle(9), OfferOf(Bundle(9))); }, 8, 9},
    {"trial that confirms", DiskWithGoodTrial, [](Handle& h) { return h.Trial().status(); }, 9, 9},
    {"trial that rolls back", DiskWithBadTrial, [](Handle& h) { return h.Trial().status(); }, 9, 8},
    {"rotate", DiskInUse, [](Handle& h) { return h.Rotate(Anchor(2)); }, 8, 8},
};

// Every combination of fates of the last `bound` effects, the earlier ones all lost or all done.
void ForEachLoss(const SimDisk& disk, size_t bound, const std::function<void(const std::vector<SimDisk::Fate>&)>& visit) {
  using Fate = SimDisk::Fate;
  const size_t count = disk.pending(), first = count - std::min(count, bound);
  for (const Fate early : {Fate::kLost, Fate::kDone}) {
    std::vector<Fate> fates(count, early);
    std::fill(fates.begin() + static_cast<ptrdiff_t>(first), fates.end(), Fate::kLost);
    for (;;) {
      visit(fates);
      size_t i = first;
      for (; i < count; ++i) {  // the next combination
        if (fates[i] == Fate::kLost) {
          fates[i] = disk.IsData(i) ? Fate::kTorn : Fate::kDone;
          break;
        }
        if (fates[i] == Fate::kTorn) {
          fates[i] = Fate::kDone;
          break;
        }
        fates[i] = Fate::kLost;
      }
      if (i == count) break;
    }
    if (first == 0) return;
  }
}

constexpr size_t kBound = 6;

TEST(PowerCut, AlwaysTheOldOrTheNewVersion) {
  for (const Scenario& scenario : kScenarios) {
    const std::unique_ptr<SimDisk> start = scenario.before();
    uint64_t cuts = 0, states = 0;
    for (bool finished = false; !finished; ++cuts) {
      const std::unique_ptr<SimDisk> disk = start->Copy();
      disk->PowerCut(cuts);
      Handle handle(*disk);
      finished = scenario.operation(handle).ok();
      ForEachLoss(*disk, kBound, [&](const std::vector<SimDisk::Fate>& fates) {
        ++states;
        const std::unique_ptr<SimDisk> found = disk->AfterPowerCut(fates);
        const Result<uint64_t> counter = Handle(*found).Counter();
        ASSERT_TRUE(counter.ok()) << scenario.name << ", cut " << cuts << ": " << counter.status().message();
        ASSERT_TRUE(*counter == scenario.old_counter || *counter == scenario.new_counter)
            << scenario.name << ", cut " << cuts;
        ASSERT_TRUE(!finished || *counter == scenario.new_counter) << scenario.name << ": lost after it was reported done";
        ASSERT_TRUE(Handle(*found).store().Read().ok()) << scenario.name << ", cut " << cuts;
        // The device goes on from there: the same again succeeds or says that it was done.
        Handle again(*found);
        const Status status = scenario.operation(again);
        ASSERT_TRUE(status.ok() || status.exit_status() == 5)
            << scenario.name << ", cut " << cuts << ": " << status.message();
        ASSERT_EQ(Handle(*found).Counter().value(), scenario.new_counter) << scenario.name << ", cut " << cuts;
      });
      if (HasFatalFailure()) return;
    }
    std::printf("%s: %llu power cuts, %llu states of the disk\n", scenario.name, static_cast<unsigned long long>(cuts),
                static_cast<unsigned long long>(states));
  }
}

// The first operation is killed at any moment, the machine stays on, and the power goes at any moment of the second one or
// after it: what the second one found may have been on its way to the disk only.
struct Sequence {
  const char* name;
  std::unique_ptr<SimDisk> (*before)();
  Status (*first)(Handle&);
  Status (*second)(Handle&);
  std::vector<uint64_t> counters;  // one of them is in use when the second one is done
};

// The bundle in use is whole, and when it is on trial the way back is open. Its counter.
Result<uint64_t> CounterWithWayBack(const SimDisk& disk) {
  const std::unique_ptr<SimDisk> found = disk.Copy();
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t counter, Handle(*found).Counter());
  if (counter == 0 || !Handle(*found)->ReadActive().value()->on_trial) return counter;
  MOEPACK_RETURN_IF_ERROR(Handle(*found).Rollback());
  MOEPACK_RETURN_IF_ERROR(Handle(*found).Counter().status());
  return counter;
}

TEST(PowerCut, WhatAKilledProcessLeftIsNotBuiltOn) {
  static constexpr auto kInstall = [](Handle& h) { return h.Install(Bundle(9)); };
  static constexpr auto kConfirm = [](Handle& h) { return h.Confirm(); };
  static constexpr auto kRollback = [](Handle& h) { return h.Rollback(); };
  static constexpr auto kCollect = [](Handle& h) { return h.CollectGarbage(); };
  static constexpr auto kTrial = [](Handle& h) { return h.Trial().status(); };
  static constexpr auto kRotate = [](Handle& h) { return h.Rotate(Anchor(2)); };
  const Sequence sequences[] = {{"install twice", DiskInUse, kInstall, kInstall, {9}},
                                {"confirm twice", DiskOnTrial, kConfirm, kConfirm, {9}},
                                {"rollback, gc", DiskOnTrial, kRollback, kCollect, {8, 9}},
                                {"confirm, gc", DiskOnTrial, kConfirm, kCollect, {9}},
                                {"rotate twice", DiskInUse, kRotate, kRotate, {8}},
                                {"rotate, confirm", DiskOnTrial, kRotate, kConfirm, {9}},
                                {"good trial twice", DiskWithGoodTrial, kTrial, kTrial, {9}},
                                {"bad trial twice", DiskWithBadTrial, kTrial, kTrial, {8}}};
  for (const Sequence& sequence : sequences) {
    const std::unique_ptr<SimDisk> start = sequence.before();
    uint64_t stops = 0, states = 0;
    for (bool first_done = false; !first_done; ++stops) {
      bool done = false;
      for (uint64_t cuts = 0; !done; ++cuts) {
        const std::unique_ptr<SimDisk> disk = start->Copy();
        disk->PowerCut(stops);
        Handle killed(*disk);
        first_done = sequence.first(killed).ok();
        disk->PowerCut(cuts);
        Handle next(*disk);
        done = sequence.second(next).ok();
        const std::string where =
            std::string(sequence.name) + ", stop " + std::to_string(stops) + ", cut " + std::to_string(cuts);
        const verify::RollbackState floors = Handle(*disk).store().Read().value();
        ForEachLoss(*disk, kBound, [&](const std::vector<SimDisk::Fate>& fates) {
          ++states;
          const std::unique_ptr<SimDisk> found = disk->AfterPowerCut(fates);
          const Result<uint64_t> counter = CounterWithWayBack(*found);
          ASSERT_TRUE(counter.ok()) << where << ": " << counter.status().message();
          if (!done) return;
          ASSERT_NE(std::ranges::find(sequence.counters, *counter), sequence.counters.end()) << where << ": " << *counter;
          ASSERT_EQ(Handle(*found).store().Read().value(), floors) << where;
        });
        if (HasFatalFailure()) return;
      }
    }
    std::printf("%s: %llu stops, %llu states of the disk\n", sequence.name, static_cast<unsigned long long>(stops),
                static_cast<unsigned long long>(states));
  }
}

TEST(PowerCut, ProvisioningIsDoneOrDoneAgain) {
  uint64_t cuts = 0, anchored = 0;
  for (bool finished = false; !finished; ++cuts) {
    SimDisk disk;
    disk.PowerCut(cuts);
    finished = Provision(disk).ok();
    ForEachLoss(disk, kBound, [&](const std::vector<SimDisk::Fate>& fates) {
      const std::unique_ptr<SimDisk> found = disk.AfterPowerCut(fates);
      const bool provisioned = Device::IsProvisioned(*found, kRoot).value();
      anchored += provisioned ? 1 : 0;
      ASSERT_TRUE(!finished || provisioned) << "lost after it was reported done";
      const Status again = Provision(*found, 8);  // programs draw a new key each time
      ASSERT_EQ(again.code(), provisioned ? ErrorCode::kPolicy : ErrorCode::kOk) << "cut " << cuts << again.message();
      const Result<uint64_t> counter = Handle(*found).Counter();
      ASSERT_TRUE(counter.ok()) << "cut " << cuts << ": " << counter.status().message();
      ASSERT_EQ(Handle(*found).store().Read().value(), (verify::RollbackState{1, 3, 0, 0})) << "cut " << cuts;
    });
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(anchored, 0u);
}

TEST(PowerCut, AnchorComesAfterTheFolders) {
  uint64_t provisioned = 0, cuts = 0;
  for (bool finished = false; !finished; ++cuts) {
    SimDisk disk;
    disk.PowerCut(cuts);
    finished = Device::Provision(disk, kRoot, Anchor(), [](const TrustAnchor&) { return Status::Ok(); }).ok();
    ForEachLoss(disk, kBound, [&](const std::vector<SimDisk::Fate>& fates) {
      const std::unique_ptr<SimDisk> found = disk.AfterPowerCut(fates);
      if (!Device::IsProvisioned(*found, kRoot).value()) return;
      ++provisioned;
      for (const char* name : {"/device/chunks", "/device/bundles"}) ASSERT_TRUE(found->IsDirectory(name).value()) << name;
    });
  }
  EXPECT_GT(provisioned, 0u);
}

TEST(PowerCut, ProvisioningThatWasKilledIsNotBuiltOn) {
  uint64_t again = 0;
  for (uint64_t stops = 0;; ++stops) {
    SimDisk disk;
    ASSERT_TRUE(disk.MakeDirectory(kRoot).ok() && disk.SyncDirectory("/").ok());  // the folder is there, as in an image
    disk.PowerCut(stops);
    const bool finished = Provision(disk).ok();
    disk.PowerOn();
    if (finished) break;
    if (Device::IsProvisioned(disk, kRoot).value()) continue;  // killed between the anchor's rename and its sync
    ++again;
    ASSERT_TRUE(Provision(disk, 8).ok()) << "stop " << stops;
    const std::unique_ptr<SimDisk> found = disk.AfterPowerCut(std::vector(disk.pending(), SimDisk::Fate::kLost));
    const Result<uint64_t> counter = Handle(*found).Counter();
    ASSERT_TRUE(counter.ok()) << "stop " << stops << ": " << counter.status().message();
  }
  EXPECT_GT(again, 0u);
}

TEST(PowerCut, ConfirmIsFinishedByTheNextInstall) {
  uint64_t confirmed = 0;
  const std::unique_ptr<SimDisk> start = DiskOnTrial();
  for (uint64_t cuts = 0; cuts < start->operations(); ++cuts) {
    const std::unique_ptr<SimDisk> disk = start->Copy();
    disk->PowerCut(cuts);
    const bool finished = Handle(*disk).Confirm().ok();
    const std::unique_ptr<SimDisk> found = disk->AfterPowerCut(std::vector(disk->pending(), SimDisk::Fate::kDone));
    const Active active = *Handle(*found)->ReadActive().value();
    const Status older = Handle(*found).Install(Bundle(8));
    EXPECT_EQ(older.code(), active.on_trial ? ErrorCode::kPolicy : ErrorCode::kRollback) << "cut " << cuts;
    confirmed += !active.on_trial && !finished ? 1 : 0;
    if (finished) break;
  }
  EXPECT_GT(confirmed, 0u);
}

}  // namespace
}  // namespace moepack::device
