#include "runtime-min/saved_sequence.h"

#include <gtest/gtest.h>

#include "base/digest/sha256.h"
#include "runtime-min/engine.h"
#include "runtime-min/testing/toy_engine.h"
#include "verify/testing/tiny_bundle.h"

namespace moepack::runtime {
namespace {

using testing::MemoryFile;
using testing::ToyTokens;
using testing::ToyUnits;

constexpr size_t kSaved = 70, kTokens = 90, kHead = 72;
constexpr int32_t kNext[] = {3, 96};

std::unique_ptr<Engine> MakeEngine(const Program& program, ThreadPool& pool, EngineOptions options, uint8_t manifest = 7) {
  if (options.context == 0) options.context = 256;
  options.logit_rows = 256;
  auto source = ToyUnits(program, "i8g64");
  source->manifest.fill(manifest);
  auto engine = Engine::Create(std::move(source), pool, options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(*engine) : nullptr;
}

Bytes Save(const Engine& engine, SequenceId id = kFirstSequence) {
  Bytes bytes;
  const Status status = engine.SaveSequence(id, kNext, [&](ByteSpan piece) {
    bytes.insert(bytes.end(), piece.begin(), piece.end());
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  return bytes;
}

Result<std::vector<int32_t>> Restore(Engine& engine, const Bytes& bytes, SequenceId id = kFirstSequence) {
  return engine.RestoreSequence(id, MemoryFile(bytes));
}

std::vector<float> Rest(Engine& engine, SequenceId id = kFirstSequence) {
  const std::vector<int32_t> tokens = ToyTokens(kTokens);
  EXPECT_TRUE(engine.Run(std::span(tokens).subspan(kSaved), kTokens - kSaved, id).ok());
  return {engine.logits().begin(), engine.logits().end()};
}

// A file with another number at `offset`, and the digest that fits it.
Bytes With(Bytes bytes, size_t offset, uint32_t value) {
  for (size_t i = 0; i < 4; ++i) bytes[offset + i] = static_cast<uint8_t>(value >> (8 * i));
  const Digest digest = Sha256(ByteSpan(bytes).first(bytes.size() - 32));
  std::copy(digest.begin(), digest.end(), bytes.end() - 32);
  return bytes;
}

TEST(SavedSequence, GoesOnWithTheSameBitsInAnotherEngine) {
  ThreadPool one(1), two(2);
  for (const Program& program : {testing::ToyLanguageModel(), testing::ToyVariants(testing::kToyVocabulary)}) {
    for (const KvFormat kv : {KvFormat::kF32, KvFormat::kI8}) {
      const auto engine = MakeEngine(program, two, {.kv = kv});
      ASSERT_TRUE(engine->Prefill(ToyTokens(kSaved)).ok());
      const Bytes saved = Save(*engine);
      const std::vector<float> expected = Rest(*engine);
      // Other tiles and threads, beside a sequence whose blocks lie between.
      const auto other = MakeEngine(program, one, {.tile_tokens = 32, .sequences = 2, .kv = kv});
      ASSERT_TRUE(other->Prefill(ToyTokens(40)).ok());
      const SequenceId id = other->OpenSequence().value();
      const auto next = Restore(*other, saved, id);
      ASSERT_TRUE(next.ok()) << next.status().message();
      EXPECT_EQ(*next, std::vector<int32_t>(std::begin(kNext), std::end(kNext)));
      EXPECT_EQ(other->position(id), kSaved);
      EXPECT_EQ(Save(*other, id), saved) << "the same sequence is the same bytes wherever its blocks lie";
      EXPECT_EQ(Rest(*other, id), expected);
      EXPECT_EQ(other->position(), 40u);
    }
  }
}

TEST(SavedSequence, AnEmptyOneIsEmpty) {
  ThreadPool pool(1);
  const auto engine = MakeEngine(testing::ToyVariants(testing::kToyVocabulary), pool, {});
  ASSERT_TRUE(Restore(*engine, Save(*engine)).ok());
  EXPECT_EQ(engine->position(), 0u);
  ASSERT_TRUE(engine->Prefill(ToyTokens(9)).ok());
  EXPECT_EQ(Restore(*engine, Save(*engine)).status().code(), ErrorCode::kUsage) << "not over a sequence in use";
}

class HostileState : public ::testing::Test {
 protected:
  HostileState() {
    const auto engine = MakeEngine(program_, pool_, {});
    EXPECT_TRUE(engine->Prefill(ToyTokens(kSaved)).ok());
    saved_ = Save(*engine);
    expected_ = Rest(*engine);
  }

  // Refused with `code` and a message that has `text`; the engine is as before.
  void ExpectRefused(const Bytes& bytes, ErrorCode code, const std::string& text, EngineOptions options = {},
                     uint8_t manifest = 7) {
    const auto engine = MakeEngine(program_, pool_, options, manifest);
    const auto next = Restore(*engine, bytes);
    EXPECT_EQ(next.status().code(), code) << next.status().message();
    EXPECT_NE(next.status().message().find("tiny.moeb: "), std::string::npos) << next.status().message();
    EXPECT_NE(next.status().message().find(text), std::string::npos) << next.status().message();
    EXPECT_EQ(engine->position(), 0u);
    EXPECT_EQ(engine->used_state_bytes(), MakeEngine(program_, pool_, options)->used_state_bytes());
    if (options.kv != KvFormat::kF32 || options.context != 0 || manifest != 7) return;
    ASSERT_TRUE(Restore(*engine, saved_).ok());
    EXPECT_EQ(Rest(*engine), expected_);
  }

  Program program_ = testing::ToyVariants(testing::kToyVocabulary);
  ThreadPool pool_{1};
  Bytes saved_;
  std::vector<float> expected_;
};

TEST_F(HostileState, OfAnotherModelOrOtherOptionsIsRefused) {
  ExpectRefused(saved_, ErrorCode::kBadInput, "its own bundle", {}, 8);
  ExpectRefused(saved_, ErrorCode::kUsage, "of 32 bits, not 8", {.kv = KvFormat::kI8});
  ExpectRefused(saved_, ErrorCode::kLimit, "the context holds 69", {.context = kSaved - 1});
  Bytes empty;
  {
    const auto engine = MakeEngine(program_, pool_, {});
    empty = Save(*engine);
  }
  ExpectRefused(empty, ErrorCode::kUsage, "LongRoPE", {.context = 10});
}

TEST_F(HostileState, DamageIsFound) {
  for (size_t at = kHead; at < saved_.size(); at += 997) {
    Bytes damaged = saved_;
    damaged[at] ^= 16;
    ExpectRefused(damaged, ErrorCode::kDigest, "damaged");
  }
  for (const size_t size : {kHead, kHead + 1, saved_.size() - 33, saved_.size() - 1}) {
    ExpectRefused(Bytes(saved_.begin(), saved_.begin() + static_cast<ptrdiff_t>(size)), ErrorCode::kTruncated, "bytes");
  }
  ExpectRefused(Bytes(saved_.begin(), saved_.begin() + kHead - 1), ErrorCode::kTruncated, "head");
  Bytes longer = saved_;
  longer.push_back(0);
  ExpectRefused(longer, ErrorCode::kTruncated, "bytes");
}

TEST_F(HostileState, FieldsThatCannotBeAreRefusedAlsoWithADigestThatFits) {
  ExpectRefused({}, ErrorCode::kBadInput, "not a saved sequence");
  ExpectRefused(With(saved_, 0, 0), ErrorCode::kBadInput, "not a saved sequence");
  ExpectRefused(With(saved_, 8, 2), ErrorCode::kVersion, "version 2");
  ExpectRefused(With(saved_, 12, 2), ErrorCode::kBadInput, "offset 12");
  ExpectRefused(With(saved_, 48, 257), ErrorCode::kLimit, "257");
  ExpectRefused(With(saved_, 48, UINT32_MAX), ErrorCode::kLimit, "context");
  ExpectRefused(With(saved_, 48, 33), ErrorCode::kBadInput, "bytes of state");
  ExpectRefused(With(saved_, 52, 0), ErrorCode::kUsage, "LongRoPE");
  ExpectRefused(With(saved_, 56, kMaxNextTokens + 1), ErrorCode::kLimit, "next tokens");
  ExpectRefused(With(saved_, 56, 1), ErrorCode::kTruncated, "bytes");
  ExpectRefused(With(saved_, 60, 1), ErrorCode::kBadInput, "offset 60");
  ExpectRefused(With(saved_, 64, 0), ErrorCode::kBadInput, "offset 64");
  ExpectRefused(With(saved_, 68, UINT32_MAX), ErrorCode::kBadInput, "offset 64");
  ExpectRefused(With(saved_, kHead, testing::kToyVocabulary), ErrorCode::kBadInput, "next token 97");
}

TEST(SavedSequence, ErrorsOfTheStreamEndTheWriting) {
  ThreadPool pool(1);
  const auto engine = MakeEngine(testing::ToyLanguageModel(), pool, {});
  ASSERT_TRUE(engine->Prefill(ToyTokens(40)).ok());
  for (int fails = 0; fails < 6; ++fails) {
    int pieces = 0;
    const Status status = engine->SaveSequence(kFirstSequence, {}, [&](ByteSpan) {
      return pieces++ == fails ? Status(ErrorCode::kNoSpace, "full") : Status::Ok();
    });
    EXPECT_EQ(status.code(), ErrorCode::kNoSpace);
    EXPECT_EQ(pieces, fails + 1);
  }
  for (const int32_t token : {-1, static_cast<int32_t>(testing::kToyVocabulary), INT32_MAX}) {
    int pieces = 0;
    const std::vector<int32_t> next = {3, token};
    const auto count = [&](ByteSpan) { return ++pieces, Status::Ok(); };
    EXPECT_EQ(engine->SaveSequence(kFirstSequence, next, count).code(), ErrorCode::kBadInput) << token;
    EXPECT_EQ(pieces, 0) << "what could not be restored";
  }
  const std::vector<int32_t> many(kMaxNextTokens + 1);
  EXPECT_EQ(engine->SaveSequence(kFirstSequence, many, [](ByteSpan) { return Status::Ok(); }).code(), ErrorCode::kUsage);
  EXPECT_EQ(engine->SaveSequence(3, {}, [](ByteSpan) { return Status::Ok(); }).code(), ErrorCode::kUsage);
}

}  // namespace
}  // namespace moepack::runtime
