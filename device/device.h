// Installation on a device: a content store that keeps the bundle in use and the one on trial, and loses neither to a power
// cut. One thread and one process at a time on a folder.
//
//   ROOT/anchor.trust       whom the device trusts (format/SPEC.md, section 13)
//   ROOT/chunks/ID-STORED   stored bytes of a chunk, by its identity; bundles share them
//   ROOT/bundles/MANIFEST   record of an installed bundle, by the digest of its manifest (device/installed_file.h)
//   ROOT/active             which bundle is in use, whether it is on trial, and which one to return to
//
// Every file appears complete or not at all (temporary file, sync, rename, sync of the folder). `active` is written last, so
// that its rename is what activates a bundle. The floors of the rollback store rise when a bundle is confirmed, not before,
// so that the way back stays open while it is on trial.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/env.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "device/installed_file.h"
#include "verify/rollback_store.h"
#include "verify/trust_anchor.h"

namespace moepack::device {

struct Active {
  DigestBytes current{};                // digest of a manifest
  std::optional<DigestBytes> previous;  // while on trial: what Rollback returns to
  bool on_trial = false;
  bool operator==(const Active&) const = default;
};

struct InstallReport {
  DigestBytes manifest_digest{};
  uint64_t chunks = 0, chunks_written = 0;  // distinct chunks of the bundle; those that were not in the store
  uint64_t bytes_written = 0;
};

struct GcReport {
  uint64_t files_removed = 0;
};

class Device {
 public:
  // Makes the folders and puts the anchor there, after OpenAnchor. kPolicy when there is an anchor already.
  static Status Provision(Env& env, const std::string& root, ByteSpan anchor);
  // Reads the anchor. `env` and `store` must outlive the device. kNotFound, kTrustRecord, and the codes of OpenAnchor.
  static Result<std::unique_ptr<Device>> Open(Env& env, const std::string& root, verify::RollbackStore& store);

  // Verifies the bundle against anchor and floors, brings what the store lacks of it to the disk, opens and checks it there
  // down to its last byte, and puts it on trial. kPolicy while another one is on trial or when it is in use already; codes
  // of verification; kMalformed for a chunk without its identity; kNoSpace, kAccess: the bundle in use stays.
  Result<InstallReport> Install(std::unique_ptr<RandomAccessFile> bundle, ThreadPool& pool, Progress& progress);
  // The bundle on trial is good: it stays, and the floors rise to it. Fine when nothing is on trial; then it finishes what a
  // power cut may have left of the last Confirm. kPolicy when nothing is installed.
  Status Confirm();
  // Back from the bundle on trial to the one before it, or to none. kRollback when nothing is on trial.
  Status Rollback();
  // Removes what neither the bundle in use nor the one to return to needs. Errors of opening these stop it.
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
  Status WriteUnit(const verify::VerifiedBundle& bundle, const Unit& unit, std::vector<InstalledChunk>* chunks,
                   InstallReport* report);
  // True when the store has exactly these bytes under the chunk's name.
  Result<bool> HasChunk(const InstalledChunk& chunk) const;
  Status RemoveOthers(const std::string& directory, const std::vector<std::string>& keep, GcReport* report);

  Env& env_;
  const std::string root_;
  verify::RollbackStore& store_;
  TrustAnchor anchor_;
};

}  // namespace moepack::device
