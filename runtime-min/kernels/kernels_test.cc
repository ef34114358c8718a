#include "runtime-min/kernels/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "format/codec/codec_testing.h"
#include "runtime-min/kernels/kernels_internal.h"

namespace moepack {

namespace testing {

// The one way for a test to make a ResidentTensor.
class VerifiedPeer {
 public:
  static Result<ResidentTensor> Pack(const Codec& codec, const MatrixShape& shape, ByteSpan plain) {
    MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, ResidentBytes(codec, shape));
    ResidentTensor w;
    w.codec_ = codec;
    w.shape_ = shape;
    w.size_bytes_ = size;
    w.data_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, size)));
    MOEPACK_RETURN_IF_ERROR(kernels::PackResident(codec, shape, plain, {w.data_.get(), size}));
    return w;
  }
};

}  // namespace testing

namespace kernels {
namespace {

using testing::AllCodecs;
using testing::RandomMatrix;
using testing::VerifiedPeer;

// Largest |error| of a product, in units of |W_r| |x|: activations are rounded to 1 / 65278 of their largest, so the error
// of a row behaves like noise of 9e-6; rows of a few columns may have all of their errors on one side.
constexpr double kIntBound = 3e-5;
// Float32 sums of n terms in the fixed order of a kernel.
constexpr double kFloatBound = 2e-6;

struct Case {
  Codec codec;
  MatrixShape shape;
  Bytes plain;
  ResidentTensor w;
  std::vector<float> weights;  // [rows, cols]
};

Case MakeCase(const Codec& codec, const MatrixShape& shape, uint32_t seed) {
  Case c{.codec = codec, .shape = shape};
  c.plain = ToPlain(RandomMatrix(codec, shape, seed)).value();
  c.w = VerifiedPeer::Pack(codec, shape, c.plain).value();
  c.weights.resize(shape.rows * shape.cols);
  EXPECT_TRUE(DecodePlain(codec, shape, c.plain, c.weights).ok());
  return c;
}

std::vector<float> RandomActivations(size_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& v : x) v = normal(rng);
  return x;
}

std::vector<float> Multiply(Isa isa, const Case& c, const std::vector<float>& x, size_t tokens) {
  Activations prepared;
  prepared.Prepare(isa, x.data(), tokens, c.shape.cols, c.shape.cols);
  std::vector<float> y(tokens * c.shape.rows, std::numeric_limits<float>::quiet_NaN());
  MatMul(isa, c.w, prepared, y.data(), c.shape.rows, 0, c.shape.rows);
  return y;
}

// Largest error over all rows and tokens, in units of |W_r| |x|.
double WorstError(const Case& c, const std::vector<float>& x, size_t tokens, const std::vector<float>& y) {
  double worst = 0;
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < c.shape.rows; ++r) {
      double dot = 0, ww = 0, xx = 0;
      for (size_t i = 0; i < c.shape.cols; ++i) {
        const double a = c.weights[r * c.shape.cols + i], b = x[t * c.shape.cols + i];
        dot += a * b;
        ww += a * a;
        xx += b * b;
      }
      const double error = std::abs(y[t * c.shape.rows + r] - dot) / (std::sqrt(ww * xx) + 1e-30);
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
    }
  }
  return worst;
}

double BoundOf(const Codec& codec) { return codec.coded() ? kIntBound : kFloatBound; }

TEST(Kernels, EveryKernelAgreesWithFloat64) {
  uint32_t seed = 0;
  for (uint64_t cols : {1, 7, 16, 31, 33, 64, 100, 257, 1024}) {
    for (const Codec& codec : AllCodecs(cols)) {
      const uint64_t rows = 1 + seed % 10;
      const size_t tokens = std::array<size_t, 4>{1, 3, 8, 33}[seed % 4];
      const Case c = MakeCase(codec, {rows, cols}, ++seed);
      const std::vector<float> x = RandomActivations(tokens * cols, seed);
      for (Isa isa : SupportedIsas()) {
        EXPECT_LT(WorstError(c, x, tokens, Multiply(isa, c, x, tokens)), BoundOf(codec))
            << IsaName(isa) << " " << codec.Name() << " " << rows << " x " << cols << ", " << tokens << " tokens";
      }
    }
  }
}

// Rows longer than a panel of any kernel, more tokens than a batch of any kernel.
TEST(Kernels, LongRowsAndManyTokens) {
  uint32_t seed = 100;
  for (const char* name :
       {"t2g64", "t2r", "t3g64", "t4r", "t5g128", "t6g16", "i4g64", "i4mg16", "i3mr", "i8r", "i8mr", "i5mg256",
        "i6g128+keep4000", "i2mg32+keep1500", "i8mr+1:4", "f32", "bf16", "f16+keep2049", "f32+3:4"}) {
    const MatrixShape shape{9, 4996};
    const Case c = MakeCase(*ParseCodec(name), shape, ++seed);
    const std::vector<float> x = RandomActivations(70 * shape.cols, seed);
    for (Isa isa : SupportedIsas()) {
      EXPECT_LT(WorstError(c, x, 70, Multiply(isa, c, x, 70)), BoundOf(c.codec)) << IsaName(isa) << " " << name;
      EXPECT_LT(WorstError(c, x, 1, Multiply(isa, c, x, 1)), BoundOf(c.codec)) << IsaName(isa) << " " << name;
    }
  }
}

