#include "format/manifest/trust_records.h"

#include <algorithm>
#include <set>

#include "format/manifest/names.h"
#include "format/manifest/unit_wire.h"
#include "format/manifest/wire_io.h"
#include "format/proto/trust.pb.h"

namespace moepack {
namespace {

using wire_check::Field;
using wire_check::Type;

constexpr uint32_t kRecordVersion = 1;
constexpr uint64_t kMaxRoles = 3;

constexpr Field kKeyFields[] = {wire_check::Sha256Field(1, "public_key")};
constexpr wire_check::Message kKey = {"TrustKey", kKeyFields};

constexpr Field kRoleFields[] = {wire_check::Number(1, "role", Type::kUint32, static_cast<uint64_t>(KeyRole::kChannel)),
                                 wire_check::Number(2, "threshold", Type::kUint32),
                                 wire_check::Many(3, "keys", &kKey, kMaxRoleKeys)};
constexpr wire_check::Message kRole = {"TrustRole", kRoleFields};

constexpr Field kAnchorFields[] = {
    wire_check::Number(1, "version", Type::kUint32),
    wire_check::Text(2, "product", kMaxManifestTextBytes),
    wire_check::Number(3, "root_version", Type::kUint64),
    wire_check::Number(4, "key_epoch", Type::kUint64),
    wire_check::Number(5, "minimum_security_counter", Type::kUint64),
    wire_check::Many(6, "roles", &kRole, kMaxRoles),
};
constexpr wire_check::Message kAnchor = {"TrustAnchor", kAnchorFields};

constexpr Field kHeadFields[] = {
    wire_check::Number(1, "version", Type::kUint32),
    wire_check::Text(2, "product", kMaxManifestTextBytes),
    wire_check::Text(3, "channel", kMaxManifestTextBytes),
    wire_check::Number(4, "head_version", Type::kUint64),
    wire_check::Number(5, "expires", Type::kUint64),
    wire_check::Number(6, "key_epoch", Type::kUint64),
    wire_check::Number(7, "security_counter", Type::kUint64),
    wire_check::Sha256Field(8, "manifest_digest"),
    wire_check::Number(9, "file_bytes", Type::kUint64),
    wire_check::Number(10, "rollout_permille", Type::kUint32, kFullRollout),
};
constexpr wire_check::Message kHead = {"ChannelHead", kHeadFields};

Status Bad(std::string message) { return Status(ErrorCode::kTrustRecord, "trust record: " + std::move(message)); }

Status CheckRole(const TrustRole& role, std::set<PublicKey>* seen) {
  const int number = static_cast<int>(role.role);
  if (role.keys.empty() || role.keys.size() > kMaxRoleKeys) {
    return Bad(StrFormat("role %d has %zu keys, expected 1 to %zu", number, role.keys.size(), kMaxRoleKeys));
  }
  if (role.threshold < 1 || role.threshold > role.keys.size()) {
    return Bad(StrFormat("role %d needs %u of %zu keys", number, role.threshold, role.keys.size()));
  }
  for (size_t i = 0; i < role.keys.size(); ++i) {
    if (i > 0 && role.keys[i] <= role.keys[i - 1]) return Bad(StrFormat("keys of role %d must rise", number));
    if (!seen->insert(role.keys[i]).second) {
      return Bad("key " + ToHex(ByteSpan(role.keys[i])) + " has two roles; a key must have one");
    }
  }
  return Status::Ok();
}

}  // namespace

const TrustRole* TrustAnchor::Find(KeyRole role) const {
  const auto found = std::find_if(roles.begin(), roles.end(), [&](const TrustRole& r) { return r.role == role; });
  return found == roles.end() ? nullptr : &*found;
}

Status ValidateTrustAnchor(const TrustAnchor& anchor) {
  if (!IsProductName(anchor.product)) return Bad("product must be 1 to 64 of [a-z0-9._-]");
  if (anchor.root_version == 0) return Bad("root_version must be at least 1");
  std::set<PublicKey> seen;
  for (size_t i = 0; i < anchor.roles.size(); ++i) {
    if (anchor.roles[i].role < KeyRole::kRelease || (i > 0 && anchor.roles[i].role <= anchor.roles[i - 1].role)) {
      return Bad("roles must rise");
    }
    MOEPACK_RETURN_IF_ERROR(CheckRole(anchor.roles[i], &seen));
  }
  if (anchor.Find(KeyRole::kRelease) == nullptr || anchor.Find(KeyRole::kRoot) == nullptr) {
    return Bad("the roles release and root must be there");
  }
  return Status::Ok();
}

Bytes SerializeTrustAnchor(const TrustAnchor& anchor) {
  wire::TrustAnchor message;
  message.set_version(kRecordVersion);
  message.set_product(anchor.product);
  message.set_root_version(anchor.root_version);
  message.set_key_epoch(anchor.key_epoch);
  message.set_minimum_security_counter(anchor.minimum_security_counter);
  for (const TrustRole& role : anchor.roles) {
    wire::TrustRole* out = message.add_roles();
    out->set_role(static_cast<uint32_t>(role.role));
    out->set_threshold(role.threshold);
    for (const PublicKey& key : role.keys) out->add_keys()->set_public_key(WriteDigest(key));
  }
  return SerializeMessage(message);
}

Result<TrustAnchor> ParseTrustAnchor(ByteSpan bytes) {
  wire::TrustAnchor message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(kAnchor, kRecordVersion, bytes, &message));
  TrustAnchor out;
  out.product = message.product();
  out.root_version = message.root_version();
  out.key_epoch = message.key_epoch();
  out.minimum_security_counter = message.minimum_security_counter();
  for (const wire::TrustRole& in : message.roles()) {
    TrustRole& role = out.roles.emplace_back();
    role.role = static_cast<KeyRole>(in.role());
    role.threshold = in.threshold();
    for (const wire::TrustKey& key : in.keys()) role.keys.push_back(ReadDigest(key.public_key()));
  }
  MOEPACK_RETURN_IF_ERROR(ValidateTrustAnchor(out));
  return out;
}

Bytes SerializeChannelHead(const ChannelHead& head) {
  wire::ChannelHead message;
  message.set_version(kRecordVersion);
  message.set_product(head.product);
  message.set_channel(head.channel);
  message.set_head_version(head.head_version);
  message.set_expires(head.expires);
  message.set_key_epoch(head.key_epoch);
  message.set_security_counter(head.security_counter);
  message.set_manifest_digest(WriteDigest(head.manifest_digest));
  message.set_file_bytes(head.file_bytes);
  message.set_rollout_permille(head.rollout_permille);
  return SerializeMessage(message);
}

Result<ChannelHead> ParseChannelHead(ByteSpan bytes) {
  wire::ChannelHead message;
  MOEPACK_RETURN_IF_ERROR(ParseMessage(kHead, kRecordVersion, bytes, &message));
  ChannelHead out;
  out.product = message.product();
  out.channel = message.channel();
  out.head_version = message.head_version();
  out.expires = message.expires();
  out.key_epoch = message.key_epoch();
  out.security_counter = message.security_counter();
  out.manifest_digest = ReadDigest(message.manifest_digest());
  out.file_bytes = message.file_bytes();
  out.rollout_permille = message.rollout_permille();
  if (!IsProductName(out.product) || !IsProductName(out.channel))
    return Bad("product and channel must be 1 to 64 of [a-z0-9._-]");
  if (out.head_version == 0) return Bad("head_version must be at least 1");
  return out;
}

}  // namespace moepack
