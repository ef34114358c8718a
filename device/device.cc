#include "device/device.h"

#include <algorithm>

#include "base/digest/sha256.h"
#include "device/file_store.h"
#include "runtime-min/chunk_decoder.h"

namespace moepack::device {
namespace {

constexpr char kAnchorFile[] = "anchor.trust", kActiveFile[] = "active";
constexpr std::array<uint8_t, 8> kActiveMagic = {'M', 'O', 'E', 'A', 'C', 'T', 'V', '\n'};
constexpr uint32_t kActiveVersion = 1;
constexpr uint32_t kOnTrial = 1, kHasPrevious = 2, kTrialsShift = 8, kMaxTrials = 255;  // trials: bits 8 to 15
constexpr uint64_t kActiveBytes = 8 + 4 + 4 + 32 + 32 + 32;  // magic, version, flags, current, previous, SHA-256 of these

Bytes SerializeActive(const Active& active) {
  ByteWriter writer;
  writer.Append(kActiveMagic);
  writer.U32(kActiveVersion);
  writer.U32((active.on_trial ? kOnTrial : 0) | (active.previous.has_value() ? kHasPrevious : 0) |
             std::min(active.trials, kMaxTrials) << kTrialsShift);
  writer.Append(active.current);
  writer.Append(active.previous.value_or(DigestBytes{}));
  writer.Append(Sha256(writer.bytes()));
  return writer.Release();
}

Status DamagedActive(const std::string& path) {
  return Status(ErrorCode::kTrustRecord, path + ": damaged; install a bundle again");
}

Result<Active> ParseActive(const std::string& path, ByteSpan bytes) {
  const Status damaged = DamagedActive(path);
  if (bytes.size() != kActiveBytes) return damaged;
  const ByteSpan body = bytes.first(kActiveBytes - 32);
  const Digest digest = Sha256(body);
  ByteReader reader(bytes);
  const ByteSpan magic = reader.Take(kActiveMagic.size());
  const bool known = std::equal(magic.begin(), magic.end(), kActiveMagic.begin()) && reader.U32() == kActiveVersion;
  const uint32_t flags = reader.U32();
  constexpr uint32_t kKnownFlags = kOnTrial | kHasPrevious | kMaxTrials << kTrialsShift;
  if (!known || (flags & ~kKnownFlags) != 0 || !std::equal(digest.begin(), digest.end(), bytes.end() - 32)) return damaged;
  Active active;
  active.trials = flags >> kTrialsShift;
  active.on_trial = (flags & kOnTrial) != 0;
  std::ranges::copy(reader.Take(32), active.current.begin());
  if ((flags & kHasPrevious) != 0) std::ranges::copy(reader.Take(32), active.previous.emplace().begin());
  return active;
}

Status NothingInstalled() { return Status(ErrorCode::kPolicy, "no bundle is installed; use 'moepack device install'"); }

// A folder with those above it that are missing, each of which survives a power cut. Those that are there may be ones that
// we cannot read, and so not sync.
Status MakeDurableDirectory(Env& env, const std::string& path) {
  std::vector<std::string> parents;
  for (std::string level = path;; level = parents.back()) {
    MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(level));
    if (exists) break;
    parents.push_back(DirectoryOf(level));
  }
  MOEPACK_RETURN_IF_ERROR(env.MakeDirectory(path));
  for (const std::string& parent : parents) MOEPACK_RETURN_IF_ERROR(env.SyncDirectory(parent));
  return Status::Ok();
}

// As TemporaryPath names files.
bool IsTemporaryName(const std::string& name) {
  constexpr size_t kDigits = 16;
  static constexpr std::string_view kMark = ".tmp-";
  if (name.size() < kMark.size() + kDigits) return false;
  const std::string_view end = std::string_view(name).substr(name.size() - kMark.size() - kDigits);
  return end.starts_with(kMark) && end.find_first_not_of("0123456789abcdef", kMark.size()) == std::string_view::npos;
}

}  // namespace

