// A bundle small enough to flip every byte of, made without the packager: the verifier is tested against a second writer,
// and against bundles that are signed and still wrong.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/env.h"
#include "format/envelope.h"
#include "format/manifest/manifest.h"
#include "verify/verify.h"

namespace moepack::testing {

// Embedding, one MoE layer of four experts, norm and head: three blocks, each with a dense unit.
Program TinyProgram();

struct TestKey {
  std::array<uint8_t, 32> public_key{};
  std::array<uint8_t, 64> secret_key{};
};
// The same key for the same seed.
TestKey MakeTestKey(uint8_t seed);
EnvelopeSignature SignWith(const TestKey& key, ByteSpan message);

// Contents of the bundle with everything that a test may spoil before it is signed.
struct TinyContents {
  Manifest manifest;
  Program program;
  DenseTable dense;
  std::vector<ExpertTable> experts;
  HotList hot_list;
  Bytes tokenizer;  // without bytes there is no such blob
  Bytes provenance;
  GoldenPrompts golden;  // without prompts there is no such blob
  Bytes chunk_area;      // offsets in the tables count from its start until they are placed
};

struct TinyOptions {
  std::vector<TestKey> keys = {MakeTestKey(1)};
  // Before offsets are placed.
  std::function<void(TinyContents&)> edit;
  // The finished manifest, before it is signed.
  std::function<void(Manifest&)> edit_manifest;
  // What is signed; the exact manifest bytes are given.
  std::function<Bytes(ByteSpan)> message;
};

// Product "tiny", epoch 3, counter 7.
Bytes MakeTinyBundle(const TinyOptions& options = {});
// Trusts key 1, threshold 1, epoch 3, counter 7.
verify::TrustPolicy TinyPolicy();

// Splits a bundle and puts it together again with other signatures.
Bytes WithSignatures(ByteSpan bundle, const std::vector<EnvelopeSignature>& signatures);

// A file in memory.
class MemoryFile final : public RandomAccessFile {
 public:
  explicit MemoryFile(Bytes bytes) : bytes_(std::move(bytes)) {}
  Result<uint64_t> Size() const override { return bytes_.size(); }
  Status Read(uint64_t offset, std::span<uint8_t> out) const override;
  const std::string& path() const override { return path_; }
  Bytes& bytes() { return bytes_; }

 private:
  Bytes bytes_;
  std::string path_ = "tiny.moeb";
};

Result<std::unique_ptr<verify::VerifiedBundle>> OpenBytes(Bytes bytes, const verify::TrustPolicy& policy = TinyPolicy());

}  // namespace moepack::testing
