#include "compressor/pass/rated.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "compressor/rated_codec.h"

namespace moepack {
namespace {

Matrix Normal(int rows, int cols, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  Matrix out(rows, cols);
  for (Eigen::Index i = 0; i < out.size(); ++i) out.data()[i] = 0.05f * normal(rng);
  return out;
}

// Inputs of which some columns matter far more than others.
Matrix Hessian(int cols) {
  Matrix x = Normal(600, cols, 7) + Normal(600, cols, 8) * Normal(cols, cols, 9) * 4.0f;
  for (int c = 0; c < cols; ++c) x.col(c) *= 1.0f + static_cast<float>(c % 8);
  return x.transpose() * x;
}

double ErrorAt(const Matrix& w, const Matrix& h, const char* name, QuantizedMatrix* out = nullptr,
               uint64_t* limit = nullptr) {
  const auto factor = FactorHessian(h);
  const auto codec = ParseRatedCodec(name);
  EXPECT_TRUE(factor.ok() && codec.ok()) << name;
  std::vector<MatrixJob> jobs(1);
  jobs[0].weights = &w;
  jobs[0].codec = codec->codec;
  jobs[0].factor = &*factor;
  jobs[0].hessian = &h;
  const MatrixShape shape{static_cast<uint64_t>(w.rows()), static_cast<uint64_t>(w.cols())};
  if (codec->rate != 0) jobs[0].stored_bytes = *StoredBytes(*codec, shape);
  if (limit != nullptr) *limit = jobs[0].stored_bytes;
  ThreadPool pool(2);
  RunJobs(jobs, 3, pool);
  if (out != nullptr) *out = jobs[0].out;
  return jobs[0].error;
}

TEST(Rated, StaysWithinItsBytesAndUsesThem) {
  const Matrix w = Normal(256, 128, 1), h = Hessian(128);
  for (const char* name : {"i8r@1.5", "i8r@2.25", "i6r@2.25", "i8r@4", "i8r@6.5"}) {
    QuantizedMatrix out;
    uint64_t limit = 0;
    ErrorAt(w, h, name, &out, &limit);
    EXPECT_LE(CodedBytes(out, 256), limit) << name;
    EXPECT_GT(CodedBytes(out, 256), limit * 97 / 100) << name;
  }
}

TEST(Rated, LosesLessThanAPlainCodecOfTheSameBytes) {
  const Matrix w = Normal(256, 128, 1), h = Hessian(128);
  EXPECT_LT(ErrorAt(w, h, "i8r@2.12"), 0.5 * ErrorAt(w, h, "i2g128"));
  EXPECT_LT(ErrorAt(w, h, "i8r@3.12"), 0.5 * ErrorAt(w, h, "i3g128"));
  EXPECT_LT(ErrorAt(w, h, "i8r@4.12"), 0.5 * ErrorAt(w, h, "i4g128"));
}

TEST(Rated, ALimitThatCannotBeMetEndsWithZeros) {
  const Matrix w = Normal(64, 128, 1), h = Hessian(128);
  QuantizedMatrix out;
  uint64_t limit = 0;
  const double error = ErrorAt(w, h, "i8r@0.5", &out, &limit);
  EXPECT_TRUE(std::isfinite(error));
  const bool zeros = std::all_of(out.codes.begin(), out.codes.end(), [](uint8_t code) { return code == 128; });
  EXPECT_TRUE(zeros || CodedBytes(out, 64) <= limit) << CodedBytes(out, 64) << " of " << limit;
}

TEST(Rated, RowsThatMatterMoreGetFinerSteps) {
  const Matrix w = Normal(64, 96, 2);
  std::vector<float> weights(64, 1.0f);
  for (size_t r = 0; r < 8; ++r) weights[r] = 64.0f;
  const StepPlan plan = PlanSteps(w, ParseCodec("i8r").value(), nullptr, weights, 0.01);
  for (size_t r = 8; r < 64; ++r) EXPECT_NEAR(plan.scales[r] / plan.scales[0], 8.0, 0.01);
}

TEST(Rated, ExtremeWeightsStayWithinTheCodes) {
  Matrix w = Normal(32, 64, 3);
  w(3, 5) = 1000.0f;
  w.row(7).setZero();
  const StepPlan plan = PlanSteps(w, ParseCodec("i4r").value(), nullptr, {}, 0.01);
  for (size_t r = 0; r < 32; ++r) {
    for (size_t c = 0; c < 64; ++c) {
      for (float value : {w(r, c), 1e30f, -1e30f}) {
        const int code = plan.Level(r, c, value, StepPlan::kPull);
        EXPECT_GE(code, 0);
        EXPECT_LE(code, 15);
      }
    }
  }
}

TEST(RatedCodec, NamesComeBack) {
  for (const char* name : {"i8r@2.25", "i6r@2", "i4r@0.5", "i8r@6.5", "i8r", "i4g64", "bf16+2:4"}) {
    const auto codec = ParseRatedCodec(name);
    ASSERT_TRUE(codec.ok()) << name;
    EXPECT_EQ(codec->Name(), name);
  }
  EXPECT_EQ(*StoredBytes(*ParseRatedCodec("i8r@2.25"), {256, 256}), 256u * 256 * 9 / 32);
  for (const char* name : {"i8r@", "i8r@0.4", "i8r@9", "i8r@2.255", "i8r@2.2.5", "i8r@-2", "i8g64@2", "i8mr@2", "bf16@3",
                           "i8r@2 ", "i8r+2:4@2", "i8r@99999999999"}) {
    EXPECT_EQ(ParseRatedCodec(name).status().code(), ErrorCode::kRecipe) << name;
  }
}

}  // namespace
}  // namespace moepack
