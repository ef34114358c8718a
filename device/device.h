// Installation on a device: a content store that keeps the bundle in use and the one on trial, and loses neither to a power
// cut. One thread and one process at a time change a folder: `moepack device` holds a lock on ROOT while it does.
//
//   ROOT/anchor.trust       whom the device trusts (format/SPEC.md, section 13)
//   ROOT/chunks/ID-STORED   stored bytes of a chunk, by its identity; bundles share them
//   ROOT/bundles/MANIFEST   record of an installed bundle, by the digest of its manifest (device/installed_file.h)
//   ROOT/state/             the rollback store, when it is the file-based one (device/file_store.h)
//   ROOT/active             which bundle is in use, whether it is on trial, and which one to return to
//
// Every file appears complete or not at all (temporary file, sync, rename, sync of the folder). A process that is killed
// between rename and sync leaves a file that everybody sees and a power cut takes away: who builds on a file that it did not
// write syncs the folder first. The anchor is written last of a provisioning, `active` last of an installation, so that
// their renames are what counts. The floors of the rollback store rise when a bundle is confirmed, not before,
// so that the way back stays open while it is on trial. A process that runs a bundle reads its chunks as it needs them:
// start it again before garbage is collected.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/env.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "device/installed_file.h"
#include "runtime-min/golden.h"
#include "verify/rollback_store.h"
#include "verify/trust_anchor.h"

namespace moepack::device {

struct Active {
  DigestBytes current{};                // digest of a manifest
  std::optional<DigestBytes> previous;  // while on trial: what Rollback returns to
  bool on_trial = false;
  uint32_t trials = 0;  // while on trial: runs of golden prompts that began and did not end
  bool operator==(const Active&) const = default;
};

// Runs of golden prompts that may be cut off, by a crash or a power cut, before the bundle on trial counts as one that does
// not work.
inline constexpr uint32_t kMaxTrialRuns = 3;

struct TrialOptions {
  uint64_t expert_ram_bytes = runtime::kAllExperts;  // what the device gives to experts in use
  bool untested = false;                             // also confirm a bundle without golden prompts, which is not run then
};

struct TrialReport {
  bool on_trial = true;          // false: nothing was, and nothing was run
  Status verdict;                // why the bundle was rolled back; ok when it is confirmed
  runtime::GoldenReport golden;  // as far as it came
};

// What a channel offers, and what the device knows when it looks.
struct Offer {
  Bytes head;  // file of the signed channel head
  verify::ChannelView view;
};

struct InstallReport {
  DigestBytes manifest_digest{};
  uint64_t chunks = 0, chunks_written = 0;  // distinct chunks of the bundle; those that were not in the store
  uint64_t bytes_written = 0;
  bool in_use_already = false;  // then it was checked and repaired, and is on trial or confirmed as before
};

struct GcReport {
  uint64_t files_removed = 0;
};

class Device {
 public:
  // Makes the rollback store of a new device, with the anchor's floors. Repeatable: it meets what a call before left.
  using MakeStore = std::function<Status(const TrustAnchor& anchor)>;
  // Makes the folders and the store, then puts the anchor there, which is what provisions the device: without it the same
  // again starts afresh. kPolicy when there is an anchor already; codes of OpenAnchor and of `make_store`.
  static Status Provision(Env& env, const std::string& root, ByteSpan anchor, const MakeStore& make_store);
  static Result<bool> IsProvisioned(Env& env, const std::string& root);
  // Reads the anchor. `env` and `store` must outlive the device. kNotFound, kTrustRecord, and the codes of OpenAnchor;
  // kRollback for an anchor older than one that the store has seen.
  static Result<std::unique_ptr<Device>> Open(Env& env, const std::string& root, verify::RollbackStore& store);

