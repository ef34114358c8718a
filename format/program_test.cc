#include "format/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "format/codec/codec.h"
#include "format/testing/tiny_program.h"

namespace moepack {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::NodeOf;
using testing::ProgramBuilder;
using testing::TinyProgram;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct BadProgram {
  const char* message;  // part of the error
  std::function<void(Program&)> spoil;
};

void ExpectRefused(ErrorCode code, const std::vector<BadProgram>& cases) {
  for (const BadProgram& bad : cases) {
    SCOPED_TRACE(bad.message);
    Program program = TinyProgram();
    bad.spoil(program);
    const Status status = ValidateProgram(program);
    EXPECT_EQ(status.code(), code) << status.message();
    EXPECT_THAT(status.message(), HasSubstr(bad.message));
  }
}

TEST(ValidateProgram, AcceptsEveryNodeKind) {
  const Program program = TinyProgram();
  const Status status = ValidateProgram(program);
  EXPECT_TRUE(status.ok()) << status.message();
  for (const NodeKind kind :
       {NodeKind::kEmbedding, NodeKind::kLinear, NodeKind::kNorm, NodeKind::kRotary, NodeKind::kAttention, NodeKind::kMoe,
        NodeKind::kElementwise, NodeKind::kSlice, NodeKind::kConcat}) {
    EXPECT_TRUE(std::ranges::any_of(program.nodes, [&](const Node& n) { return n.kind == kind; })) << static_cast<int>(kind);
  }
}

TEST(ValidateProgram, Caps) {
  ExpectRefused(
      ErrorCode::kLimit,
      {
          {"0 nodes", [](Program& p) { p.nodes.clear(); }},
          {"65537 nodes", [](Program& p) { p.nodes.resize(65537, p.nodes[0]); }},
          {"values, at most", [](Program& p) { p.values.resize((1 << 18) + 1, p.values[1]); }},
          {"tensors, at most", [](Program& p) { p.tensors.resize((1 << 20) + 1, p.tensors[1]); }},
          {"expert tables, at most", [](Program& p) { p.expert_tables.resize(1025, p.expert_tables[0]); }},
          {"chunk 16777217", [](Program& p) { NodeOf(p, NodeKind::kAttention).attention.chunk = (1 << 24) + 1; }},
          {"long_from 16777217", [](Program& p) { NodeOf(p, NodeKind::kRotary).rotary.long_from = (1 << 24) + 1; }},
          {"65537 heads", [](Program& p) { NodeOf(p, NodeKind::kConcat).concat.heads = 65537; }},
          {"state slots, at most", [](Program& p) { p.state_slots = 65537; }},
          {"max_positions is 0", [](Program& p) { p.max_positions = 0; }},
          {"max_positions is 16777217", [](Program& p) { p.max_positions = (1 << 24) + 1; }},
          {"value 1: width 0", [](Program& p) { p.values[1].width = 0; }},
          {"value 1: width 16777217", [](Program& p) { p.values[1].width = kMaxRows + 1; }},
          {"tensor 0 'embed_tokens': shape [0, 8]", [](Program& p) { p.tensors[0].rows = 0; }},
          {"tensor 0 'embed_tokens': shape [16, 0]", [](Program& p) { p.tensors[0].cols = 0; }},
          {"shape [16777217, 8]", [](Program& p) { p.tensors[0].rows = kMaxRows + 1; }},
          {"shape [16, 1048577]", [](Program& p) { p.tensors[0].cols = kMaxCols + 1; }},
          {"layer -2", [](Program& p) { p.tensors[0].layer = -2; }},
          {"layer 4096", [](Program& p) { p.tensors[0].layer = 4096; }},
          {"expert table 0: layer -1", [](Program& p) { p.expert_tables[0].layer = -1; }},
          {"expert table 0: layer 4096", [](Program& p) { p.expert_tables[0].layer = 4096; }},
          {"window 33554432", [](Program& p) { NodeOf(p, NodeKind::kAttention).attention.window = 1 << 25; }},
          {"expert table 0: 0 experts", [](Program& p) { p.expert_tables[0].intermediate.clear(); }},
          {"expert table 0: 4097 experts", [](Program& p) { p.expert_tables[0].intermediate.resize(4097, 4); }},
          {"expert table 0: hidden", [](Program& p) { p.expert_tables[0].hidden = 0; }},
          {"expert table 0: hidden", [](Program& p) { p.expert_tables[0].hidden = kMaxCols + 1; }},
          {"expert 2: intermediate", [](Program& p) { p.expert_tables[0].intermediate[2] = 0; }},
          {"expert 2: intermediate", [](Program& p) { p.expert_tables[0].intermediate[2] = kMaxCols + 1; }},
          {"original_parameters", [](Program& p) { p.original_parameters = 0; }},
          {"original_parameters", [](Program& p) { p.original_parameters = (1ull << 60) + 1; }},
      });
}

TEST(ValidateProgram, RefusesMoreParametersThanCanBeCounted) {
  Program program = TinyProgram();
  ExpertTableDecl& table = program.expert_tables[0];
  table.hidden = kMaxCols;
  table.intermediate.assign(kMaxExperts, kMaxCols);
  table.original.resize(kMaxExperts);
  for (uint32_t e = 0; e < kMaxExperts; ++e) table.original[e] = e;
  program.expert_tables.resize(kMaxExpertTables, table);
  for (size_t t = 0; t < program.expert_tables.size(); ++t) program.expert_tables[t].layer = static_cast<int32_t>(t);
  EXPECT_THAT(ValidateProgram(program).message(), HasSubstr("more than 2^60 parameters"));
}

TEST(ValidateProgram, Declarations) {
  ExpectRefused(
      ErrorCode::kMalformed,
      {
          {"value 1: name", [](Program& p) { p.values[1].name = "a b"; }},
          {"value 1: name", [](Program& p) { p.values[1].name = std::string(201, 'a'); }},
          {"value 0: tokens must have width 0", [](Program& p) { p.values[0].width = 1; }},
          {"value 1: unknown kind 2", [](Program& p) { p.values[1].kind = static_cast<ValueKind>(2); }},
          {"tensor 0: name", [](Program& p) { p.tensors[0].name.clear(); }},
          {"tensor 0: name", [](Program& p) { p.tensors[0].name = "\xc3\xa9"; }},
          {"tensor 0: name", [](Program& p) { p.tensors[0].name = std::string(201, 'a'); }},
          {"tensor 1: name 'embed_tokens' is used twice", [](Program& p) { p.tensors[1].name = "embed_tokens"; }},
          {"unknown role 9", [](Program& p) { p.tensors[0].role = static_cast<TensorRole>(9); }},
          {"expert table 1: layer 0 has a table already", [](Program& p) { p.expert_tables.push_back(p.expert_tables[0]); }},
          {"3 original indices for 4 experts", [](Program& p) { p.expert_tables[0].original.pop_back(); }},
          {"expert 1: original indices must rise", [](Program& p) { p.expert_tables[0].original[1] = 0; }},
          {"expert 3: original indices must rise", [](Program& p) { p.expert_tables[0].original[3] = kMaxExperts; }},
          {"0 inputs", [](Program& p) { p.inputs.clear(); }},
          {"2 inputs", [](Program& p) { p.inputs.push_back(0); }},
          {"input: value 9999 does not exist", [](Program& p) { p.inputs[0] = 9999; }},
          {"an input of floats takes max_positions 1 and no state slots", [](Program& p) { p.inputs[0] = 1; }},
          {"an input of floats takes max_positions 1 and no state slots",
           [](Program& p) {
             p.inputs[0] = 1;
             p.max_positions = 1;
           }},
          {"output: value 4294967295 does not exist", [](Program& p) { p.output = kNone; }},
          {"output is not a float value", [](Program& p) { p.output = 0; }},
          {"never produced",
           [](Program& p) {
             p.values.push_back({"spare", ValueKind::kFloat, 1});
           }},
          {"'spare' is never used",
           [](Program& p) {
             p.tensors.push_back({"spare", 1, 1, TensorRole::kOther, -1});
           }},
          {"expert table 1 is never used",
           [](Program& p) {
             p.expert_tables.push_back(p.expert_tables[0]);
             p.expert_tables[1].layer = 1;
           }},
          {"state slot 1 is never used", [](Program& p) { p.state_slots = 2; }},
      });
}

TEST(ValidateProgram, GraphRules) {
  ExpectRefused(ErrorCode::kMalformed,
                {
                    {"node 0 (embedding): block 1", [](Program& p) { p.nodes[0].block = 1; }},
                    {"block 2 after block 0", [](Program& p) { p.nodes[1].block = 2; }},
                    {"block 0 after block 1", [](Program& p) { p.nodes[2].block = 0; }},
                    {"block -1", [](Program& p) { p.nodes[0].block = -1; }},
                    {"more than 4096 inputs", [](Program& p) { NodeOf(p, NodeKind::kConcat).inputs.assign(4097, 1); }},
                    {"input value 9999 does not exist", [](Program& p) { p.nodes[1].inputs[0] = 9999; }},
                    {"reads value 2 before it is produced", [](Program& p) { p.nodes[1].inputs[0] = 2; }},
                    {"an embedding reads tokens", [](Program& p) { p.nodes[1].inputs[0] = 0; }},
                    {"output value 9999 does not exist", [](Program& p) { p.nodes[1].output = 9999; }},
                    {"value 1 is produced twice", [](Program& p) { p.nodes[1].output = 1; }},
                    {"value 0 is produced twice", [](Program& p) { p.nodes[0].output = 0; }},
                    {"unknown kind", [](Program& p) { NodeOf(p, NodeKind::kConcat).kind = static_cast<NodeKind>(99); }},
                    {"fields of another kind", [](Program& p) { p.nodes[0].slice.begin = 1; }},
                    {"fields of another kind", [](Program& p) { p.nodes[0].linear.weight = 0; }},
                    {"fields of another kind", [](Program& p) { p.nodes[1].rotary.inv_freq = {1}; }},
                    {"fields of another kind", [](Program& p) { p.nodes[1].moe.routing.k = 1; }},
                });
}

TEST(ValidateProgram, DenseNodes) {
  const auto linear = [](Program& p) -> Node& { return NodeOf(p, NodeKind::kLinear); };
  const auto norm = [](Program& p) -> Node& { return NodeOf(p, NodeKind::kNorm); };
  const auto rotary = [](Program& p) -> Node& { return NodeOf(p, NodeKind::kRotary); };
  ExpectRefused(
      ErrorCode::kMalformed,
      {
          {"table: tensor 4294967295 does not exist", [](Program& p) { p.nodes[0].embedding.table = kNone; }},
          {"table: tensor 'embed_tokens' is [16, 4], must be [16, 8]", [](Program& p) { p.tensors[0].cols = 4; }},
          {"(linear): has 2 inputs, must have 1",
           [&](Program& p) {
             linear(p).inputs = {1, 1};
           }},
          {"weight: tensor 4294967295 does not exist", [&](Program& p) { linear(p).linear.weight = kNone; }},
          {"weight: tensor 'layers.0.q_proj' is [8, 4], must be [8, 8]", [](Program& p) { p.tensors[2].cols = 4; }},
          {"bias: tensor 'layers.0.q_proj.bias' is [2, 8], must be [1, 8]", [](Program& p) { p.tensors[3].rows = 2; }},
          {"tensor 'layers.0.q_proj' belongs to block 1",
           [](Program& p) {
             p.nodes.back().linear.weight = 2;
             p.values[p.nodes.back().output].width = 8;
             p.nodes.back().inputs[0] = NodeOf(p, NodeKind::kEmbedding).output;
           }},
          {"unknown norm kind 2", [&](Program& p) { norm(p).norm.kind = static_cast<NormKind>(2); }},
          {"group must divide", [&](Program& p) { norm(p).norm.group = 3; }},
          {"group must divide", [&](Program& p) { norm(p).norm.group = 0; }},
          {"weight: tensor 'layers.0.input_layernorm' is [1, 8], must be [1, 4]",
           [&](Program& p) { norm(p).norm.group = 4; }},
          {"eps must be finite", [&](Program& p) { norm(p).norm.eps = kNaN; }},
          {"eps must be finite", [&](Program& p) { norm(p).norm.eps = -1; }},
          {"1 + weight without a weight",
           [&](Program& p) {
             norm(p).norm.one_plus_weight = true;
             norm(p).norm.weight = kNone;
           }},
          {"(norm): output is 4 wide, must be 8", [&](Program& p) { p.values[norm(p).output].width = 4; }},
          {"(rotary): input is 8 wide, must be 12", [&](Program& p) { rotary(p).rotary.heads = 3; }},
          {"(rotary): output is 4 wide, must be 8", [&](Program& p) { p.values[rotary(p).output].width = 4; }},
          {"rotary_dim must be even", [&](Program& p) { rotary(p).rotary.rotary_dim = 3; }},
          {"rotary_dim must be even", [&](Program& p) { rotary(p).rotary.rotary_dim = 0; }},
          {"rotary_dim must be even", [&](Program& p) { rotary(p).rotary.rotary_dim = 6; }},
          {"1 inverse frequencies", [&](Program& p) { rotary(p).rotary.inv_freq.pop_back(); }},
          {"inverse frequency is not finite", [&](Program& p) { rotary(p).rotary.inv_freq[1] = kInfinity; }},
          {"magnitude is not finite", [&](Program& p) { rotary(p).rotary.magnitude = kNaN; }},
      });
}

TEST(ValidateProgram, AttentionAndMoe) {
  const auto attention = [](Program& p) -> AttentionNode& { return NodeOf(p, NodeKind::kAttention).attention; };
  const auto moe = [](Program& p) -> MoeNode& { return NodeOf(p, NodeKind::kMoe).moe; };
  ExpectRefused(
      ErrorCode::kMalformed,
      {
          {"(attention): has 2 inputs, must have 3", [](Program& p) { NodeOf(p, NodeKind::kAttention).inputs.pop_back(); }},
          {"kv_heads must divide heads", [&](Program& p) { attention(p).kv_heads = 0; }},
          {"kv_heads must divide heads", [&](Program& p) { attention(p).heads = 0; }},
          {"kv_heads must divide heads", [&](Program& p) { attention(p).kv_heads = 3; }},
          {"q is 8 wide, must be 4", [&](Program& p) { attention(p).head_dim = 2; }},
          {"k is 4 wide, must be 8", [&](Program& p) { attention(p).kv_heads = 2; }},
          {"v is 8 wide, must be 4", [](Program& p) { NodeOf(p, NodeKind::kAttention).inputs[2] = 1; }},
          {"(attention): output is 4 wide", [](Program& p) { p.values[NodeOf(p, NodeKind::kAttention).output].width = 4; }},
          {"scale is not finite", [&](Program& p) { attention(p).scale = kInfinity; }},
          {"softcap must be finite", [&](Program& p) { attention(p).softcap = -1; }},
          {"state slot 1, only 1 declared", [&](Program& p) { attention(p).state_slot = 1; }},
          {"state slot 0 belongs to another node",
           [](Program& p) {
             Node again = NodeOf(p, NodeKind::kAttention);
             again.output = static_cast<ValueId>(p.values.size());
             p.values.push_back({"again", ValueKind::kFloat, 8});
             again.block = 2;
             p.nodes.push_back(again);
           }},
          {"(moe): has 1 inputs, must have 2", [](Program& p) { NodeOf(p, NodeKind::kMoe).inputs.pop_back(); }},
          {"expert table 1 does not exist", [&](Program& p) { moe(p).table = 1; }},
          {"hidden state is 8 wide, must be 4", [](Program& p) { p.expert_tables[0].hidden = 4; }},
          {"router logits is 8 wide, must be 4", [](Program& p) { NodeOf(p, NodeKind::kMoe).inputs[1] = 1; }},
          {"(moe): output is 4 wide", [](Program& p) { p.values[NodeOf(p, NodeKind::kMoe).output].width = 4; }},
          {"k is 0", [&](Program& p) { moe(p).routing.k = 0; }},
          {"k is 5", [&](Program& p) { moe(p).routing.k = 5; }},
          {"unknown score function", [&](Program& p) { moe(p).routing.score = static_cast<ScoreFunction>(3); }},
          {"routing eps", [&](Program& p) { moe(p).routing.eps = kNaN; }},
          {"routing scale", [&](Program& p) { moe(p).routing.scale = kInfinity; }},
          {"unknown activation", [&](Program& p) { moe(p).activation.function = static_cast<Activation>(5); }},
          {"gated differs", [&](Program& p) { moe(p).activation.gated = false; }},
          {"expert table 0 belongs to another moe",
           [](Program& p) {
             Node again = NodeOf(p, NodeKind::kMoe);
             again.output = static_cast<ValueId>(p.values.size());
             p.values.push_back({"again", ValueKind::kFloat, 8});
             again.block = 2;
             p.nodes.push_back(again);
           }},
      });
}

TEST(ValidateProgram, AttentionVariants) {
  const auto attention = [](Program& p) -> AttentionNode& { return NodeOf(p, NodeKind::kAttention).attention; };
  const auto rotary = [](Program& p) -> RotaryNode& { return NodeOf(p, NodeKind::kRotary).rotary; };
  ExpectRefused(ErrorCode::kMalformed,
                {
                    {"value_dim must differ", [&](Program& p) { attention(p).value_dim = 4; }},
                    {"v is 4 wide, must be 3", [&](Program& p) { attention(p).value_dim = 3; }},
                    {"sinks: tensor 'embed_tokens'", [&](Program& p) { attention(p).sinks = 0; }},
                    {"position_scale must be finite", [&](Program& p) { attention(p).position_scale = kNaN; }},
                    {"position_floor go together", [&](Program& p) { attention(p).position_scale = 0.1f; }},
                    {"position_floor go together", [&](Program& p) { attention(p).position_floor = 8; }},
                    {"reach past head_dim", [&](Program& p) { rotary(p).offset = 3; }},
                    {"without long_from", [&](Program& p) { rotary(p).long_magnitude = 1; }},
                    {"as many entries", [&](Program& p) { rotary(p).long_from = 8; }},
                    {"frequency of long sequences is not finite",
                     [&](Program& p) {
                       rotary(p).long_from = 8;
                       rotary(p).long_inv_freq.assign(rotary(p).inv_freq.size(), kNaN);
                     }},
                });
}

TEST(ValidateProgram, MoeVariants) {
  const auto moe = [](Program& p) -> MoeNode& { return NodeOf(p, NodeKind::kMoe).moe; };
  ExpectRefused(ErrorCode::kMalformed,
                {
                    {"without group_size", [&](Program& p) { moe(p).routing.top_groups = 1; }},
                    {"unknown group rule", [&](Program& p) { moe(p).routing.group_rule = static_cast<GroupRule>(2); }},
                    {"top_groups must be at least 1", [&](Program& p) { moe(p).routing.group_size = 2; }},
                    {"fewer than k experts",
                     [&](Program& p) {
                       moe(p).routing.group_size = 4;  // the tiny table has experts 0, 1, 3 and 7
                       moe(p).routing.top_groups = 1;
                     }},
                    {"mixer_eps is set wrongly", [&](Program& p) { moe(p).routing.mixer_eps = 0.01f; }},
                    {"a sparse mixer scores before",
                     [&](Program& p) {
                       moe(p).routing.score = ScoreFunction::kSparseMixer;
                       moe(p).routing.score_before_topk = false;
                     }},
                    {"selection bias: tensor 'embed_tokens'", [&](Program& p) { moe(p).selection_bias = 0; }},
                    {"biases of experts are all there or none", [&](Program& p) { moe(p).down_bias = 0; }},
                    {"limit must be finite", [&](Program& p) { moe(p).activation.limit = -1; }},
                    {"sigmoid_scale must be finite", [&](Program& p) { moe(p).activation.sigmoid_scale = kInfinity; }},
                    {"sigmoid_scale is for silu",
                     [&](Program& p) {
                       moe(p).activation.sigmoid_scale = 1.7f;
                       moe(p).activation.function = Activation::kRelu;
                     }},
                    {"up_offset is not finite", [&](Program& p) { moe(p).activation.up_offset = kNaN; }},
                });
}

TEST(ValidateProgram, ConcatOfHeadsAndConvolution) {
  const auto concat = [](Program& p) -> ConcatNode& { return NodeOf(p, NodeKind::kConcat).concat; };
  ExpectRefused(ErrorCode::kMalformed, {
                                           {"shared inputs without heads", [&](Program& p) { concat(p).shared = 1; }},
                                           {"at least one input must not be shared",
                                            [&](Program& p) {
                                              concat(p) = {2, 2};
                                            }},
                                           {"heads must divide every input", [&](Program& p) { concat(p).heads = 3; }},
                                           {"output is 16 wide, must be 24",
                                            [&](Program& p) {
                                              concat(p) = {2, 1};
                                            }},
                                           {"(convolution): has 2 inputs",
                                            [](Program& p) {
                                              Node& node = NodeOf(p, NodeKind::kConcat);
                                              node.kind = NodeKind::kConvolution;
                                            }},
                                       });
}

TEST(ValidateProgram, ElementwiseSliceConcat) {
  const auto clamp = [](Program& p) -> Node& { return p.nodes[p.nodes.size() - 3]; };
  const auto add = [](Program& p) -> Node& { return NodeOf(p, NodeKind::kElementwise); };
  ExpectRefused(
      ErrorCode::kMalformed,
      {
          {"unknown operation", [&](Program& p) { add(p).elementwise.op = static_cast<ElementOp>(9); }},
          {"(elementwise): has 1 inputs, must have 2", [&](Program& p) { add(p).inputs.pop_back(); }},
          {"(elementwise): has 2 inputs, must have 1", [&](Program& p) { add(p).elementwise.op = ElementOp::kSilu; }},
          {"(elementwise): output is 4 wide", [&](Program& p) { p.values[add(p).output].width = 4; }},
          {"second input is 4 wide, must be 8", [&](Program& p) { add(p).inputs[1] = p.nodes[4].output; }},
          {"alpha is not finite", [&](Program& p) { clamp(p).elementwise.alpha = kNaN; }},
          {"alpha of a clamp must be positive", [&](Program& p) { clamp(p).elementwise.alpha = 0; }},
          {"alpha is set but not used", [&](Program& p) { add(p).elementwise.alpha = 1; }},
          {"(slice): has 2 inputs", [](Program& p) { NodeOf(p, NodeKind::kSlice).inputs.push_back(1); }},
          {"reaches past the columns", [](Program& p) { NodeOf(p, NodeKind::kSlice).slice.begin = 7; }},
          {"reaches past the columns", [](Program& p) { NodeOf(p, NodeKind::kSlice).slice.begin = ~0ull; }},
          {"has no inputs", [](Program& p) { NodeOf(p, NodeKind::kConcat).inputs.clear(); }},
          {"(concat): output is 16 wide, must be 8", [](Program& p) { NodeOf(p, NodeKind::kConcat).inputs.pop_back(); }},
      });
}

// "embed_tokens" as the head's weight too.
Program TiedProgram() {
  Program p = TinyProgram();
  Node& head = p.nodes.back();
  head.inputs[0] = p.nodes[p.nodes.size() - 3].output;
  head.linear.weight = 0;
  p.tensors.pop_back();
  return p;
}

TEST(ValidateProgram, EmbeddingMayBeTheHeadOfALaterBlock) {
  const Status status = ValidateProgram(TiedProgram());
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST(Blocks, TensorsBelongToTheBlockOfTheirFirstUse) {
  const Program program = TiedProgram();
  EXPECT_EQ(program.blocks(), 3);
  EXPECT_THAT(TensorsOfBlock(program, 0), ElementsAre(0));
  ASSERT_EQ(program.tensors.back().name, "norm");
  EXPECT_THAT(TensorsOfBlock(program, 2), ElementsAre(program.tensors.size() - 1));
  EXPECT_EQ(TensorsOfBlock(program, 1).size(), program.tensors.size() - 2);
  EXPECT_EQ(ProducerOf(program, program.output)->output, program.output);
  EXPECT_EQ(ProducerOf(program, program.inputs[0]), nullptr);
  EXPECT_EQ(BlockOfTable(program, 0), 1);
  EXPECT_EQ(BlockOfTable(program, 1), -1);
}

TEST(CountParameters, DenseAndExpertsWithTheirOwnWidths) {
  ProgramBuilder b;
  b.Tensor("a", 3, 5, TensorRole::kOther);
  b.program.expert_tables.push_back({0, 8, {6, 4}, {0, 5}, true});
  b.program.expert_tables.push_back({1, 8, {10}, {0}, false});
  EXPECT_EQ(CountParameters(b.program), 15u + 3 * 8 * (6 + 4) + 2 * 8 * 10);
}

TEST(Names, ExpertsGoByTheirOriginalIndex) {
  EXPECT_EQ(ExpertTensorName(TinyProgram().expert_tables[0], 3, ExpertMatrix::kDown), "layers.0.experts.7.down_proj");
  EXPECT_STREQ(TensorRoleName(TensorRole::kSharedExpert), "shared_expert");
}

}  // namespace
}  // namespace moepack
