#include "compressor/pass/hessian.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "forward/testing/toy_model.h"

namespace moepack {
namespace {

TEST(CutByMoments, SharedInputsCountOnceAndNoRunIsEmpty) {
  testing::ToyProgram p;
  const ValueId x = p.Embedding(20, 8);
  p.block = 1;
  const ValueId q = p.Linear(x, 8), k = p.Linear(x, 8), o = p.Linear(q, 8);
  const ValueId sum = p.Element2(ElementOp::kAdd, p.Element2(ElementOp::kAdd, k, o), p.Moe(x, {.k = 1}, {}, {16, 16}));
  p.block = 2;
  p.program.output = p.Linear(sum, 20);
  std::vector<TensorRef> tensors;
  for (const TensorRef& t : ListTensors(p.program)) {
    if (t.block == 1) tensors.push_back(t);
  }
  // q, k and the router read one value, o another; gate and up of an expert share an input, down has one of 16 columns.
  ASSERT_EQ(tensors.size(), 10u);
  const uint64_t narrow = 8 * 8 * sizeof(float), wide = 16 * 16 * sizeof(float);
  using Runs = std::vector<std::vector<size_t>>;
  const auto cut = [&](uint64_t most) { return HessianCollector::CutByMoments(p.program, tensors, most); };
  EXPECT_EQ(cut(4 * narrow + 2 * wide), (Runs{{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}));
  EXPECT_EQ(cut(4 * narrow + 2 * wide - 1), (Runs{{0, 1, 2, 3, 4, 5, 6, 7, 8}, {9}}));
  EXPECT_EQ(cut(2 * narrow), (Runs{{0, 1, 2, 3}, {4, 5}, {6}, {7, 8}, {9}}));
  EXPECT_EQ(cut(0).size(), tensors.size());
}

TEST(HessianCollector, ThePoolIsOfAllExpertsWhicheverAreWanted) {
  const Program program = testing::ToyVariants(37);
  const testing::ToySource source(program);
  ThreadPool pool(2);
  Forward forward(program, pool);
  TokenBatch batch;
  for (int32_t t = 0; t < 200; ++t) batch.tokens.push_back(t * 7 % 37);
  batch.sequence_start = {0};
  std::vector<float> weights(batch.tokens.size());
  for (size_t t = 0; t < weights.size(); ++t) weights[t] = static_cast<float>(t % 3);
  Stream stream;
  size_t compared = 0;
  for (int32_t block = 0; block + 1 < program.blocks(); ++block) {
    const auto loaded = BlockWeights::Load(program, source, block, pool);
    ASSERT_TRUE(loaded.ok());
    std::vector<TensorRef> all, one;
    for (const TensorRef& t : ListTensors(program)) {
      if (t.block != block || !t.is_expert()) continue;
      all.push_back(t);
      if (t.expert == 1) one.push_back(t);
    }
    HessianCollector whole(program, all, weights, pool), part(program, one, weights, pool);
    ASSERT_TRUE(forward.Observe(block, *loaded, batch, stream, &whole).ok());
    ASSERT_TRUE(forward.Observe(block, *loaded, batch, stream, &part).ok());
    for (const TensorRef& t : one) {
      const auto node = std::find_if(program.nodes.begin(), program.nodes.end(), [&](const Node& n) {
        return n.kind == NodeKind::kMoe && n.moe.table == t.table;
      });
      if (node->moe.routing.weight_on_input) continue;
      const Matrix expected = whole.Pooled(t.table), pooled = part.Pooled(t.table);
      ASSERT_GT(expected.norm(), 0);
      EXPECT_LT((pooled - expected).norm(), 1e-5 * expected.norm());
      EXPECT_GT((part.Find(one[0])->hessian - expected).norm(), 1e-2 * expected.norm());
      ++compared;
    }
    ASSERT_TRUE(forward.RunBlock(block, *loaded, batch, &stream).ok());
  }
  EXPECT_GT(compared, 0u);
}

}  // namespace
}  // namespace moepack
