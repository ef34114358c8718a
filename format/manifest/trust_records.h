// The signed records beside a bundle as plain structs: whom a device trusts, and which bundle a channel offers. SPEC.md,
// section Trust records, is the specification. Everything here is data: verify/trust_anchor.h decides who may believe it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "format/envelope.h"
#include "format/manifest/manifest.h"

namespace moepack {

using PublicKey = std::array<uint8_t, 32>;  // Ed25519

inline constexpr uint64_t kMaxTrustRecordBytes = kEnvelopeBytes + kMaxManifestBytes;  // of a signed record's file
inline constexpr size_t kMaxRoleKeys = 16;
inline constexpr uint32_t kFullRollout = 1000;  // permille

struct TrustRole {
  KeyRole role = KeyRole::kRelease;
  uint32_t threshold = 1;       // distinct keys that must have signed, 1..keys.size()
  std::vector<PublicKey> keys;  // strictly increasing, 1..kMaxRoleKeys; a key has one role only
  bool operator==(const TrustRole&) const = default;
};

struct TrustAnchor {
  std::string product;                    // as in a manifest
  uint64_t root_version = 1;              // rises by one with each rotation
  uint64_t key_epoch = 0;                 // floor: bundles of a lower epoch are refused
  uint64_t minimum_security_counter = 0;  // floor at that epoch
  std::vector<TrustRole> roles;           // strictly increasing by role; release and root always there
  bool operator==(const TrustAnchor&) const = default;
  const TrustRole* Find(KeyRole role) const;  // null when there is none
};

struct ChannelHead {
  std::string product, channel;                  // both [a-z0-9._-]{1,64}
  uint64_t head_version = 1;                     // rises with each head of a channel
  uint64_t expires = 0;                          // seconds since 1970-01-01 UTC
  uint64_t key_epoch = 0, security_counter = 0;  // of the bundle
  DigestBytes manifest_digest{};                 // SHA-256 of the bundle's exact manifest bytes
  uint64_t file_bytes = 0;                       // of the bundle
  uint32_t rollout_permille = kFullRollout;      // share of devices that may install it
  bool operator==(const ChannelHead&) const = default;
};

// Serialize*: deterministic; the fields must obey the rules above. Parse*: the canonical form only; kMalformed, kLimit,
// kVersion for the wire form, kTrustRecord when a rule above is broken.
Bytes SerializeTrustAnchor(const TrustAnchor& anchor);
Result<TrustAnchor> ParseTrustAnchor(ByteSpan bytes);
Bytes SerializeChannelHead(const ChannelHead& head);
Result<ChannelHead> ParseChannelHead(ByteSpan bytes);

// Rule R-903 for an anchor that was not parsed. kTrustRecord.
Status ValidateTrustAnchor(const TrustAnchor& anchor);

}  // namespace moepack
