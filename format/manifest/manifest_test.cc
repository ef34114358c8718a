#include "format/manifest/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "format/manifest/testing/tiny_bundle.h"

namespace moepack {
namespace {

using ::testing::HasSubstr;
using testing::MakeTinyBundle;
using testing::TinyBundle;

// `parse` gives the same struct again for whole bytes, never for changed ones, and refuses every truncation.
template <typename T>
void ExpectStrict(const T& value, const Bytes& bytes, Result<T> (*parse)(ByteSpan)) {
  const Result<T> read = parse(bytes);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, value);
  for (size_t n = 0; n < bytes.size(); ++n) {
    const Result<T> shorter = parse(ByteSpan(bytes).first(n));
    EXPECT_TRUE(!shorter.ok() || *shorter != value) << n;
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes flipped = bytes;
      flipped[i] = static_cast<uint8_t>(flipped[i] ^ (1 << bit));
      const Result<T> other = parse(flipped);
      EXPECT_TRUE(!other.ok() || *other != value) << "byte " << i << " bit " << bit;
    }
  }
  Bytes longer = bytes;
  longer.push_back(0);
  EXPECT_FALSE(parse(longer).ok());
}

TEST(Manifest, OneEncodingOnly) {
  const Manifest manifest = MakeTinyBundle().manifest;
  ExpectStrict(manifest, SerializeManifest(manifest), &ParseManifest);
}

TEST(Tables, OneEncodingOnly) {
  const TinyBundle b = MakeTinyBundle();
  ExpectStrict(b.dense, SerializeDenseTable(b.dense), &ParseDenseTable);
  ExpectStrict(b.experts[0], SerializeExpertTable(b.experts[0]), &ParseExpertTable);
  ExpectStrict(b.hot, SerializeHotList(b.hot), &ParseHotList);
}

TEST(HotList, KeepsItsCachePolicy) {
  HotList list;
  EXPECT_EQ(SerializeHotList(list).size(), 2u) << "LRU is what a list without a policy says";
  for (const CachePolicy& policy :
       {CachePolicy{CachePolicyKind::kLfu, 64}, CachePolicy{CachePolicyKind::kHobbit, 65536, 10, 80, 10, 50}}) {
    list.cache = policy;
    ExpectStrict(list, SerializeHotList(list), &ParseHotList);
  }
  list.cache = {CachePolicyKind::kHobbit, 64, 10, 80, 11};
  EXPECT_THAT(ParseHotList(SerializeHotList(list)).status().message(), HasSubstr("hot list: cache policy hobbit: weights"));
}

TEST(HotList, AnEmptyOneHasBytes) {
  const Bytes bytes = SerializeHotList({});
  EXPECT_FALSE(bytes.empty());
  ASSERT_TRUE(ParseHotList(bytes).ok());
  EXPECT_TRUE(ParseHotList(bytes)->experts.empty());
}

TEST(Tables, CodecsSurvive) {
  TinyBundle b = MakeTinyBundle();
  Codec codec;
  codec.element = Element::kGroupInt;
  codec.bits = 5;
  codec.has_min = true;
  codec.group_size = 256;
  codec.sparsity = Sparsity::kNM;
  codec.n = 8;
  codec.m = 16;
  b.dense.units[0].tensors[0].codec = codec;
  codec.sparsity = Sparsity::kBitmask;
  codec.n = codec.m = 0;
  codec.kept_per_row = 100000;
  b.dense.units[1].tensors[0].codec = codec;
  const Result<DenseTable> read = ParseDenseTable(SerializeDenseTable(b.dense));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, b.dense);
}

struct BadManifest {
  ErrorCode code;
  const char* message;
  std::function<void(Manifest&)> spoil;
};

