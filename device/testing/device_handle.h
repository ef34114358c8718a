// A small device on any Env, and bundles for it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "base/digest/sha256.h"
#include "device/device.h"
#include "device/file_store.h"
#include "device/testing/sim_disk.h"
#include "verify/testing/tiny_bundle.h"

namespace moepack::device {

using moepack::testing::MakeTestKey;
using moepack::testing::MakeTinyBundle;
using moepack::testing::MemoryFile;
using moepack::testing::SimDisk;
using moepack::testing::TinyContents;

inline constexpr char kRoot[] = "/device";

inline Bytes Anchor(uint64_t root_version = 1) {
  TrustAnchor anchor;
  anchor.root_version = root_version;
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
inline Bytes Bundle(uint64_t counter) {
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
  explicit Handle(Env& env) : status_(Open(env)) {}
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
  const Status& status() const { return status_; }
  verify::RollbackStore& store() { return *store_; }

 private:
  Status Open(Env& env) {
    MOEPACK_ASSIGN_OR_RETURN(const verify::FileRollbackStore store, OpenFileStore(env, kRoot));
    store_ = std::make_unique<verify::FileRollbackStore>(store);
    MOEPACK_ASSIGN_OR_RETURN(device_, Device::Open(env, kRoot, *store_));
    return Status::Ok();
  }
  std::unique_ptr<verify::FileRollbackStore> store_;
  ThreadPool pool_{1};
  std::unique_ptr<Device> device_;
  Status status_;
};

// A device with the file-based store, whose key begins with `key`.
inline Status Provision(Env& env, uint8_t key = 7, const Bytes& anchor = Anchor()) {
  return Device::Provision(env, kRoot, anchor,
                           [&](const TrustAnchor& trusted) { return CreateFileStore(env, kRoot, {key}, trusted); });
}

inline std::unique_ptr<SimDisk> NewDisk() {
  auto disk = std::make_unique<SimDisk>();
  EXPECT_TRUE(Provision(*disk).ok());
  return disk;
}

// With bundle 8 confirmed.
inline std::unique_ptr<SimDisk> DiskInUse() {
  auto disk = NewDisk();
  EXPECT_TRUE(Handle(*disk).Install(Bundle(8)).ok());
  EXPECT_TRUE(Handle(*disk).Confirm().ok());
  return disk;
}

// Bundle 9 on trial, 8 to return to.
inline std::unique_ptr<SimDisk> DiskOnTrial() {
  auto disk = DiskInUse();
  EXPECT_TRUE(Handle(*disk).Install(Bundle(9)).ok());
  return disk;
}

}  // namespace moepack::device
