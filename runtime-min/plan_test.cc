#include "runtime-min/plan.h"

#include <gtest/gtest.h>

#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

constexpr uint32_t kTile = 32, kLogitRows = 4;

TEST(Plan, LinearsOfOneInputRunTogether) {
  const Program program = testing::ToyLanguageModel();
  const Plan plan = MakePlan(program, kTile, kLogitRows).value();
  size_t nodes = 0, most = 0;
  for (const Step& step : plan.steps) {
    nodes += step.nodes.size();
    most = std::max(most, step.nodes.size());
    for (uint32_t n : step.nodes) {
      EXPECT_EQ(program.nodes[n].kind, step.kind);
      EXPECT_EQ(program.nodes[n].inputs[0], program.nodes[step.nodes[0]].inputs[0]);
    }
  }
  EXPECT_EQ(nodes, program.nodes.size());
  EXPECT_EQ(most, 4u);  // router, shared gate and up, shared weight
}

TEST(Plan, OnlyWhatFollowsTheLastAttentionIsTail) {
  const Program program = testing::ToyLanguageModel();
  const Plan plan = MakePlan(program, kTile, kLogitRows).value();
  bool last_attention_seen = false;
  for (const Step& step : plan.steps) {
    const Node& node = program.nodes[step.nodes[0]];
    if (node.kind == NodeKind::kAttention && node.attention.state_slot == 1) last_attention_seen = true;
    if (node.kind == NodeKind::kMoe || node.kind == NodeKind::kAttention) {
      EXPECT_EQ(step.tail, last_attention_seen);
    }
  }
  EXPECT_TRUE(plan.values[program.output].tail);
}

TEST(Plan, ValuesAliveAtOnceDoNotOverlap) {
  const Program program = testing::ToyLanguageModel();
  const Plan plan = MakePlan(program, kTile, kLogitRows).value();
  std::vector<size_t> born(program.values.size(), SIZE_MAX), last(program.values.size(), 0);
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    for (uint32_t n : plan.steps[s].nodes) {
      born[program.nodes[n].output] = s;
      for (ValueId input : program.nodes[n].inputs) last[input] = s;
    }
  }
  last[program.output] = plan.steps.size();
  uint64_t total = 0;
  for (ValueId a = 1; a < program.values.size(); ++a) {
    const uint64_t rows = plan.values[a].tail ? kLogitRows : kTile,
                   a_end = plan.values[a].offset + rows * plan.values[a].width;
    EXPECT_LE(a_end, plan.arena_floats);
    total += rows * plan.values[a].width;
    for (ValueId b = 1; b < a; ++b) {
      if (born[a] > std::max(last[b], born[b]) || born[b] > std::max(last[a], born[a])) continue;
      const uint64_t b_rows = plan.values[b].tail ? kLogitRows : kTile;
      const uint64_t b_end = plan.values[b].offset + b_rows * plan.values[b].width;
      EXPECT_TRUE(a_end <= plan.values[b].offset || b_end <= plan.values[a].offset) << "values " << a << " and " << b;
    }
  }
  EXPECT_LT(plan.arena_floats, total / 2) << "memory is shared";
}

// A program may have 65536 nodes: planning takes a moment also where all of their values are alive at once.
TEST(Plan, ManyNodesAliveAtOnce) {
  static constexpr uint32_t kNodes = 60000;
  Program program;
  program.values.push_back({"tokens", ValueKind::kTokens, 0});
  program.inputs = {0};
  const auto add = [&](NodeKind kind, std::vector<ValueId> inputs, uint64_t width) {
    program.values.push_back({"", ValueKind::kFloat, width});
    Node node;
    node.kind = kind;
    node.inputs = std::move(inputs);
    node.output = static_cast<ValueId>(program.values.size() - 1);
    program.nodes.push_back(std::move(node));
    return program.nodes.back().output;
  };
  std::vector<ValueId> all = {add(NodeKind::kEmbedding, {0}, 1)};
  for (uint32_t i = 1; i < kNodes; ++i) all.push_back(add(NodeKind::kLinear, {all[i / 2]}, 1 + i % 40));
  program.output = add(NodeKind::kConcat, all, 1);
  const Plan plan = MakePlan(program, kTile, kLogitRows).value();
  EXPECT_EQ(plan.steps.size(), kNodes / 2 + 2u) << "an embedding, two linear nodes of each input, a concatenation";
  std::vector<std::pair<uint64_t, uint64_t>> places;
  for (ValueId id = 1; id < program.values.size(); ++id) {
    places.emplace_back(plan.values[id].offset, plan.values[id].offset + kLogitRows * plan.values[id].width);
  }
  std::sort(places.begin(), places.end());
  for (size_t i = 1; i < places.size(); ++i) ASSERT_GE(places[i].first, places[i - 1].second);
  EXPECT_GE(plan.arena_floats, places.back().second);
}

}  // namespace
}  // namespace moepack::runtime
