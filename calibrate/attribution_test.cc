#include "calibrate/attribution.h"

#include <gtest/gtest.h>

#include <set>

#include "forward/testing/toy_model.h"

namespace moepack {
namespace {

using testing::ToyProgram;

const Node& MoeOf(const Program& program) {
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kMoe) return node;
  }
  ADD_FAILURE() << "no MoE node";
  return program.nodes[0];
}

// A layer around a MoE node; `join` says how its output meets the state.
template <typename Join>
Program Layer(const Join& join) {
  ToyProgram p;
  const ValueId state = p.Embedding(20, 8);
  p.block = 1;
  const ValueId normed = p.Rms(state);
  const ValueId out = join(p, state, p.Moe(normed, {.k = 2}, {}, {4, 4, 4}), normed);
  p.block = 2;
  p.program.output = p.Linear(p.Rms(out), 20);
  return p.program;
}

TEST(FindResidualTest, PlainSum) {
  const Program program =
      Layer([](ToyProgram& p, ValueId x, ValueId m, ValueId) { return p.Element2(ElementOp::kAdd, x, m); });
  const auto plan = FindResidual(program, MoeOf(program));
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->state, program.nodes[0].output);
  EXPECT_EQ(plan->scale, 1);
  EXPECT_FALSE(plan->beside);
}

TEST(FindResidualTest, ScaledWithSomethingBeside) {
  const Program program = Layer([](ToyProgram& p, ValueId x, ValueId m, ValueId normed) {
    const ValueId both = p.Element2(ElementOp::kAdd, p.Linear(normed, 8), p.Element(ElementOp::kScale, m, 0.5f));
    return p.Element2(ElementOp::kAdd, p.Element(ElementOp::kScale, both, 0.25f), x);
  });
  const auto plan = FindResidual(program, MoeOf(program));
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->scale, 0.125f);
  EXPECT_TRUE(plan->beside);
}

TEST(FindResidualTest, RefusesWhatIsNotASum) {
  const auto refused = [](const Program& program) {
    return FindResidual(program, MoeOf(program)).status().code() == ErrorCode::kUnsupported;
  };
  EXPECT_TRUE(
      refused(Layer([](ToyProgram& p, ValueId x, ValueId m, ValueId) { return p.Element2(ElementOp::kAdd, x, p.Rms(m)); })));
  EXPECT_TRUE(
      refused(Layer([](ToyProgram& p, ValueId x, ValueId m, ValueId) { return p.Element2(ElementOp::kMul, x, m); })));
  EXPECT_TRUE(refused(Layer([](ToyProgram&, ValueId, ValueId m, ValueId) { return m; })));
  EXPECT_TRUE(refused(Layer([](ToyProgram& p, ValueId x, ValueId m, ValueId) {
    return p.Element(ElementOp::kScale, p.Element2(ElementOp::kAdd, x, m), 0.5f);
  })));
}

TEST(SampleTokensTest, OneOfEachStratumNeverTheLastOfASequence) {
  TokenBatch batch;
  batch.tokens.assign(1000, 0);
  batch.sequence_start = {0, 256, 257, 600};  // the second has one token: none eligible
  const auto samples = SampleTokens(batch, 100);
  ASSERT_EQ(samples.size(), 100u);
  for (size_t i = 0; i < samples.size(); ++i) {
    EXPECT_TRUE(i == 0 || samples[i - 1] < samples[i]);
    EXPECT_NEAR(static_cast<double>(samples[i]), 10.0 * static_cast<double>(i), 16);
    for (uint64_t last : {255u, 256u, 599u, 999u}) EXPECT_NE(samples[i], last);
  }
  EXPECT_EQ(SampleTokens(batch, 5000).size(), 996u);
  TokenBatch single{{1}, {0}};
  EXPECT_TRUE(SampleTokens(single, 10).empty());
}

// Strata of exactly one sequence must not always hit the same position.
TEST(SampleTokensTest, PositionsVary) {
  TokenBatch batch;
  batch.tokens.assign(256 * 64, 0);
  for (uint64_t s = 0; s < 64; ++s) batch.sequence_start.push_back(s * 256);
  std::set<uint64_t> positions;
  for (uint64_t sample : SampleTokens(batch, 64)) positions.insert(sample % 256);
  EXPECT_GT(positions.size(), 40u);
}

TEST(HeadEvaluatorTest, RefusesALastBlockThatMixesTokens) {
  const auto refused = [](const auto& mix) {
    ToyProgram p;
    const ValueId x = p.Embedding(20, 8);
    p.block = 1;
    p.program.output = p.Linear(mix(p, x), 20);
    ThreadPool pool(1);
    const testing::ToySource source(p.program);
    const auto weights = BlockWeights::Load(p.program, source, 1, pool);
    EXPECT_TRUE(weights.ok());
    return HeadEvaluator::Make(p.program, *weights, pool).status().code() == ErrorCode::kUnsupported;
  };
  EXPECT_TRUE(refused([](ToyProgram& p, ValueId x) {
    return p.Attention(x, x, x, {.heads = 1, .kv_heads = 1, .head_dim = 8, .scale = 1});
  }));
  EXPECT_TRUE(refused([](ToyProgram& p, ValueId x) { return p.Convolution(x, 4, false); }));
  EXPECT_FALSE(refused([](ToyProgram& p, ValueId x) { return p.Rms(x); }));
}

}  // namespace
}  // namespace moepack