TEST(Manifest, Rules) {
  const BadManifest cases[] = {
      {ErrorCode::kVersion, "version 2", [](Manifest& m) { m.schema = 2; }},
      {ErrorCode::kVersion, "version 0", [](Manifest& m) { m.schema = 0; }},
      {ErrorCode::kMalformed, "product must be", [](Manifest& m) { m.product.clear(); }},
      {ErrorCode::kMalformed, "product must be", [](Manifest& m) { m.product = "Tiny"; }},
      {ErrorCode::kMalformed, "product must be", [](Manifest& m) { m.product = std::string("a\0b", 3); }},
      {ErrorCode::kLimit, "Manifest.product", [](Manifest& m) { m.product = std::string(65, 'a'); }},
      {ErrorCode::kMalformed, "version must be", [](Manifest& m) { m.version = "1 0"; }},
      {ErrorCode::kMalformed, "features must rise",
       [](Manifest& m) {
         m.required_features = {4, 4};
       }},
      {ErrorCode::kLimit, "required_features", [](Manifest& m) { m.required_features.resize(65); }},
      {ErrorCode::kMalformed, "step of unavailability", [](Manifest& m) { m.unavailable = {static_cast<Unavailable>(6)}; }},
      {ErrorCode::kMalformed, "step of unavailability", [](Manifest& m) { m.unavailable = {static_cast<Unavailable>(0)}; }},
      {ErrorCode::kMalformed, "must rise",
       [](Manifest& m) {
         m.unavailable = {Unavailable::kLower, Unavailable::kRetry};
       }},
      {ErrorCode::kLimit, "unavailable", [](Manifest& m) { m.unavailable.resize(9); }},
      {ErrorCode::kMalformed, "no chunks", [](Manifest& m) { m.chunk_count = 0; }},
      {ErrorCode::kMalformed, "Blob.kind", [](Manifest& m) { m.blobs[5].kind = static_cast<BlobKind>(8); }},
      {ErrorCode::kMalformed, "blob 0: unknown kind", [](Manifest& m) { m.blobs[0].kind = static_cast<BlobKind>(0); }},
      {ErrorCode::kMalformed, "blob 1: kinds must rise", [](Manifest& m) { std::swap(m.blobs[0].kind, m.blobs[1].kind); }},
      {ErrorCode::kMalformed, "blob 1: index 0 is repeated", [](Manifest& m) { m.blobs[1].kind = BlobKind::kProgram; }},
      {ErrorCode::kMalformed, "blob 3: index 1", [](Manifest& m) { m.blobs[3].index = 1; }},
      {ErrorCode::kMalformed, "blob 0: index 1", [](Manifest& m) { m.blobs[0].index = 1; }},
      {ErrorCode::kMalformed, "no blob of kind 1", [](Manifest& m) { m.blobs.erase(m.blobs.begin()); }},
      {ErrorCode::kMalformed, "no blob of kind 3", [](Manifest& m) { m.blobs.erase(m.blobs.begin() + 2); }},
      {ErrorCode::kMalformed, "no blob of kind 5", [](Manifest& m) { m.blobs.resize(4); }},
      {ErrorCode::kLimit, "blob 2: 0 bytes", [](Manifest& m) { m.blobs[2].bytes = 0; }},
      {ErrorCode::kLimit, "blob 5: 67108865 bytes", [](Manifest& m) { m.blobs[5].bytes = kMaxBlobBytes + 1; }},
      {ErrorCode::kMalformed, "blob 0: offset is not aligned", [](Manifest& m) { m.blobs[0].offset += 8; }},
      {ErrorCode::kMalformed, "blob 0: offset is not aligned", [](Manifest& m) { m.blobs[0].offset = 0; }},
      {ErrorCode::kMalformed, "blob 1: does not follow", [](Manifest& m) { m.blobs[1].offset += 4096; }},
      {ErrorCode::kMalformed, "blob 1: does not follow", [](Manifest& m) { m.blobs[1].offset -= 4096; }},
      {ErrorCode::kMalformed, "blob 0: reaches past", [](Manifest& m) { m.blobs[0].offset = ~0ull - 4095; }},
      {ErrorCode::kMalformed, "blob 5: reaches past",
       [](Manifest& m) { m.file_bytes = m.blobs[5].offset + m.blobs[5].bytes - 1; }},
  };
  for (const BadManifest& bad : cases) {
    Manifest manifest = MakeTinyBundle().manifest;
    bad.spoil(manifest);
    const Status status = ParseManifest(SerializeManifest(manifest)).status();
    EXPECT_EQ(status.code(), bad.code) << bad.message << ": " << status.message();
    EXPECT_THAT(status.message(), HasSubstr(bad.message));
  }
}

