// What a device has accepted so far, so that nothing older is accepted again. Where it is kept is the product's choice: a
// counter that cannot be turned back (TPM, RPMB, fuses) stops who can restore files; FileRollbackStore does not
// (docs/threat-model.md). One thread at a time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "base/env.h"
#include "base/status.h"

namespace moepack::verify {

struct RollbackState {
  uint64_t root_version = 0;      // of the trust anchor in use
  uint64_t key_epoch = 0;         // of the last confirmed bundle,
  uint64_t security_counter = 0;  // and its counter at that epoch
  uint64_t head_version = 0;      // highest channel head seen
  bool operator==(const RollbackState&) const = default;
};

// kRollback when `next` goes back in anything: root and head versions never fall, and (key epoch, counter) never falls; a
// new epoch starts its counter afresh, which is how a counter that was driven to its end is left behind.
Status CheckAdvance(const RollbackState& now, const RollbackState& next);

class RollbackStore {
 public:
  virtual ~RollbackStore() = default;
  // kTrustRecord when the store is damaged.
  virtual Result<RollbackState> Read() = 0;
  // Durable when it returns Ok; after an error or a power cut the old or the new state is there. CheckAdvance first. Call it
  // only after a new bundle has been confirmed to work, otherwise the way back is cut. The state that is there already is
  // fine, and durable afterwards: a repeat after an interruption.
  virtual Status Commit(const RollbackState& next) = 0;
};

// Two slots in one folder, each with a sequence number and HMAC-SHA-256, written one after the other: a torn write leaves
// the other slot, and damaging one slot of a finished commit does not bring back the state before. The key keeps others
// from writing a slot; keep it where only the installer reads it.
class FileRollbackStore final : public RollbackStore {
 public:
  using Key = std::array<uint8_t, 32>;

  // At provisioning: makes the folder and writes both slots. kPolicy when a store is there already; what a Create before
  // left unfinished is no store, and is written again.
  static Status Create(Env& env, const std::string& directory, const Key& key, const RollbackState& state);
  // Removes the store, or what there is of it: for a device whose provisioning was not finished. The floors go with it.
  static Status Discard(Env& env, const std::string& directory);
  FileRollbackStore(Env& env, std::string directory, const Key& key)
      : env_(env), directory_(std::move(directory)), key_(key) {}
  Result<RollbackState> Read() override;
  Status Commit(const RollbackState& next) override;

 private:
  struct Slot {
    uint64_t sequence = 0;
    RollbackState state;
  };
  static std::string PathIn(const std::string& directory, uint64_t sequence);
  std::string PathOf(uint64_t sequence) const { return PathIn(directory_, sequence); }
  Bytes Encode(const Slot& slot) const;
  // kTrustRecord, kNotFound.
  Result<Slot> ReadSlot(const std::string& path) const;
  Result<Slot> Newest() const;
  Status WriteSlot(const Slot& slot);

  Env& env_;
  const std::string directory_;
  const Key key_;
};

}  // namespace moepack::verify
