#include <gtest/gtest.h>
#include <zstd.h>

#include "base/digest/sha256.h"
#include "base/testing/fault_env.h"
#include "format/codec/rans.h"
#include "format/envelope.h"
#include "format/manifest/model_folder.h"
#include "format/provenance/provenance.h"
#include "packager/packager.h"
#include "packager/testing/tiny_folder.h"
#include "verify/verify.h"

namespace moepack {
namespace {

using ::moepack::testing::FaultEnv;
using ::moepack::testing::TempDirectory;
using ::moepack::testing::TinyBuildRecord;
using ::moepack::testing::WriteTinyFolder;
using verify::TrustPolicy;
using verify::VerifiedBundle;

class PackTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteTinyFolder(PosixEnv(), folder_).ok());
    options_.product = "tiny";
    options_.version = "1.0";
    options_.security_counter = 7;
  }

  Result<PackReport> PackTo(const std::string& output, int threads = 2, Env& env = PosixEnv()) {
    ThreadPool pool(threads);
    return Pack(env, folder_, options_, {&key_}, output, pool, NoProgress());
  }
  Result<PackReport> SignTo(const std::string& bundle, const SecretKey& key, const std::string& output,
                            Env& env = PosixEnv()) {
    ThreadPool pool(2);
    return AddSignature(env, bundle, key, output, pool, NoProgress());
  }
  Result<std::unique_ptr<VerifiedBundle>> Open(const std::string& path, std::vector<const SecretKey*> keys = {}) {
    TrustPolicy policy;
    policy.product = "tiny";
    policy.key_epoch = 1;
    policy.minimum_security_counter = 7;
    if (keys.empty()) keys = {&key_};
    for (const SecretKey* key : keys) policy.release_keys.push_back(key->public_key());
    policy.threshold = static_cast<uint32_t>(keys.size());
    MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(path));
    return VerifiedBundle::Open(std::move(file), policy);
  }
  Bytes Contents(const std::string& path) { return ReadFile(PosixEnv(), path, 1 << 24).value(); }
  std::vector<std::string> Names() { return PosixEnv().List(directory_.path()).value(); }

  TempDirectory directory_{::testing::TempDir()};
  const std::string folder_ = directory_.Path("model");
  const std::string bundle_ = directory_.Path("b.moeb");
  const SecretKey key_ = SecretKey::Generate().value();
  PackOptions options_;
};

// Plain bytes of a unit, with the checks that a device makes before it decompresses.
Bytes DecodeUnit(const VerifiedBundle& bundle, const Unit& unit) {
  Bytes out;
  for (const ChunkRef& chunk : unit.chunks) {
    const VerifiedBytes stored = bundle.ReadChunk(chunk).value();
    Bytes plain(chunk.plain_bytes);
    if (chunk.encoding == Encoding::kRaw) {
      plain.assign(stored.bytes().begin(), stored.bytes().end());
    } else if (chunk.encoding == Encoding::kRans) {
      EXPECT_TRUE(DecodeRans(stored.bytes(), plain).ok());
    } else {
      const ByteSpan frame = stored.bytes();
      EXPECT_EQ(ZSTD_findFrameCompressedSize(frame.data(), frame.size()), frame.size()) << "one frame";
      EXPECT_EQ(ZSTD_getFrameContentSize(frame.data(), frame.size()), chunk.plain_bytes);
      EXPECT_EQ(frame[4] & 0x04, 0) << "no checksum: the digest is one";
      const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(), &ZSTD_freeDCtx);
      ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, 20);
      EXPECT_EQ(ZSTD_decompressDCtx(context.get(), plain.data(), plain.size(), frame.data(), frame.size()), plain.size());
    }
    EXPECT_EQ(Sha256(plain), chunk.plain_digest);
    out.insert(out.end(), plain.begin(), plain.end());
  }
  return out;
}

