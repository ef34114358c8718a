// T.json, the authoring form of a trust policy, read by programs and the runtime's C interface only (nlohmann-json); the
// library takes the struct.
//   {"moepack_trust": 1, "product": "wren", "threshold": 1, "key_epoch": 1, "minimum_security_counter": 1,
//    "release_keys": ["<64 hex digits>", ...]}
#pragma once

#include <string>

#include "base/env.h"
#include "verify/verify.h"

namespace moepack::verify {

// kNotFound, kTrustRecord (names the field).
Result<TrustPolicy> ReadTrustJson(Env& env, const std::string& path);
// What --trust names: T.json, or a trust anchor (verify/trust_anchor.h), told apart by the anchor's magic. The codes of
// both.
Result<TrustPolicy> ReadTrust(Env& env, const std::string& path);
// The same of its contents; errors name `path`.
Result<TrustPolicy> ParseTrust(ByteSpan contents, const std::string& path);
std::string WriteTrustJson(const TrustPolicy& policy);

}  // namespace moepack::verify
