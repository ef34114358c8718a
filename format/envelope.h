// The fixed-width start of a bundle: all that is read before a signature has been checked. Byte layout in SPEC.md.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace moepack {

using Magic = std::array<uint8_t, 8>;
inline constexpr Magic kBundleMagic = {'M', 'O', 'E', 'B', 'N', 'D', 'L', '\n'};
// Trust records (format/manifest/trust_records.h) have the same envelope.
inline constexpr Magic kAnchorMagic = {'M', 'O', 'E', 'T', 'R', 'S', 'T', '\n'};
inline constexpr Magic kChannelMagic = {'M', 'O', 'E', 'H', 'E', 'A', 'D', '\n'};
inline constexpr uint32_t kFormatVersion = 1;
inline constexpr uint32_t kMaxSignatures = 16;
inline constexpr uint64_t kMaxManifestBytes = 1 << 20;

// Role inside a key record and the signed message: a key of one role never counts for another.
enum class KeyRole : uint8_t { kRelease = 1, kRoot = 2, kChannel = 3 };

struct EnvelopeSignature {
  std::array<uint8_t, 32> public_key{};
  std::array<uint8_t, 64> signature{};
  bool operator==(const EnvelopeSignature&) const = default;
};

struct Envelope {
  uint64_t manifest_bytes = 0;
  std::vector<EnvelopeSignature> signatures;  // strictly increasing by public key
};

// An envelope always has room for kMaxSignatures, unused slots zero, so that adding a signature moves nothing that the
// manifest names by offset. The manifest follows directly, blobs start at the next multiple of kBundleAlignment.
inline constexpr uint64_t kEnvelopeHeadBytes = 32;
inline constexpr uint64_t kEnvelopeSignatureBytes = 96;
inline constexpr uint64_t kEnvelopeBytes = kEnvelopeHeadBytes + kMaxSignatures * kEnvelopeSignatureBytes;

// kEnvelopeBytes long; at most kMaxSignatures signatures
Bytes SerializeEnvelope(const Envelope& envelope, const Magic& magic = kBundleMagic);
// Signature count of the first kEnvelopeHeadBytes. kNotABundle, kVersion, kEnvelope (also for a wrong size).
Result<uint32_t> ParseEnvelopeHead(ByteSpan head, const Magic& magic = kBundleMagic);
// Exactly kEnvelopeBytes. kNotABundle, kVersion, kEnvelope (lengths, caps, order of keys, reserved bytes, unused slots).
Result<Envelope> ParseEnvelope(ByteSpan bytes, const Magic& magic = kBundleMagic);

// The message that Ed25519 signs: a domain string with role and format version, then the exact manifest bytes.
Bytes SignedMessage(KeyRole role, ByteSpan manifest);

}  // namespace moepack
