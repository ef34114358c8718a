#include "verify/trust_anchor.h"

#include <algorithm>
#include <tuple>

#include "base/digest/sha256.h"
#include "format/envelope.h"

namespace moepack::verify {
namespace {

unsigned long long Ull(uint64_t v) { return v; }

struct SignedRecord {
  Envelope envelope;
  ByteSpan body;
};

// Envelope and every signature of a record, before anything of it is parsed.
Result<SignedRecord> OpenRecord(ByteSpan file, const Magic& magic, KeyRole role, const char* what) {
  if (file.size() < magic.size() || !std::equal(magic.begin(), magic.end(), file.begin())) {
    return Status(ErrorCode::kTrustRecord, StrFormat("not a %s (its first 8 bytes differ)", what));
  }
  if (file.size() < kEnvelopeBytes) {
    return Status(ErrorCode::kTruncated, StrFormat("%s of %zu bytes, shorter than its envelope", what, file.size()));
  }
  SignedRecord out;
  MOEPACK_ASSIGN_OR_RETURN(out.envelope, ParseEnvelope(file.first(kEnvelopeBytes), magic));
  const uint64_t rest = file.size() - kEnvelopeBytes;
  if (out.envelope.manifest_bytes > rest) return Status(ErrorCode::kTruncated, StrFormat("%s ends inside its body", what));
  if (out.envelope.manifest_bytes < rest) {
    return Status(ErrorCode::kTrustRecord, StrFormat("%s has bytes behind its body", what));
  }
  out.body = file.subspan(kEnvelopeBytes);
  const Bytes message = SignedMessage(role, out.body);
  for (const EnvelopeSignature& s : out.envelope.signatures) {
    if (CheckSignature(s.public_key, message, s.signature)) continue;
    return Status(ErrorCode::kSignature, StrFormat("%s: the signature of key %s does not fit; it is damaged or forged", what,
                                                   ToHex(ByteSpan(s.public_key)).c_str()));
  }
  return out;
}

// The envelope's keys strictly increase, so none is counted twice.
Status CheckThreshold(const Envelope& envelope, const TrustRole* role, const char* what) {
  if (role == nullptr) return Status(ErrorCode::kUntrusted, StrFormat("%s: the anchor has no keys for it", what));
  uint32_t signers = 0;
  for (const EnvelopeSignature& s : envelope.signatures) {
    if (std::binary_search(role->keys.begin(), role->keys.end(), s.public_key)) ++signers;
  }
  if (signers >= role->threshold) return Status::Ok();
  return Status(ErrorCode::kUntrusted,
                StrFormat("%s: signed by %u trusted keys, %u required", what, signers, role->threshold));
}

}  // namespace

Result<TrustAnchor> OpenAnchor(ByteSpan file) {
  MOEPACK_ASSIGN_OR_RETURN(const SignedRecord record, OpenRecord(file, kAnchorMagic, KeyRole::kRoot, "trust anchor"));
  MOEPACK_ASSIGN_OR_RETURN(TrustAnchor anchor, ParseTrustAnchor(record.body));
  MOEPACK_RETURN_IF_ERROR(CheckThreshold(record.envelope, anchor.Find(KeyRole::kRoot), "trust anchor"));
  return anchor;
}

Result<TrustAnchor> RotateAnchor(const TrustAnchor& current, ByteSpan file) {
  MOEPACK_ASSIGN_OR_RETURN(const SignedRecord record, OpenRecord(file, kAnchorMagic, KeyRole::kRoot, "next trust anchor"));
  MOEPACK_RETURN_IF_ERROR(
      CheckThreshold(record.envelope, current.Find(KeyRole::kRoot), "next trust anchor, by the keys of this one"));
  MOEPACK_ASSIGN_OR_RETURN(TrustAnchor next, ParseTrustAnchor(record.body));
  MOEPACK_RETURN_IF_ERROR(CheckThreshold(record.envelope, next.Find(KeyRole::kRoot), "next trust anchor, by its own keys"));
  if (next.product != current.product) {
    return Status(ErrorCode::kPolicy,
                  "next trust anchor is for product '" + next.product + "', this device is '" + current.product + "'");
  }
  if (current.root_version == UINT64_MAX || next.root_version != current.root_version + 1) {
    return Status(ErrorCode::kRollback, StrFormat("next trust anchor has version %llu, expected the one after %llu",
                                                  Ull(next.root_version), Ull(current.root_version)));
  }
  const bool lower_counter =
      next.key_epoch == current.key_epoch && next.minimum_security_counter < current.minimum_security_counter;
  if (next.key_epoch < current.key_epoch || lower_counter) {
    return Status(ErrorCode::kRollback, "next trust anchor lowers the floor of key epoch and security counter");
  }
  return next;
}

TrustPolicy PolicyOf(const TrustAnchor& anchor, const RollbackState& state) {
  TrustPolicy policy;
  policy.product = anchor.product;
  const TrustRole* release = anchor.Find(KeyRole::kRelease);
  if (release != nullptr) {
    policy.release_keys = release->keys;
    policy.threshold = release->threshold;
  }
  policy.key_epoch = anchor.key_epoch;
  policy.minimum_security_counter = anchor.minimum_security_counter;
  if (std::tie(state.key_epoch, state.security_counter) > std::tie(policy.key_epoch, policy.minimum_security_counter)) {
    policy.key_epoch = state.key_epoch;
    policy.minimum_security_counter = state.security_counter;
  }
  return policy;
}

Result<ChannelHead> OpenChannelHead(const TrustAnchor& anchor, const RollbackState& state, const ChannelView& view,
                                    ByteSpan file) {
  MOEPACK_ASSIGN_OR_RETURN(const SignedRecord record, OpenRecord(file, kChannelMagic, KeyRole::kChannel, "channel head"));
  MOEPACK_RETURN_IF_ERROR(CheckThreshold(record.envelope, anchor.Find(KeyRole::kChannel), "channel head"));
  MOEPACK_ASSIGN_OR_RETURN(ChannelHead head, ParseChannelHead(record.body));
  if (head.product != anchor.product || head.channel != view.channel) {
    return Status(ErrorCode::kPolicy, "channel head is of '" + head.product + "' " + head.channel + ", this device takes '" +
                                          anchor.product + "' " + view.channel);
  }
  if (head.head_version < state.head_version) {
    return Status(ErrorCode::kRollback, StrFormat("channel head has version %llu, version %llu was seen before",
                                                  Ull(head.head_version), Ull(state.head_version)));
  }
  if (head.expires < view.now) {
    return Status(ErrorCode::kPolicy, StrFormat("channel head has expired at %llu, it is %llu; fetch a newer one, and check "
                                                "the device's clock",
                                                Ull(head.expires), Ull(view.now)));
  }
  const TrustPolicy policy = PolicyOf(anchor, state);
  if (std::tie(head.key_epoch, head.security_counter) < std::tie(policy.key_epoch, policy.minimum_security_counter)) {
    return Status(ErrorCode::kRollback, "channel head offers a bundle below the floor of key epoch and security counter");
  }
  return head;
}

bool InRollout(const ChannelHead& head, const std::string& device_id) {
  const std::string text = "moepack rollout\n" + head.product + "\n" + device_id;
  const Digest digest = Sha256(AsBytes(text));
  return ByteReader(digest).U64() % kFullRollout < head.rollout_permille;
}

Status CheckAgainstHead(const ChannelHead& head, const VerifiedBundle& bundle) {
  const Manifest& manifest = bundle.manifest();
  if (bundle.manifest_digest() == head.manifest_digest && manifest.file_bytes == head.file_bytes &&
      manifest.key_epoch == head.key_epoch && manifest.security_counter == head.security_counter) {
    return Status::Ok();
  }
  return Status(ErrorCode::kPolicy, "the bundle is not the one that the channel head names; fetch both again");
}

}  // namespace moepack::verify
