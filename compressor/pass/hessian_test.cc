#include "compressor/pass/hessian.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace moepack