Result<bool> Device::IsProvisioned(Env& env, const std::string& root) { return env.Exists(JoinPath(root, kAnchorFile)); }

Status Device::Provision(Env& env, const std::string& root, ByteSpan anchor, const MakeStore& make_store) {
  MOEPACK_ASSIGN_OR_RETURN(const TrustAnchor trusted, verify::OpenAnchor(anchor));
  const std::string path = JoinPath(root, kAnchorFile);
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, IsProvisioned(env, root));
  if (exists) return Status(ErrorCode::kPolicy, path + ": the device has a trust anchor already");
  MOEPACK_RETURN_IF_ERROR(MakeDurableDirectory(env, root));
  for (const char* name : {"chunks", "bundles"}) MOEPACK_RETURN_IF_ERROR(env.MakeDirectory(JoinPath(root, name)));
  MOEPACK_RETURN_IF_ERROR(env.SyncDirectory(root));
  MOEPACK_RETURN_IF_ERROR(make_store(trusted));
  return WriteFileAtomically(env, path, anchor);
}

Result<std::unique_ptr<Device>> Device::Open(Env& env, const std::string& root, verify::RollbackStore& store) {
  std::unique_ptr<Device> device(new Device(env, root, store));
  const std::string path = JoinPath(root, kAnchorFile);
  MOEPACK_ASSIGN_OR_RETURN(const Bytes anchor, ReadFile(env, path, kMaxTrustRecordBytes));
  MOEPACK_ASSIGN_OR_RETURN(device->anchor_, verify::OpenAnchor(anchor));
  MOEPACK_ASSIGN_OR_RETURN(const verify::RollbackState state, store.Read());
  if (device->anchor_.root_version >= state.root_version) return device;
  return Status(ErrorCode::kRollback, StrFormat("%s: root version %llu, the device has used %llu; put the newer anchor back",
                                                path.c_str(), static_cast<unsigned long long>(device->anchor_.root_version),
                                                static_cast<unsigned long long>(state.root_version)));
}

Result<verify::TrustPolicy> Device::Policy() const {
  MOEPACK_ASSIGN_OR_RETURN(const verify::RollbackState state, store_.Read());
  return verify::PolicyOf(anchor_, state);
}

Result<std::unique_ptr<verify::VerifiedBundle>> Device::OpenInstalled(const DigestBytes& manifest) const {
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, Policy());
  MOEPACK_ASSIGN_OR_RETURN(auto file, OpenInstalledFile(env_, RecordPath(manifest), ChunkDirectory(), nullptr));
  MOEPACK_ASSIGN_OR_RETURN(auto bundle, verify::VerifiedBundle::Open(std::move(file), policy));
  if (bundle->manifest_digest() == manifest) return bundle;
  return Status(ErrorCode::kDigest, RecordPath(manifest) + ": holds another bundle; install it again");
}

Result<std::optional<Active>> Device::ReadActive() const {
  const std::string path = JoinPath(root_, kActiveFile);
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env_.Exists(path));
  if (!exists) return std::optional<Active>();
  const Result<Bytes> bytes = ReadFile(env_, path, kActiveBytes);
  if (bytes.status().code() == ErrorCode::kLimit) return DamagedActive(path);
  if (!bytes.ok()) return bytes.status();
  MOEPACK_ASSIGN_OR_RETURN(const Active active, ParseActive(path, *bytes));
  return std::optional<Active>(active);
}

Status Device::WriteActive(const Active& active) {
  return WriteFileAtomically(env_, JoinPath(root_, kActiveFile), SerializeActive(active));
}

Result<std::unique_ptr<verify::VerifiedBundle>> Device::OpenCurrent() const {
  MOEPACK_ASSIGN_OR_RETURN(const std::optional<Active> active, ReadActive());
  if (!active.has_value()) return NothingInstalled();
  return OpenInstalled(active->current);
}

