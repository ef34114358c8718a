#include "packager/chunk_encoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/checked.h"
#include "base/digest/sha256.h"
#include "format/manifest/expert_parts.h"

namespace moepack {
namespace {

constexpr Codec kCodec{.element = Element::kGroupInt, .bits = 4, .group_size = 64};
constexpr MatrixShape kShape{520, 512};

struct Plain {
  Bytes bytes;
  std::vector<RansRun> runs;
};

// Three matrices with the codes of a normal distribution that is `spread` codes wide.
Plain NormalCodes(double spread, uint32_t seed) {
  std::mt19937 random(seed);
  Plain out;
  for (int m = 0; m < 3; ++m) {
    QuantizedMatrix matrix{.codec = kCodec, .shape = kShape};
    matrix.scales.assign(kShape.rows * GroupsPerRow(kCodec, kShape.cols), F32ToF16(0.01f));
    for (uint64_t i = 0; i < kShape.rows * kShape.cols; ++i) {
      // A sum of uniform numbers: std::normal_distribution differs between libraries.
      double sum = 0;
      for (int k = 0; k < 4; ++k) sum += static_cast<double>(random() % 4096) / 4096 - 0.5;
      matrix.codes.push_back(static_cast<uint8_t>(std::clamp(8 + sum * 1.7 * spread, 0.0, 15.0)));
    }
    const Bytes bytes = ToPlain(matrix).value();
    out.bytes.insert(out.bytes.end(), bytes.begin(), bytes.end());
    EXPECT_TRUE(AppendRansRuns(kCodec, kShape, &out.runs).ok());
  }
  return out;
}

uint64_t Pages(const std::vector<EncodedChunk>& chunks) {
  uint64_t pages = 0;
  for (const EncodedChunk& chunk : chunks) pages += CeilDiv(chunk.ref.stored_bytes, kBundleAlignment);
  return pages;
}

Bytes Decoded(const std::vector<EncodedChunk>& chunks, ByteSpan plain) {
  Bytes out;
  for (const EncodedChunk& chunk : chunks) {
    Bytes part(plain.begin(), plain.begin() + static_cast<ptrdiff_t>(chunk.ref.plain_bytes));
    EXPECT_EQ(Sha256(part), chunk.ref.plain_digest);
    plain = plain.subspan(part.size());
    if (chunk.ref.encoding == Encoding::kRans) {
      EXPECT_EQ(Sha256(chunk.stored), chunk.ref.stored_digest);
      EXPECT_EQ(chunk.stored.size(), chunk.ref.stored_bytes);
      std::fill(part.begin(), part.end(), 0);
      EXPECT_TRUE(DecodeRans(chunk.stored, part).ok());
    }
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

TEST(CutChunk, HalvesOfARansChunkTakeNoPageMore) {
  size_t cut = 0;
  constexpr uint32_t kSeeds = 6;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    const Plain plain = NormalCodes(1.5 + 0.1 * seed, seed);
    const EncodedChunk whole = EncodeChunk(plain.bytes, plain.runs, 1).value();
    ASSERT_EQ(whole.ref.encoding, Encoding::kRans);
    for (const uint32_t halvings : {0u, 1u, 2u}) {
      const auto parts = CutChunk(whole, plain.bytes, plain.runs, halvings).value();
      EXPECT_EQ(Pages(parts), Pages({whole})) << seed;
      EXPECT_EQ(Decoded(parts, plain.bytes), plain.bytes);
      EXPECT_LE(parts.size(), 1u << halvings);
      if (halvings != 1 || parts.size() != 2) continue;
      ++cut;
      const uint64_t first = parts[0].ref.plain_bytes;
      EXPECT_GT(first * 100, plain.bytes.size() * 45) << "about one size";
      EXPECT_LT(first * 100, plain.bytes.size() * 55) << "about one size";
    }
  }
  EXPECT_GE(cut, kSeeds / 2) << "the last page of a chunk mostly has room for another table";
}

TEST(CutChunk, RawPartsAreThoseThatThePlannerCounts) {
  Plain plain = NormalCodes(1.5, 1);
  for (const uint64_t bytes : {uint64_t{4096}, uint64_t{65537}, uint64_t{300000}}) {
    const ByteSpan part = ByteSpan(plain.bytes).first(bytes);
    const EncodedChunk whole = EncodeChunk(part, CutRansRuns(plain.runs, 0, bytes), 0).value();
    for (const uint32_t halvings : {0u, 1u, 2u}) {
      const auto parts = CutChunk(whole, part, CutRansRuns(plain.runs, 0, bytes), halvings).value();
      std::vector<uint64_t> sizes;
      for (const EncodedChunk& chunk : parts) sizes.push_back(chunk.ref.stored_bytes);
      EXPECT_EQ(sizes, RawParts(bytes, halvings));
      EXPECT_EQ(Pages(parts), Pages({whole}));
      EXPECT_EQ(Decoded(parts, part), Bytes(part.begin(), part.end()));
    }
  }
  EXPECT_EQ(RawParts(65537, 2), (std::vector<uint64_t>{16384, 16384, 16384, 16385}));
  EXPECT_EQ(RawParts(4096, 2), (std::vector<uint64_t>{4096}));
}

TEST(CutChunk, AZstdChunkStaysWhole) {
  Bytes bytes(200000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i / 700 * 37);  // long repetitions
  const RansRun run{bytes.size(), 0, 0};
  const EncodedChunk whole = EncodeChunk(bytes, {&run, 1}, 1).value();
  ASSERT_EQ(whole.ref.encoding, Encoding::kZstd);
  const auto parts = CutChunk(whole, bytes, {&run, 1}, 2).value();
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].ref, whole.ref);
  EXPECT_EQ(parts[0].stored, whole.stored);
}

TEST(ExpertParts, OnlyExpertsOfOneChunkAreCut) {
  EXPECT_EQ(HalvingsOfExpert(65535), 0u);
  EXPECT_EQ(HalvingsOfExpert(65536), 1u);
  EXPECT_EQ(HalvingsOfExpert(262144), 2u);
  EXPECT_EQ(HalvingsOfExpert(kMaxChunkPlainBytes), 2u);
  EXPECT_EQ(HalvingsOfExpert(kMaxChunkPlainBytes + 1), 0u);
}

}  // namespace
}  // namespace moepack
