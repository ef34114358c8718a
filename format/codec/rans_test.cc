#include "format/codec/rans.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "format/codec/codec_testing.h"

namespace moepack {
namespace {

// Codes of a matrix whose columns have steps of their own, around 128: what the coder is made for.
Bytes Columns(uint32_t rows, uint32_t cols, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> normal;
  static constexpr int kSteps[] = {1, 2, 3, 4, 6, 8};
  Bytes out;
  for (uint32_t i = 0; i < rows * cols; ++i) {
    const int step = kSteps[i % cols * 7 % 6];
    out.push_back(
        static_cast<uint8_t>(128 + step * static_cast<int>(std::clamp(std::rint(normal(rng) * 6 / step), -15.0, 15.0))));
  }
  return out;
}

double EntropyBits(const std::vector<uint64_t>& counts) {
  const auto total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  double bits = 0;
  for (uint64_t n : counts) bits += n > 0 ? static_cast<double>(n) * std::log2(total / static_cast<double>(n)) : 0;
  return bits;
}

void ExpectRoundTrip(const Bytes& plain, std::span<const RansRun> runs) {
  const Bytes stored = EncodeRans(plain, runs);
  Bytes back(plain.size(), 0xcc);
  const Status status = DecodeRans(stored, back);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(back, plain);
}

TEST(RansTest, EveryCodecComesBack) {
  for (uint64_t cols : {1, 5, 64, 240}) {
    const MatrixShape shape{37, cols};
    const std::vector<Codec> codecs = testing::AllCodecs(cols);
    for (size_t i = 0; i < codecs.size(); i += 5) {
      const Codec& codec = codecs[i];
      const auto plain = ToPlain(testing::RandomMatrix(codec, shape, 3));
      ASSERT_TRUE(plain.ok());
      std::vector<RansRun> runs;
      ASSERT_TRUE(AppendRansRuns(codec, shape, &runs).ok());
      ASSERT_EQ(
          std::accumulate(runs.begin(), runs.end(), uint64_t{0}, [](uint64_t n, const RansRun& r) { return n + r.bytes; }),
          plain->size());
      ExpectRoundTrip(*plain, runs);
    }
  }
}

TEST(RansTest, CutsAnywhereComeBack) {
  const Bytes plain = Columns(60, 37, 1);
  const RansRun whole{plain.size(), 37, 0};
  for (const auto& [begin, end] : {std::pair{0, 1}, {36, 38}, {500, 2219}, {1, 2220}, {74, 111}}) {
    const std::vector<RansRun> runs = CutRansRuns(std::span(&whole, 1), begin, end);
    ASSERT_EQ(runs.size(), 1u);
    EXPECT_EQ(runs[0].phase, static_cast<uint32_t>(begin % 37));
    ExpectRoundTrip(Bytes(plain.begin() + begin, plain.begin() + end), runs);
  }
}

TEST(RansTest, ReachesTheEntropyOfColumnsThatDiffer) {
  const Bytes plain = Columns(2048, 48, 2);
  std::vector<std::vector<uint64_t>> by_column(48, std::vector<uint64_t>(256));
  std::vector<uint64_t> all(256);
  for (size_t i = 0; i < plain.size(); ++i) ++by_column[i % 48][plain[i]], ++all[plain[i]];
  double conditional = 0;
  for (const auto& counts : by_column) conditional += EntropyBits(counts);
  const RansRun run{plain.size(), 48, 0};
  const double bits = 8.0 * static_cast<double>(EncodeRans(plain, std::span(&run, 1)).size());
  EXPECT_LT(bits, 1.01 * conditional);
  EXPECT_LT(bits, 0.95 * EntropyBits(all));  // without columns
}

TEST(RansTest, OneSymbolTakesNothing) {
  const Bytes plain(1000, 7);
  const RansRun run{1000, 10, 0};
  EXPECT_LT(EncodeRans(plain, std::span(&run, 1)).size(), 64u);
  ExpectRoundTrip(plain, std::span(&run, 1));
}

TEST(RansTest, NoiseIsCopied) {
  std::mt19937 rng(5);
  Bytes plain(4096);
  for (uint8_t& byte : plain) byte = static_cast<uint8_t>(rng());
  const RansRun run{4096, 64, 0};
  EXPECT_EQ(EncodeRans(plain, std::span(&run, 1)).size(), 4096u + 5);
}

// The example of format/SPEC.md section 5.
TEST(RansTest, ExampleOfTheSpecification) {
  const Bytes plain = {7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
                       7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7};
  const RansRun run{plain.size(), 0, 0};
  EXPECT_EQ(ToHex(EncodeRans(plain, std::span(&run, 1))),
            "0124000000"    // coded, 36 bytes
            "0001"          // one table
            "070101008020"  // first symbol 7, stride 1, 1 symbol of frequency 4096
            "08000000"
            "00000100"
            "00000100"
            "00000100"
            "00000100");
}

TEST(RansTest, DamageIsRefusedOrGivesOtherBytesButNeverMore) {
  const Bytes plain = Columns(64, 16, 4);
  const RansRun run{plain.size(), 16, 0};
  const Bytes stored = EncodeRans(plain, std::span(&run, 1));
  Bytes out(plain.size());
  EXPECT_EQ(DecodeRans(ByteSpan(stored).first(stored.size() - 1), out).code(), ErrorCode::kMalformed);
  EXPECT_EQ(DecodeRans(stored, std::span(out).first(out.size() - 1)).code(), ErrorCode::kMalformed);
  Bytes longer = stored;
  longer.push_back(0);
  EXPECT_EQ(DecodeRans(longer, out).code(), ErrorCode::kMalformed);
  for (size_t i = 0; i < stored.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes damaged = stored;
      damaged[i] = static_cast<uint8_t>(damaged[i] ^ 1 << bit);
      const Status status = DecodeRans(damaged, out);
      EXPECT_TRUE(status.ok() || status.code() == ErrorCode::kMalformed);
    }
  }
}

// Each differs from a valid run in one field only.
TEST(RansTest, RefusesByRule) {
  const Bytes good = {1, 4, 0, 0, 0, 0, 1, 7, 1, 1, 0, 0x80, 0x20, 8, 0, 0, 0,
                      0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0,    0,    0, 1, 0};
  Bytes out(4);
  ASSERT_TRUE(DecodeRans(good, out).ok());
  ASSERT_EQ(out, Bytes(4, 7));
  const std::pair<size_t, uint8_t> changes[] = {{0, 2},  {1, 5},  {1, 0},  {5, 3},  {6, 0},     {6, 2},
                                                {8, 0},  {9, 0},  {10, 1}, {11, 0}, {12, 0x21}, {12, 0x1f},
                                                {13, 7}, {19, 0}, {17, 1}, {20, 1}};
  for (const auto& [at, value] : changes) {
    Bytes bad = good;
    bad[at] = value;
    EXPECT_EQ(DecodeRans(bad, out).code(), ErrorCode::kMalformed) << at;
  }
}

}  // namespace
}  // namespace moepack