TEST(Tables, ChunkRules) {
  const struct {
    ErrorCode code;
    const char* message;
    std::function<void(Unit&)> spoil;
  } cases[] = {
      {ErrorCode::kMalformed, "no tensors or no chunks", [](Unit& u) { u.tensors.clear(); }},
      {ErrorCode::kMalformed, "no tensors or no chunks", [](Unit& u) { u.chunks.clear(); }},
      {ErrorCode::kLimit, "chunk 0: 0 plain bytes", [](Unit& u) { u.chunks[0].plain_bytes = 0; }},
      {ErrorCode::kLimit, "chunk 0: 1048577 plain bytes",
       [](Unit& u) { u.chunks[0].plain_bytes = kMaxChunkPlainBytes + 1; }},
      {ErrorCode::kMalformed, "chunk 0: offset", [](Unit& u) { u.chunks[0].offset += 1; }},
      {ErrorCode::kMalformed, "chunk 0: a raw chunk", [](Unit& u) { u.chunks[0].stored_bytes -= 1; }},
      {ErrorCode::kMalformed, "chunk 0: a raw chunk", [](Unit& u) { u.chunks[0].stored_digest[31] ^= 1; }},
      {ErrorCode::kMalformed, "chunk 1: a compressed chunk",
       [](Unit& u) { u.chunks[1].stored_bytes = u.chunks[1].plain_bytes; }},
      {ErrorCode::kMalformed, "chunk 1: a compressed chunk", [](Unit& u) { u.chunks[1].stored_bytes = 0; }},
      {ErrorCode::kMalformed, "chunk 1: a compressed chunk",
       [](Unit& u) {
         u.chunks[1].encoding = Encoding::kRans;
         u.chunks[1].stored_bytes = u.chunks[1].plain_bytes;
       }},
      {ErrorCode::kMalformed, "Chunk.encoding", [](Unit& u) { u.chunks[1].encoding = static_cast<Encoding>(3); }},
      {ErrorCode::kMalformed, "Codec.element", [](Unit& u) { u.tensors[0].codec.element = static_cast<Element>(5); }},
      {ErrorCode::kMalformed, "tensor 0: ", [](Unit& u) { u.tensors[0].codec.bits = 4; }},
  };
  for (const auto& bad : cases) {
    TinyBundle b = MakeTinyBundle();
    ASSERT_GE(b.dense.units[0].chunks.size(), 2u);
    bad.spoil(b.dense.units[0]);
    const Status status = ParseDenseTable(SerializeDenseTable(b.dense)).status();
    EXPECT_EQ(status.code(), bad.code) << bad.message << ": " << status.message();
    EXPECT_THAT(status.message(), HasSubstr(bad.message));
  }
}

TEST(Tables, OtherRules) {
  TinyBundle b = MakeTinyBundle();
  b.hot.experts.push_back(b.hot.experts[0]);
  EXPECT_THAT(ParseHotList(SerializeHotList(b.hot)).status().message(), HasSubstr("listed twice"));
  b.experts[0].experts[0].variants.resize(17);
  EXPECT_EQ(ParseExpertTable(SerializeExpertTable(b.experts[0])).status().code(), ErrorCode::kLimit);
  Bytes later = SerializeExpertTable(MakeTinyBundle().experts[0]);
  later[1] = 2;
  EXPECT_EQ(ParseExpertTable(later).status().code(), ErrorCode::kVersion);
}

