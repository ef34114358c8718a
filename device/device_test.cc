#include "device/device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "base/digest/sha256.h"
#include "device/testing/sim_disk.h"
#include "verify/testing/tiny_bundle.h"

namespace moepack::device {
namespace {

using moepack::testing::MakeTestKey;
using moepack::testing::MakeTinyBundle;
using moepack::testing::MemoryFile;
using moepack::testing::SimDisk;
using moepack::testing::TinyContents;

constexpr char kRoot[] = "/device", kState[] = "/device/state";
const verify::FileRollbackStore::Key kStoreKey = {7};

Bytes Anchor() {
  TrustAnchor anchor;
  anchor.product = "tiny";
  anchor.key_epoch = 3;
  anchor.roles = {{KeyRole::kRelease, 1, {MakeTestKey(1).public_key}}, {KeyRole::kRoot, 1, {MakeTestKey(11).public_key}}};
  const Bytes body = SerializeTrustAnchor(anchor);
  Envelope envelope;
  envelope.manifest_bytes = body.size();
  envelope.signatures = {moepack::testing::SignWith(MakeTestKey(11), SignedMessage(KeyRole::kRoot, body))};
  Bytes out = SerializeEnvelope(envelope, kAnchorMagic);
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

// Bundles of rising counters; odd ones change one expert, so that they share all other chunks.
Bytes Bundle(uint64_t counter) {
  return MakeTinyBundle({.edit = [&](TinyContents& c) {
    c.manifest.security_counter = counter;
    if (counter % 2 == 0) return;
    ChunkRef& chunk = c.experts[0].units[1].chunks[0];
    c.chunk_area[chunk.offset] ^= 1;
    chunk.stored_digest = chunk.plain_digest = Sha256(ByteSpan(c.chunk_area).subspan(chunk.offset, chunk.stored_bytes));
  }});
}

// A device on a disk, opened anew for each call, as programs do.
class Handle {
 public:
  explicit Handle(Env& env) : store_(env, kState, kStoreKey) {
    Result<std::unique_ptr<Device>> device = Device::Open(env, kRoot, store_);
    status_ = device.status();
    if (device.ok()) device_ = std::move(*device);
  }
  Status Install(const Bytes& bundle) {
    if (device_ == nullptr) return status_;
    return device_->Install(std::make_unique<MemoryFile>(bundle), pool_, NoProgress()).status();
  }
  Status Confirm() { return device_ == nullptr ? status_ : device_->Confirm(); }
  Status Rollback() { return device_ == nullptr ? status_ : device_->Rollback(); }
  Status CollectGarbage() { return device_ == nullptr ? status_ : device_->CollectGarbage().status(); }
  // Counter of the bundle in use, every byte of it verified; 0 when none is installed.
  Result<uint64_t> Counter() {
    if (device_ == nullptr) return status_;
    MOEPACK_ASSIGN_OR_RETURN(const std::optional<Active> active, device_->ReadActive());
    if (!active.has_value()) return uint64_t{0};
    MOEPACK_ASSIGN_OR_RETURN(const auto bundle, device_->OpenCurrent());
    MOEPACK_RETURN_IF_ERROR(bundle->VerifyAll(pool_, NoProgress()));
    return bundle->manifest().security_counter;
  }
  Device* operator->() { return device_.get(); }
  verify::RollbackStore& store() { return store_; }

 private:
  verify::FileRollbackStore store_;
  ThreadPool pool_{1};
  Status status_;
  std::unique_ptr<Device> device_;
};

std::unique_ptr<SimDisk> NewDisk() {
  auto disk = std::make_unique<SimDisk>();
  EXPECT_TRUE(Device::Provision(*disk, kRoot, Anchor()).ok());
  EXPECT_TRUE(verify::FileRollbackStore::Create(*disk, kState, kStoreKey, {1, 3, 0, 0}).ok());
  return disk;
}

// With bundle 8 confirmed.
std::unique_ptr<SimDisk> DiskInUse() {
  auto disk = NewDisk();
  EXPECT_TRUE(Handle(*disk).Install(Bundle(8)).ok());
  EXPECT_TRUE(Handle(*disk).Confirm().ok());
  return disk;
}

TEST(Device, InstallsConfirmsAndRefusesOlder) {
  auto disk = NewDisk();
  EXPECT_EQ(Handle(*disk).Counter().value(), 0u);
  ASSERT_TRUE(Handle(*disk).Install(Bundle(8)).ok());
  EXPECT_EQ(Handle(*disk).Counter().value(), 8u);
  EXPECT_EQ(Handle(*disk).Install(Bundle(9)).code(), ErrorCode::kPolicy);  // 8 is on trial
  ASSERT_TRUE(Handle(*disk).Confirm().ok());
  EXPECT_EQ(Handle(*disk).Install(Bundle(7)).code(), ErrorCode::kRollback);
  EXPECT_EQ(Handle(*disk).Install(Bundle(8)).code(), ErrorCode::kPolicy);  // in use already
  EXPECT_EQ(Handle(*disk).Rollback().code(), ErrorCode::kRollback);        // confirmed
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

// ---- power cuts ----

struct Scenario {
  const char* name;
  std::unique_ptr<SimDisk> (*before)();
  Status (*operation)(Handle&);
  uint64_t old_counter, new_counter;
};

std::unique_ptr<SimDisk> DiskOnTrial() {
  auto disk = DiskInUse();
  EXPECT_TRUE(Handle(*disk).Install(Bundle(9)).ok());
  return disk;
}

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

TEST(PowerCut, AlwaysTheOldOrTheNewVersion) {
  static constexpr size_t kBound = 6;
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

}  // namespace
}  // namespace moepack::device
