// Who vouches for a trust anchor before it is put on devices: a certificate of an organisation's X.509 hierarchy, by a CMS
// signature (RFC 5652) beside the record. Checked off the device, when devices are provisioned; devices hold no X.509 code.
#pragma once

#include <string>

#include "base/bytes.h"
#include "base/status.h"

namespace moepack {

struct Certifier {
  std::string subject, issuer;  // RFC 2253
  std::string not_after;        // of the certificate, as OpenSSL prints it (UTC)
};

// `signature` is a detached CMS SignedData in DER over exactly `record`; its certificate chains to one of `authorities`
// (PEM, one or more roots), is valid now, and is meant for code signing (extended key usage). Keys and digests of less than
// 112 bits of security do not count. kBadInput (not such a structure, no certificate in `authorities`), kUntrusted (says
// why).
Result<Certifier> CheckCertified(ByteSpan record, ByteSpan signature, ByteSpan authorities);

}  // namespace moepack
