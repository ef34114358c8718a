#include "compressor/pass/distill.h"

#include <gtest/gtest.h>

#include <cmath>

#include "compressor/pass/distill_experts.h"
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

  // Values before every block.
  std::vector<Stream> Streams(const TokenBatch& batch) {
    Forward forward(model_.program, pool_);
    std::vector<Stream> before(1);
    for (int32_t b = 0; b + 1 < model_.program.blocks(); ++b) {
      before.push_back(before.back());
      EXPECT_TRUE(forward.RunBlock(b, weights_[static_cast<size_t>(b)], batch, &before.back()).ok());
    }
    return before;
  }

  double Loss(const TokenBatch& batch, const Matrix& slopes) {
    const int32_t last = model_.program.blocks() - 1;
    Tape tape(model_.program, last, weights_.back(), pool_);
    EXPECT_TRUE(tape.Forward(batch, Streams(batch).back()).ok());
    return slopes.cast<double>().cwiseProduct(tape.value(model_.program.output).cast<double>()).sum();
  }

  // Of the loss by every tensor but embeddings, block by block from the last.
  Gradients AllGradients(const TokenBatch& batch, const std::vector<TensorRef>& tensors, const Matrix& slopes) {
    const std::vector<Stream> before = Streams(batch);
    Stream derivatives;
    derivatives.values[model_.program.output] = slopes;
    Gradients all;
    for (int32_t block = model_.program.blocks() - 1; block >= 0; --block) {
      Gradients here;
      for (const TensorRef& t : tensors) {
        if (t.block == block) here.Add(t);
      }
      Tape tape(model_.program, block, weights_[static_cast<size_t>(block)], pool_);
      EXPECT_TRUE(tape.Forward(batch, before[static_cast<size_t>(block)]).ok());
      tape.Backward(block > 0, &derivatives, &here);
      for (const TensorRef& t : tensors) {
        if (t.block == block) all.Add(t) = here.Of(t);
      }
    }
    return all;
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
  std::vector<TensorRef> tensors;
  for (const TensorRef& t : ListTensors(program)) {
    if (t.role != TensorRole::kEmbedding || t.is_expert()) tensors.push_back(t);
  }
  const Matrix slopes =
      Slopes(static_cast<Eigen::Index>(batch.size()), static_cast<Eigen::Index>(program.values[program.output].width));
  Gradients gradients = AllGradients(batch, tensors, slopes);
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
    const double above = Loss(batch, slopes);
    w = before - step * gradient;
    const double rise = (above - Loss(batch, slopes)) / 2, expected = static_cast<double>(step) * norm * norm;
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

// A learner, what it learns from and the weights that it stands for.
struct Taught {
  Taught(QuantizedMatrix start, Learns learns) : encoded(std::move(start)), learner(encoded, learns) { Decode(); }
  void Decode() {
    learner.Apply(&encoded);
    weights.resize(static_cast<Eigen::Index>(encoded.shape.rows), static_cast<Eigen::Index>(encoded.shape.cols));
    Dequantize(encoded, {weights.data(), static_cast<size_t>(weights.size())});
  }
  // Steps along the gradient of half the squared distance to a target.
  double DistanceAfter(const Matrix& target, uint64_t steps, double rate) {
    for (uint64_t i = 1; i <= steps; ++i) {
      learner.Step(weights - target, encoded, StepSizeAt(i, steps, rate, rate));
      Decode();
    }
    return (weights - target).cast<double>().norm();
  }
  QuantizedMatrix encoded;
  Learner learner;
  Matrix weights;
};

TEST(Learner, KeptWeightsMoveAndRemovedOnesStayZero) {
  const Matrix w = Slopes(4, 32), target = 1.5f * w;
  std::vector<uint8_t> mask(128);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = i % 2;
  Taught taught(Encoded(w, Named("bf16+keep16"), mask), Learns::kAll);
  const auto distance = [&] {
    double sum = 0;
    for (size_t i = 1; i < mask.size(); i += 2)
      sum += std::pow(static_cast<double>(taught.weights.data()[i] - target.data()[i]), 2);
    return std::sqrt(sum);
  };
  const double before = distance();
  taught.DistanceAfter(target, 200, 0.02);
  EXPECT_LT(distance(), 0.2 * before);
  for (size_t i = 0; i < mask.size(); i += 2) ASSERT_EQ(taught.weights.data()[i], 0.0f);
}

TEST(Learner, ScalesAndCodesOfIntegerTensorsMove) {
  const Matrix w = Slopes(4, 32), target = (1.3f * w.array() + 0.1f).matrix();
  for (const char* name : {"i3g16", "i3mg16"}) {
    Taught all(Encoded(w, Named(name)), Learns::kAll), scales(Encoded(w, Named(name)), Learns::kScales);
    const std::vector<uint8_t> codes = scales.encoded.codes;
    const double before = (all.weights - target).cast<double>().norm();
    EXPECT_LT(all.DistanceAfter(target, 200, 0.02), 0.7 * before) << name;
    EXPECT_NE(all.encoded.codes, codes) << name;
    EXPECT_LT(scales.DistanceAfter(target, 200, 0.02), 0.9 * before) << name;
    EXPECT_EQ(scales.encoded.codes, codes) << name;
    EXPECT_TRUE(ToPlain(all.encoded).ok()) << name;
  }
}

// One expert that lost half of its weights: it comes nearer to the full one on rows that it did not learn from, and it is
// told when it does not.
class DistillExpertsTest : public ::testing::Test {
 protected:
  static constexpr Eigen::Index kHidden = 16, kWide = 24, kTokens = 1024;
  DistillExpertsTest() : pool_(2) {
    node_.routing.k = 1;
    seen_.node = &node_;
    seen_.input = Slopes(kTokens, kHidden / 4) * Slopes(kHidden / 4, kHidden);  // what is left can make up for the rest
    seen_.rows.resize(1);
    for (uint32_t t = 0; t < kTokens; ++t) seen_.rows[0].push_back({t, 0.5f + 0.25f * static_cast<float>(t % 3)});
    for (uint64_t s = 0; s < 8; ++s) calibration_.batch.sequence_start.push_back(s * kTokens / 8);
    calibration_.batch.tokens.assign(kTokens, 0);
    calibration_.held_back = {7};
    calibration_.weights.assign(kTokens, 1.0f);
    std::fill(calibration_.weights.begin() + 7 * kTokens / 8, calibration_.weights.end(), 0.0f);
    const Eigen::Index shapes[3][2] = {{kWide, kHidden}, {kWide, kHidden}, {kHidden, kWide}};
    for (size_t m = 0; m < 3; ++m) full_[m] = (0.3f + 0.1f * static_cast<float>(m)) * Slopes(shapes[m][0], shapes[m][1]);
    input_.seen = &seen_;
    input_.calibration = &calibration_;
    input_.recipe = &recipe_;
    input_.full = [this](uint32_t, ExpertMatrix m) { return Result<Matrix>(full_[static_cast<size_t>(m)]); };
  }

  ExpertEncoding Halved() {
    ExpertEncoding out;
    for (size_t m = 0; m < 3; ++m) {
      std::vector<uint8_t> mask(static_cast<size_t>(full_[m].size()));
      for (size_t i = 0; i < mask.size(); ++i) mask[i] = i % 2;
      const std::string codec = "bf16+keep" + std::to_string(full_[m].cols() / 2);
      out.matrices[m] = Encoded(full_[m], Named(codec.c_str()), mask);
      out.learns[m] = Learns::kAll;
    }
    return out;
  }

  ThreadPool pool_;
  MoeNode node_;
  ExpertInputs::Table seen_;
  Calibration calibration_;
  DistillRecipe recipe_;
  std::array<Matrix, 3> full_;
  ExpertDistillation input_;
};

TEST_F(DistillExpertsTest, APrunedExpertComesNearerToTheFullOne) {
  recipe_.epochs = 20;
  recipe_.rate = 0.002;
  std::vector<ExpertEncoding> experts = {Halved()};
  const Result<ErrorChange> change = DistillExperts(input_, experts, pool_);
  ASSERT_TRUE(change.ok());
  EXPECT_LT(change->after, 0.7 * change->before);
  for (size_t m = 0; m < 3; ++m) EXPECT_EQ(experts[0].matrices[m].mask, Halved().matrices[m].mask);
}

// Rounding to bf16 is next to nothing: long steps can only do harm.
TEST_F(DistillExpertsTest, WhatDoesNotHelpIsNotKept) {
  recipe_.epochs = 1;
  recipe_.rate = 1;
  std::vector<ExpertEncoding> experts(1);
  for (size_t m = 0; m < 3; ++m) {
    experts[0].matrices[m] = Encoded(full_[m], Named("bf16"));
    experts[0].learns[m] = Learns::kAll;
  }
  const std::array<QuantizedMatrix, 3> start = experts[0].matrices;
  const Result<ErrorChange> change = DistillExperts(input_, experts, pool_);
  ASSERT_TRUE(change.ok());
  EXPECT_EQ(change->after, change->before);
  EXPECT_GT(change->before, 0);
  for (size_t m = 0; m < 3; ++m) EXPECT_EQ(experts[0].matrices[m].values, start[m].values);
}

}  // namespace
}  // namespace moepack
