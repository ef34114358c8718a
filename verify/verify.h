// Verification on the device: signatures over the exact manifest bytes, then, and only then, a parser; then every byte by
// digest before it is used. Holds no signing code. Functions are thread-safe unless said otherwise.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/progress.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "format/manifest/golden.h"
#include "format/manifest/manifest.h"
#include "format/verified.h"

namespace moepack::verify {

// What a device believes before it has seen a bundle.
struct TrustPolicy {
  std::string product;                                // bundles of another product are refused with kPolicy
  std::vector<std::array<uint8_t, 32>> release_keys;  // distinct Ed25519 public keys
  uint32_t threshold = 1;                             // distinct trusted keys that must have signed, 1..release_keys.size()
  uint64_t key_epoch = 0;                             // bundles of a lower epoch: kRollback
  uint64_t minimum_security_counter = 0;              // at the same epoch a lower counter: kRollback
};

// kTrustRecord unless threshold, keys and product obey the rules above.
Status ValidateTrustPolicy(const TrustPolicy& policy);

// True when `signature` is a strict Ed25519 signature (S < L, no small-order key) of `message`. libsodium.
bool CheckSignature(const std::array<uint8_t, 32>& public_key, ByteSpan message, const std::array<uint8_t, 64>& signature);

class VerifiedBundle {
 public:
  // Reads envelope and manifest, checks signatures against `policy`, then counter, product and features, then parses the
  // manifest, reads and digests every blob, parses them and validates the layout. Chunks are not read. Takes the file.
  static Result<std::unique_ptr<VerifiedBundle>> Open(std::unique_ptr<RandomAccessFile> file, const TrustPolicy& policy);

  const Manifest& manifest() const { return manifest_; }
  const Program& program() const { return program_; }
  const DenseTable& dense() const { return dense_; }
  const std::vector<ExpertTable>& experts() const { return experts_; }  // one a Program::expert_tables entry, in order
  const HotList& hot_list() const { return hot_list_; }
  ByteSpan tokenizer_blob() const { return tokenizer_; }
  ByteSpan provenance_blob() const { return provenance_; }
  const GoldenPrompts& golden() const { return golden_; }  // without prompts when the bundle has none
  const DigestBytes& manifest_digest() const { return manifest_digest_; }
  uint32_t valid_signatures() const { return valid_signatures_; }

  // The stored bytes of one chunk of this bundle's tables; kDigest (with chunk offset) when they are not what was signed.
  Result<VerifiedBytes> ReadChunk(const ChunkRef& chunk) const;

  // Checks every chunk, the padding and the exact end of the file in constant memory on all threads of `pool`.
  Status VerifyAll(ThreadPool& pool, Progress& progress) const;
  // Checks the chunks of one logical expert (all its variants).
  Status VerifyExpert(uint32_t table, uint32_t expert) const;

 private:
  VerifiedBundle() = default;
  std::unique_ptr<RandomAccessFile> file_;
  Manifest manifest_;
  Program program_;
  DenseTable dense_;
  std::vector<ExpertTable> experts_;
  HotList hot_list_;
  Bytes tokenizer_, provenance_;
  GoldenPrompts golden_;
  DigestBytes manifest_digest_{};
  uint32_t valid_signatures_ = 0;
  uint64_t signed_end_ = 0;  // first byte after the manifest
};

}  // namespace moepack::verify