TEST_F(PackTest, BundleHoldsWhatTheFolderHolds) {
  const auto report = PackTo(bundle_);
  ASSERT_TRUE(report.ok()) << report.status().message();
  const auto bundle = Open(bundle_);
  ASSERT_TRUE(bundle.ok()) << bundle.status().message();
  const auto folder = ModelFolder::Open(PosixEnv(), folder_).value();
  EXPECT_EQ((*bundle)->program(), folder->program());
  EXPECT_EQ((*bundle)->hot_list(), folder->hot_list());
  EXPECT_EQ((*bundle)->experts()[0].experts, folder->experts()[0]);
  EXPECT_EQ(ParseProvenance((*bundle)->provenance_blob()).value().record, TinyBuildRecord());
  EXPECT_TRUE(std::ranges::equal((*bundle)->tokenizer_blob(), folder->tokenizer_blob()));
  std::vector<Unit> units = (*bundle)->dense().units;
  units.insert(units.end(), (*bundle)->experts()[0].units.begin(), (*bundle)->experts()[0].units.end());
  ASSERT_EQ(units.size(), folder->units().size());
  for (size_t i = 0; i < units.size(); ++i) {
    EXPECT_EQ(units[i].tensors, folder->units()[i].tensors);
    EXPECT_EQ(DecodeUnit(**bundle, units[i]), folder->ReadUnit(i).value()) << "unit " << i;
  }
  EXPECT_EQ((*bundle)->dense().units[0].chunks.size(), 2u);
  EXPECT_EQ(Names(), (std::vector<std::string>{"b.moeb", "model"}));
}

TEST_F(PackTest, EncodingFollowsTheGain) {
  const PackReport report = PackTo(bundle_).value();
  const auto bundle = Open(bundle_).value();
  for (const Unit& unit : bundle->dense().units) {
    for (const ChunkRef& chunk : unit.chunks) {
      EXPECT_NE(chunk.encoding, Encoding::kRaw);
      EXPECT_LE(chunk.stored_bytes * 100, chunk.plain_bytes * 99);
    }
  }
  for (const Unit& unit : bundle->experts()[0].units) EXPECT_EQ(unit.chunks[0].encoding, Encoding::kRaw);
  EXPECT_EQ(report.raw_chunks, 3u);
  EXPECT_EQ(report.zstd_chunks + report.rans_chunks, 5u);
  EXPECT_EQ(report.file_bytes, Contents(bundle_).size());
  EXPECT_EQ(report.table_bytes, bundle->dense().units[0].chunks[0].offset);
}

TEST_F(PackTest, SameBytesForAnyThreadCount) {
  const std::string other = directory_.Path("other.moeb");
  ASSERT_TRUE(PackTo(bundle_, 1).ok());
  for (const int threads : {1, 2, 3}) {
    ASSERT_TRUE(PackTo(other, threads).ok());
    EXPECT_TRUE(Contents(other) == Contents(bundle_)) << threads << " threads";
  }
  options_.security_counter = 8;
  ASSERT_TRUE(PackTo(other).ok());
  EXPECT_FALSE(Contents(other) == Contents(bundle_));
}

TEST_F(PackTest, OffsetsSettleForCountersOfAnyLength) {
  options_.zstd_level = 1;
  for (uint64_t counter = 1; counter != 0; counter <<= 7) {
    options_.security_counter = counter;
    options_.version = std::string(1 + counter % 64, '1');
    EXPECT_TRUE(PackTo(bundle_).ok()) << counter;
  }
}

TEST_F(PackTest, ProvenanceIsOptional) {
  ASSERT_TRUE(WriteTinyFolder(PosixEnv(), folder_, false).ok());
  ASSERT_TRUE(PackTo(bundle_).ok());
  const auto bundle = Open(bundle_);
  ASSERT_TRUE(bundle.ok()) << bundle.status().message();
  EXPECT_TRUE((*bundle)->provenance_blob().empty());
}

TEST_F(PackTest, WhatIsPackedWithoutAKeyIsWhatIsSigned) {
  options_.tool_version = "0.1.0";
  options_.source_date_epoch = 1700000000;
  const PackReport report = PackTo(bundle_).value();
  ThreadPool pool(2);
  const auto unsigned_bundle = PackUnsigned(PosixEnv(), folder_, options_, directory_.Path("scratch"), pool, NoProgress());
  ASSERT_TRUE(unsigned_bundle.ok()) << unsigned_bundle.status().message();
  EXPECT_EQ(Sha256(unsigned_bundle->manifest), report.manifest_digest);
  EXPECT_TRUE(std::ranges::equal(unsigned_bundle->parts.provenance, Open(bundle_).value()->provenance_blob()));
  EXPECT_EQ(Names(), (std::vector<std::string>{"b.moeb", "model"}));
}

