#include "compressor/pass/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "compressor/pass/gptq.h"

namespace moepack {
namespace {

Codec Named(const char* name) {
  auto codec = ParseCodec(name);
  EXPECT_TRUE(codec.ok()) << name;
  return *codec;
}

Matrix Normal(int rows, int cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Matrix out(rows, cols);
  for (Eigen::Index i = 0; i < out.size(); ++i) out.data()[i] = normal(random);
  return out;
}

Matrix Weights(const QuantizedMatrix& q) {
  Matrix out(q.shape.rows, q.shape.cols);
  Dequantize(q, {out.data(), static_cast<size_t>(out.size())});
  return out;
}

QuantizedMatrix Nearest(const Matrix& w, const char* codec, std::span<const float> importance = {}) {
  QuantizedMatrix out = MakeQuantized(Named(codec), {static_cast<uint64_t>(w.rows()), static_cast<uint64_t>(w.cols())});
  QuantizeRowsNearest(w, importance, 0, static_cast<size_t>(w.rows()), &out);
  return out;
}

// Error of the usual absolute-maximum scale, which a search has to beat.
double AbsMaxError(const Matrix& w, int bits, int group) {
  double error = 0;
  const float half = static_cast<float>(1 << (bits - 1));
  for (Eigen::Index r = 0; r < w.rows(); ++r) {
    for (Eigen::Index c = 0; c < w.cols(); c += group) {
      const auto part = w.row(r).segment(c, std::min<Eigen::Index>(group, w.cols() - c)).array();
      const float scale = part.abs().maxCoeff() / (half - 1);
      error += ((part / scale).round().max(-half).min(half - 1) * scale - part).square().sum();
    }
  }
  return error;
}

TEST(Quantize, EveryCodecDecodesCloseToTheWeights) {
  const Matrix w = Normal(5, 77, 1);
  for (const char* name :
       {"i8g64", "i6g32", "i5g16", "i4g64", "i3g32", "i2g16", "i4mg32", "i3mg16", "i2mg32", "i8r", "i4mr"}) {
    const QuantizedMatrix q = Nearest(w, name);
    const double relative = (Weights(q) - w).norm() / w.norm();
    EXPECT_LT(relative, 1.4 / std::pow(2.0, q.codec.bits - 1)) << name;
    EXPECT_TRUE(ToPlain(q).ok()) << name;
  }
}

TEST(Quantize, SomeRowsDecodeAsInAll) {
  const Matrix w = Normal(7, 77, 1);
  for (const char* name : {"bf16", "i5g16", "i4mg32", "i8r"}) {
    const QuantizedMatrix q = Nearest(w, name);
    Matrix rows(3, 77);
    DequantizeRows(q, 2, 5, {rows.data(), static_cast<size_t>(rows.size())});
    EXPECT_EQ(rows, Weights(q).middleRows(2, 3)) << name;
  }
}

TEST(Quantize, SearchBeatsTheAbsoluteMaximumScale) {
  const Matrix w = Normal(16, 256, 2);
  for (int bits : {2, 3, 4, 5}) {
    const std::string name = StrFormat("i%dg32", bits);
    EXPECT_LT((Weights(Nearest(w, name.c_str())) - w).squaredNorm(), 0.95 * AbsMaxError(w, bits, 32)) << name;
  }
}

TEST(Quantize, MinimumPaysForWeightsThatAreOffCentre) {
  const Matrix w = (Normal(8, 128, 3).array() + 3.0f).matrix();
  EXPECT_LT((Weights(Nearest(w, "i4mg32")) - w).squaredNorm(), 0.3 * (Weights(Nearest(w, "i4g32")) - w).squaredNorm());
}

TEST(Quantize, ImportanceMovesTheErrorToColumnsThatCount) {
  const Matrix w = Normal(32, 64, 4);
  std::vector<float> importance(64, 0.01f);
  for (size_t c = 0; c < 64; c += 4) importance[c] = 1.0f;
  const auto weighted = [&](const Matrix& v) {
    double sum = 0;
    for (Eigen::Index c = 0; c < 64; ++c) sum += static_cast<double>(importance[c]) * (v.col(c) - w.col(c)).squaredNorm();
    return sum;
  };
  EXPECT_LT(weighted(Weights(Nearest(w, "i3g64", importance))), 0.9 * weighted(Weights(Nearest(w, "i3g64"))));
}

TEST(Quantize, NegativeScaleReachesTheExtraLevel) {
  // The extreme is positive: only a negative scale maps it to code 0, one level further out than code 3.
  Matrix w(1, 16);
  w << 2, 1, 1, 0, -1, 1, 0, -1, 1, 0, 0, -1, 1, 1, -1, 0;
  EXPECT_LT((Weights(Nearest(w, "i2g16")) - w).norm(), 1e-3);
}

TEST(Quantize, ZeroesAndConstantRowsStayFinite) {
  Matrix w = Matrix::Zero(3, 40);
  w.row(1).setConstant(0.25f);
  for (const char* name : {"i4g32", "i4mg32", "i2g16", "i2mr"}) {
    const Matrix v = Weights(Nearest(w, name));
    EXPECT_TRUE(v.allFinite()) << name;
    EXPECT_LT((v - w).cwiseAbs().maxCoeff(), 0.02f) << name;
  }
}

// Inputs whose columns are correlated, as activations are.
Matrix Inputs(int tokens, int cols, uint32_t seed) {
  return Normal(tokens, cols, seed) * Normal(cols, cols, seed + 1) * 0.2f + Normal(tokens, cols, seed + 2);
}

double OutputError(const Matrix& x, const Matrix& w, const Matrix& v) { return (x * (w - v).transpose()).squaredNorm(); }

QuantizedMatrix Gptq(const Matrix& w, const Matrix& hessian, const char* codec, int sweeps) {
  auto factor = FactorHessian(hessian);
  EXPECT_TRUE(factor.ok());
  QuantizedMatrix out = MakeQuantized(Named(codec), {static_cast<uint64_t>(w.rows()), static_cast<uint64_t>(w.cols())});
  GptqRows(w, *factor, nullptr, sweeps, 0, static_cast<size_t>(w.rows()), &out);
  return out;
}

TEST(Gptq, BeatsRoundToNearestInOutputError) {
  const Matrix x = Inputs(512, 96, 10), w = Normal(24, 96, 11), h = x.transpose() * x;
  const Eigen::VectorXf diagonal = h.diagonal();
  const std::vector<float> importance(diagonal.data(), diagonal.data() + diagonal.size());
  for (const char* name : {"i2g32", "i3g32", "i4g64", "i4mg32", "i5g32", "i8g64"}) {
    const double nearest = OutputError(x, w, Weights(Nearest(w, name, importance)));
    const double plain = OutputError(x, w, Weights(Gptq(w, h, name, 0)));
    const double descended = OutputError(x, w, Weights(Gptq(w, h, name, 3)));
    EXPECT_LT(plain, 0.8 * nearest) << name;
    EXPECT_LT(descended, plain) << name;
  }
}

TEST(Gptq, UpperFactorIsTheInverseHessians) {
  const Matrix x = Inputs(300, 40, 20), h = x.transpose() * x;
  auto factor = FactorHessian(h);
  ASSERT_TRUE(factor.ok());
  const Matrix product = factor->hessian * factor->upper.transpose() * factor->upper;
  EXPECT_LT((product - Matrix::Identity(40, 40)).cwiseAbs().maxCoeff(), 1e-3);
}

TEST(Gptq, MaskedWeightsStayZeroAndTheOthersMakeUpForThem) {
  const Matrix x = Inputs(512, 64, 30), w = Normal(16, 64, 31), h = x.transpose() * x;
  QuantizedMatrix masked = MakeQuantized(Named("bf16+keep32"), {16, 64});
  for (size_t i = 0; i < masked.mask.size(); ++i) masked.mask[i] = i % 2;
  auto factor = FactorHessian(h);
  ASSERT_TRUE(factor.ok());
  QuantizedMatrix with = masked;
  GptqRows(w, *factor, nullptr, 3, 0, 16, &with);
  QuantizeRowsNearest(w, {}, 0, 16, &masked);
  const Matrix updated = Weights(with), zeroed = Weights(masked);
  for (Eigen::Index i = 0; i < updated.size(); i += 2) ASSERT_EQ(updated.data()[i], 0.0f);
  EXPECT_LT(OutputError(x, w, updated), 0.75 * OutputError(x, w, zeroed));
}

TEST(Gptq, RankDeficientAndEmptyHessiansWork) {
  const Matrix x = Normal(3, 32, 40), w = Normal(4, 32, 41);
  EXPECT_LT(OutputError(x, w, Weights(Gptq(w, x.transpose() * x, "i3g32", 3))),
            OutputError(x, w, Weights(Nearest(w, "i3g32"))));
  EXPECT_LT((Weights(Gptq(w, Matrix::Zero(32, 32), "i8g32", 3)) - w).norm(), 0.02 * w.norm());
}

TEST(Gptq, ShrinkageKeepsTheTraceAndTrustsTokens) {
  const Matrix x = Inputs(4, 16, 50), pool = Matrix::Identity(16, 16) * 5, h = x.transpose() * x;
  const Matrix few = ShrinkHessian(h, 4, pool), many = ShrinkHessian(h, 1e9, pool);
  EXPECT_NEAR(few.trace(), h.trace(), 1e-3 * h.trace());
  EXPECT_LT((many - h).norm(), 1e-4 * h.norm());
  EXPECT_GT(few.ldlt().vectorD().minCoeff(), 0);
  EXPECT_GT(ShrinkHessian(Matrix::Zero(16, 16), 0, pool).trace(), 0);
}

TEST(Gptq, SameCodesOnAnyNumberOfThreads) {
  const Matrix x = Inputs(256, 64, 60), w = Normal(50, 64, 61), h = x.transpose() * x;
  auto factor = FactorHessian(h);
  ASSERT_TRUE(factor.ok());
  std::vector<MatrixJob> one(1), two(1);
  one[0].weights = two[0].weights = &w;
  one[0].codec = two[0].codec = Named("i4g32");
  one[0].factor = two[0].factor = &*factor;
  one[0].hessian = two[0].hessian = &h;
  ThreadPool single(1), pair(2);
  RunJobs(one, 3, single);
  RunJobs(two, 3, pair);
  EXPECT_EQ(one[0].out.codes, two[0].out.codes);
  EXPECT_EQ(one[0].out.scales, two[0].out.scales);
  EXPECT_EQ(one[0].error, two[0].error);
  EXPECT_NEAR(one[0].error, OutputError(x, w, Weights(one[0].out)), 1e-2 * one[0].error);
}

}  // namespace
}  // namespace moepack
