#include <gtest/gtest.h>

#include <set>

#include "verify/envelope_reader.h"
#include "verify/testing/tiny_bundle.h"
#include "verify/verify.h"

namespace moepack {
namespace {

using ::moepack::testing::MakeTestKey;
using ::moepack::testing::MakeTinyBundle;
using ::moepack::testing::MemoryFile;
using ::moepack::testing::OpenBytes;
using ::moepack::testing::SignWith;
using ::moepack::testing::TinyContents;
using ::moepack::testing::TinyOptions;
using ::moepack::testing::TinyPolicy;
using ::moepack::testing::WithSignatures;
using verify::TrustPolicy;
using verify::VerifiedBundle;

ErrorCode OpenCode(Bytes bytes, const TrustPolicy& policy = TinyPolicy()) {
  return OpenBytes(std::move(bytes), policy).status().code();
}

Status VerifyAll(const VerifiedBundle& bundle, int threads = 2) {
  ThreadPool pool(threads);
  return bundle.VerifyAll(pool, NoProgress());
}

// The code with which a bundle is refused by Open or else by VerifyAll.
ErrorCode WholeCode(Bytes bytes) {
  const auto bundle = OpenBytes(std::move(bytes));
  return bundle.ok() ? VerifyAll(**bundle).code() : bundle.status().code();
}

uint64_t ManifestEnd(const Bytes& bundle) {
  return kEnvelopeBytes + ParseEnvelope(ByteSpan(bundle).first(kEnvelopeBytes)).value().manifest_bytes;
}

std::vector<ChunkRef> AllChunks(const VerifiedBundle& bundle) {
  std::vector<ChunkRef> out;
  const auto add = [&](const std::vector<Unit>& units) {
    for (const Unit& unit : units) out.insert(out.end(), unit.chunks.begin(), unit.chunks.end());
  };
  add(bundle.dense().units);
  for (const ExpertTable& table : bundle.experts()) add(table.units);
  return out;
}

TEST(VerifiedBundle, OpensWhatWasSigned) {
  const auto bundle = OpenBytes(MakeTinyBundle());
  ASSERT_TRUE(bundle.ok()) << bundle.status().message();
  EXPECT_EQ((*bundle)->manifest().security_counter, 7u);
  EXPECT_EQ((*bundle)->program(), testing::TinyProgram());
  EXPECT_EQ((*bundle)->valid_signatures(), 1u);
  EXPECT_EQ((*bundle)->experts().size(), 1u);
  EXPECT_EQ((*bundle)->hot_list().experts.size(), 2u);
  EXPECT_EQ((*bundle)->tokenizer_blob().size(), 3u);
  EXPECT_EQ(AsText((*bundle)->provenance_blob()), "{}");
  for (const int threads : {1, 2, 5}) EXPECT_TRUE(VerifyAll(**bundle, threads).ok());
  for (uint32_t e = 0; e < 4; ++e) EXPECT_TRUE((*bundle)->VerifyExpert(0, e).ok());
  for (const ChunkRef& chunk : AllChunks(**bundle)) {
    const auto bytes = (*bundle)->ReadChunk(chunk);
    ASSERT_TRUE(bytes.ok());
    EXPECT_EQ(bytes->bytes().size(), chunk.stored_bytes);
  }
}

// Codes with which a damaged start is refused. kMalformed and the like would mean that a parser has seen it.
const std::set<ErrorCode> kBeforeParser = {ErrorCode::kNotABundle, ErrorCode::kVersion,   ErrorCode::kEnvelope,
                                           ErrorCode::kTruncated,  ErrorCode::kSignature, ErrorCode::kUntrusted};

TEST(VerifiedBundle, EveryByteOfEnvelopeAndManifestIsGuarded) {
  const Bytes good = MakeTinyBundle({.keys = {MakeTestKey(1), MakeTestKey(2)}});
  for (uint64_t at = 0; at < ManifestEnd(good); ++at) {
    for (const uint8_t flip : {0x01, 0x80}) {
      Bytes bad = good;
      bad[at] ^= flip;
      EXPECT_TRUE(kBeforeParser.contains(OpenCode(std::move(bad)))) << "byte " << at;
    }
  }
}

TEST(VerifiedBundle, DamageBehindTheVersionIsExitStatusFour) {
  const Bytes good = MakeTinyBundle();
  for (uint64_t at = 12; at < ManifestEnd(good); ++at) {
    Bytes bad = good;
    bad[at] ^= 0x10;
    EXPECT_EQ(OpenBytes(std::move(bad)).status().exit_status(), 4) << "byte " << at;
  }
}

TEST(VerifiedBundle, EveryByteOfTheFileIsGuarded) {
  const Bytes good = MakeTinyBundle();
  for (uint64_t at = ManifestEnd(good); at < good.size(); at += 61) {
    Bytes bad = good;
    bad[at] ^= 0x04;
    EXPECT_EQ(WholeCode(std::move(bad)), ErrorCode::kDigest) << "byte " << at;
  }
  Bytes bad = good;
  bad.back() ^= 1;
  EXPECT_EQ(WholeCode(std::move(bad)), ErrorCode::kDigest);
}

TEST(VerifiedBundle, DamagedChunkIsRefusedWhenUsedAndOthersAreNot) {
  const Bytes good = MakeTinyBundle();
  const std::vector<ChunkRef> chunks = AllChunks(**OpenBytes(good));
  for (size_t broken = 0; broken < chunks.size(); ++broken) {
    Bytes bad = good;
    bad[chunks[broken].offset + chunks[broken].stored_bytes / 2] ^= 0x20;
    const auto bundle = OpenBytes(std::move(bad));
    ASSERT_TRUE(bundle.ok()) << "chunks are not read by Open";
    EXPECT_EQ(VerifyAll(**bundle).code(), ErrorCode::kDigest);
    for (size_t i = 0; i < chunks.size(); ++i) {
      EXPECT_EQ((*bundle)->ReadChunk(chunks[i]).status().code(), i == broken ? ErrorCode::kDigest : ErrorCode::kOk);
    }
  }
}

TEST(VerifiedBundle, DamagedExpertIsFoundAlone) {
  Bytes bytes = MakeTinyBundle();
  const ChunkRef chunk = (**OpenBytes(bytes)).experts()[0].units[2].chunks[0];
  bytes[chunk.offset] ^= 1;
  const auto bundle = OpenBytes(std::move(bytes));
  ASSERT_TRUE(bundle.ok());
  EXPECT_TRUE((*bundle)->VerifyExpert(0, 1).ok());
  const Status status = (*bundle)->VerifyExpert(0, 2);
  EXPECT_EQ(status.code(), ErrorCode::kDigest);
  EXPECT_NE(status.message().find(std::to_string(chunk.offset)), std::string::npos) << status.message();
  EXPECT_EQ((*bundle)->VerifyExpert(0, 4).code(), ErrorCode::kUsage);
  EXPECT_EQ((*bundle)->VerifyExpert(1, 0).code(), ErrorCode::kUsage);
}

TEST(VerifiedBundle, TheFirstDamageIsReportedForAnyThreadCount) {
  Bytes bytes = MakeTinyBundle();
  const std::vector<ChunkRef> chunks = AllChunks(**OpenBytes(bytes));
  bytes[chunks[1].offset] ^= 1;
  bytes[chunks[4].offset] ^= 1;
  const auto bundle = OpenBytes(std::move(bytes));
  ASSERT_TRUE(bundle.ok());
  const std::string once = VerifyAll(**bundle, 1).message();
  EXPECT_NE(once.find(std::to_string(chunks[1].offset)), std::string::npos) << once;
  for (int i = 0; i < 20; ++i) EXPECT_EQ(VerifyAll(**bundle, 4).message(), once);
}

TEST(VerifiedBundle, TruncatedAndExtended) {
  const Bytes good = MakeTinyBundle();
  for (const size_t size :
       {good.size() - 1, good.size() / 2, size_t{5000}, size_t{1568}, size_t{1567}, size_t{40}, size_t{5}, size_t{0}}) {
    EXPECT_EQ(OpenCode(Bytes(good.begin(), good.begin() + static_cast<ptrdiff_t>(size))), ErrorCode::kTruncated) << size;
  }
  Bytes longer = good;
  longer.push_back(0);
  EXPECT_EQ(OpenCode(longer), ErrorCode::kTruncated);
}

TEST(VerifiedBundle, NotABundle) {
  EXPECT_EQ(OpenCode(Bytes(8192, 'x')), ErrorCode::kNotABundle);
  EXPECT_EQ(OpenCode(Bytes(3, 'x')), ErrorCode::kNotABundle);
}

TEST(VerifiedBundle, WrongKeyAndNoSignature) {
  EXPECT_EQ(OpenCode(MakeTinyBundle({.keys = {MakeTestKey(2)}})), ErrorCode::kUntrusted);
  EXPECT_EQ(OpenCode(MakeTinyBundle({.keys = {}})), ErrorCode::kUntrusted);
}

TEST(VerifiedBundle, SignatureOfAnotherRoleOrWithoutDomainDoesNotCount) {
  const auto other_role = [](ByteSpan manifest) { return SignedMessage(static_cast<KeyRole>(2), manifest); };
  EXPECT_EQ(OpenCode(MakeTinyBundle({.message = other_role})), ErrorCode::kSignature);
  const auto bare = [](ByteSpan manifest) { return Bytes(manifest.begin(), manifest.end()); };
  EXPECT_EQ(OpenCode(MakeTinyBundle({.message = bare})), ErrorCode::kSignature);
}

TEST(VerifiedBundle, ThresholdCountsDistinctTrustedKeys) {
  TrustPolicy two = TinyPolicy();
  two.release_keys.push_back(MakeTestKey(2).public_key);
  two.threshold = 2;
  EXPECT_EQ(OpenCode(MakeTinyBundle(), two), ErrorCode::kUntrusted);
  EXPECT_EQ(OpenCode(MakeTinyBundle({.keys = {MakeTestKey(1), MakeTestKey(3)}}), two), ErrorCode::kUntrusted);
  const auto both = OpenBytes(MakeTinyBundle({.keys = {MakeTestKey(1), MakeTestKey(2)}}), two);
  ASSERT_TRUE(both.ok()) << both.status().message();
  EXPECT_EQ((*both)->valid_signatures(), 2u);
  // The same key twice: written by hand, since it is not even a well-formed envelope.
  EXPECT_EQ(OpenCode(MakeTinyBundle({.keys = {MakeTestKey(1), MakeTestKey(1)}}), two), ErrorCode::kEnvelope);
}

TEST(VerifiedBundle, AddingASignatureMovesNothing) {
  const Bytes one = MakeTinyBundle();
  const auto head = verify::ReadSignedManifest(MemoryFile(one), one.size());
  ASSERT_TRUE(head.ok());
  std::vector<EnvelopeSignature> signatures = head->envelope.signatures;
  signatures.push_back(SignWith(MakeTestKey(2), SignedMessage(KeyRole::kRelease, head->manifest)));
  std::sort(signatures.begin(), signatures.end(), [](const auto& a, const auto& b) { return a.public_key < b.public_key; });
  const Bytes two = WithSignatures(one, signatures);
  EXPECT_EQ(two, MakeTinyBundle({.keys = {MakeTestKey(1), MakeTestKey(2)}}));
}

TEST(VerifiedBundle, RollbackAndPolicy) {
  const Bytes bytes = MakeTinyBundle();
  TrustPolicy policy = TinyPolicy();
  policy.minimum_security_counter = 8;
  EXPECT_EQ(OpenCode(bytes, policy), ErrorCode::kRollback);
  policy.key_epoch = 2;  // a newer epoch starts its counter afresh
  EXPECT_EQ(OpenCode(bytes, policy), ErrorCode::kOk);
  policy = TinyPolicy();
  policy.key_epoch = 4;
  policy.minimum_security_counter = 0;
  EXPECT_EQ(OpenCode(bytes, policy), ErrorCode::kRollback);
  policy = TinyPolicy();
  policy.product = "camera";
  EXPECT_EQ(OpenCode(bytes, policy), ErrorCode::kPolicy);
  EXPECT_EQ(OpenCode(MakeTinyBundle({.edit = [](TinyContents& c) { c.manifest.required_features = {9}; }})),
            ErrorCode::kPolicy);
}

// Signed by a trusted key and still wrong.
TEST(VerifiedBundle, SignedButMalformed) {
  const auto manifest = [](std::function<void(Manifest&)> edit) {
    return MakeTinyBundle({.edit_manifest = std::move(edit)});
  };
  const auto contents = [](std::function<void(TinyContents&)> edit) { return MakeTinyBundle({.edit = std::move(edit)}); };
  EXPECT_EQ(OpenCode(manifest([](Manifest& m) { m.blobs[1].offset += 4096; })), ErrorCode::kMalformed);
  EXPECT_EQ(OpenCode(manifest([](Manifest& m) { m.blobs[0].bytes = 1ull << 40; })), ErrorCode::kLimit);
  EXPECT_EQ(OpenCode(manifest([](Manifest& m) { m.blobs[0].digest[0] ^= 1; })), ErrorCode::kDigest);
  EXPECT_EQ(OpenCode(manifest([](Manifest& m) { m.file_bytes -= 1; })), ErrorCode::kTruncated);
  EXPECT_EQ(OpenBytes(manifest([](Manifest& m) { m.chunk_count += 1; })).status().exit_status(), 3);
  EXPECT_EQ(OpenBytes(contents([](TinyContents& c) { c.experts[0].units.pop_back(); })).status().exit_status(), 3);
  EXPECT_EQ(OpenBytes(contents([](TinyContents& c) { c.experts[0].table = 1; })).status().exit_status(), 3);
  EXPECT_EQ(OpenBytes(contents([](TinyContents& c) { c.dense.units[0].chunks[0].offset += 4096; })).status().exit_status(),
            3);
  EXPECT_EQ(OpenBytes(contents([](TinyContents& c) { c.hot_list.experts.push_back({5, 0}); })).status().exit_status(), 3);
  EXPECT_EQ(OpenBytes(contents([](TinyContents& c) { c.program.nodes.pop_back(); })).status().exit_status(), 3);
}

TEST(VerifiedBundle, ChunkRefFromElsewhereAllocatesNothingLarge) {
  const auto bundle = OpenBytes(MakeTinyBundle());
  ASSERT_TRUE(bundle.ok());
  ChunkRef chunk = AllChunks(**bundle)[0];
  chunk.stored_bytes = 1ull << 50;
  EXPECT_EQ((*bundle)->ReadChunk(chunk).status().code(), ErrorCode::kLimit);
}

TEST(CheckSignature, IsStrict) {
  const Bytes message = {1, 2, 3};
  const EnvelopeSignature good = SignWith(MakeTestKey(1), message);
  EXPECT_TRUE(verify::CheckSignature(good.public_key, message, good.signature));
  // S + L verifies in lax implementations. L = 2^252 + 27742317777372353535851937790883648493, little endian.
  static constexpr uint8_t kOrder[32] = {0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7,
                                         0xa2, 0xde, 0xf9, 0xde, 0x14, 0,    0,    0,    0,    0,    0,
                                         0,    0,    0,    0,    0,    0,    0,    0,    0,    0x10};
  EnvelopeSignature lax = good;
  for (unsigned i = 0, carry = 0; i < 32; ++i) {
    carry += lax.signature[32 + i] + kOrder[i];
    lax.signature[32 + i] = static_cast<uint8_t>(carry);
    carry >>= 8;
  }
  EXPECT_FALSE(verify::CheckSignature(lax.public_key, message, lax.signature));
  // The neutral element as key and R with S = 0 would verify every message.
  std::array<uint8_t, 32> small{};
  small[0] = 1;
  std::array<uint8_t, 64> any{};
  any[0] = 1;
  EXPECT_FALSE(verify::CheckSignature(small, message, any));
}

}  // namespace
}  // namespace moepack
