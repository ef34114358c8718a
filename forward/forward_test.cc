#include "forward/forward.h"

#include <gtest/gtest.h>

#include "forward/testing/naive_forward.h"
#include "forward/testing/toy_model.h"

namespace moepack {
namespace {

using testing::NaiveForward;
using testing::ToyProgram;
using testing::ToySource;
using testing::ToyVariants;

// Three layers that between them hold every node kind and most settings. Widths are odd on purpose where they may be.
Program EveryNode() {
  ToyProgram p;
  ValueId x = p.Embedding(37, 24);
  p.block = 1;
  ValueId h = p.Norm(x, {.kind = NormKind::kLayer, .group = 24, .eps = 1e-5f}, true, true);
  ValueId q = p.Rotary(p.Norm(p.Linear(h, 32, true), {.group = 8, .eps = 1e-6f, .one_plus_weight = true}),
                       {.heads = 4, .head_dim = 8, .rotary_dim = 6, .magnitude = 1.25f});
  ValueId kv = p.Linear(h, 32);
  ValueId k = p.Rotary(p.Slice(kv, 0, 16), {.heads = 2, .head_dim = 8, .rotary_dim = 8, .interleaved = true});
  ValueId v = p.Slice(kv, 16, 16);
  ValueId a = p.Attention(q, k, v, {.heads = 4, .kv_heads = 2, .head_dim = 8, .scale = 0.7f, .window = 5, .softcap = 3});
  x = p.Element2(ElementOp::kAdd, x, p.Linear(a, 24));
  h = p.Rms(x);
  ValueId m = p.Moe(h, {.k = 2, .renormalise = true, .eps = 1e-3f, .scale = 1.5f}, {}, {7, 9, 16, 8, 5});
  ValueId shared = p.Element2(ElementOp::kMul, p.Linear(p.Element(ElementOp::kGelu, p.Linear(h, 11)), 24),
                              p.Element(ElementOp::kSigmoid, p.Linear(h, 1)));
  x = p.Element2(ElementOp::kAdd, p.Element2(ElementOp::kAdd, x, m), shared);
  p.block = 2;
  a = p.Attention(p.Linear(x, 24), p.Linear(x, 24), p.Linear(x, 24),
                  {.heads = 3, .kv_heads = 3, .head_dim = 8, .scale = 0.35f});
  x = p.Element2(ElementOp::kAdd, x, p.Element(ElementOp::kScale, a, 0.5f));
  m = p.Moe(p.Norm(x, {.group = 24, .eps = 1e-6f}, false), {.score = ScoreFunction::kSigmoid, .k = 3},
            {.function = Activation::kGeluTanh, .gated = false}, {6, 6, 6, 6});
  p.block = 3;
  ValueId n = p.Moe(x, {.score_before_topk = false, .k = 2}, {.function = Activation::kRelu}, {8, 8, 8});
  ValueId parts =
      p.Concat({p.Element(ElementOp::kSilu, m), p.Element(ElementOp::kGeluTanh, n), p.Element(ElementOp::kRelu, x)});
  x = p.Element2(ElementOp::kAdd, p.Element(ElementOp::kClamp, p.Linear(parts, 24), 0.8f), p.Linear(x, 1));
  p.block = 4;
  p.program.output = p.Linear(p.Rms(x), 37);
  return p.program;
}

// A head that predicts fewer tokens than the model embeds: the others cannot be scored.
TEST(ForwardTest, ATargetWithoutALogitIsRefused) {
  ToyProgram p;
  p.program.output = p.Linear(p.Embedding(37, 24), 30);
  const std::vector<int32_t> tokens = {1, 2, 29, 3, 30, 4, 5, 6};
  const Result<TokenBatch> batch = ChunkBatch(p.program, std::span(tokens).first(4), EvalChunks(4, 4));
  ASSERT_TRUE(batch.ok()) << batch.status().message();
  EXPECT_EQ(batch->size(), 4u);
  const Result<TokenBatch> refused = ChunkBatch(p.program, tokens, EvalChunks(tokens.size(), 4));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), ErrorCode::kTokenizer);
  EXPECT_NE(refused.status().message().find("token 30"), std::string::npos) << refused.status().message();
}

