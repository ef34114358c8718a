// Writes trust records: anchors and channel heads (format/SPEC.md, section 13).
#pragma once

#include <vector>

#include "base/status.h"
#include "format/manifest/trust_records.h"
#include "packager/sign/secret_key.h"

namespace moepack {

// The signed file, checked by the verifier: signed by the anchor's own root threshold. kUsage for keys, kTrustRecord for an
// anchor that breaks R-903, kUntrusted when too few keys sign.
Result<Bytes> SignAnchor(const TrustAnchor& anchor, const std::vector<const SecretKey*>& keys);
// Signed by channel keys. kUsage.
Result<Bytes> SignHead(const ChannelHead& head, const std::vector<const SecretKey*>& keys);

}  // namespace moepack