// One activation a thousand times the others, as trained models have.
TEST(Kernels, OutlierActivationsKeepTheBound) {
  const MatrixShape shape{5, 512};
  const Case c = MakeCase(*ParseCodec("i4mg32"), shape, 7);
  std::vector<float> x = RandomActivations(shape.cols, 7);
  x[100] = 1000.0f;
  for (Isa isa : SupportedIsas()) EXPECT_LT(WorstError(c, x, 1, Multiply(isa, c, x, 1)), kIntBound) << IsaName(isa);
}

// The largest codes and activations everywhere: integer sums must not overflow.
TEST(Kernels, ExtremeCodesDoNotOverflow) {
  for (const char* name : {"i8r", "i8g256", "i8mr", "i8mg256", "i8r+keep4999"}) {
    const MatrixShape shape{2, 5000};
    QuantizedMatrix m = RandomMatrix(*ParseCodec(name), shape, 1);
    for (size_t i = 0; i < m.codes.size(); ++i)
      m.codes[i] = m.mask.empty() || m.mask[i] != 0 ? (i < shape.cols ? 0 : 255) : 0;
    Case c{.codec = m.codec, .shape = shape, .plain = ToPlain(m).value()};
    c.w = VerifiedPeer::Pack(c.codec, shape, c.plain).value();
    c.weights.resize(shape.rows * shape.cols);
    Dequantize(m, c.weights);
    const std::vector<float> x(shape.cols, -3.0f);
    for (Isa isa : SupportedIsas())
      EXPECT_LT(WorstError(c, x, 1, Multiply(isa, c, x, 1)), kIntBound) << IsaName(isa) << name;
  }
}

// The result of a row is the same bits for any other tokens, rows and split of the call.
TEST(Kernels, RowsDoNotDependOnTheRestOfTheCall) {
  uint32_t seed = 200;
  for (uint64_t cols : {100, 2112}) {
    for (const Codec& codec : AllCodecs(cols)) {
      const MatrixShape shape{9, cols};
      const Case c = MakeCase(codec, shape, ++seed);
      const size_t tokens = 7;
      const std::vector<float> x = RandomActivations(tokens * cols, seed);
      for (Isa isa : SupportedIsas()) {
        if (isa == Isa::kScalar && cols > 100) continue;
        const std::vector<float> all = Multiply(isa, c, x, tokens);
        Activations one;
        for (size_t t = 0; t < tokens; ++t) {
          one.Prepare(isa, x.data() + t * cols, 1, cols, cols);
          std::vector<float> y(shape.rows);
          const size_t split = t % shape.rows;
          MatMul(isa, c.w, one, y.data(), shape.rows, split, shape.rows);
          MatMul(isa, c.w, one, y.data(), shape.rows, 0, split);
          for (size_t r = 0; r < shape.rows; ++r) {
            ASSERT_EQ(y[r], all[t * shape.rows + r])
                << IsaName(isa) << " " << codec.Name() << " row " << r << " token " << t;
          }
        }
      }
    }
  }
}

// Tokens picked out of a prepared tile, in any order, give what they give among all.
TEST(Kernels, SomeTokensOfATile) {
  const MatrixShape shape{9, 2112};
  const std::vector<uint32_t> picked = {6, 0, 3, 5, 1, 2, 9};
  const size_t tokens = 10;
  const std::vector<float> x = RandomActivations(tokens * shape.cols, 5);
  for (const char* name : {"i8g64", "i4mg32", "i3g64", "t3r", "i4r", "i5g128+2:4", "i2mg16+keep500", "bf16", "f32+1:4"}) {
    const Case c = MakeCase(*ParseCodec(name), shape, 5);
    for (Isa isa : SupportedIsas()) {
      const std::vector<float> all = Multiply(isa, c, x, tokens);
      Activations prepared;
      prepared.Reshape(isa, tokens, shape.cols);
      for (size_t t : {5, 0}) prepared.Fill(x.data(), shape.cols, t, t + 5);
      std::vector<float> y(picked.size() * shape.rows);
      MatMul(isa, c.w, prepared, picked, y.data(), shape.rows, 0, shape.rows);
      for (size_t i = 0; i < picked.size(); ++i) {
        for (size_t r = 0; r < shape.rows; ++r) {
          ASSERT_EQ(y[i * shape.rows + r], all[picked[i] * shape.rows + r]) << IsaName(isa) << " " << name << " row " << r;
        }
      }
    }
  }
}

