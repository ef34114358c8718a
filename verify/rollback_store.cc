#include "verify/rollback_store.h"

#include <sodium/crypto_auth_hmacsha256.h>

#include <algorithm>
#include <tuple>

namespace moepack::verify {
namespace {

constexpr std::array<uint8_t, 8> kSlotMagic = {'M', 'O', 'E', 'R', 'O', 'L', 'L', '\n'};
constexpr uint32_t kSlotVersion = 1;
constexpr size_t kSlotBodyBytes = 56;  // magic, version, zero, sequence, four numbers of the state
constexpr size_t kMacBytes = crypto_auth_hmacsha256_BYTES;
constexpr size_t kSlotBytes = kSlotBodyBytes + kMacBytes;
static_assert(crypto_auth_hmacsha256_KEYBYTES == std::tuple_size_v<FileRollbackStore::Key>);

Status Damaged(const std::string& path, const char* what) {
  return Status(ErrorCode::kTrustRecord, path + ": " + what + "; provision the device again");
}

}  // namespace

Status CheckAdvance(const RollbackState& now, const RollbackState& next) {
  if (next.root_version < now.root_version) return Status(ErrorCode::kRollback, "the trust anchor would go back");
  if (next.head_version < now.head_version) return Status(ErrorCode::kRollback, "the channel head would go back");
  if (std::tie(next.key_epoch, next.security_counter) < std::tie(now.key_epoch, now.security_counter)) {
    return Status(ErrorCode::kRollback, "key epoch and security counter would go back");
  }
  return Status::Ok();
}

std::string FileRollbackStore::PathIn(const std::string& directory, uint64_t sequence) {
  return JoinPath(directory, sequence % 2 == 0 ? "rollback.0" : "rollback.1");
}

Bytes FileRollbackStore::Encode(const Slot& slot) const {
  ByteWriter writer;
  writer.Append(kSlotMagic);
  writer.U32(kSlotVersion);
  writer.U32(0);
  writer.U64(slot.sequence);
  writer.U64(slot.state.root_version);
  writer.U64(slot.state.key_epoch);
  writer.U64(slot.state.security_counter);
  writer.U64(slot.state.head_version);
  std::array<uint8_t, kMacBytes> mac{};
  crypto_auth_hmacsha256(mac.data(), writer.bytes().data(), writer.size(), key_.data());
  writer.Append(mac);
  return writer.Release();
}

Result<FileRollbackStore::Slot> FileRollbackStore::ReadSlot(const std::string& path) const {
  MOEPACK_ASSIGN_OR_RETURN(const Bytes bytes, ReadFile(env_, path, kSlotBytes));
  if (bytes.size() != kSlotBytes) return Damaged(path, "wrong length");
  if (crypto_auth_hmacsha256_verify(bytes.data() + kSlotBodyBytes, bytes.data(), kSlotBodyBytes, key_.data()) != 0) {
    return Damaged(path, "its check value is wrong");
  }
  ByteReader reader(bytes);
  const ByteSpan magic = reader.Take(kSlotMagic.size());
  const bool known = std::equal(magic.begin(), magic.end(), kSlotMagic.begin()) && reader.U32() == kSlotVersion;
  if (!known || reader.U32() != 0) return Damaged(path, "of another version");
  Slot slot;
  slot.sequence = reader.U64();
  slot.state = {reader.U64(), reader.U64(), reader.U64(), reader.U64()};
  if (PathOf(slot.sequence) != path) return Damaged(path, "it is a copy of the other slot");
  return slot;
}

// A slot may be torn by a power cut while it was written; then the other one holds the state before. An error of the disk
// is passed on: to take the other slot then could go back.
Result<FileRollbackStore::Slot> FileRollbackStore::Newest() const {
  const Result<Slot> slots[] = {ReadSlot(PathOf(0)), ReadSlot(PathOf(1))};
  for (const Result<Slot>& slot : slots) {
    if (!slot.ok() && slot.status().exit_status() == 7) return slot.status();
  }
  if (slots[0].ok() && slots[1].ok()) return slots[0]->sequence > slots[1]->sequence ? *slots[0] : *slots[1];
  if (slots[0].ok()) return *slots[0];
  if (slots[1].ok()) return *slots[1];
  return Status(ErrorCode::kTrustRecord, slots[0].status().message());
}

Status FileRollbackStore::WriteSlot(const Slot& slot) {
  return WriteFileAtomically(env_, PathOf(slot.sequence), Encode(slot));
}

Status FileRollbackStore::Create(Env& env, const std::string& directory, const Key& key, const RollbackState& state) {
  FileRollbackStore store(env, directory, key);
  // Slot 1 is written last, and no commit removes it.
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(store.PathOf(1)));
  if (exists) return Status(ErrorCode::kPolicy, store.PathOf(1) + ": the device has a rollback store already");
  MOEPACK_RETURN_IF_ERROR(env.MakeDirectory(directory));
  MOEPACK_RETURN_IF_ERROR(env.SyncDirectory(DirectoryOf(directory)));
  MOEPACK_RETURN_IF_ERROR(store.WriteSlot({0, state}));
  return store.WriteSlot({1, state});
}

Status FileRollbackStore::Discard(Env& env, const std::string& directory) {
  for (const uint64_t sequence : {1, 0}) {  // slot 1 first: without it there is no store
    MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(PathIn(directory, sequence)));
    if (!exists) continue;
    MOEPACK_RETURN_IF_ERROR(env.Remove(PathIn(directory, sequence)));
    MOEPACK_RETURN_IF_ERROR(env.SyncDirectory(directory));
  }
  return Status::Ok();
}

Result<RollbackState> FileRollbackStore::Read() {
  MOEPACK_ASSIGN_OR_RETURN(const Slot slot, Newest());
  return slot.state;
}

Status FileRollbackStore::Commit(const RollbackState& next) {
  MOEPACK_ASSIGN_OR_RETURN(const Slot slot, Newest());
  MOEPACK_RETURN_IF_ERROR(CheckAdvance(slot.state, next));
  // Both slots in turn, so that who damages one of them does not bring the state before back.
  MOEPACK_RETURN_IF_ERROR(WriteSlot({slot.sequence + 1, next}));
  return WriteSlot({slot.sequence + 2, next});
}

}  // namespace moepack::verify