TEST(Layout, AcceptsMergedExpertsAndVariants) {
  const Status status = MakeTinyBundle().Validate();
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST(Layout, AUnitIsAtMostWhatADeviceLoadsTogether) {
  TinyBundle b = MakeTinyBundle();
  const auto validate = [&](uint64_t rows) {  // of 1 MiB each
    Unit& unit = b.dense.units[0];
    TensorDecl& tensor = b.program.tensors[unit.tensors[0].tensor];
    tensor.rows = unit.tensors[0].shape.rows = rows;
    tensor.cols = unit.tensors[0].shape.cols = 1 << 18;
    return b.Validate();
  };
  const Status above = validate(2049);
  EXPECT_EQ(above.code(), ErrorCode::kLimit);
  EXPECT_THAT(above.message(), HasSubstr("at most 2147483648 are loaded together"));
  EXPECT_THAT(validate(2048).message(), HasSubstr("its tensors take 2147483648")) << "the cap itself is accepted";
}

TEST(Layout, Rules) {
  const struct {
    ErrorCode code;
    const char* message;
    std::function<void(TinyBundle&)> spoil;
  } cases[] = {
      {ErrorCode::kMissingTensor, "tensor 'layers.0.q_proj.bias' is not stored",
       [](TinyBundle& b) { b.dense.units[1].tensors.erase(b.dense.units[1].tensors.begin() + 2); }},
      {ErrorCode::kMissingTensor, "'lm_head' is not stored", [](TinyBundle& b) { b.dense.units[2].tensors.pop_back(); }},
      {ErrorCode::kMissingTensor, "dense unit 2 (block 2) is missing: tensor 'norm'",
       [](TinyBundle& b) { b.dense.units.pop_back(); }},
      {ErrorCode::kMissingTensor, "'embed_tokens' is not stored",
       [](TinyBundle& b) { std::swap(b.dense.units[0], b.dense.units[2]); }},
      {ErrorCode::kShape, "'embed_tokens' is stored as [8, 8]",
       [](TinyBundle& b) { b.dense.units[0].tensors[0].shape.rows = 8; }},
      {ErrorCode::kMalformed, "holds 2 tensors, its block has 1",
       [](TinyBundle& b) { b.dense.units[0].tensors.push_back(b.dense.units[0].tensors[0]); }},
      {ErrorCode::kMalformed, "4 dense units", [](TinyBundle& b) { b.dense.units.push_back(b.dense.units[0]); }},
      {ErrorCode::kMalformed, "0 expert tables, the program has 1", [](TinyBundle& b) { b.experts.clear(); }},
      {ErrorCode::kMalformed, "expert table 0 says it is table 1", [](TinyBundle& b) { b.experts[0].table = 1; }},
      {ErrorCode::kMalformed, "expert table 0 has 3 entries", [](TinyBundle& b) { b.experts[0].experts.pop_back(); }},
      {ErrorCode::kMissingTensor, "expert 'layers.0.experts.3' has no variant",
       [](TinyBundle& b) { b.experts[0].experts[2].variants.clear(); }},
      {ErrorCode::kMissingTensor, "unit 3 is not stored",
       [](TinyBundle& b) { b.experts[0].experts[2].variants[0].physical = 3; }},
      {ErrorCode::kMalformed, "names unit 2 twice", [](TinyBundle& b) { b.experts[0].experts[3].variants[1].physical = 2; }},
      {ErrorCode::kMalformed, "no expert uses unit 2",
       [](TinyBundle& b) { b.experts[0].experts[3].variants.erase(b.experts[0].experts[3].variants.begin()); }},
      {ErrorCode::kShape, "'layers.0.experts.3.gate_proj' is stored as [6, 8], the program says [4, 8]",
       [](TinyBundle& b) { b.experts[0].experts[2].variants[0].physical = 0; }},
      {ErrorCode::kShape, "'layers.0.experts.0.down_proj' is stored as [8, 5]",
       [](TinyBundle& b) { b.experts[0].units[0].tensors[2].shape.cols = 5; }},
      {ErrorCode::kMissingTensor, "'layers.0.experts.0.up_proj' is not stored",
       [](TinyBundle& b) { std::swap(b.experts[0].units[0].tensors[1], b.experts[0].units[0].tensors[2]); }},
      {ErrorCode::kMalformed, "holds 4 tensors, must be 3",
       [](TinyBundle& b) { b.experts[0].units[0].tensors.push_back(b.experts[0].units[0].tensors[2]); }},
      {ErrorCode::kMalformed, "must be at", [](TinyBundle& b) { b.dense.units[0].chunks[0].offset += 4096; }},
      {ErrorCode::kMalformed, "must be at", [](TinyBundle& b) { b.dense.units[0].chunks[1].offset -= 4096; }},
      {ErrorCode::kMalformed, "must be at",
       [](TinyBundle& b) { std::swap(b.dense.units[0].chunks[0], b.dense.units[0].chunks[1]); }},
      {ErrorCode::kMalformed, "must be at", [](TinyBundle& b) { b.blobs_end += 4096; }},
      {ErrorCode::kMalformed, "chunk sizes overflow",
       [](TinyBundle& b) { b.experts[0].units[2].chunks.back().stored_bytes = ~0ull; }},
      {ErrorCode::kMalformed, "plain bytes, its tensors take",
       [](TinyBundle& b) { b.dense.units[0].chunks[0].plain_bytes -= 1; }},
      {ErrorCode::kMalformed, "plain bytes, its tensors take",
       [](TinyBundle& b) { b.dense.units[0].tensors[0].codec.element = Element::kBf16; }},
      {ErrorCode::kMalformed, "the manifest says 1", [](TinyBundle& b) { b.manifest.chunk_count = 1; }},
      {ErrorCode::kMalformed, "the manifest says the file has", [](TinyBundle& b) { b.manifest.file_bytes += 1; }},
      {ErrorCode::kMalformed, "hot list: expert 4 of table 0", [](TinyBundle& b) { b.hot.experts[0].second = 4; }},
      {ErrorCode::kMalformed, "hot list: expert 3 of table 1", [](TinyBundle& b) { b.hot.experts[0].first = 1; }},
  };
  for (const auto& bad : cases) {
    TinyBundle b = MakeTinyBundle();
    bad.spoil(b);
    const Status status = b.Validate();
    EXPECT_EQ(status.code(), bad.code) << bad.message << ": " << status.message();
    EXPECT_THAT(status.message(), HasSubstr(bad.message));
  }
}

TEST(VariantKinds, GoesByWhoElseNamesAUnit) {
  using enum VariantKind;
  // Experts 0 and 1 share their weights and the lower precision of these; 4 stands in for 2 and 3, of whatever weights; 5
  // for all; 6 is a lower precision of 3.
  const std::vector<ExpertEntry> experts = {
      {{{0}, {1}, {5}}}, {{{0}, {1}, {5}}}, {{{2}, {3}, {4}, {5}}}, {{{3}, {6}, {2}, {4}, {5}}}};
  const std::vector<std::vector<VariantKind>> kinds = {{kFirst, kLower, kDense},
                                                       {kFirst, kLower, kDense},
                                                       {kFirst, kTwin, kDense, kDense},
                                                       {kFirst, kLower, kTwin, kDense, kDense}};
  EXPECT_EQ(VariantKinds(experts), kinds);
}

}  // namespace
}  // namespace moepack
