#include "compressor/structure.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "forward/testing/toy_model.h"

namespace moepack {
namespace {

using testing::ToyProgram;
using testing::ToySource;

// One MoE layer with every bias there is.
Program WithExperts(std::vector<uint64_t> widths) {
  ToyProgram p;
  const ValueId x = p.Embedding(20, 8);
  p.block = 1;
  const ValueId out = p.Moe(p.Rms(x), {.k = 1}, {}, std::move(widths), true, true);
  p.block = 2;
  p.program.output = p.Linear(p.Rms(out), 20);
  return p.program;
}

// Half of the channels of every expert in `kept`.
Structure Halved(const Program& program, const std::vector<uint32_t>& kept) {
  Structure out;
  out.changed = true;
  out.tables.push_back({kept, {}});
  for (uint32_t e : kept) {
    out.tables[0].channels.emplace_back();
    for (uint32_t c = 1; c < program.expert_tables[0].intermediate[e]; c += 2) out.tables[0].channels.back().push_back(c);
  }
  return out;
}

// All weights of the program that ApplyStructure makes have its shapes.
void ExpectShapesFit(const Program& cut, const TensorSource& source) {
  for (TensorId id = 0; id < cut.tensors.size(); ++id)
    EXPECT_EQ(source.Load(id)->size(), cut.tensors[id].rows * cut.tensors[id].cols) << cut.tensors[id].name;
}

TEST(Structure, AnOnlyExpertKeepsItsRouterRowAndDownBias) {
  const Program program = WithExperts({8});
  const Structure structure = Halved(program, {0});
  const auto cut = ApplyStructure(program, structure);
  ASSERT_TRUE(cut.ok()) << cut.status().message();
  const auto original = std::make_shared<ToySource>(program);
  const auto source = CutSource(program, structure, original);
  ExpectShapesFit(*cut, *source);
  const MoeNode& moe =
      std::find_if(program.nodes.begin(), program.nodes.end(), [](const Node& n) { return n.kind == NodeKind::kMoe; })->moe;
  EXPECT_EQ(*source->Load(moe.down_bias), *original->Load(moe.down_bias));
  EXPECT_EQ(*source->Load(moe.selection_bias), *original->Load(moe.selection_bias));
}

TEST(Structure, WhatIsKeptOfAnExpertIsItsOwn) {
  const Program program = WithExperts({8, 4, 8});
  const Structure structure = Halved(program, {0, 2});
  const auto cut = ApplyStructure(program, structure);
  ASSERT_TRUE(cut.ok()) << cut.status().message();
  const auto original = std::make_shared<ToySource>(program);
  const auto source = CutSource(program, structure, original);
  ExpectShapesFit(*cut, *source);
  const MoeNode& moe =
      std::find_if(program.nodes.begin(), program.nodes.end(), [](const Node& n) { return n.kind == NodeKind::kMoe; })->moe;
  const std::vector<float> before = *original->Load(moe.down_bias), after = *source->Load(moe.down_bias);
  EXPECT_TRUE(std::equal(after.begin() + 8, after.end(), before.begin() + 16));
  EXPECT_EQ((*source->Load(moe.selection_bias))[1], (*original->Load(moe.selection_bias))[2]);
}

}  // namespace
}  // namespace moepack
