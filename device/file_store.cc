#include "device/file_store.h"

#include <algorithm>

#include "base/outputs.h"
#include "device/device.h"

namespace moepack::device {
namespace {

std::string KeyPath(const std::string& root) { return JoinPath(root, "rollback.key"); }

}  // namespace

std::string StatePath(const std::string& root) { return JoinPath(root, "state"); }

Status CreateFileStore(Env& env, const std::string& root, const verify::FileRollbackStore::Key& key,
                       const TrustAnchor& anchor) {
  MOEPACK_ASSIGN_OR_RETURN(const bool provisioned, Device::IsProvisioned(env, root));
  if (provisioned) return Status(ErrorCode::kPolicy, root + ": provisioned already; its rollback store stays");
  MOEPACK_RETURN_IF_ERROR(verify::FileRollbackStore::Discard(env, StatePath(root)));
  MOEPACK_RETURN_IF_ERROR(WritePrivateFile(env, KeyPath(root), key));
  const verify::RollbackState state = {anchor.root_version, anchor.key_epoch, anchor.minimum_security_counter, 0};
  return verify::FileRollbackStore::Create(env, StatePath(root), key, state);
}

Result<verify::FileRollbackStore> OpenFileStore(Env& env, const std::string& root) {
  MOEPACK_ASSIGN_OR_RETURN(const bool provisioned, Device::IsProvisioned(env, root));
  if (!provisioned) return Status(ErrorCode::kNotFound, root + ": not provisioned; use 'moepack device provision'");
  verify::FileRollbackStore::Key key{};
  MOEPACK_ASSIGN_OR_RETURN(const Bytes bytes, ReadFile(env, KeyPath(root), key.size()));
  if (bytes.size() != key.size()) return Status(ErrorCode::kTrustRecord, KeyPath(root) + ": expected 32 bytes");
  std::ranges::copy(bytes, key.begin());
  return verify::FileRollbackStore(env, StatePath(root), key);
}

}  // namespace moepack::device
