#include "runtime-min/chunk_decoder.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include <algorithm>

#include "base/digest/sha256.h"
#include "format/codec/rans.h"
#include "verify/testing/tiny_bundle.h"

namespace moepack::runtime {
namespace {

using testing::TinyContents;

Bytes Frame(ByteSpan plain, bool with_size = true) {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, with_size ? 1 : 0);
  Bytes out(ZSTD_compressBound(plain.size()));
  out.resize(ZSTD_compress2(context, out.data(), out.size(), plain.data(), plain.size()));
  ZSTD_freeCCtx(context);
  return out;
}

Bytes Join(const Bytes& a, const Bytes& b) {
  Bytes out = a;
  out.insert(out.end(), b.begin(), b.end());
  return out;
}

// A signed bundle whose last expert is stored as `store(plain)` says; decodes that expert.
template <typename Store>
Result<PlainUnit> DecodeStored(Encoding encoding, const Store& store, Bytes* plain = nullptr) {
  testing::TinyOptions options;
  options.edit = [&](TinyContents& contents) {
    ChunkRef& chunk = contents.experts[0].units.back().chunks[0];
    const Bytes original(contents.chunk_area.begin() + static_cast<ptrdiff_t>(chunk.offset), contents.chunk_area.end());
    if (plain != nullptr) *plain = original;
    const Bytes stored = store(original);
    contents.chunk_area.resize(chunk.offset);
    contents.chunk_area.insert(contents.chunk_area.end(), stored.begin(), stored.end());
    chunk.encoding = encoding;
    chunk.stored_bytes = stored.size();
    chunk.stored_digest = Sha256(stored);
  };
  auto bundle = testing::OpenBytes(testing::MakeTinyBundle(options));
  if (!bundle.ok()) return bundle.status();
  ChunkDecoder decoder;
  return decoder.Decode(**bundle, (*bundle)->experts()[0].units.back());
}

TEST(ChunkDecoder, GivesThePlainBytesOfRawAndZstdChunks) {
  Bytes plain;
  const auto raw = DecodeStored(
      Encoding::kRaw, [](const Bytes& bytes) { return bytes; }, &plain);
  ASSERT_TRUE(raw.ok()) << raw.status().message();
  EXPECT_EQ(Bytes(raw->bytes().begin(), raw->bytes().end()), plain);
  const auto zstd = DecodeStored(Encoding::kZstd, [](const Bytes& bytes) { return Frame(bytes); });
  ASSERT_TRUE(zstd.ok()) << zstd.status().message();
  EXPECT_EQ(Bytes(zstd->bytes().begin(), zstd->bytes().end()), plain);
}

TEST(ChunkDecoder, GivesThePlainBytesOfRansChunksAndRefusesOthers) {
  // In place of the chunk's own bytes, which no table makes smaller.
  const auto encode = [](size_t size) {
    Bytes bytes(size, 3);
    for (size_t i = 0; i < size; i += 5) bytes[i] = static_cast<uint8_t>(i % 3);
    const RansRun run{size, 0, 0};
    return EncodeRans(bytes, {&run, 1});
  };
  size_t size = 0;
  const auto rans = DecodeStored(Encoding::kRans, [&](const Bytes& bytes) { return encode(size = bytes.size()); });
  ASSERT_TRUE(rans.ok()) << rans.status().message();
  ASSERT_EQ(rans->bytes().size(), size);
  for (size_t i = 0; i < size; ++i) ASSERT_EQ(rans->bytes()[i], i % 5 == 0 ? i % 3 : 3u);
  const auto cut = DecodeStored(Encoding::kRans, [&](const Bytes& bytes) { return encode(bytes.size() - 1); });
  EXPECT_EQ(cut.status().code(), ErrorCode::kMalformed);
  EXPECT_NE(cut.status().message().find("rANS"), std::string::npos) << cut.status().message();
}

TEST(ChunkDecoder, RefusesSignedFramesThatAreNotExactlyThePlainBytes) {
  struct Case {
    const char* name;
    Bytes (*store)(const Bytes& plain);
  };
  const Case cases[] = {
      {"no content size", [](const Bytes& plain) { return Frame(plain, false); }},
      {"a byte more", [](const Bytes& plain) { return Frame(Join(plain, {1})); }},
      {"a byte less", [](const Bytes& plain) { return Frame(ByteSpan(plain).first(plain.size() - 1)); }},
      {"trailing byte", [](const Bytes& plain) { return Join(Frame(plain), {0}); }},
      {"second frame", [](const Bytes& plain) { return Join(Frame(plain), Frame(plain)); }},
      {"empty second frame", [](const Bytes& plain) { return Join(Frame(plain), Frame({})); }},
      {"skippable frame first",
       [](const Bytes& plain) {
         return Join({0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, Frame(plain));
       }},
      {"cut frame",
       [](const Bytes& plain) {
         Bytes frame = Frame(plain);
         frame.pop_back();
         return frame;
       }},
      {"not a frame", [](const Bytes& plain) { return plain; }},
  };
  for (const Case& c : cases) {
    const auto decoded = DecodeStored(Encoding::kZstd, c.store);
    ASSERT_FALSE(decoded.ok()) << c.name;
    EXPECT_EQ(decoded.status().code(), ErrorCode::kMalformed) << c.name << ": " << decoded.status().message();
  }
}

TEST(ChunkDecoder, RefusesAUnitThatAsksForGigabytesBeforeItReadsAny) {
  const auto bundle = testing::OpenBytes(testing::MakeTinyBundle());
  ASSERT_TRUE(bundle.ok());
  Unit unit = (*bundle)->experts()[0].units.back();
  unit.chunks[0].plain_bytes = kMaxChunkPlainBytes;
  unit.chunks[0].stored_digest = {};
  unit.chunks.resize(kMaxUnitPlainBytes / kMaxChunkPlainBytes + 1, unit.chunks[0]);
  ChunkDecoder decoder;
  const auto decoded = decoder.Decode(**bundle, unit);
  ASSERT_FALSE(decoded.ok());
  EXPECT_EQ(decoded.status().code(), ErrorCode::kLimit) << decoded.status().message();
  unit.chunks.pop_back();
  EXPECT_EQ(decoder.Decode(**bundle, unit).status().code(), ErrorCode::kDigest) << "the cap itself is accepted";
}

TEST(ChunkDecoder, RefusesAChangedByteBeforeDecompression) {
  const Bytes intact = testing::MakeTinyBundle();
  const auto reference = testing::OpenBytes(intact);
  ASSERT_TRUE(reference.ok());
  for (const Unit& unit : (*reference)->experts()[0].units) {
    const ChunkRef& chunk = unit.chunks[0];
    for (const uint64_t at : {uint64_t{0}, chunk.stored_bytes / 2, chunk.stored_bytes - 1}) {
      Bytes damaged = intact;
      damaged[chunk.offset + at] ^= 0x10;
      const auto bundle = testing::OpenBytes(damaged);
      ASSERT_TRUE(bundle.ok()) << bundle.status().message();
      ChunkDecoder decoder;
      const auto decoded = decoder.Decode(**bundle, unit);
      ASSERT_FALSE(decoded.ok());
      EXPECT_EQ(decoded.status().code(), ErrorCode::kDigest);
      EXPECT_NE(decoded.status().message().find(std::to_string(chunk.offset)), std::string::npos)
          << decoded.status().message();
    }
  }
}

// A bundle whose last expert comes in three raw chunks.
Bytes InThreeChunks() {
  testing::TinyOptions options;
  options.edit = [](TinyContents& contents) {
    std::vector<ChunkRef>& chunks = contents.experts[0].units.back().chunks;
    const ChunkRef whole = chunks[0];
    const Bytes plain(contents.chunk_area.begin() + static_cast<ptrdiff_t>(whole.offset), contents.chunk_area.end());
    contents.chunk_area.resize(whole.offset);
    chunks.clear();
    const size_t third = whole.plain_bytes / 3;
    for (int i = 0; i < 3; ++i) {
      const size_t begin = static_cast<size_t>(i) * third, end = i == 2 ? plain.size() : begin + third;
      const Bytes part(plain.begin() + static_cast<ptrdiff_t>(begin), plain.begin() + static_cast<ptrdiff_t>(end));
      contents.chunk_area.resize((contents.chunk_area.size() + kBundleAlignment - 1) / kBundleAlignment * kBundleAlignment);
      ChunkRef& chunk = chunks.emplace_back();
      chunk.offset = contents.chunk_area.size();
      chunk.plain_bytes = chunk.stored_bytes = part.size();
      chunk.plain_digest = chunk.stored_digest = Sha256(part);
      contents.chunk_area.insert(contents.chunk_area.end(), part.begin(), part.end());
    }
  };
  return testing::MakeTinyBundle(options);
}

TEST(ChunkDecoder, PartsInAnyOrderGiveTheUnit) {
  const auto bundle = testing::OpenBytes(InThreeChunks());
  ASSERT_TRUE(bundle.ok()) << bundle.status().message();
  const Unit& unit = (*bundle)->experts()[0].units.back();
  ASSERT_EQ(unit.chunks.size(), 3u);
  ChunkDecoder decoder;
  const auto whole = decoder.Decode(**bundle, unit);
  ASSERT_TRUE(whole.ok()) << whole.status().message();
  UnitParts parts;
  ASSERT_TRUE(parts.Begin(unit).ok());
  for (const size_t chunk : {2, 0}) ASSERT_TRUE(decoder.DecodePart(**bundle, chunk, &parts).ok());
  EXPECT_EQ(ChunkDecoder::Join(&parts).status().code(), ErrorCode::kInternal) << "one was not decoded";
  ASSERT_TRUE(parts.Begin(unit).ok());
  for (const size_t chunk : {2, 0, 1}) ASSERT_TRUE(decoder.DecodePart(**bundle, chunk, &parts).ok());
  const auto joined = ChunkDecoder::Join(&parts);
  ASSERT_TRUE(joined.ok()) << joined.status().message();
  EXPECT_TRUE(std::ranges::equal(joined->bytes(), whole->bytes()));
  EXPECT_FALSE(ChunkDecoder::Join(&parts).ok()) << "it is gone";
}

TEST(ChunkDecoder, AUnitWithADamagedPartIsNeverJoined) {
  const Bytes intact = InThreeChunks();
  const auto reference = testing::OpenBytes(intact);
  ASSERT_TRUE(reference.ok());
  const Unit& unit = (*reference)->experts()[0].units.back();
  for (size_t broken = 0; broken < unit.chunks.size(); ++broken) {
    Bytes damaged = intact;
    damaged[unit.chunks[broken].offset] ^= 1;
    const auto bundle = testing::OpenBytes(damaged);
    ASSERT_TRUE(bundle.ok());
    ChunkDecoder decoder;
    UnitParts parts;
    ASSERT_TRUE(parts.Begin(unit).ok());
    for (size_t i = 0; i < unit.chunks.size(); ++i) {
      EXPECT_EQ(decoder.DecodePart(**bundle, i, &parts).code(), i == broken ? ErrorCode::kDigest : ErrorCode::kOk);
    }
    EXPECT_FALSE(ChunkDecoder::Join(&parts).ok());
  }
}

}  // namespace
}  // namespace moepack::runtime