Result<bool> Device::HasChunk(const InstalledChunk& chunk) const {
  const std::string path = JoinPath(ChunkDirectory(), ChunkName(chunk));
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env_.Exists(path));
  if (!exists) return false;
  MOEPACK_ASSIGN_OR_RETURN(const auto file, env_.OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  if (size != chunk.stored_bytes) return false;
  Bytes bytes(size);
  MOEPACK_RETURN_IF_ERROR(file->Read(0, bytes));
  return Sha256(bytes) == chunk.stored_digest;
}

Status Device::WriteUnit(const verify::VerifiedBundle& bundle, const Unit& unit, std::vector<InstalledChunk>* chunks,
                         InstallReport* report) {
  runtime::ChunkDecoder decoder;
  MOEPACK_ASSIGN_OR_RETURN(const PlainUnit plain, decoder.Decode(bundle, unit));
  ByteSpan rest = plain.bytes();
  for (const ChunkRef& chunk : unit.chunks) {
    if (Sha256(rest.first(chunk.plain_bytes)) != chunk.plain_digest) {
      return Status(ErrorCode::kMalformed, StrFormat("chunk at offset %llu does not have its identity; pack the model again",
                                                     static_cast<unsigned long long>(chunk.offset)));
    }
    rest = rest.subspan(chunk.plain_bytes);
    const InstalledChunk& out =
        chunks->emplace_back(InstalledChunk{chunk.offset, chunk.stored_bytes, chunk.plain_digest, chunk.stored_digest});
    ++report->chunks;
    MOEPACK_ASSIGN_OR_RETURN(const bool there, HasChunk(out));
    if (there) continue;
    MOEPACK_ASSIGN_OR_RETURN(const VerifiedBytes stored, bundle.ReadChunk(chunk));
    MOEPACK_RETURN_IF_ERROR(WriteFileAtomically(env_, JoinPath(ChunkDirectory(), ChunkName(out)), stored.bytes()));
    ++report->chunks_written;
    report->bytes_written += chunk.stored_bytes;
  }
  return Status::Ok();
}

verify::RollbackState Device::Raised(verify::RollbackState state, const verify::VerifiedBundle& bundle) const {
  state.root_version = std::max(state.root_version, anchor_.root_version);
  state.key_epoch = bundle.manifest().key_epoch;
  state.security_counter = bundle.manifest().security_counter;
  return state;
}

Status Device::FinishConfirm(const DigestBytes& manifest) {
  const auto bundle = OpenInstalled(manifest);
  // One that is damaged or below the floors must not keep another from being installed.
  if (!bundle.ok()) return bundle.status().exit_status() == 7 ? bundle.status() : Status::Ok();
  MOEPACK_ASSIGN_OR_RETURN(const verify::RollbackState state, store_.Read());
  const verify::RollbackState next = Raised(state, **bundle);
  if (next == state) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(env_.SyncDirectory(root_));  // `active` before the floors, as in Confirm
  return store_.Commit(next);
}

Status Device::Store(const verify::VerifiedBundle& bundle, const RandomAccessFile& source, InstallReport* report) {
  std::vector<InstalledChunk> chunks;
  for (const Unit& unit : bundle.dense().units) MOEPACK_RETURN_IF_ERROR(WriteUnit(bundle, unit, &chunks, report));
  for (const ExpertTable& table : bundle.experts()) {
    for (const Unit& unit : table.units) MOEPACK_RETURN_IF_ERROR(WriteUnit(bundle, unit, &chunks, report));
  }
  // Also the names of chunks that were there: a killed process may have left them unsynced.
  MOEPACK_RETURN_IF_ERROR(env_.SyncDirectory(ChunkDirectory()));
  // The layout has been checked: chunks rise, and the first one follows the last blob.
  Bytes head(chunks.front().offset);
  MOEPACK_RETURN_IF_ERROR(source.Read(0, head));
  return WriteFileAtomically(env_, RecordPath(report->manifest_digest),
                             SerializeRecord(chunks, bundle.manifest().file_bytes, head));
}

