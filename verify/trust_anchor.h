// The device's trust anchor and channel heads: signed records, checked before they are parsed (SPEC.md, section Trust
// records). Holds no signing code. Functions are thread-safe.
#pragma once

#include <string>

#include "base/env.h"
#include "format/manifest/trust_records.h"
#include "verify/rollback_store.h"
#include "verify/verify.h"

namespace moepack::verify {

// An anchor that its own root keys have signed. Which anchor to believe is for the caller to know: it was put on the
// device at provisioning, or RotateAnchor made it the successor of one that was. kTrustRecord, kVersion, kEnvelope,
// kTruncated, kSignature, kUntrusted, kMalformed, kLimit.
Result<TrustAnchor> OpenAnchor(ByteSpan file);

// `file` as the successor of `current`: signed by the root thresholds of both, of the same product, one version later,
// floors not lower. kUntrusted, kPolicy, kRollback, and the codes of OpenAnchor.
Result<TrustAnchor> RotateAnchor(const TrustAnchor& current, ByteSpan file);

// What the anchor says about bundles, with the higher of its floors and those of `state`.
TrustPolicy PolicyOf(const TrustAnchor& anchor, const RollbackState& state);

// What a device knows when it looks at a channel.
struct ChannelView {
  std::string channel;
  uint64_t now = 0;       // seconds since 1970-01-01 UTC
  std::string device_id;  // any bytes; decides the device's place in a rollout
};

// The newest head of a channel. Signatures by the anchor's channel keys, product and channel, head_version not below the
// one of `state`, expiry. kUntrusted, kPolicy, kRollback, and the codes of OpenAnchor. A device that has a bundle goes on
// using it when a head has expired: expiry blocks new installs only.
Result<ChannelHead> OpenChannelHead(const TrustAnchor& anchor, const RollbackState& state, const ChannelView& view,
                                    ByteSpan file);

// True when the device is in the head's share. A device's place depends on product and id only, so that a larger share
// holds every device of a smaller one: le64(SHA-256("moepack rollout\n" product "\n" id)) mod 1000 < rollout_permille.
bool InRollout(const ChannelHead& head, const std::string& device_id);

// That the bundle is the one the head names. kPolicy.
Status CheckAgainstHead(const ChannelHead& head, const VerifiedBundle& bundle);

}  // namespace moepack::verify
