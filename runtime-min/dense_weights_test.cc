#include "runtime-min/dense_weights.h"

#include <gtest/gtest.h>

#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using testing::kToyVocabulary;
using testing::RoundedSource;
using testing::ToyUnits;
using testing::ToyVariants;

std::vector<TensorId> ReadAsFloats(const Program& program) {
  std::vector<TensorId> ids;
  for (const Node& node : program.nodes) {
    for (const TensorId id : TensorsOfNode(node)) {
      const bool matrix = (node.kind == NodeKind::kLinear && id == node.linear.weight) || node.kind == NodeKind::kEmbedding;
      const bool convolution = node.kind == NodeKind::kConvolution && id == node.convolution.weight;
      if (id != kNone && !matrix && !convolution) ids.push_back(id);
    }
  }
  return ids;
}

// Every tensor stays in one form, and that one is counted.
TEST(DenseWeights, ATensorIsKeptInTheFormThatNodesRead) {
  const Program program = ToyVariants(kToyVocabulary);
  const RoundedSource source(program, ParseCodec("i4g16").value());
  ThreadPool pool(2);
  const auto units = ToyUnits(program, "i4g16");
  const Result<DenseWeights> weights = DenseWeights::Load(*units, pool);
  ASSERT_TRUE(weights.ok()) << weights.status().message();
  uint64_t bytes = 0;
  for (TensorId id = 0; id < program.tensors.size(); ++id) bytes += weights->matrix(id).size_bytes();
  const std::vector<TensorId> floats = ReadAsFloats(program);
  ASSERT_GT(floats.size(), 10u);
  for (const TensorId id : floats) {
    EXPECT_EQ(weights->matrix(id).data(), nullptr) << program.tensors[id].name << " is packed too";
    const std::vector<float> expected = source.Load(id).value();
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), weights->vector(id))) << program.tensors[id].name;
    bytes += expected.size() * sizeof(float);
  }
  int convolutions = 0;
  for (const Node& node : program.nodes) {
    if (node.kind != NodeKind::kConvolution) continue;
    ++convolutions;
    const TensorId id = node.convolution.weight;
    EXPECT_EQ(weights->matrix(id).data(), nullptr);
    const std::vector<float> expected = source.Load(id).value();
    const uint64_t channels = program.tensors[id].rows, width = program.tensors[id].cols;
    for (uint64_t c = 0; c < channels; ++c) {
      for (uint64_t j = 0; j < width; ++j) EXPECT_EQ(weights->convolution(id)[j * channels + c], expected[c * width + j]);
    }
    bytes += expected.size() * sizeof(float);
  }
  EXPECT_EQ(convolutions, 2);
  EXPECT_EQ(weights->resident_bytes(), bytes);
}

}  // namespace
}  // namespace moepack::runtime
