#include <algorithm>

#include "format/envelope.h"
#include "format/manifest/names.h"
#include "verify/verify.h"

namespace moepack::verify {
Status ValidateTrustPolicy(const TrustPolicy& policy) {
  static constexpr size_t kMaxKeys = 64;
  if (!IsProductName(policy.product)) {
    return Status(ErrorCode::kTrustRecord, "trust policy: product must be 1 to 64 characters of a-z, 0-9, '.', '_' and '-'");
  }
  const size_t keys = policy.release_keys.size();
  if (keys == 0 || keys > kMaxKeys) {
    return Status(ErrorCode::kTrustRecord, StrFormat("trust policy: %zu release keys, expected 1 to %zu", keys, kMaxKeys));
  }
  const size_t most = std::min<size_t>(keys, kMaxSignatures);
  if (policy.threshold < 1 || policy.threshold > most) {
    return Status(ErrorCode::kTrustRecord, StrFormat("trust policy: threshold %u, expected 1 to %zu with %zu release keys",
                                                     policy.threshold, most, keys));
  }
  std::vector<std::array<uint8_t, 32>> sorted = policy.release_keys;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    return Status(ErrorCode::kTrustRecord, "trust policy: release key " + ToHex(ByteSpan(*twice)) + " is listed twice");
  }
  return Status::Ok();
}

}  // namespace moepack::verify
