// The start of a bundle before anybody is trusted: for VerifiedBundle, and for cloud tools that add a signature or show what
// a bundle claims. What it returns is signed by somebody, not verified.
#pragma once

#include <string>

#include "base/env.h"
#include "format/envelope.h"
#include "verify/verify.h"

namespace moepack::verify {

struct SignedManifest {
  Envelope envelope;
  Bytes manifest;  // exact bytes, not parsed
};

// Reads envelope and manifest of a file of `size` bytes and checks every signature that is there (none is fine), so that a
// flipped byte is found before any parser runs. kNotABundle, kVersion, kEnvelope, kTruncated, kSignature.
Result<SignedManifest> ReadSignedManifest(const RandomAccessFile& file, uint64_t size);

// Trusts whoever signed, product and counter whatever they are: for showing a bundle and for checking one's own work, never
// for deciding to use one. kUntrusted when nobody signed; kMalformed.
Result<TrustPolicy> TrustItsSigners(const SignedManifest& head);

// Whether the file at `path` begins like a bundle or is named like one (.moeb): what a command that takes several kinds of
// input asks. False for folders. kNotFound.
Result<bool> IsBundlePath(Env& env, const std::string& path);

}  // namespace moepack::verify
