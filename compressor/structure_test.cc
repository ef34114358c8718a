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

// A program, its weights, and both as ApplyStructure and CutSource make them.
struct Cut {
  Cut(const Program& whole, const std::vector<uint32_t>& experts)
      : program(whole), structure(Halved(program, experts)), original(std::make_shared<ToySource>(program)) {
    const auto cut = ApplyStructure(program, structure);
    source = CutSource(program, structure, original);
    EXPECT_TRUE(cut.ok()) << cut.status().message();
    for (TensorId id = 0; cut.ok() && id < cut->tensors.size(); ++id) {
      EXPECT_EQ(source->Load(id)->size(), cut->tensors[id].rows * cut->tensors[id].cols) << cut->tensors[id].name;
    }
  }
  const MoeNode& moe() const {
    return std::find_if(program.nodes.begin(), program.nodes.end(), [](const Node& n) { return n.kind == NodeKind::kMoe; })
        ->moe;
  }
  const Program program;
  const Structure structure;
  const std::shared_ptr<ToySource> original;
  std::shared_ptr<const TensorSource> source;
};

TEST(Structure, AnOnlyExpertKeepsItsRouterRowAndDownBias) {
  const Cut cut(WithExperts({8}), {0});
  const MoeNode& moe = cut.moe();
  EXPECT_EQ(*cut.source->Load(moe.down_bias), *cut.original->Load(moe.down_bias));
  EXPECT_EQ(*cut.source->Load(moe.selection_bias), *cut.original->Load(moe.selection_bias));
}

TEST(Structure, WhatIsKeptOfAnExpertIsItsOwn) {
  const Cut cut(WithExperts({8, 4, 8}), {0, 2});
  const MoeNode& moe = cut.moe();
  const std::vector<float> before = *cut.original->Load(moe.down_bias), after = *cut.source->Load(moe.down_bias);
  EXPECT_TRUE(std::equal(after.begin() + 8, after.end(), before.begin() + 16));
  EXPECT_EQ((*cut.source->Load(moe.selection_bias))[1], (*cut.original->Load(moe.selection_bias))[2]);
}

}  // namespace
}  // namespace moepack
