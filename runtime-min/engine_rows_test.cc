// Models whose input is rows of floats: each row is a sequence of its own, without state.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using moepack::testing::ToyUnits;
using ::testing::HasSubstr;

constexpr uint64_t kFeatures = 7, kClasses = 5;

// The rows are read by the first block and by the last.
Program RowProgram() {
  moepack::testing::ToyProgram p;
  p.program.values[0] = {"rows", ValueKind::kFloat, kFeatures};
  p.block = 0;
  const ValueId h = p.Element(ElementOp::kRelu, p.Linear(0, 12, true));
  ++p.block;
  const ValueId routed = p.Moe(h, {.k = 2}, {Activation::kRelu, false}, {9, 16, 5});
  const ValueId sum = p.Element2(ElementOp::kAdd, h, routed);
  ++p.block;
  p.program.output = p.Linear(p.Concat({sum, 0}), kClasses);
  p.program.max_positions = 1;
  return std::move(p.program);
}

std::vector<float> Rows(size_t count) {
  std::vector<float> rows(count * kFeatures);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(static_cast<int>(i * 37 % 23) - 11) / 8;
  return rows;
}

std::unique_ptr<Engine> MustCreate(const Program& program, ThreadPool& pool, uint32_t tile) {
  EngineOptions options;
  options.tile_tokens = tile;
  auto engine = Engine::Create(ToyUnits(program, "f32"), pool, options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

std::vector<float> Logits(Engine& engine, const std::vector<float>& rows, size_t piece) {
  std::vector<float> all;
  for (size_t at = 0; at < rows.size(); at += piece * kFeatures) {
    const auto part = std::span(rows).subspan(at, std::min(piece * kFeatures, rows.size() - at));
    const Status status = engine.RunRows(part);
    EXPECT_TRUE(status.ok()) << status.message();
    all.insert(all.end(), engine.logits().begin(), engine.logits().end());
  }
  return all;
}

TEST(EngineRows, LogitsDoNotDependOnTheTile) {
  const Program program = RowProgram();
  ASSERT_TRUE(ValidateProgram(program).ok()) << ValidateProgram(program).message();
  ThreadPool pool(2);
  const std::vector<float> rows = Rows(21);
  const auto engine = MustCreate(program, pool, 8), one = MustCreate(program, pool, 1);
  EXPECT_EQ(engine->input_width(), kFeatures);
  const std::vector<float> logits = Logits(*engine, rows, 8);
  ASSERT_EQ(logits.size(), 21 * kClasses);
  EXPECT_EQ(logits, Logits(*one, rows, 1));
  EXPECT_EQ(logits, Logits(*engine, rows, 3)) << "nothing is remembered of earlier rows";
}

TEST(EngineRows, TokensAndRowsAreNotMixedUp) {
  const Program program = RowProgram();
  ThreadPool pool(1);
  const auto engine = MustCreate(program, pool, 4);
  const int32_t token = 1;
  EXPECT_THAT(engine->Run({&token, 1}).message(), HasSubstr("the model takes rows of 7 numbers, not tokens"));
  for (const size_t values : {0u, 6u, 8u, 35u}) {
    ASSERT_TRUE(engine->RunRows(std::vector<float>(7)).ok());
    EXPECT_FALSE(engine->logits().empty());
    EXPECT_EQ(engine->RunRows(std::vector<float>(values)).code(), ErrorCode::kUsage) << values;
    EXPECT_TRUE(engine->logits().empty()) << "those of the rows before";
  }
  const auto text = Engine::Create(ToyUnits(moepack::testing::ToyLanguageModel(), "f32"), pool, {});
  ASSERT_TRUE(text.ok());
  EXPECT_THAT((*text)->RunRows(std::vector<float>(7)).message(), HasSubstr("the model takes tokens"));
}

}  // namespace
}  // namespace moepack::runtime
