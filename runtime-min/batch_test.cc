// Several sequences in one engine.
#include <gtest/gtest.h>

#include <cmath>

#include "runtime-min/engine.h"
#include "runtime-min/testing/toy_engine.h"

namespace moepack::runtime {
namespace {

using testing::kToyVocabulary;
using testing::ToyTokens;
using testing::ToyUnits;

constexpr size_t kTokens = 75;  // more than two blocks of positions, windows and chunks

// Text number `which`: all different from the first token on.
std::vector<int32_t> Text(int32_t which, size_t tokens = kTokens) {
  std::vector<int32_t> text = ToyTokens(tokens);
  for (int32_t& token : text) token = (token + 11 * which) % static_cast<int32_t>(kToyVocabulary);
  return text;
}

std::unique_ptr<Engine> MakeEngine(const Program& program, ThreadPool& pool, EngineOptions options) {
  options.logit_rows = options.tile_tokens;
  options.context = 256;
  auto engine = Engine::Create(ToyUnits(program, "i8g64"), pool, options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(*engine) : nullptr;
}

// Logits of every token of `text`, alone in an engine and token by token.
std::vector<float> Alone(const Program& program, const std::vector<int32_t>& text, KvFormat kv = KvFormat::kF32) {
  ThreadPool pool(1);
  return testing::AllLogits(*MakeEngine(program, pool, {.kv = kv}), text, 1);
}

// Logits of all tokens that `id` is given, in pieces.
std::vector<float> Continue(Engine& engine, SequenceId id, std::span<const int32_t> tokens, size_t piece) {
  std::vector<float> all;
  for (; !tokens.empty(); tokens = tokens.subspan(std::min(piece, tokens.size()))) {
    const auto part = tokens.first(std::min(piece, tokens.size()));
    const Status status = engine.Run(part, static_cast<uint32_t>(part.size()), id);
    EXPECT_TRUE(status.ok()) << status.message();
    all.insert(all.end(), engine.logits().begin(), engine.logits().end());
  }
  return all;
}

std::vector<float> Rows(const std::vector<float>& logits, size_t begin, size_t end) {
  return {logits.begin() + static_cast<ptrdiff_t>(begin * kToyVocabulary),
          logits.begin() + static_cast<ptrdiff_t>(end * kToyVocabulary)};
}

const std::vector<Program>& Programs() {
  static const std::vector<Program> programs = {testing::ToyLanguageModel(), testing::ToyVariants(kToyVocabulary)};
  return programs;
}

// Four texts in steps of 1, 3, 5 and 16 tokens, in an order that changes, of which every other one wants logits of its last
// token only.
void CheckBatch(const Program& program, ThreadPool& pool, uint64_t expert_ram, KvFormat kv) {
  constexpr size_t kSteps[] = {1, 3, 5, 16};
  const auto engine =
      MakeEngine(program, pool, {.expert_ram_bytes = expert_ram, .tile_tokens = 32, .sequences = 4, .kv = kv});
  std::vector<SequenceId> ids = {kFirstSequence};
  while (ids.size() < 4) ids.push_back(engine->OpenSequence().value());
  std::vector<std::vector<int32_t>> texts;
  std::vector<std::vector<float>> expected;
  for (int32_t i = 0; i < 4; ++i) texts.push_back(Text(i));
  for (const auto& text : texts) expected.push_back(Alone(program, text, kv));
  for (size_t round = 0; engine->position(ids[0]) < 20; ++round) {
    std::vector<SequenceTokens> batch;
    for (size_t i = 0; i < 4; ++i) {
      const size_t s = (i + round) % 4, at = engine->position(ids[s]), count = std::min(kSteps[s], kTokens - at);
      const std::span<const int32_t> tokens = std::span(texts[s]).subspan(at, count);
      if (count > 0) batch.push_back({ids[s], tokens, s % 2 == 0 ? static_cast<uint32_t>(count) : 1});
    }
    const Status status = engine->RunBatch(batch);
    ASSERT_TRUE(status.ok()) << status.message();
    const std::vector<float> logits(engine->logits().begin(), engine->logits().end());
    size_t row = 0;
    for (const SequenceTokens& part : batch) {
      const size_t end = engine->position(part.sequence);
      const size_t s = static_cast<size_t>(std::find(ids.begin(), ids.end(), part.sequence) - ids.begin());
      EXPECT_EQ(Rows(logits, row, row + part.logit_rows), Rows(expected[s], end - part.logit_rows, end))
          << "text " << s << " up to " << end;
      row += part.logit_rows;
    }
    ASSERT_EQ(logits.size(), row * kToyVocabulary);
  }
}

TEST(Batch, LogitsDoNotDependOnTheOtherSequences) {
  ThreadPool one(1), two(2);
  for (const Program& program : Programs()) {
    for (ThreadPool* pool : {&one, &two}) {
      CheckBatch(program, *pool, kAllExperts, KvFormat::kF32);
      CheckBatch(program, *pool, kAllExperts, KvFormat::kI8);
      CheckBatch(program, *pool, MakeEngine(program, *pool, {})->experts().minimum_bytes(), KvFormat::kF32);
    }
  }
}

TEST(Batch, EightBitKeysAndValuesStayCloseInAQuarterOfTheMemory) {
  ThreadPool pool(2);
  for (const Program& program : Programs()) {
    const std::vector<float> full = Alone(program, Text(0)), eight = Alone(program, Text(0), KvFormat::kI8);
    double error = 0, power = 0;
    for (size_t i = 0; i < full.size(); ++i) {
      error += std::pow(full[i] - eight[i], 2);
      power += std::pow(full[i], 2);
    }
    EXPECT_GT(error, 0.0);
    EXPECT_LT(error, 0.1 * 0.1 * power) << "a token here and there goes to another expert";
  }
  // Heads of 12 columns: a scale for 12 codes.
  const auto bytes = [&](KvFormat kv) {
    return static_cast<double>(MakeEngine(Programs()[0], pool, {.kv = kv})->state_bytes());
  };
  EXPECT_DOUBLE_EQ(bytes(KvFormat::kI8) / bytes(KvFormat::kF32), 16.0 / 48);
}

TEST(Batch, ASequenceForkedFromAnotherGoesOnAsIfItHadBeenComputed) {
  ThreadPool pool(2);
  for (const Program& program : Programs()) {
    const bool convolutions = &program == &Programs()[1];
    for (const size_t shared : {1u, 31u, 32u, 40u, 64u, 70u}) {
      const auto engine = MakeEngine(program, pool, {.sequences = 3});
      const size_t there = convolutions ? shared : 70;
      const std::vector<int32_t> trunk = Text(0), branch = [&] {
        std::vector<int32_t> text(trunk.begin(), trunk.begin() + static_cast<ptrdiff_t>(shared));
        const std::vector<int32_t> other = Text(3, 40);
        text.insert(text.end(), other.begin(), other.end());
        return text;
      }();
      Continue(*engine, kFirstSequence, std::span(trunk).first(there), 16);
      const SequenceId a = engine->ForkSequence(kFirstSequence, static_cast<uint32_t>(shared)).value();
      const SequenceId b = engine->ForkSequence(a, static_cast<uint32_t>(shared)).value();
      EXPECT_EQ(engine->position(a), shared);
      // In turn, so that each could disturb the others.
      const std::vector<float> branched = Alone(program, branch), straight = Alone(program, trunk);
      EXPECT_EQ(Continue(*engine, a, std::span(branch).subspan(shared), 7), Rows(branched, shared, branch.size()));
      EXPECT_EQ(Continue(*engine, kFirstSequence, std::span(trunk).subspan(there), 3), Rows(straight, there, kTokens));
      EXPECT_EQ(Continue(*engine, b, std::span(trunk).subspan(shared), 5), Rows(straight, shared, kTokens));
    }
  }
}

TEST(Batch, SharedTokensTakeMemoryOnce) {
  ThreadPool pool(1);
  const auto engine = MakeEngine(Programs()[0], pool, {.sequences = 8});
  EXPECT_EQ(engine->used_state_bytes(), 0u);
  ASSERT_TRUE(engine->Prefill(Text(0, 64)).ok());
  const uint64_t prefix = engine->used_state_bytes();
  EXPECT_EQ(engine->state_bytes(), prefix / 2 * 8 * 8) << "two blocks of 8, in 8 sequences";
  std::vector<SequenceId> ids;
  for (int i = 0; i < 7; ++i) ids.push_back(engine->ForkSequence(kFirstSequence, 64).value());
  EXPECT_EQ(engine->used_state_bytes(), prefix);
  for (const SequenceId id : ids) ASSERT_TRUE(engine->Run(Text(1, 1), 1, id).ok());
  EXPECT_EQ(engine->used_state_bytes(), prefix + 7 * prefix / 2);
  for (const SequenceId id : ids) ASSERT_TRUE(engine->ReleaseSequence(id).ok());
  EXPECT_EQ(engine->used_state_bytes(), prefix);
}

TEST(Batch, AModelWithConvolutionsIsForkedAtItsEndOnly) {
  ThreadPool pool(1);
  const auto engine = MakeEngine(Programs()[1], pool, {.sequences = 2});
  ASSERT_TRUE(engine->Prefill(Text(0, 10)).ok());
  EXPECT_EQ(engine->ForkSequence(kFirstSequence, 9).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(engine->ForkSequence(kFirstSequence, 11).status().code(), ErrorCode::kUsage);
  EXPECT_TRUE(engine->ForkSequence(kFirstSequence, 10).ok());
}

TEST(Batch, SequencesAreOpenedAndReleasedByTheirIds) {
  ThreadPool pool(1);
  const auto engine = MakeEngine(Programs()[0], pool, {.sequences = 2});
  const SequenceId id = engine->OpenSequence().value();
  EXPECT_EQ(engine->OpenSequence().status().code(), ErrorCode::kLimit);
  EXPECT_EQ(engine->ForkSequence(kFirstSequence, 0).status().code(), ErrorCode::kLimit);
  ASSERT_TRUE(engine->Run(Text(0, 5), 1, id).ok());
  EXPECT_EQ(engine->position(id), 5u);
  EXPECT_EQ(engine->position(), 0u);
  ASSERT_TRUE(engine->ReleaseSequence(id).ok());
  EXPECT_EQ(engine->Run(Text(0, 5), 1, id).code(), ErrorCode::kUsage);
  EXPECT_EQ(engine->ReleaseSequence(id).code(), ErrorCode::kUsage);
  EXPECT_EQ(engine->ResetSequence(7).code(), ErrorCode::kUsage);
  EXPECT_EQ(engine->ForkSequence(id, 0).status().code(), ErrorCode::kUsage);
  EXPECT_EQ(engine->ReleaseSequence(kFirstSequence).code(), ErrorCode::kUsage);
  EXPECT_EQ(engine->OpenSequence().value(), id);
  EXPECT_EQ(engine->position(id), 0u);
  for (const uint32_t sequences : {0u, 17u}) {
    const auto refused = Engine::Create(ToyUnits(Programs()[0], "f32"), pool, {.tile_tokens = 16, .sequences = sequences});
    EXPECT_EQ(refused.status().code(), ErrorCode::kUsage);
  }
}

TEST(Batch, ARefusedBatchLeavesEverySequence) {
  ThreadPool pool(1);
  const auto engine = MakeEngine(Programs()[0], pool, {.tile_tokens = 16, .sequences = 2, .state_tokens = 96});
  const SequenceId other = engine->OpenSequence().value();
  const std::vector<int32_t> text = Text(0), bad = {5, -1};
  const auto refused = [&](const std::vector<SequenceTokens>& batch) {
    const uint32_t before[] = {engine->position(), engine->position(other)};
    const uint64_t used = engine->used_state_bytes();
    const Status status = engine->RunBatch(batch);
    EXPECT_EQ(engine->position(), before[0]);
    EXPECT_EQ(engine->position(other), before[1]);
    EXPECT_EQ(engine->used_state_bytes(), used);
    return status.code();
  };
  const auto some = [&](size_t count) { return std::span(text).first(count); };
  EXPECT_EQ(refused({}), ErrorCode::kUsage);
  EXPECT_EQ(refused({{kFirstSequence, some(1)}, {kFirstSequence, some(1)}}), ErrorCode::kUsage);
  EXPECT_EQ(refused({{kFirstSequence, some(9)}, {other, some(8)}}), ErrorCode::kUsage);
  EXPECT_EQ(refused({{kFirstSequence, some(1)}, {other, {}}}), ErrorCode::kUsage);
  EXPECT_EQ(refused({{kFirstSequence, some(1), 2}}), ErrorCode::kUsage);
  EXPECT_EQ(refused({{kFirstSequence, some(1)}, {other, bad}}), ErrorCode::kBadInput);
  // Three blocks for both: the second of these two finds none.
  ASSERT_TRUE(engine->Prefill(some(64)).ok());
  ASSERT_TRUE(engine->Prefill(some(32), other).ok());
  EXPECT_EQ(refused({{other, some(1)}}), ErrorCode::kLimit);
  ASSERT_TRUE(engine->ResetSequence(other).ok());
  EXPECT_EQ(refused({{kFirstSequence, some(1)}, {other, some(1)}}), ErrorCode::kLimit);
  EXPECT_TRUE(engine->Run(some(1), 1).ok());
}

// After some tokens, in the memory of one token's experts: what is loaded for the batch cannot be there before.
TEST(Batch, ADamagedExpertFailsTheBatchAndLeavesEverySequence) {
  constexpr size_t kBefore = 9;
  ThreadPool pool(2);
  for (const Program& program : Programs()) {
    auto source = ToyUnits(program, "i8g64");
    testing::FakeSource* units = source.get();
    const uint64_t ram = MakeEngine(program, pool, {})->experts().minimum_bytes();
    const auto engine =
        Engine::Create(std::move(source), pool, {.expert_ram_bytes = ram, .context = 256, .logit_rows = 21, .sequences = 2});
    ASSERT_TRUE(engine.ok());
    const std::vector<int32_t> text = Text(0);
    const SequenceId other = (*engine)->OpenSequence().value();
    ASSERT_TRUE((*engine)->Prefill(std::span(text).first(kBefore)).ok());
    const uint64_t used = (*engine)->used_state_bytes();
    const std::vector<SequenceTokens> batch = {{kFirstSequence, std::span(text).subspan(kBefore, 20), 20},
                                               {other, std::span(text).first(7)}};
    for (uint32_t e = 0; e < 7; ++e) units->broken.insert({1, e});
    EXPECT_EQ((*engine)->RunBatch(batch).code(), ErrorCode::kDigest);
    EXPECT_EQ((*engine)->position(), kBefore);
    EXPECT_EQ((*engine)->position(other), 0u);
    EXPECT_EQ((*engine)->used_state_bytes(), used);
    units->broken.clear();
    ASSERT_TRUE((*engine)->RunBatch(batch).ok());
    const std::vector<float> logits((*engine)->logits().begin(), (*engine)->logits().end()), alone = Alone(program, text);
    EXPECT_EQ(Rows(logits, 0, 20), Rows(alone, kBefore, kBefore + 20));
    EXPECT_EQ(Rows(logits, 20, 21), Rows(alone, 6, 7));
  }
}

}  // namespace
}  // namespace moepack::runtime
