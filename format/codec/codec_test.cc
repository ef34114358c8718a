#include "format/codec/codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "format/codec/codec_testing.h"
#include "format/codec/layout.h"

namespace moepack {
namespace {

using testing::AllCodecs;
using testing::RandomMatrix;

TEST(CodecName, RoundTripsAndIsTheDocumentedSpelling) {
  for (const char* name :
       {"f32", "bf16", "f16", "i8g64", "i4mg32", "i8r", "i2mr", "i4g64+keep128", "bf16+2:4", "i3g256+8:16"}) {
    const auto codec = ParseCodec(name);
    ASSERT_TRUE(codec.ok()) << name << ": " << codec.status().message();
    EXPECT_EQ(codec->Name(), name);
  }
  for (const Codec& codec : AllCodecs(64)) {
    const auto parsed = ParseCodec(codec.Name());
    ASSERT_TRUE(parsed.ok()) << codec.Name();
    EXPECT_EQ(*parsed, codec);
  }
}

TEST(CodecName, RefusesWhatIsNotACodec) {
  for (const char* name :
       {"",       "f64",         "i7g64",  "i4",        "i4g",       "i4g48",     "i4g064", "i4g64 ", "I4g64",
        "i4g64+", "i4g64+keep0", "i4rg64", "i4g64+4:4", "i4g64+0:4", "i4g64+2:5", "f32m",   "i1g64",  "bf16+keep9999999999",
        "i4gm64", "t8g64",       "t1g64",  "t4mg64",    "t4g64+2:4", "t4"}) {
    EXPECT_EQ(ParseCodec(name).status().code(), ErrorCode::kRecipe) << name;
  }
}

TEST(CodecValidate, RefusesFieldsOutsideTheirDocumentedValues) {
  const auto refused = [](Codec codec) { return ValidateCodec(codec).code() == ErrorCode::kMalformed; };
  EXPECT_TRUE(refused({.element = static_cast<Element>(5)}));
  for (uint8_t bits : {0, 1, 7, 8}) EXPECT_TRUE(refused({.element = Element::kTrellis, .bits = bits}));
  EXPECT_TRUE(refused({.element = Element::kTrellis, .bits = 4, .has_min = true}));
  EXPECT_TRUE(refused({.element = Element::kTrellis, .sparsity = Sparsity::kNM, .bits = 4, .n = 2, .m = 4}));
  EXPECT_TRUE(refused({.sparsity = static_cast<Sparsity>(3)}));
  EXPECT_TRUE(refused({.element = Element::kF32, .bits = 4}));
  EXPECT_TRUE(refused({.element = Element::kBf16, .has_min = true}));
  EXPECT_TRUE(refused({.element = Element::kF16, .group_size = 32}));
  EXPECT_TRUE(refused({.element = Element::kGroupInt, .bits = 7, .group_size = 32}));
  EXPECT_TRUE(refused({.element = Element::kGroupInt, .bits = 4, .group_size = 48}));
  EXPECT_TRUE(refused({.kept_per_row = 1}));
  EXPECT_TRUE(refused({.sparsity = Sparsity::kBitmask}));
  EXPECT_TRUE(refused({.sparsity = Sparsity::kBitmask, .kept_per_row = 4, .n = 2}));
  EXPECT_TRUE(refused({.sparsity = Sparsity::kNM, .kept_per_row = 4, .n = 2, .m = 4}));
  EXPECT_TRUE(refused({.sparsity = Sparsity::kNM, .n = 2, .m = 6}));
}

TEST(CodecSizes, ArePlainArithmetic) {
  const auto plain = [](const char* name, uint64_t rows, uint64_t cols) {
    return PlainBytes(*ParseCodec(name), {rows, cols}).value();
  };
  EXPECT_EQ(plain("f32", 3, 5), 60u);
  EXPECT_EQ(plain("bf16", 3, 5), 30u);
  EXPECT_EQ(plain("i8g64", 2, 128), 2 * 128u + 2 * 2 * 2);
  EXPECT_EQ(plain("i4mg32", 2, 64), 2 * 32u + 2 * 2 * 4);
  EXPECT_EQ(plain("i3g64", 3, 9), 3 * (3u + 2) + 3 * 2);  // 9 codes: 3 bytes of 2 bits, 2 of 1
  EXPECT_EQ(plain("i6r", 1, 7), 4u + 2 + 2);
  EXPECT_EQ(plain("i4g64+keep10", 2, 20), 2 * 3u + 2 * 5 + 2 * 2);
  EXPECT_EQ(plain("bf16+2:4", 2, 8), 2u + 2 * 8);
}

TEST(CodecSizes, ResidentIsWithinTwoHundredBytesOfPlainPlusPadding) {
  for (const Codec& codec : AllCodecs(64)) {
    const MatrixShape shape{128, 64};
    const uint64_t plain = PlainBytes(codec, shape).value(), resident = ResidentBytes(codec, shape).value();
    EXPECT_GE(resident, plain) << codec.Name();
    EXPECT_LE(resident, plain + 64 + 5 * 64) << codec.Name();
  }
  // Sections that are multiples of 64 bytes cost the tail only.
  EXPECT_EQ(ResidentBytes(*ParseCodec("i4g64"), {256, 512}).value(),
            PlainBytes(*ParseCodec("i4g64"), {256, 512}).value() + 64);
}

TEST(CodecSizes, RefuseShapesThatDoNotFit) {
  const Codec f32, keep = *ParseCodec("i4g64+keep10"), nm = *ParseCodec("f16+2:4");
  EXPECT_EQ(PlainBytes(f32, {0, 4}).status().code(), ErrorCode::kMalformed);
  EXPECT_EQ(PlainBytes(f32, {4, 0}).status().code(), ErrorCode::kMalformed);
  EXPECT_EQ(PlainBytes(f32, {kMaxRows + 1, 4}).status().code(), ErrorCode::kLimit);
  EXPECT_EQ(ResidentBytes(f32, {4, UINT64_MAX}).status().code(), ErrorCode::kLimit);
  EXPECT_EQ(PlainBytes(keep, {4, 9}).status().code(), ErrorCode::kMalformed);
  EXPECT_EQ(PlainBytes(nm, {4, 6}).status().code(), ErrorCode::kMalformed);
  EXPECT_TRUE(PlainBytes(f32, {kMaxRows, kMaxCols}).ok());
}

// ---- plain bytes ----

TEST(CodecPlain, EveryCodecAndOddShapeRoundTrips) {
  uint32_t seed = 1;
  for (uint64_t cols : {1, 7, 16, 31, 33, 64, 100, 257, 272}) {
    for (const Codec& codec : AllCodecs(cols)) {
      for (uint64_t rows : {1, 3}) {
        const QuantizedMatrix in = RandomMatrix(codec, {rows, cols}, ++seed);
        const auto plain = ToPlain(in);
        ASSERT_TRUE(plain.ok()) << codec.Name() << " cols " << cols << ": " << plain.status().message();
        ASSERT_EQ(plain->size(), PlainBytes(codec, in.shape).value()) << codec.Name();
        const auto out = FromPlain(codec, in.shape, *plain);
        ASSERT_TRUE(out.ok()) << codec.Name() << ": " << out.status().message();
        EXPECT_EQ(out->codes, in.codes) << codec.Name() << " cols " << cols;
        EXPECT_EQ(out->scales, in.scales);
        EXPECT_EQ(out->mins, in.mins);
        EXPECT_EQ(out->mask, in.mask);
        EXPECT_EQ(ToPlain(*out).value(), *plain);
        std::vector<float> decoded(rows * cols), direct(rows * cols);
        ASSERT_TRUE(DecodePlain(codec, in.shape, *plain, decoded).ok());
        Dequantize(in, direct);
        EXPECT_EQ(decoded, direct) << codec.Name();
      }
    }
  }
}

TEST(CodecPlain, BytesAreTheDocumentedLayout) {
  QuantizedMatrix m{.codec = *ParseCodec("i3mg16"), .shape = {1, 9}};
  m.codes = {0, 1, 2, 3, 4, 5, 6, 7, 5};
  m.scales = {0x1234};
  m.mins = {0x5678};
  // Plane of two bits (code >> 1): 0 0 1 1 2 2 3 3 2; plane of one bit: 0 1 0 1 0 1 0 1 1.
  EXPECT_EQ(ToPlain(m).value(), (Bytes{0b01010000, 0b11111010, 0b10, 0b10101010, 0b1, 0x34, 0x12, 0x78, 0x56}));

  QuantizedMatrix sparse{.codec = *ParseCodec("i4r+keep2"), .shape = {1, 9}};
  sparse.codes = {0, 0, 3, 0, 0, 0, 0, 0, 12};
  sparse.mask = {0, 0, 1, 0, 0, 0, 0, 0, 1};
  sparse.scales = {0x3c00};
  EXPECT_EQ(ToPlain(sparse).value(), (Bytes{0b100, 0b1, 0xc3, 0x00, 0x3c}));
}

TEST(CodecPlain, DequantizeFollowsItsFormula) {
  QuantizedMatrix m{.codec = *ParseCodec("i4g16"), .shape = {1, 17}};
  m.codes.assign(17, 3);
  m.scales = {F32ToF16(0.5f), F32ToF16(-2.0f)};
  std::vector<float> w(17);
  Dequantize(m, w);
  EXPECT_EQ(w[0], 0.5f * (3 - 8));
  EXPECT_EQ(w[16], -2.0f * (3 - 8));
  m.codec.has_min = true;
  m.mins = {F32ToF16(-1.0f), F32ToF16(4.0f)};
  Dequantize(m, w);
  EXPECT_EQ(w[0], 0.5f * 3 - 1.0f);
  EXPECT_EQ(w[16], -2.0f * 3 + 4.0f);
}

ErrorCode ReadError(const Codec& codec, const MatrixShape& shape, const Bytes& plain) {
  return FromPlain(codec, shape, plain).status().code();
}

TEST(CodecPlain, RefusesWrongLengths) {
  for (const Codec& codec : AllCodecs(32)) {
    const QuantizedMatrix m = RandomMatrix(codec, {2, 32}, 3);
    Bytes plain = ToPlain(m).value();
    plain.push_back(0);
    EXPECT_EQ(ReadError(codec, m.shape, plain), ErrorCode::kMalformed) << codec.Name();
    plain.resize(plain.size() - 2);
    EXPECT_EQ(ReadError(codec, m.shape, plain), ErrorCode::kMalformed) << codec.Name();
    EXPECT_EQ(ReadError(codec, m.shape, {}), ErrorCode::kMalformed) << codec.Name();
  }
}

TEST(CodecPlain, RefusesBitsPastTheLastColumn) {
  const Codec i4 = *ParseCodec("i4g16"), i5 = *ParseCodec("i5g16"), keep = *ParseCodec("f32+keep2");
  Bytes plain = ToPlain(RandomMatrix(i4, {2, 3}, 1)).value();
  plain[3] |= 0x80;
  EXPECT_EQ(ReadError(i4, {2, 3}, plain), ErrorCode::kMalformed);
  plain = ToPlain(RandomMatrix(i5, {1, 2}, 1)).value();
  plain[1] |= 0x04;
  EXPECT_EQ(ReadError(i5, {1, 2}, plain), ErrorCode::kMalformed);
  plain = ToPlain(RandomMatrix(keep, {1, 3}, 1)).value();
  plain[0] = 0b1001;
  EXPECT_EQ(ReadError(keep, {1, 3}, plain), ErrorCode::kMalformed);
}

TEST(CodecPlain, RefusesMasksWithTheWrongCounts) {
  const Codec keep = *ParseCodec("f32+keep2"), nm = *ParseCodec("f32+2:4");
  Bytes plain = ToPlain(RandomMatrix(keep, {1, 8}, 1)).value();
  plain[0] = 0b111;
  EXPECT_EQ(ReadError(keep, {1, 8}, plain), ErrorCode::kMalformed);
  plain[0] = 0b1;
  EXPECT_EQ(ReadError(keep, {1, 8}, plain), ErrorCode::kMalformed);
  plain = ToPlain(RandomMatrix(nm, {1, 8}, 1)).value();
  plain[0] = 0b0111'0001;  // four in the row, but three and one
  EXPECT_EQ(ReadError(nm, {1, 8}, plain), ErrorCode::kMalformed);
}

TEST(CodecPlain, RefusesNumbersThatAreNotFinite) {
  const Codec affine = *ParseCodec("i8mg16");
  const Bytes good = ToPlain(RandomMatrix(affine, {1, 16}, 1)).value();
  Bytes plain = good;
  plain[17] = 0x7c;  // high byte of the scale: infinity
  EXPECT_EQ(ReadError(affine, {1, 16}, plain), ErrorCode::kMalformed);
  plain = good;
  plain[19] = 0xfe;  // high byte of the minimum: NaN
  EXPECT_EQ(ReadError(affine, {1, 16}, plain), ErrorCode::kMalformed);
  EXPECT_EQ(ReadError(*ParseCodec("f32"), {1, 1}, {0, 0, 0x80, 0x7f}), ErrorCode::kMalformed);
  EXPECT_EQ(ReadError(*ParseCodec("bf16"), {1, 1}, {0xc0, 0xff}), ErrorCode::kMalformed);
  EXPECT_EQ(ReadError(*ParseCodec("f16"), {1, 1}, {0, 0xfc}), ErrorCode::kMalformed);
}

TEST(CodecPlain, PartsThatDoNotFitAreAFaultOfOurs) {
  const Codec codec = *ParseCodec("i4mg16+keep3");
  const QuantizedMatrix good = RandomMatrix(codec, {2, 20}, 5);
  ASSERT_TRUE(ToPlain(good).ok());
  const auto error = [&good](auto change) {
    QuantizedMatrix m = good;
    change(&m);
    return ToPlain(m).status().code();
  };
  EXPECT_EQ(error([](QuantizedMatrix* m) { m->codes.pop_back(); }), ErrorCode::kInternal);
  EXPECT_EQ(error([](QuantizedMatrix* m) { m->scales.pop_back(); }), ErrorCode::kInternal);
  EXPECT_EQ(error([](QuantizedMatrix* m) { m->mins.clear(); }), ErrorCode::kInternal);
  EXPECT_EQ(error([](QuantizedMatrix* m) { m->mask.clear(); }), ErrorCode::kInternal);
  EXPECT_EQ(error([](QuantizedMatrix* m) { m->values.resize(40); }), ErrorCode::kInternal);
  EXPECT_EQ(error([](QuantizedMatrix* m) { m->scales[0] = 0x7c00; }), ErrorCode::kInternal);
  EXPECT_EQ(error([](QuantizedMatrix* m) { m->mask.assign(40, 1); }), ErrorCode::kInternal);
  EXPECT_EQ(error([](QuantizedMatrix* m) {
              for (size_t i = 0; i < 40; ++i) m->codes[i] = m->mask[i] != 0 ? 16 : 0;
            }),
            ErrorCode::kInternal);
}

// ---- float16 ----

TEST(Float16, EveryF16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t h = static_cast<uint16_t>(bits);
    if ((h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0) {
      EXPECT_TRUE(std::isnan(F16ToF32(h)));
      EXPECT_EQ(F32ToF16(F16ToF32(h)) & 0x7e00, 0x7e00);
    } else {
      ASSERT_EQ(F32ToF16(F16ToF32(h)), h) << bits;
    }
  }
}

TEST(Float16, RoundsToNearestEvenBetweenNeighbours) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float low = F16ToF32(static_cast<uint16_t>(bits)), high = F16ToF32(static_cast<uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;  // exact in float32
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    ASSERT_EQ(F32ToF16(middle), even) << bits;
    ASSERT_EQ(F32ToF16(std::nextafter(middle, 0.0f)), bits) << bits;
    ASSERT_EQ(F32ToF16(std::nextafter(middle, 1e9f)), bits + 1) << bits;
    ASSERT_EQ(F32ToF16(-middle), even | 0x8000) << bits;
  }
  EXPECT_EQ(F32ToF16(65519.9f), 0x7bff);
  EXPECT_EQ(F32ToF16(65520.0f), 0x7c00);
  EXPECT_EQ(F32ToF16(1e30f), 0x7c00);
  EXPECT_EQ(F32ToF16(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(F32ToF16(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(Float16, Bf16RoundsToNearestEven) {
  EXPECT_EQ(F32ToBf16(1.0f), 0x3f80);
  EXPECT_EQ(F32ToBf16(1.00390625f), 0x3f80);  // halfway, even below
  EXPECT_EQ(F32ToBf16(1.01171875f), 0x3f82);  // halfway, even above
  EXPECT_EQ(F32ToBf16(1.004f), 0x3f81);
  EXPECT_EQ(F32ToBf16(-1.004f), 0xbf81);
  EXPECT_EQ(F32ToBf16(3.4e38f), 0x7f80);
  EXPECT_TRUE(std::isnan(Bf16ToF32(F32ToBf16(std::numeric_limits<float>::quiet_NaN()))));
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
    ASSERT_EQ(F32ToBf16(Bf16ToF32(static_cast<uint16_t>(bits))), bits);
  }
}

}  // namespace
}  // namespace moepack
