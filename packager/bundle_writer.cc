#include "packager/bundle_writer.h"

#include <algorithm>

#include "verify/envelope_reader.h"
#include "verify/verify.h"

namespace moepack {

Status SignInto(const SecretKey& key, ByteSpan manifest_bytes, Envelope* envelope, KeyRole role) {
  const std::string name = ToHex(ByteSpan(key.public_key()));
  std::vector<EnvelopeSignature>& signatures = envelope->signatures;
  const auto place = std::lower_bound(signatures.begin(), signatures.end(), key.public_key(),
                                      [](const EnvelopeSignature& s, const auto& k) { return s.public_key < k; });
  if (place != signatures.end() && place->public_key == key.public_key()) {
    return Status(ErrorCode::kUsage, "key " + name + " has signed already");
  }
  if (signatures.size() >= kMaxSignatures) {
    return Status(ErrorCode::kUsage,
                  StrFormat("there are %u signatures already, the most there is room for", kMaxSignatures));
  }
  EnvelopeSignature signature;
  signature.public_key = key.public_key();
  MOEPACK_ASSIGN_OR_RETURN(signature.signature, key.Sign(SignedMessage(role, manifest_bytes)));
  signatures.insert(place, signature);
  return Status::Ok();
}

Bytes SerializeHead(const Envelope& envelope, const PlacedBundle& placed) {
  Bytes head = SerializeEnvelope(envelope);
  head.reserve(placed.chunks_begin);
  head.insert(head.end(), placed.manifest.begin(), placed.manifest.end());
  for (size_t i = 0; i < placed.blobs.size(); ++i) {
    head.resize(placed.blob_offsets[i], 0);
    head.insert(head.end(), placed.blobs[i].begin(), placed.blobs[i].end());
  }
  head.resize(placed.chunks_begin, 0);
  return head;
}

Status CheckWritten(const AtomicFile& file, ThreadPool& pool, Progress& progress) {
  MOEPACK_ASSIGN_OR_RETURN(auto written, file.OpenWritten());
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, written->Size());
  MOEPACK_ASSIGN_OR_RETURN(const verify::SignedManifest head, verify::ReadSignedManifest(*written, size));
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, verify::TrustItsSigners(head));
  MOEPACK_ASSIGN_OR_RETURN(const auto bundle, verify::VerifiedBundle::Open(std::move(written), policy));
  return bundle->VerifyAll(pool, progress);
}

}  // namespace moepack