TEST_F(PackTest, LevelZeroStoresEveryChunkAsItIs) {
  options_.zstd_level = 0;
  const auto report = PackTo(bundle_);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->zstd_chunks, 0u);
  EXPECT_EQ(report->chunk_stored_bytes, report->chunk_plain_bytes);
  EXPECT_TRUE(Open(bundle_).ok());
}

TEST_F(PackTest, BadOptionsAreRefusedBeforeWork) {
  const PackOptions good = options_;
  const auto refused = [&] { return PackTo(bundle_).status().code() == ErrorCode::kUsage; };
  for (const char* product : {"", "Tiny", "a b"}) {
    options_.product = product;
    EXPECT_TRUE(refused()) << product;
  }
  options_ = good;
  options_.version = std::string("1\0", 2);
  EXPECT_TRUE(refused());
  options_ = good;
  options_.zstd_level = 23;
  EXPECT_TRUE(refused());
  ThreadPool pool(1);
  EXPECT_EQ(Pack(PosixEnv(), folder_, good, {}, bundle_, pool, NoProgress()).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(Pack(PosixEnv(), folder_, good, {&key_, &key_}, bundle_, pool, NoProgress()).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(Names(), std::vector<std::string>{"model"});
}

TEST_F(PackTest, DamagedFolderLeavesNothing) {
  const std::string block = JoinPath(folder_, "block-001.moeu");
  Bytes bytes = Contents(block);
  bytes.back() ^= 1;
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), block, bytes).ok());
  EXPECT_EQ(PackTo(bundle_).status().code(), ErrorCode::kDigest);
  ASSERT_TRUE(PosixEnv().Remove(JoinPath(folder_, "complete")).ok());
  EXPECT_EQ(PackTo(bundle_).status().exit_status(), 3);
  EXPECT_EQ(Names(), std::vector<std::string>{"model"});
}

// A full disk at every write: the error arrives and nothing is left.
TEST_F(PackTest, EveryFailedWriteLeavesNothing) {
  options_.zstd_level = 1;
  FaultEnv env(PosixEnv(), FaultEnv::Count::kWrites);
  ASSERT_TRUE(PackTo(bundle_, 1, env).ok());
  const uint64_t writes = env.operations();
  ASSERT_TRUE(PosixEnv().Remove(bundle_).ok());
  ASSERT_GT(writes, 20u);
  for (uint64_t n = 1; n < writes; ++n) {  // the last one syncs the folder, after the bundle has got its name
    env.FailAt(n, ErrorCode::kNoSpace, FaultEnv::Duration::kFromThenOn);
    EXPECT_EQ(PackTo(bundle_, 1, env).status().code(), ErrorCode::kNoSpace) << "write " << n;
    EXPECT_EQ(Names(), std::vector<std::string>{"model"}) << "write " << n;
  }
}

TEST_F(PackTest, SecondSignatureMovesNothingAndCounts) {
  const SecretKey second = SecretKey::Generate().value();
  const std::string two = directory_.Path("two.moeb");
  ASSERT_TRUE(PackTo(bundle_).ok());
  EXPECT_EQ(Open(bundle_, {&key_, &second}).status().code(), ErrorCode::kUntrusted);
  const auto report = SignTo(bundle_, second, two);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->signatures, 2u);
  EXPECT_TRUE(Open(two, {&key_, &second}).ok());
  EXPECT_TRUE(Open(two, {&second}).ok());
  const Bytes before = Contents(bundle_), after = Contents(two);
  EXPECT_TRUE(std::equal(before.begin() + kEnvelopeBytes, before.end(), after.begin() + kEnvelopeBytes, after.end()));
  ASSERT_TRUE(SignTo(bundle_, second, bundle_).ok()) << "in place";
  EXPECT_EQ(Contents(bundle_), after);
  ThreadPool pool(1);
  const std::string both = directory_.Path("both.moeb");
  ASSERT_TRUE(Pack(PosixEnv(), folder_, options_, {&second, &key_}, both, pool, NoProgress()).ok());
  EXPECT_EQ(Contents(both), after) << "signing at once is the same";
}