TokenBatch Sequences(const std::vector<uint64_t>& lengths, int32_t vocabulary) {
  TokenBatch batch;
  uint64_t state = 99;
  for (uint64_t length : lengths) {
    batch.sequence_start.push_back(batch.tokens.size());
    for (uint64_t t = 0; t < length; ++t) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      batch.tokens.push_back(static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(vocabulary)));
    }
  }
  return batch;
}

Matrix RunAll(const Program& program, const TokenBatch& batch, int threads, Observer* observer = nullptr) {
  ThreadPool pool(threads);
  Forward forward(program, pool);
  const ToySource source(program);
  Matrix all(batch.size(), program.values[program.output].width);
  const Status status = forward.Run(
      source, batch,
      [&](uint64_t first, const Matrix& logits) {
        all.middleRows(first, logits.rows()) = logits;
        return Status::Ok();
      },
      NoProgress(), observer);
  EXPECT_TRUE(status.ok()) << status.message();
  return all;
}

void CheckAgainstNaive(const Program& program) {
  ASSERT_TRUE(ValidateProgram(program).ok()) << ValidateProgram(program).message();
  const TokenBatch batch = Sequences({19, 1, 9}, 37);
  const Matrix logits = RunAll(program, batch, 1);
  const ToySource source(program);
  NaiveForward naive(program, source);
  for (uint64_t s = 0; s < batch.sequences(); ++s) {
    const std::vector<int32_t> tokens(batch.tokens.begin() + batch.begin(s), batch.tokens.begin() + batch.end(s));
    const auto expected = naive.Run(tokens).values.at(program.output);
    for (size_t t = 0; t < tokens.size(); ++t) {
      for (size_t c = 0; c < expected[t].size(); ++c) {
        ASSERT_NEAR(logits(batch.begin(s) + t, c), expected[t][c], 2e-5)
            << "sequence " << s << " token " << t << " column " << c;
      }
    }
  }
}

TEST(ForwardTest, EveryNodeKindMatchesAPlainDoubleForward) { CheckAgainstNaive(EveryNode()); }
TEST(ForwardTest, EveryVariantMatchesAPlainDoubleForward) { CheckAgainstNaive(ToyVariants(37)); }

TEST(ForwardTest, ThreadsDoNotChangeABit) {
  for (const Program& program : {EveryNode(), ToyVariants(37)}) {
    // More than one tile, blocks of rows that do not divide, a sequence longer than an attention block.
    const TokenBatch batch = Sequences({700, 900, 333, 1000, 1, 300}, 37);
    const Matrix one = RunAll(program, batch, 1);
    EXPECT_TRUE(one.allFinite());
    for (int threads : {2, 5}) EXPECT_TRUE((RunAll(program, batch, threads).array() == one.array()).all()) << threads;
  }
}

TEST(ForwardTest, SequencesDoNotSeeEachOther) {
  const Program program = EveryNode();
  const TokenBatch both = Sequences({40, 60}, 37);
  TokenBatch second;
  second.tokens.assign(both.tokens.begin() + 40, both.tokens.end());
  second.sequence_start = {0};
  const Matrix alone = RunAll(program, second, 1);
  EXPECT_LT((RunAll(program, both, 1).bottomRows(60) - alone).cwiseAbs().maxCoeff(), 1e-5);
}

