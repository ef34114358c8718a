#include "packager/trust_writer.h"

#include "packager/bundle_writer.h"
#include "verify/trust_anchor.h"

namespace moepack {
namespace {

Result<Bytes> SignRecord(const Magic& magic, KeyRole role, const Bytes& body, const std::vector<const SecretKey*>& keys) {
  Envelope envelope;
  envelope.manifest_bytes = body.size();
  for (const SecretKey* key : keys) MOEPACK_RETURN_IF_ERROR(SignInto(*key, body, &envelope, role));
  Bytes out = SerializeEnvelope(envelope, magic);
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

}  // namespace

Result<Bytes> SignAnchor(const TrustAnchor& anchor, const std::vector<const SecretKey*>& keys) {
  MOEPACK_RETURN_IF_ERROR(ValidateTrustAnchor(anchor));
  MOEPACK_ASSIGN_OR_RETURN(Bytes file, SignRecord(kAnchorMagic, KeyRole::kRoot, SerializeTrustAnchor(anchor), keys));
  MOEPACK_RETURN_IF_ERROR(verify::OpenAnchor(file).status());
  return file;
}

Result<Bytes> SignHead(const ChannelHead& head, const std::vector<const SecretKey*>& keys) {
  const Bytes body = SerializeChannelHead(head);
  if (const Status status = ParseChannelHead(body).status(); !status.ok())
    return Status(ErrorCode::kUsage, status.message());
  return SignRecord(kChannelMagic, KeyRole::kChannel, body, keys);
}

}  // namespace moepack