TEST_F(PackTest, SignRefusesWhatItShouldNotSign) {
  const SecretKey second = SecretKey::Generate().value();
  const std::string out = directory_.Path("out.moeb");
  ASSERT_TRUE(PackTo(bundle_).ok());
  EXPECT_EQ(SignTo(bundle_, key_, out).status().code(), ErrorCode::kUsage) << "has signed already";
  const Bytes good = Contents(bundle_);
  for (const size_t at : {size_t{9}, size_t{50}, size_t{kEnvelopeBytes + 5}, size_t{5000}, good.size() - 1}) {
    Bytes bad = good;
    bad[at] ^= 1;
    ASSERT_TRUE(WriteFileAtomically(PosixEnv(), bundle_, bad).ok());
    EXPECT_FALSE(SignTo(bundle_, second, out).ok()) << "byte " << at;
  }
  ASSERT_TRUE(WriteFileAtomically(PosixEnv(), bundle_, ByteSpan(good).first(good.size() - 1)).ok());
  EXPECT_EQ(SignTo(bundle_, second, out).status().code(), ErrorCode::kTruncated);
  EXPECT_EQ(SignTo(directory_.Path("none"), second, out).status().code(), ErrorCode::kNotFound);
  EXPECT_EQ(Names(), (std::vector<std::string>{"b.moeb", "model"}));
}

TEST_F(PackTest, SixteenSignaturesFitAndNoMore) {
  ASSERT_TRUE(PackTo(bundle_).ok());
  for (uint32_t i = 1; i < kMaxSignatures; ++i) ASSERT_TRUE(SignTo(bundle_, SecretKey::Generate().value(), bundle_).ok());
  EXPECT_EQ(SignTo(bundle_, SecretKey::Generate().value(), bundle_).status().code(), ErrorCode::kUsage);
  EXPECT_TRUE(Open(bundle_).ok());
}

TEST_F(PackTest, GoldenPromptsAreRecordedOnTheBundleThatIsPacked) {
  GoldenPrompts golden;
  golden.tolerance = 0.5f;
  golden.prompts = {{{1, 2}, {{{3}, {4.0f}}}}};
  DigestBytes draft{};
  uint32_t opened = 0;
  options_.record_golden = [&](const OpenDraft& open) -> Result<GoldenPrompts> {
    for (; opened < 2; ++opened) {  // as often as wanted
      MOEPACK_ASSIGN_OR_RETURN(const auto bundle, open());
      ThreadPool pool(2);
      MOEPACK_RETURN_IF_ERROR(bundle->VerifyAll(pool, NoProgress()));
      EXPECT_TRUE(bundle->golden().prompts.empty());
      draft = bundle->dense().units[0].chunks[0].plain_digest;
    }
    return golden;
  };
  const Result<PackReport> report = PackTo(bundle_);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(opened, 2u);
  EXPECT_EQ(report->golden_prompts, 1u);
  EXPECT_EQ(report->golden_steps, 1u);
  const auto bundle = Open(bundle_);
  ASSERT_TRUE(bundle.ok()) << bundle.status().message();
  EXPECT_EQ((*bundle)->golden(), golden);
  EXPECT_EQ((*bundle)->dense().units[0].chunks[0].plain_digest, draft);
  EXPECT_EQ(Names().size(), 2u);  // it and the folder
}

TEST_F(PackTest, AnErrorOfRecordingLeavesNothing) {
  options_.record_golden = [](const OpenDraft&) -> Result<GoldenPrompts> {
    return Status(ErrorCode::kGate, "the answers differ");
  };
  EXPECT_EQ(PackTo(bundle_).status().code(), ErrorCode::kGate);
  EXPECT_EQ(Names(), std::vector<std::string>{"model"});
  options_.record_golden = [](const OpenDraft&) -> Result<GoldenPrompts> {
    GoldenPrompts unusable;
    unusable.tolerance = 1;
    unusable.prompts = {{{1u << 30}, {{{3}, {4.0f}}}}};
    return unusable;
  };
  EXPECT_EQ(PackTo(bundle_).status().code(), ErrorCode::kMalformed);  // refused as a device would
  EXPECT_EQ(Names(), std::vector<std::string>{"model"});
}

}  // namespace
}  // namespace moepack