  // Verifies the bundle against anchor and floors, brings what the store lacks of it to the disk, opens and checks it there
  // down to its last byte, and puts it on trial. The bundle in use is repaired by that, and stays on trial or confirmed as
  // it was. A damaged `active` counts as none. Finishes a Confirm that was cut off before it raised the floors, unless the
  // bundle in use is too damaged to be opened. kPolicy while another one is on trial; codes of verification; kMalformed for
  // a chunk without its identity; kNoSpace, kAccess: the bundle in use stays. With an offer the bundle must be the
  // one that the head names, the device in its share (kPolicy), and older heads are refused from then on; codes of
  // OpenChannelHead.
  Result<InstallReport> Install(std::unique_ptr<RandomAccessFile> bundle, const std::optional<Offer>& offer,
                                ThreadPool& pool, Progress& progress);
  // Puts the successor of the anchor in its place; the one before is refused from then on. A bundle in use that the
  // successor does not accept is refused too, until one that it accepts is installed. The anchor that is there already is
  // fine: a repeat after an interruption. Codes of RotateAnchor.
  Status Rotate(ByteSpan successor);
  // The bundle on trial is good: it stays, and the floors rise to it. Fine when nothing is on trial; then it finishes what
  // may be left of the last Confirm after a power cut (the next Install does so too). kPolicy when nothing is installed.
  Status Confirm();
  // Runs the golden prompts of the bundle on trial, every byte of it verified before, then confirms it when all agree and
  // rolls it back when one differs or anything fails: a damaged chunk, memory, too small a budget, kMaxTrialRuns runs that
  // did not end. Nothing on trial: as Confirm. An error means that nothing was decided: kPolicy without golden prompts
  // (unless options.untested), or that the way back failed, and then says why the bundle was to go.
  Result<TrialReport> Trial(const TrialOptions& options, ThreadPool& pool, Progress& progress);
  // Back from the bundle on trial to the one before it, or to none. kRollback when nothing is on trial.
  Status Rollback();
  // Removes what neither the bundle in use nor the one to return to needs, and temporary files that a killed process left
  // in ROOT and ROOT/state. Errors of opening these bundles stop it.
  Result<GcReport> CollectGarbage();

  // Nothing when no bundle is installed. kTrustRecord when the record is damaged.
  Result<std::optional<Active>> ReadActive() const;
  // The bundle in use, verified again. kPolicy when nothing is installed.
  Result<std::unique_ptr<verify::VerifiedBundle>> OpenCurrent() const;
  const TrustAnchor& anchor() const { return anchor_; }

 private:
  Device(Env& env, std::string root, verify::RollbackStore& store) : env_(env), root_(std::move(root)), store_(store) {}
  std::string ChunkDirectory() const { return JoinPath(root_, "chunks"); }
  std::string BundleDirectory() const { return JoinPath(root_, "bundles"); }
  std::string RecordPath(const DigestBytes& manifest) const {
    return JoinPath(BundleDirectory(), ToHex(ByteSpan(manifest)));
  }
  Result<verify::TrustPolicy> Policy() const;
  Result<std::unique_ptr<verify::VerifiedBundle>> OpenInstalled(const DigestBytes& manifest) const;
  Status WriteActive(const Active& active);
  // `state` with the floors that confirming `bundle` gives.
  verify::RollbackState Raised(verify::RollbackState state, const verify::VerifiedBundle& bundle) const;
  Status FinishConfirm(const DigestBytes& manifest);
  // Refuses a bundle that the offer does not name; remembers the head's version.
  Status Accept(const Offer& offer, const verify::VerifiedBundle& bundle);
  // Chunks and record of `bundle`, whose file is `source`.
  Status Store(const verify::VerifiedBundle& bundle, const RandomAccessFile& source, InstallReport* report);
  Status WriteUnit(const verify::VerifiedBundle& bundle, const Unit& unit, std::vector<InstalledChunk>* chunks,
                   InstallReport* report);
  // True when the store has exactly these bytes under the chunk's name.
  Result<bool> HasChunk(const InstalledChunk& chunk) const;
  Status RemoveOthers(const std::string& directory, const std::vector<std::string>& keep, GcReport* report);
  Status RemoveTemporaries(const std::string& directory, GcReport* report);

  Env& env_;
  const std::string root_;
  verify::RollbackStore& store_;
  TrustAnchor anchor_;
};

}  // namespace moepack::device
