#include "format/envelope.h"

#include <algorithm>

namespace moepack {
namespace {

constexpr std::string_view kDomain = "moepack signed manifest\n";

Status Damaged(std::string message) {
  return Status(ErrorCode::kEnvelope, "bundle envelope: " + std::move(message) + "; fetch the bundle again");
}

}  // namespace

Bytes SerializeEnvelope(const Envelope& envelope, const Magic& magic) {
  ByteWriter writer;
  writer.Append(magic);
  writer.U32(kFormatVersion);
  writer.U32(static_cast<uint32_t>(envelope.signatures.size()));
  writer.U64(envelope.manifest_bytes);
  writer.U64(0);
  for (const EnvelopeSignature& signature : envelope.signatures) {
    writer.Append(signature.public_key);
    writer.Append(signature.signature);
  }
  if (writer.size() < kEnvelopeBytes) writer.Zeros(kEnvelopeBytes - writer.size());
  return writer.Release();
}

Result<uint32_t> ParseEnvelopeHead(ByteSpan head, const Magic& magic) {
  if (head.size() < magic.size() || !std::equal(magic.begin(), magic.end(), head.begin())) {
    return Status(ErrorCode::kNotABundle, "not a moepack bundle (its first 8 bytes differ)");
  }
  if (head.size() != kEnvelopeHeadBytes) {
    return Damaged(
        StrFormat("%zu bytes, its head has %llu", head.size(), static_cast<unsigned long long>(kEnvelopeHeadBytes)));
  }
  ByteReader reader(head.subspan(magic.size()));
  const uint32_t version = reader.U32();
  if (version != kFormatVersion) {
    return Status(ErrorCode::kVersion,
                  StrFormat("bundle format version %u at byte 8, this build knows %u", version, kFormatVersion));
  }
  const uint32_t signatures = reader.U32();
  if (signatures > kMaxSignatures)
    return Damaged(StrFormat("%u signatures at byte 12, at most %u", signatures, kMaxSignatures));
  const uint64_t manifest_bytes = reader.U64();
  if (manifest_bytes == 0 || manifest_bytes > kMaxManifestBytes) {
    return Damaged(StrFormat("manifest of %llu bytes at byte 16, must be 1 to %llu",
                             static_cast<unsigned long long>(manifest_bytes),
                             static_cast<unsigned long long>(kMaxManifestBytes)));
  }
  if (reader.U64() != 0) return Damaged("reserved bytes 24 to 31 are not zero");
  return signatures;
}

Result<Envelope> ParseEnvelope(ByteSpan bytes, const Magic& magic) {
  const ByteSpan head = bytes.first(std::min<size_t>(bytes.size(), kEnvelopeHeadBytes));
  MOEPACK_ASSIGN_OR_RETURN(const uint32_t signatures, ParseEnvelopeHead(head, magic));
  if (bytes.size() != kEnvelopeBytes) {
    return Damaged(StrFormat("%zu bytes, must be %llu", bytes.size(), static_cast<unsigned long long>(kEnvelopeBytes)));
  }
  Envelope envelope;
  ByteReader reader(bytes.subspan(16));
  envelope.manifest_bytes = reader.U64();
  (void)reader.U64();  // reserved, checked with the head
  for (uint32_t i = 0; i < signatures; ++i) {
    EnvelopeSignature signature;
    std::ranges::copy(reader.Take(signature.public_key.size()), signature.public_key.begin());
    std::ranges::copy(reader.Take(signature.signature.size()), signature.signature.begin());
    if (i > 0 && envelope.signatures.back().public_key >= signature.public_key) {
      return Damaged(StrFormat("signature %u: public keys must rise", i));
    }
    envelope.signatures.push_back(signature);
  }
  const ByteSpan unused = reader.Take(reader.remaining());
  if (std::ranges::any_of(unused, [](uint8_t byte) { return byte != 0; }))
    return Damaged("an unused signature slot is not zero");
  return envelope;
}

Bytes SignedMessage(KeyRole role, ByteSpan manifest) {
  ByteWriter writer;
  writer.Append(AsBytes(kDomain));
  writer.U32(kFormatVersion);
  writer.U32(static_cast<uint32_t>(role));
  writer.U64(manifest.size());
  writer.Append(manifest);
  return writer.Release();
}

}  // namespace moepack
