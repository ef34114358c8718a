// From a compressed model folder to a signed bundle: cuts units into chunks, encodes each by measured gain, lays out the
// file of format/SPEC.md, signs the manifest and checks the result with the verifier before it gets its name.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/progress.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "format/manifest/golden.h"
#include "format/manifest/manifest.h"
#include "packager/bundle_layout.h"
#include "packager/sign/secret_key.h"
#include "verify/verify.h"

namespace moepack {

// Opens the bundle that is being packed, as often as wanted: verified, but signed by a key that nobody trusts and without
// golden prompts. What it returns must not outlive the call it was given to.
using OpenDraft = std::function<Result<std::unique_ptr<verify::VerifiedBundle>>()>;
// Runs that bundle and says what it answers. The packager knows no runtime: who calls it does.
using RecordGoldenFunction = std::function<Result<GoldenPrompts>(const OpenDraft& open)>;

struct PackOptions {
  std::string product;  // [a-z0-9._-]{1,64}: what the trust file of the device names
  std::string version;  // [A-Za-z0-9._+-]{1,64}, for people
  uint64_t key_epoch = 1;
  uint64_t security_counter = 1;
  // 1..22, or 0 to store every chunk as it is. On planes of codes and on floats level 9 is within 0.3% of the best level or
  // better than it, and 10 to 20 times faster than 19: there are few long matches to search for.
  int zstd_level = 9;
  std::vector<Unavailable> unavailable;  // what may stand in for experts that cannot be read, rising; none: reading fails
  RecordGoldenFunction record_golden;  // empty: a bundle without golden prompts
  // For provenance (format/provenance/provenance.h): the version of this program, and the only time that may go in.
  std::string tool_version;
  std::optional<uint64_t> source_date_epoch;
};

struct PackReport {
  uint64_t file_bytes = 0;
  uint64_t table_bytes = 0;         // envelope, manifest and blobs
  uint64_t chunk_plain_bytes = 0;   // all chunks decoded
  uint64_t chunk_stored_bytes = 0;  // all chunks as stored, without padding
  uint64_t raw_chunks = 0, zstd_chunks = 0, rans_chunks = 0;
  uint32_t signatures = 0;
  uint64_t golden_prompts = 0, golden_steps = 0;  // recorded
  DigestBytes manifest_digest{};
};

// Packs the model folder `directory` into `output`, signed by each of `keys` (1..kMaxSignatures, distinct). The bytes depend
// on folder, options, keys and the answer of record_golden only. Memory: the largest unit and a few chunks. On an error
// nothing is left. Not for concurrent calls with one `output`. kUsage for options and keys; kBadInput, kDigest for the
// folder; kNoSpace, kAccess; errors of record_golden.
Result<PackReport> Pack(Env& env, const std::string& directory, const PackOptions& options,
                        const std::vector<const SecretKey*>& keys, const std::string& output, ThreadPool& pool,
                        Progress& progress);

// What Pack would sign, without a key and without the file: to compare with a bundle that exists. `scratch`: a file beside
// which chunks may wait; nothing is left there. Errors as Pack.
struct UnsignedBundle {
  Bytes manifest;
  BundleParts parts;
};
Result<UnsignedBundle> PackUnsigned(Env& env, const std::string& directory, const PackOptions& options,
                                    const std::string& scratch, ThreadPool& pool, Progress& progress);

// Writes `bundle` with one signature more to `output` (which may be the same path). Manifest and everything after it stay
// byte for byte. The whole result is checked, older signatures included, before it gets its name. kUsage when the key has
// signed already or there is no room.
Result<PackReport> AddSignature(Env& env, const std::string& bundle, const SecretKey& key, const std::string& output,
                                ThreadPool& pool, Progress& progress);

}  // namespace moepack