struct Recorder final : Observer {
  uint64_t linear_rows = 0, moe_tokens = 0, values = 0;
  std::vector<uint64_t> first_tokens;
  double worst = 0;
  const BlockWeights* weights = nullptr;
  bool wants_linear() const override { return true; }
  bool wants_moe() const override { return true; }
  bool wants_values() const override { return true; }
  void OnLinear(const Node&, uint64_t, const Matrix& in, const Matrix& out) override {
    EXPECT_EQ(in.rows(), out.rows());
    linear_rows += in.rows();
  }
  void OnValue(const Node&, uint64_t, const Matrix&) override { ++values; }
  void OnMoe(const MoeCapture& capture) override {
    first_tokens.push_back(capture.first_token);
    moe_tokens += capture.input->rows();
    const uint32_t k = capture.node->moe.routing.k;
    EXPECT_EQ(capture.ids.size(), static_cast<size_t>(capture.input->rows()) * k);
    size_t routed = 0;
    for (const ExpertCapture& expert : capture.experts) {
      routed += expert.rows.size();
      for (size_t i = 0; i < expert.rows.size(); ++i) {
        const uint32_t row = expert.rows[i];
        EXPECT_TRUE((expert.input.row(i).array() == capture.input->row(row).array()).all());
        bool found = false;
        for (uint32_t s = 0; s < k; ++s) {
          found |= capture.ids[row * k + s] == expert.expert && capture.weights[row * k + s] == expert.gates[i];
        }
        EXPECT_TRUE(found);
      }
      const Matrix expected = expert.down_input * Down(capture.node->moe.table, expert.expert).transpose();
      worst = std::max<double>(worst, (expected - expert.output).cwiseAbs().maxCoeff());
    }
    EXPECT_EQ(routed, capture.ids.size());
  }
  const Program* program = nullptr;
  Matrix Down(uint32_t table, uint32_t e) const {
    const auto values = ToySource(*program).LoadExpert(table, e, ExpertMatrix::kDown).value();
    const ExpertTableDecl& t = program->expert_tables[table];
    return Eigen::Map<const Matrix>(values.data(), t.hidden, t.intermediate[e]);
  }
};

TEST(ForwardTest, ObserversSeeEveryTokenOnceInOrder) {
  const Program program = EveryNode();
  const TokenBatch batch = Sequences({1500, 900, 30}, 37);
  Recorder recorder;
  recorder.program = &program;
  const Matrix observed = RunAll(program, batch, 2, &recorder);
  EXPECT_TRUE((observed.array() == RunAll(program, batch, 1).array()).all()) << "observing must not change results";
  const uint64_t linears =
      std::count_if(program.nodes.begin(), program.nodes.end(), [](const Node& n) { return n.kind == NodeKind::kLinear; });
  EXPECT_EQ(recorder.linear_rows, linears * batch.size());
  EXPECT_EQ(recorder.moe_tokens, program.expert_tables.size() * batch.size());
  EXPECT_GE(recorder.values, program.nodes.size());
  EXPECT_LT(recorder.worst, 1e-5);
}

// What came into the nodes of one kind, and into the experts of even index.
struct InputsOf : Observer {
  explicit InputsOf(NodeKind k) : kind(k) {}
  bool wants_linear() const override { return kind == NodeKind::kLinear; }
  bool wants_moe() const override { return kind == NodeKind::kMoe; }
  bool wants_expert(uint32_t, uint32_t expert) const override { return expert % 2 == 0; }
  void OnLinear(const Node& node, uint64_t first, const Matrix& input, const Matrix& output) override {
    seen[{&node, first, 0, 0}] = input;
    outputs += output.size() > 0;
  }
  void OnMoe(const MoeCapture& capture) override {
    for (const ExpertCapture& expert : capture.experts) {
      all_even = all_even && expert.expert % 2 == 0;
      if (expert.expert % 2 != 0) continue;
      seen[{capture.node, capture.first_token, expert.expert, 0}] = expert.input;
      seen[{capture.node, capture.first_token, expert.expert, 1}] = expert.down_input;
      outputs += expert.output.size() > 0;
    }
  }
  NodeKind kind;
  std::map<std::tuple<const Node*, uint64_t, uint32_t, int>, Matrix> seen;
  int outputs = 0;
  bool all_even = true;
};