Status Device::Accept(const Offer& offer, const verify::VerifiedBundle& bundle) {
  MOEPACK_ASSIGN_OR_RETURN(verify::RollbackState state, store_.Read());
  MOEPACK_ASSIGN_OR_RETURN(const ChannelHead head, verify::OpenChannelHead(anchor_, state, offer.view, offer.head));
  MOEPACK_RETURN_IF_ERROR(verify::CheckAgainstHead(head, bundle));
  if (!verify::InRollout(head, offer.view.device_id)) {
    return Status(ErrorCode::kPolicy, StrFormat("the head offers the bundle to %u devices of %u, and this is none of them; "
                                                "wait for a head with a larger share",
                                                head.rollout_permille, kFullRollout));
  }
  state.head_version = head.head_version;
  return store_.Commit(state);
}

Status Device::Rotate(ByteSpan successor) {
  const std::string path = JoinPath(root_, kAnchorFile);
  MOEPACK_ASSIGN_OR_RETURN(const TrustAnchor given, verify::OpenAnchor(successor));
  if (given == anchor_) {
    MOEPACK_RETURN_IF_ERROR(env_.SyncDirectory(root_));
  } else {
    MOEPACK_ASSIGN_OR_RETURN(const TrustAnchor next, verify::RotateAnchor(anchor_, successor));
    MOEPACK_RETURN_IF_ERROR(WriteFileAtomically(env_, path, successor));
    anchor_ = next;
  }
  // Behind the anchor: the other way round a power cut between them would leave a device that refuses its own anchor.
  MOEPACK_ASSIGN_OR_RETURN(verify::RollbackState state, store_.Read());
  state.root_version = std::max(state.root_version, anchor_.root_version);
  return store_.Commit(state);
}

Result<InstallReport> Device::Install(std::unique_ptr<RandomAccessFile> file, const std::optional<Offer>& offer,
                                      ThreadPool& pool, Progress& progress) {
  const Result<std::optional<Active>> found = ReadActive();
  if (!found.ok() && found.status().code() != ErrorCode::kTrustRecord) return found.status();
  const std::optional<Active> active = found.ok() ? *found : std::nullopt;  // the floors hold without it
  if (active.has_value() && !active->on_trial) MOEPACK_RETURN_IF_ERROR(FinishConfirm(active->current));
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, Policy());
  const RandomAccessFile& source = *file;  // the bundle keeps it
  MOEPACK_ASSIGN_OR_RETURN(const auto bundle, verify::VerifiedBundle::Open(std::move(file), policy));
  InstallReport report;
  report.manifest_digest = bundle->manifest_digest();
  report.in_use_already = active.has_value() && active->current == report.manifest_digest;
  if (active.has_value() && active->on_trial && !report.in_use_already) {
    return Status(ErrorCode::kPolicy, "a bundle is on trial; confirm it or roll it back first");
  }
  if (offer.has_value()) MOEPACK_RETURN_IF_ERROR(Accept(*offer, *bundle));
  MOEPACK_RETURN_IF_ERROR(Store(*bundle, source, &report));
  MOEPACK_ASSIGN_OR_RETURN(const auto installed, OpenInstalled(report.manifest_digest));
  MOEPACK_RETURN_IF_ERROR(installed->VerifyAll(pool, progress));
  if (report.in_use_already) {
    MOEPACK_RETURN_IF_ERROR(env_.SyncDirectory(root_));
    return report;
  }
  Active next;
  next.current = report.manifest_digest;
  next.on_trial = true;
  if (active.has_value()) next.previous = active->current;
  MOEPACK_RETURN_IF_ERROR(WriteActive(next));
  return report;
}

