#include "compressor/pass/dense_fallback.h"

#include <gtest/gtest.h>

#include <numeric>

#include "model/model_testing.h"

namespace moepack {
namespace {

// Rows of the first mixture of a checkpoint, and what its experts gave for them.
class Seen : public Observer {
 public:
  bool wants_moe() const override { return true; }
  void OnMoe(const MoeCapture& capture) override {
    experts.insert(experts.end(), capture.experts.begin(), capture.experts.end());
  }
  std::vector<ExpertCapture> experts;
};

class DenseFallbackTest : public ::testing::TestWithParam<const char*> {
 protected:
  DenseFallbackTest() : model_(*OpenModel(PosixEnv(), SourcePath(std::string("tests/golden/") + GetParam()))), pool_(2) {
    for (int32_t i = 0; i < 400; ++i) batch_.tokens.push_back((i * 37 + i * i) % 200);
    for (uint64_t s = 0; s < 20; ++s) batch_.sequence_start.push_back(20 * s);
    weights_.assign(batch_.size(), 1);
    for (size_t t = 0; t < 20; ++t) weights_[t] = 0;
    Stream stream = InputStream(model_.program, batch_);
    for (int32_t block = 0;; ++block) {
      block_.emplace(*BlockWeights::Load(model_.program, *model_.tensors, block, pool_));
      for (const Node& node : model_.program.nodes) {
        if (node.block == block && node.kind == NodeKind::kMoe) node_ = &node;
      }
      stream_ = stream;
      if (node_ != nullptr) break;
      EXPECT_TRUE(Forward(model_.program, pool_).RunBlock(block, *block_, batch_, &stream).ok());
    }
    experts_.resize(model_.program.expert_tables[node_->moe.table].experts());
    std::iota(experts_.begin(), experts_.end(), 0u);
  }

  Status Observe(Observer* observer, ThreadPool& pool) {
    return Forward(model_.program, pool).Observe(node_->block, *block_, batch_, stream_, observer);
  }
  DenseFallback Fit(ThreadPool& pool) {
    DenseFallbackInput input{node_, experts_, &*block_, weights_, [&](Observer* o) { return Observe(o, pool); }};
    Result<DenseFallback> fit = FitDenseFallback(input, pool);
    EXPECT_TRUE(fit.ok());
    return std::move(*fit);
  }
  // Sum over the rows that experts got of weight * |what the expert gave - what the stand-in gives|^2.
  double ErrorOf(const DenseFallback& fit, bool nothing = false) {
    Seen seen;
    Stream stream = stream_;  // a whole run: captures have outputs then
    EXPECT_TRUE(Forward(model_.program, pool_).RunBlock(node_->block, *block_, batch_, &stream, &seen).ok());
    double sum = 0;
    for (const ExpertCapture& expert : seen.experts) {
      Matrix h = expert.input * fit.up.transpose(), gate;
      if (fit.gate.size() > 0) gate = expert.input * fit.gate.transpose();
      ActivateExpert(node_->moe.activation, &gate, &h);
      const Matrix given = h * fit.down.transpose();
      for (size_t i = 0; i < expert.rows.size(); ++i) {
        const auto row = static_cast<Eigen::Index>(i);
        const Eigen::RowVectorXf lack = expert.output.row(row) - (nothing ? 0.0f : 1.0f) * given.row(row);
        sum += double{weights_[expert.rows[i]]} * expert.gates[i] * expert.gates[i] * lack.squaredNorm();
      }
    }
    return sum;
  }

  const Model model_;
  ThreadPool pool_;
  TokenBatch batch_;
  std::vector<float> weights_;
  std::optional<BlockWeights> block_;
  Stream stream_;
  const Node* node_ = nullptr;
  std::vector<uint32_t> experts_;
};

TEST_P(DenseFallbackTest, ItsErrorIsWhatItSaysAndNoOtherDownMatrixIsBetter) {
  const DenseFallback fit = Fit(pool_);
  const Matrix& up = block_->expert(node_->moe.table, 0, ExpertMatrix::kUp);
  EXPECT_EQ(fit.up.rows(), up.rows());
  EXPECT_EQ(fit.down.rows(), up.cols());
  EXPECT_EQ(fit.down.cols(), up.rows());
  EXPECT_NEAR(fit.energy, ErrorOf(fit, true), 1e-4 * fit.energy);
  const double error = ErrorOf(fit);
  EXPECT_NEAR(fit.error, error, 1e-3 * fit.energy);
  EXPECT_LT(error, 0.9 * fit.energy);
  // Larger steps than the ridge moved it, in any direction.
  for (int direction = 0; direction < 8; ++direction) {
    DenseFallback other = fit;
    for (Eigen::Index i = 0; i < other.down.size(); ++i)
      other.down.data()[i] *= (i * 7 + direction * 13) % 11 < 5 ? 1.5f : 0.6f;
    EXPECT_GT(ErrorOf(other), error) << direction;
  }
}

TEST_P(DenseFallbackTest, ItsNeuronsAreThoseOfExperts) {
  const DenseFallback fit = Fit(pool_);
  const bool gated = node_->moe.activation.gated;
  for (Eigen::Index r = 0; r < fit.up.rows(); ++r) {
    bool found = false;
    for (const uint32_t e : experts_) {
      const Matrix& up = block_->expert(node_->moe.table, e, ExpertMatrix::kUp);
      for (Eigen::Index j = 0; j < up.rows(); ++j) {
        if (up.row(j) != fit.up.row(r)) continue;
        found = found || !gated || block_->expert(node_->moe.table, e, ExpertMatrix::kGate).row(j) == fit.gate.row(r);
      }
    }
    ASSERT_TRUE(found) << r;
  }
}

TEST_P(DenseFallbackTest, IsTheSameOnAnyNumberOfThreads) {
  ThreadPool one(1), three(3);
  const DenseFallback a = Fit(one), b = Fit(three);
  EXPECT_EQ(a.gate, b.gate);
  EXPECT_EQ(a.up, b.up);
  EXPECT_EQ(a.down, b.down);
  EXPECT_EQ(a.error, b.error);
}

TEST_P(DenseFallbackTest, IsNothingWhereNoTokenCounts) {
  weights_.assign(batch_.size(), 0);
  const DenseFallback fit = Fit(pool_);
  EXPECT_EQ(fit.energy, 0);
  EXPECT_TRUE((fit.down.array() == 0).all());
}

// Plain SwiGLU; biases and limits in the activation; weights on inputs.
INSTANTIATE_TEST_SUITE_P(Families, DenseFallbackTest, ::testing::Values("qwen2_moe", "gpt_oss", "llama4"));

}  // namespace
}  // namespace moepack
