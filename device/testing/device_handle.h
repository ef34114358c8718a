// A small device on any Env, and bundles for it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
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

// A record that the keys have signed, `keys` by rising public key.
inline Bytes SignRecord(const Magic& magic, KeyRole role, const Bytes& body, std::vector<moepack::testing::TestKey> keys) {
  std::ranges::sort(keys, {}, &moepack::testing::TestKey::public_key);
  Envelope envelope;
  envelope.manifest_bytes = body.size();
  for (const auto& key : keys) envelope.signatures.push_back(moepack::testing::SignWith(key, SignedMessage(role, body)));
  Bytes out = SerializeEnvelope(envelope, magic);
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

// Root key 11 up to version 1, root key 12 from then on; signed by both from version 2, as the successor of version 1 is.
inline Bytes Anchor(uint64_t root_version = 1, uint8_t release_key = 1) {
  TrustAnchor anchor;
  anchor.root_version = root_version;
  anchor.product = "tiny";
  anchor.key_epoch = 3;
  const uint8_t root_key = root_version == 1 ? 11 : 12;
  anchor.roles = {{KeyRole::kRelease, 1, {MakeTestKey(release_key).public_key}},
                  {KeyRole::kRoot, 1, {MakeTestKey(root_key).public_key}},
                  {KeyRole::kChannel, 1, {MakeTestKey(21).public_key}}};
  std::vector<moepack::testing::TestKey> keys = {MakeTestKey(root_key)};
  if (root_version == 2) keys.push_back(MakeTestKey(11));
  return SignRecord(kAnchorMagic, KeyRole::kRoot, SerializeTrustAnchor(anchor), keys);
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

// The head of version 5 that offers the bundle, as the device sees it in the last second of its life.
inline Offer OfferOf(const Bytes& bundle, const std::function<void(ChannelHead&)>& edit = {}) {
  const auto opened =
      moepack::testing::OpenBytes(bundle, verify::PolicyOf(verify::OpenAnchor(Anchor()).value(), {})).value();
  ChannelHead head;
  head.product = "tiny";
  head.channel = "stable";
  head.head_version = 5;
  head.expires = 1700000000;
  head.key_epoch = opened->manifest().key_epoch;
  head.security_counter = opened->manifest().security_counter;
  head.manifest_digest = opened->manifest_digest();
  head.file_bytes = bundle.size();
  if (edit) edit(head);
  return {SignRecord(kChannelMagic, KeyRole::kChannel, SerializeChannelHead(head), {MakeTestKey(21)}),
          {"stable", head.expires, "device"}};
}

// A device on a disk, opened anew for each call, as programs do.
class Handle {
 public:
  explicit Handle(Env& env) : status_(Open(env)) {}
  Status Install(const Bytes& bundle, const std::optional<Offer>& offer = std::nullopt) {
    if (device_ == nullptr) return status_;
    return device_->Install(std::make_unique<MemoryFile>(bundle), offer, pool_, NoProgress()).status();
  }
  Status Rotate(const Bytes& successor) { return device_ == nullptr ? status_ : device_->Rotate(successor); }
  Status Confirm() { return device_ == nullptr ? status_ : device_->Confirm(); }
  Result<TrialReport> Trial(const TrialOptions& options = {}) {
    if (device_ == nullptr) return status_;
    return device_->Trial(options, pool_, NoProgress());
  }
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
