// The file-based rollback store in a device's folder, for a device that has no counter in hardware.
//
//   ROOT/rollback.key   32 random bytes, mode 0600: keeps others from writing a slot
//   ROOT/state/         the slots (verify/rollback_store.h)
#pragma once

#include <string>

#include "base/env.h"
#include "format/manifest/trust_records.h"
#include "verify/rollback_store.h"

namespace moepack::device {

std::string StatePath(const std::string& root);

// The MakeStore of Device::Provision: writes the key and a store with the anchor's floors, over what a provisioning before
// left of both. `key` comes from a random generator. As WritePrivateFile: no other thread creates files then. kPolicy when
// the device is provisioned by now, kNoSpace, kAccess.
Status CreateFileStore(Env& env, const std::string& root, const verify::FileRollbackStore::Key& key,
                       const TrustAnchor& anchor);
// `env` must outlive the store. kNotFound when the device is not provisioned, kTrustRecord for a damaged key.
Result<verify::FileRollbackStore> OpenFileStore(Env& env, const std::string& root);

}  // namespace moepack::device