TEST(ForwardTest, ObserveShowsTheSameInputsAndComputesNoMoreThanTheyNeed) {
  for (const Program& program : {EveryNode(), ToyVariants(37)}) {
    ThreadPool pool(2);
    Forward forward(program, pool);
    const ToySource source(program);
    const TokenBatch batch = Sequences({2100, 7, 300}, 37);
    Stream stream;
    const int32_t last = program.blocks() - 1;
    for (int32_t block = 0; block <= last; ++block) {
      const auto weights = BlockWeights::Load(program, source, block, pool);
      ASSERT_TRUE(weights.ok());
      for (NodeKind kind : {NodeKind::kLinear, NodeKind::kMoe}) {
        InputsOf whole(kind), part(kind);
        Stream copy = stream;
        const auto ignored = [](uint64_t, const Matrix&) { return Status::Ok(); };
        ASSERT_TRUE((block == last ? forward.RunLastBlock(*weights, batch, copy, ignored, &whole)
                                   : forward.RunBlock(block, *weights, batch, &copy, &whole))
                        .ok());
        ASSERT_TRUE(forward.Observe(block, *weights, batch, stream, &part).ok());
        EXPECT_EQ(part.seen, whole.seen) << block;
        EXPECT_TRUE(part.outputs == 0 || part.outputs < whole.outputs) << block;
        const auto later = [&](const Node& n) { return n.block == block && n.kind == NodeKind::kMoe; };
        const bool last_moe = std::count_if(program.nodes.begin(), program.nodes.end(), later) == 1;
        EXPECT_TRUE(kind != NodeKind::kMoe || !last_moe || (part.all_even && part.outputs == 0)) << block;
      }
      if (block < last) {
        ASSERT_TRUE(forward.RunBlock(block, *weights, batch, &stream).ok());
      }
    }
  }
}

TEST(ForwardTest, StreamHoldsOnlyWhatLaterBlocksRead) {
  const Program program = EveryNode();
  const TokenBatch batch = Sequences({50}, 37);
  ThreadPool pool(1);
  Forward forward(program, pool);
  const ToySource source(program);
  Stream stream;
  for (int32_t block = 0; block + 1 < program.blocks(); ++block) {
    auto weights = BlockWeights::Load(program, source, block, pool);
    ASSERT_TRUE(weights.ok());
    ASSERT_TRUE(forward.RunBlock(block, *weights, batch, &stream).ok());
    EXPECT_EQ(stream.values.size(), block == 2 ? 2u : 1u) << "after block " << block;
  }
}

TEST(ForwardTest, RefusesTokensAndSequencesTheModelCannotTake) {
  Program program = EveryNode();
  ThreadPool pool(1);
  const ToySource source(program);
  const auto run = [&](const TokenBatch& batch) {
    return Forward(program, pool)
        .Run(
            source, batch, [](uint64_t, const Matrix&) { return Status::Ok(); }, NoProgress());
  };
  TokenBatch batch = Sequences({5}, 37);
  batch.tokens[3] = 37;
  EXPECT_EQ(run(batch).code(), ErrorCode::kBadInput);
  batch.tokens[3] = -1;
  EXPECT_EQ(run(batch).code(), ErrorCode::kBadInput);
  program.max_positions = 4;
  EXPECT_EQ(run(Sequences({5}, 37)).code(), ErrorCode::kBadInput);
  EXPECT_TRUE(run(Sequences({4}, 37)).ok());
}

TEST(RouteTest, TiesGoToTheLowerIndex) {
  std::vector<uint32_t> ids(3);
  std::vector<float> weights(3);
  const std::vector<float> logits = {1, 3, 2, 3, 2};
  Route({.k = 3}, {}, logits, ids, weights);
  EXPECT_EQ(ids, (std::vector<uint32_t>{1, 3, 2}));
  EXPECT_GT(weights[0], weights[2]);
}

TEST(RouteTest, SaturatedSigmoidStillPrefersTheLargerLogit) {
  std::vector<uint32_t> ids(1);
  std::vector<float> weights(1);
  const std::vector<float> logits = {60, 70, 65};
  Route({.score = ScoreFunction::kSigmoid, .k = 1}, {}, logits, ids, weights);
  EXPECT_EQ(ids[0], 1u);
  EXPECT_FLOAT_EQ(weights[0], 1.0f);
}

}  // namespace
}  // namespace moepack
