// What packing and adding a signature share.
#pragma once

#include "base/env.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "format/envelope.h"
#include "packager/bundle_layout.h"
#include "packager/sign/secret_key.h"

namespace moepack {

// Signs the exact bytes of a manifest, or of a trust record's body, and puts the signature in its place. kUsage when the key
// is there already or no slot is free.
Status SignInto(const SecretKey& key, ByteSpan manifest_bytes, Envelope* envelope, KeyRole role = KeyRole::kRelease);

// Everything before the first chunk: envelope, manifest, blobs and the padding between them.
Bytes SerializeHead(const Envelope& envelope, const PlacedBundle& placed);

// Checks a bundle that is about to be committed as a device would, down to its last byte, trusting the envelope's keys.
Status CheckWritten(const AtomicFile& file, ThreadPool& pool, Progress& progress);

}  // namespace moepack