Status Device::Confirm() {
  MOEPACK_ASSIGN_OR_RETURN(const std::optional<Active> active, ReadActive());
  if (!active.has_value()) return NothingInstalled();
  MOEPACK_ASSIGN_OR_RETURN(const auto bundle, OpenInstalled(active->current));
  // First that it stays, then the floor: the other way round a power cut between them could leave a bundle on trial whose
  // way back is closed.
  MOEPACK_RETURN_IF_ERROR(active->on_trial ? WriteActive({active->current, std::nullopt, false})
                                           : env_.SyncDirectory(root_));
  MOEPACK_ASSIGN_OR_RETURN(const verify::RollbackState state, store_.Read());
  return store_.Commit(Raised(state, *bundle));
}

Status Device::Rollback() {
  MOEPACK_ASSIGN_OR_RETURN(const std::optional<Active> active, ReadActive());
  if (!active.has_value() || !active->on_trial) {
    return Status(ErrorCode::kRollback, "no bundle is on trial; a confirmed one is not rolled back");
  }
  if (active->previous.has_value()) {
    MOEPACK_RETURN_IF_ERROR(OpenInstalled(*active->previous).status());
    return WriteActive({*active->previous, std::nullopt, false});
  }
  MOEPACK_RETURN_IF_ERROR(env_.Remove(JoinPath(root_, kActiveFile)));
  return env_.SyncDirectory(root_);
}

Status Device::RemoveOthers(const std::string& directory, const std::vector<std::string>& keep, GcReport* report) {
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> names, env_.List(directory));
  for (const std::string& name : names) {
    if (std::binary_search(keep.begin(), keep.end(), name)) continue;
    MOEPACK_RETURN_IF_ERROR(env_.Remove(JoinPath(directory, name)));
    ++report->files_removed;
  }
  return env_.SyncDirectory(directory);
}

Status Device::RemoveTemporaries(const std::string& directory, GcReport* report) {
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env_.IsDirectory(directory));
  if (!exists) return Status::Ok();
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> names, env_.List(directory));
  for (const std::string& name : names) {
    if (!IsTemporaryName(name)) continue;
    MOEPACK_RETURN_IF_ERROR(env_.Remove(JoinPath(directory, name)));
    ++report->files_removed;
  }
  return env_.SyncDirectory(directory);
}

Result<GcReport> Device::CollectGarbage() {
  MOEPACK_ASSIGN_OR_RETURN(const std::optional<Active> active, ReadActive());
  std::vector<DigestBytes> bundles;
  if (active.has_value()) bundles.push_back(active->current);
  if (active.has_value() && active->previous.has_value()) bundles.push_back(*active->previous);
  std::vector<std::string> records, chunk_files;
  for (const DigestBytes& manifest : bundles) {
    MOEPACK_RETURN_IF_ERROR(OpenInstalled(manifest).status());
    std::vector<InstalledChunk> chunks;
    MOEPACK_RETURN_IF_ERROR(OpenInstalledFile(env_, RecordPath(manifest), ChunkDirectory(), &chunks).status());
    for (const InstalledChunk& chunk : chunks) chunk_files.push_back(ChunkName(chunk));
    records.push_back(ToHex(ByteSpan(manifest)));
  }
  std::sort(records.begin(), records.end());
  std::sort(chunk_files.begin(), chunk_files.end());
  GcReport report;
  // Before anything goes that an earlier `active` needs: a killed process may have left the new one unsynced.
  MOEPACK_RETURN_IF_ERROR(env_.SyncDirectory(root_));
  // Records first: one without its chunks would look installed.
  MOEPACK_RETURN_IF_ERROR(RemoveOthers(BundleDirectory(), records, &report));
  MOEPACK_RETURN_IF_ERROR(RemoveOthers(ChunkDirectory(), chunk_files, &report));
  for (const std::string& directory : {root_, StatePath(root_)}) {
    MOEPACK_RETURN_IF_ERROR(RemoveTemporaries(directory, &report));
  }
  return report;
}

}  // namespace moepack::device
