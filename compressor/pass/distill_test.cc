#include "compressor/pass/distill.h"

#include <gtest/gtest.h>

#include <cmath>

#include "compressor/pass/distill_learner.h"
#include "compressor/pass/distill_tape.h"
#include "compressor/pass/moments_jobs.h"
#include "compressor/pass/quantize.h"
#include "model/model_testing.h"

namespace moepack {
namespace {

constexpr uint64_t kLength = 24;

TokenBatch Tokens(const Program& program) {
  TokenBatch batch;
  uint32_t state = 11;
  for (uint64_t s = 0; s < 2; ++s) {
    batch.sequence_start.push_back(batch.size());
    for (uint64_t t = 0; t < kLength; ++t) {
      state = state * 1664525u + 1013904223u;
      batch.tokens.push_back(static_cast<int32_t>((state >> 8) % program.values[program.output].width));
    }
  }
  return batch;
}

// A loss that no symmetry makes flat: a fixed random weight on every logit.
Matrix Slopes(Eigen::Index rows, Eigen::Index cols) {
  Matrix out(rows, cols);
  uint32_t state = 99;
  for (Eigen::Index i = 0; i < out.size(); ++i) {
    state = state * 1664525u + 1013904223u;
    out.data()[i] = static_cast<float>(state >> 8) / (1 << 23) - 1;
  }
  return out;
}

class TapeTest : public ::testing::TestWithParam<const char*> {
 protected:
  TapeTest() : model_(*OpenModel(PosixEnv(), SourcePath(std::string("tests/golden/") + GetParam()))), pool_(2) {
    for (int32_t b = 0; b < model_.program.blocks(); ++b)
      weights_.push_back(*BlockWeights::Load(model_.program, *model_.tensors, b, pool_));
  }
  const Model model_;
  ThreadPool pool_;
  std::vector<BlockWeights> weights_;
};

// Along each tensor's own gradient the loss rises by the gradient's squared norm a unit. Steps are so small that no token
// changes its experts.
TEST_P(TapeTest, GradientsAreTheSlopesOfTheLoss) {
  const Program& program = model_.program;
  const TokenBatch batch = Tokens(program);
  Tape tape(program, weights_, pool_);
  Gradients gradients;
  std::vector<TensorRef> tensors;
  for (const TensorRef& t : ListTensors(program)) {
    if (t.role == TensorRole::kEmbedding && !t.is_expert()) continue;
    tensors.push_back(t);
    gradients.Add(t);
  }
  ASSERT_TRUE(tape.Forward(batch).ok());
  const Matrix slopes = Slopes(tape.value(program.output).rows(), tape.value(program.output).cols());
  tape.Backward(program.output, slopes, &gradients);
  const auto loss = [&] {
    EXPECT_TRUE(tape.Forward(batch).ok());
    return slopes.cast<double>().cwiseProduct(tape.value(program.output).cast<double>()).sum();
  };
  size_t checked = 0;
  for (const TensorRef& t : tensors) {
    const Matrix gradient = gradients.Of(t);
    const double norm = gradient.cast<double>().norm();
    if (norm < 1) continue;  // below what float32 differences can show
    ++checked;
    Matrix& w = WeightsOf(t, weights_[static_cast<size_t>(t.block)]);
    const Matrix before = w;
    const float step = static_cast<float>(2e-5 * std::max<double>(before.cast<double>().norm(), 0.1) / norm);
    w = before + step * gradient;
    const double above = loss();
    w = before - step * gradient;
    const double rise = (above - loss()) / 2, expected = static_cast<double>(step) * norm * norm;
    w = before;
    EXPECT_NEAR(rise, expected, 0.02 * expected + 2e-4) << t.name;
  }
  EXPECT_GT(checked, tensors.size() / 3);
}

INSTANTIATE_TEST_SUITE_P(Golden, TapeTest, ::testing::Values("qwen2_moe", "qwen3_moe", "mixtral", "olmoe"));

Codec Named(const char* name) { return *ParseCodec(name); }

QuantizedMatrix Encoded(const Matrix& w, const Codec& codec, const std::vector<uint8_t>& mask = {}) {
  QuantizedMatrix out = MakeQuantized(codec, {static_cast<uint64_t>(w.rows()), static_cast<uint64_t>(w.cols())});
  if (!mask.empty()) out.mask = mask;
  QuantizeRowsNearest(w, {}, 0, static_cast<size_t>(w.rows()), &out);
  return out;
}

// Steps along the gradient of half the squared distance to a target.
double DistanceAfter(Learner* learner, const Matrix& weights, const Matrix& target, int steps, double rate) {
  for (int i = 1; i <= steps; ++i) {
    StepSize size{.weights = rate, .scales = rate, .codes = rate};
    size.CorrectFor(static_cast<uint64_t>(i));
    learner->Step(weights - target, size);
  }
  learner->Encode();
  return (weights - target).cast<double>().norm();
}

TEST(Learner, KeptWeightsMoveAndRemovedOnesStayZero) {
  const Matrix w = Slopes(4, 32), target = 1.5f * w;
  std::vector<uint8_t> mask(128);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = i % 2;
  Matrix weights;
  TensorRef ref;
  Learner learner(ref, Encoded(w, Named("bf16+keep16"), mask), &weights);
  const auto distance = [&] {
    double sum = 0;
    for (size_t i = 1; i < mask.size(); i += 2)
      sum += std::pow(static_cast<double>(weights.data()[i] - target.data()[i]), 2);
    return std::sqrt(sum);
  };
  const double before = distance();
  DistanceAfter(&learner, weights, target, 200, 0.02);
  EXPECT_LT(distance(), 0.2 * before);
  for (size_t i = 0; i < mask.size(); i += 2) ASSERT_EQ(weights.data()[i], 0.0f);
}

TEST(Learner, ScalesAndCodesOfIntegerTensorsMove) {
  const Matrix w = Slopes(4, 32), target = (1.3f * w.array() + 0.1f).matrix();
  for (const char* name : {"i3g16", "i3mg16"}) {
    Matrix weights;
    Learner learner(TensorRef(), Encoded(w, Named(name)), &weights);
    const double before = (weights - target).cast<double>().norm();
    EXPECT_LT(DistanceAfter(&learner, weights, target, 200, 0.02), 0.7 * before) << name;
    // What is stored is what the weights stand for.
    Matrix decoded(4, 32);
    const QuantizedMatrix& stored = learner.Encode();
    Dequantize(stored, {decoded.data(), 128});
    EXPECT_EQ(decoded, weights) << name;
    EXPECT_TRUE(ToPlain(stored).ok()) << name;
  }
}

}  // namespace
}  // namespace moepack