TEST(Kernels, WritesItsRowsOnly) {
  const MatrixShape shape{6, 40};
  const Case c = MakeCase(*ParseCodec("i4g32"), shape, 3);
  const std::vector<float> x = RandomActivations(3 * shape.cols, 3);
  for (Isa isa : SupportedIsas()) {
    Activations prepared;
    prepared.Prepare(isa, x.data(), 3, shape.cols, shape.cols);
    std::vector<float> y(3 * 10, 77.0f);
    MatMul(isa, c.w, prepared, y.data(), 10, 2, 5);
    for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i] == 77.0f, i % 10 < 2 || i % 10 >= 5) << i;
  }
}

// A larger Prepare leaves nothing behind that a smaller one after it would read.
TEST(Activations, AreReusable) {
  const MatrixShape shape{3, 70};
  const Case c = MakeCase(*ParseCodec("i4mg16"), shape, 3);
  const std::vector<float> x = RandomActivations(shape.cols, 3), big = RandomActivations(9 * 300, 4);
  for (Isa isa : SupportedIsas()) {
    Activations prepared;
    prepared.Prepare(isa, big.data(), 9, 300, 300);
    prepared.Prepare(isa, x.data(), 1, shape.cols, shape.cols);
    EXPECT_EQ(prepared.tokens(), 1u);
    EXPECT_EQ(prepared.cols(), shape.cols);
    std::vector<float> y(shape.rows);
    MatMul(isa, c.w, prepared, y.data(), shape.rows, 0, shape.rows);
    EXPECT_EQ(y, Multiply(isa, c, x, 1)) << IsaName(isa);
  }
}

TEST(Activations, ZeroTinyAndNonFiniteRows) {
  const MatrixShape shape{3, 64};
  for (const char* name : {"i4mg32", "f32", "i8g64+2:4"}) {
    const Case c = MakeCase(*ParseCodec(name), shape, 3);
    for (Isa isa : SupportedIsas()) {
      std::vector<float> x(shape.cols, 0.0f);
      for (float y : Multiply(isa, c, x, 1)) EXPECT_EQ(y, 0.0f);
      x[5] = 1e-38f;
      for (float y : Multiply(isa, c, x, 1)) EXPECT_NEAR(y, 0.0f, 1e-36f);
      x[5] = std::numeric_limits<float>::quiet_NaN();
      for (float y : Multiply(isa, c, x, 1)) EXPECT_TRUE(std::isnan(y) || c.codec.sparsity != Sparsity::kNone);
      if (!c.codec.coded()) continue;
      x[5] = std::numeric_limits<float>::infinity();
      for (float y : Multiply(isa, c, x, 1)) EXPECT_TRUE(std::isnan(y)) << "the quantized row has no finite step";
    }
  }
}

TEST(DecodeRow, GivesTheWeightsOfDecodePlain) {
  uint32_t seed = 300;
  for (uint64_t cols : {1, 33, 100, 272}) {
    for (const Codec& codec : AllCodecs(cols)) {
      const MatrixShape shape{3, cols};
      const Case c = MakeCase(codec, shape, ++seed);
      std::vector<float> row(cols);
      for (size_t r = 0; r < shape.rows; ++r) {
        DecodeRow(c.w, r, row.data());
        for (size_t i = 0; i < cols; ++i) ASSERT_EQ(row[i], c.weights[r * cols + i]) << codec.Name();
      }
    }
  }
}

TEST(PackResident, RefusesMalformedPlainBytes) {
  const MatrixShape shape{2, 12};
  for (const char* name : {"i4mg16", "f32", "bf16+2:4", "i3g16+keep5"}) {
    const Codec codec = *ParseCodec(name);
    Bytes plain = ToPlain(RandomMatrix(codec, shape, 1)).value();
    ASSERT_TRUE(VerifiedPeer::Pack(codec, shape, plain).ok());
    Bytes longer = plain;
    longer.push_back(0);
    EXPECT_EQ(VerifiedPeer::Pack(codec, shape, longer).status().code(), ErrorCode::kMalformed) << name;
    plain.assign(plain.size(), 0xff);
    EXPECT_EQ(VerifiedPeer::Pack(codec, shape, plain).status().code(), ErrorCode::kMalformed) << name;
  }
  Bytes out(64);
  const Bytes plain(2 * 12 * 4, 0);
  EXPECT_EQ(PackResident(*ParseCodec("f32"), shape, plain, out).code(), ErrorCode::kInternal);
}

TEST(KernelList, EverySetIsCompleteAndScalarIsThere) {
  for (const KernelSet* set : KernelSets()) {
    for (MatMulFunction f : set->matmul) EXPECT_NE(f, nullptr) << IsaName(set->isa);
  }
  EXPECT_EQ(SupportedIsas().front(), Isa::kScalar);
  EXPECT_EQ(SupportedIsas().back(), BestIsa());
}

#if defined(__aarch64__)
// Then the tests above were of NEON too.
TEST(KernelList, ArmHasDots) { EXPECT_EQ(BestIsa(), Isa::kNeonDot); }
#endif

}  // namespace
}  // namespace kernels
}  // namespace moepack
