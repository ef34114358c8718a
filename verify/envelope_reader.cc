#include "verify/envelope_reader.h"

#include <algorithm>

namespace moepack::verify {
namespace {

unsigned long long Ull(uint64_t v) { return v; }

// What there is of the magic is right.
Result<bool> BeginsLikeABundle(const RandomAccessFile& file, uint64_t size) {
  Bytes start(std::min<uint64_t>(size, kBundleMagic.size()));
  MOEPACK_RETURN_IF_ERROR(file.Read(0, start));
  return std::equal(start.begin(), start.end(), kBundleMagic.begin());
}

// A file too short for its envelope: truncated when what is there begins like a bundle.
Status RefuseShortFile(const RandomAccessFile& file, uint64_t size) {
  MOEPACK_ASSIGN_OR_RETURN(const bool magic, BeginsLikeABundle(file, size));
  if (!magic) {
    return Status(ErrorCode::kNotABundle, file.path() + ": not a moepack bundle (wrong magic)");
  }
  return Status(ErrorCode::kTruncated,
                StrFormat("%s: %llu bytes, shorter than the %llu of an envelope; fetch the bundle again",
                          file.path().c_str(), Ull(size), Ull(kEnvelopeBytes)));
}

}  // namespace

Result<SignedManifest> ReadSignedManifest(const RandomAccessFile& file, uint64_t size) {
  if (size < kEnvelopeBytes) return RefuseShortFile(file, size);
  Bytes start(kEnvelopeBytes);
  MOEPACK_RETURN_IF_ERROR(file.Read(0, start));
  Result<Envelope> envelope = ParseEnvelope(start);
  if (!envelope.ok()) return envelope.status().With(file.path());
  SignedManifest out;
  out.envelope = std::move(*envelope);
  if (out.envelope.manifest_bytes > kMaxManifestBytes) {
    return Status(ErrorCode::kEnvelope, file.path() + ": the manifest is longer than any manifest may be");
  }
  if (out.envelope.manifest_bytes > size - kEnvelopeBytes) {
    return Status(ErrorCode::kTruncated, StrFormat("%s: %llu bytes, ends inside its manifest; fetch the bundle again",
                                                   file.path().c_str(), Ull(size)));
  }
  out.manifest.resize(out.envelope.manifest_bytes);
  MOEPACK_RETURN_IF_ERROR(file.Read(kEnvelopeBytes, out.manifest));
  const Bytes message = SignedMessage(KeyRole::kRelease, out.manifest);
  for (const EnvelopeSignature& s : out.envelope.signatures) {
    if (CheckSignature(s.public_key, message, s.signature)) continue;
    return Status(ErrorCode::kSignature, file.path() + ": the signature of key " + ToHex(ByteSpan(s.public_key)) +
                                             " does not fit the manifest; the bundle is damaged or forged");
  }
  return out;
}

Result<bool> IsBundlePath(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(path));
  if (!exists) return Status(ErrorCode::kNotFound, path + ": no such file or folder");
  MOEPACK_ASSIGN_OR_RETURN(const bool is_folder, env.IsDirectory(path));
  if (is_folder) return false;
  MOEPACK_ASSIGN_OR_RETURN(const auto file, env.OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  MOEPACK_ASSIGN_OR_RETURN(const bool magic, BeginsLikeABundle(*file, size));
  return (size > 0 && magic) || path.ends_with(".moeb");
}

Result<TrustPolicy> TrustItsSigners(const SignedManifest& head) {
  if (head.envelope.signatures.empty()) return Status(ErrorCode::kUntrusted, "nobody has signed the bundle");
  MOEPACK_ASSIGN_OR_RETURN(const Manifest manifest, ParseManifest(head.manifest));
  TrustPolicy policy;
  policy.product = manifest.product;
  policy.threshold = static_cast<uint32_t>(head.envelope.signatures.size());
  policy.key_epoch = manifest.key_epoch;
  policy.minimum_security_counter = manifest.security_counter;
  for (const EnvelopeSignature& signature : head.envelope.signatures) policy.release_keys.push_back(signature.public_key);
  return policy;
}

}  // namespace moepack::verify
