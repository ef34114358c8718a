#include "runtime-min/moepack_runtime_c.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/digest/sha256.h"
#include "runtime-min/engine.h"
#include "runtime-min/sampler.h"
#include "tokenizer/tokenizer.h"
#include "verify/testing/tiny_bundle.h"
#include "verify/trust_json.h"

// Memory that ends: when a thread's count comes to 0, allocations of that thread fail.
thread_local uint64_t allocations_left = UINT64_MAX;

// Not inlined: the compiler would see malloc meet operator delete and warn.
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* memory = allocations_left > 0 ? std::malloc(size > 0 ? size : 1) : nullptr;
  if (allocations_left > 0 && allocations_left != UINT64_MAX) --allocations_left;
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new[](std::size_t size) { return operator new(size); }
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

extern "C" int moepack_runtime_c_check(const char* bundle, const moepack_runtime_trust* trust, const char* prompt,
                                       uint64_t max_tokens);

namespace moepack {
namespace {

constexpr uint32_t kVocabulary = 64;  // of the tiny bundle
constexpr int kUsage = 200, kBadInput = 300, kLimit = 310, kTokenizer = 309;

// A token for each byte, so that text is its own tokens, of which the model has the first; a sequence begins with token 1.
Bytes ByteTokenizer() {
  TokenizerData data;
  for (int byte = 0; byte < 256; ++byte) data.tokens.push_back(std::string(1, static_cast<char>(byte)));
  data.beginning = {1};
  data.chat.emplace();
  data.chat->without_system = true;
  for (const ChatPlace place : {ChatPlace::kBeforeUser, ChatPlace::kUserToAssistant, ChatPlace::kAssistantToUser}) {
    data.chat->pieces[static_cast<size_t>(place)] = {ChatPiece{"|"}};
  }
  data.chat->pieces[static_cast<size_t>(ChatPlace::kUserToAnswer)] = {ChatPiece{">"}};
  return SerializeTokenizer(data);
}

// Weights that are finite numbers: f32 around 0.1 for the dense ones, bytes of small f16 (and any codes) for the experts.
void MakeWeights(testing::TinyContents* c) {
  const auto fill = [&](std::vector<Unit>& units, bool dense) {
    for (Unit& unit : units) {
      for (ChunkRef& chunk : unit.chunks) {
        const std::span<uint8_t> bytes = std::span(c->chunk_area).subspan(chunk.offset, chunk.stored_bytes);
        for (size_t i = 0; i < bytes.size(); ++i) {
          const auto noise = static_cast<uint8_t>((chunk.offset + i) * 2654435761u >> 19);
          const auto top_byte = static_cast<uint8_t>(0x3d + (noise % 2) * 0x80);
          bytes[i] = dense ? (i % 4 == 3 ? top_byte : noise) : static_cast<uint8_t>(0x11 + noise % 0x1f);
        }
        chunk.stored_digest = chunk.plain_digest = Sha256(bytes);
      }
    }
  };
  fill(c->dense.units, true);
  for (ExpertTable& table : c->experts) fill(table.units, false);
}

Bytes RunnableBundle(bool with_tokenizer = true) {
  testing::TinyOptions options;
  options.edit = [&](testing::TinyContents& c) {
    c.tokenizer = with_tokenizer ? ByteTokenizer() : Bytes{};
    MakeWeights(&c);
  };
  return testing::MakeTinyBundle(options);
}

class RuntimeC : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + StrFormat("moepack-runtime-c-%d.moeb", static_cast<int>(::getpid()));
    Write(path_, RunnableBundle());
    key_ = testing::MakeTestKey(1).public_key;
    trust_.struct_bytes = sizeof(trust_);
    trust_.threshold = 1;
    trust_.product = "tiny";
    trust_.release_keys = key_.data();
    trust_.release_key_count = 1;
    trust_.key_epoch = 3;
    trust_.minimum_security_counter = 7;
    options_.struct_bytes = sizeof(options_);
    options_.threads = 2;
    sampling_.struct_bytes = sizeof(sampling_);
  }
  void TearDown() override {
    moepack_runtime_close(runtime_);
    (void)PosixEnv().Remove(path_);
  }
  static void Write(const std::string& path, const Bytes& bytes) {
    ASSERT_TRUE(WriteFileAtomically(PosixEnv(), path, bytes).ok());
  }
  int Open() {
    moepack_runtime_close(runtime_);
    return moepack_runtime_open(path_.c_str(), &trust_, &options_, &runtime_, message_, sizeof(message_));
  }
  // Tokens of a generation of sequence `sequence`.
  std::vector<int32_t> Generate(uint32_t sequence, const std::vector<int32_t>& prompt, uint64_t most) {
    std::vector<int32_t> tokens;
    const auto take = [](void* user, int32_t token, const char*, size_t) {
      if (token >= 0) static_cast<std::vector<int32_t>*>(user)->push_back(token);
      return 0;
    };
    EXPECT_EQ(moepack_runtime_generate(runtime_, sequence, prompt.data(), prompt.size(), most, take, &tokens, nullptr), 0)
        << moepack_runtime_last_error(runtime_);
    return tokens;
  }
  std::vector<float> Logits(uint32_t row = 0) {
    const float* logits = nullptr;
    EXPECT_EQ(moepack_runtime_logits(runtime_, row, &logits), 0) << moepack_runtime_last_error(runtime_);
    return logits != nullptr ? std::vector<float>(logits, logits + kVocabulary) : std::vector<float>{};
  }

  std::string path_;
  std::array<uint8_t, 32> key_{};
  moepack_runtime_trust trust_ = {};
  moepack_runtime_options options_ = {};
  moepack_runtime_sampling sampling_ = {};
  moepack_runtime* runtime_ = nullptr;
  char message_[256] = "untouched";
};

TEST_F(RuntimeC, WorksFromC) { EXPECT_EQ(moepack_runtime_c_check(path_.c_str(), &trust_, "\x05\x09 !", 12), 0); }

TEST_F(RuntimeC, TellsWhatWasOpened) {
  options_.sequences = 3;
  options_.context = 40;
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  EXPECT_STREQ(message_, "");
  moepack_runtime_info info = {};
  info.struct_bytes = sizeof(info);
  ASSERT_EQ(moepack_runtime_get_info(runtime_, &info), MOEPACK_OK);
  EXPECT_EQ(info.vocabulary, kVocabulary);
  EXPECT_EQ(info.context, 40u);
  EXPECT_EQ(info.sequences, 3u);
  EXPECT_EQ(info.threads, 2u);
  EXPECT_EQ(info.has_tokenizer, 1u);
  EXPECT_EQ(info.key_epoch, 3u);
  EXPECT_EQ(info.security_counter, 7u);
  EXPECT_GT(info.dense_bytes, 0u);
  EXPECT_GT(info.expert_bytes, 0u);
  const auto bundle = testing::OpenBytes(RunnableBundle());
  EXPECT_EQ(std::memcmp(info.manifest_digest, (*bundle)->manifest_digest().data(), 32), 0);
  EXPECT_EQ(moepack_runtime_abi_version(), uint32_t{MOEPACK_RUNTIME_ABI_VERSION});
  EXPECT_STREQ(moepack_runtime_error_name(401), "Digest");
  EXPECT_STREQ(moepack_runtime_error_name(-1), "Unknown");
}

TEST_F(RuntimeC, LogitsAreTheEngines) {
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  const std::vector<int32_t> tokens = {3, 1, 4, 1, 5};
  ASSERT_EQ(moepack_runtime_evaluate(runtime_, 0, tokens.data(), tokens.size()), MOEPACK_OK);
  ThreadPool pool(1);
  auto bundle = testing::OpenBytes(RunnableBundle());
  auto engine = runtime::Engine::Create(std::move(*bundle), pool, {});
  ASSERT_TRUE(engine.ok());
  ASSERT_TRUE((*engine)->Prefill(tokens).ok());
  EXPECT_EQ(Logits(), std::vector<float>((*engine)->logits().begin(), (*engine)->logits().end()));
  EXPECT_TRUE(std::ranges::all_of(Logits(), [](float v) { return std::isfinite(v); })) << "the test's weights are useful";
  EXPECT_NE(Logits()[0], Logits()[1]);
}

TEST_F(RuntimeC, SamplingFollowsItsSeed) {
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  const auto sampled = [&](uint64_t seed) {
    sampling_.temperature = 1.5f;
    sampling_.top_k = 40;
    sampling_.seed = seed;
    EXPECT_EQ(moepack_runtime_set_sampling(runtime_, 0, &sampling_), MOEPACK_OK);
    EXPECT_EQ(moepack_runtime_reset(runtime_, 0), MOEPACK_OK);
    return Generate(0, {1, 2}, 24);
  };
  const std::vector<int32_t> first = sampled(1);
  EXPECT_EQ(sampled(1), first);
  EXPECT_NE(sampled(2), first);
  ASSERT_EQ(moepack_runtime_set_sampling(runtime_, 0, nullptr), MOEPACK_OK);
  ASSERT_EQ(moepack_runtime_reset(runtime_, 0), MOEPACK_OK);
  const std::vector<int32_t> greedy = Generate(0, {1, 2}, 1);
  const std::vector<int32_t> prompt = {1, 2};
  ASSERT_EQ(moepack_runtime_reset(runtime_, 0), MOEPACK_OK);
  ASSERT_EQ(moepack_runtime_evaluate(runtime_, 0, prompt.data(), prompt.size()), MOEPACK_OK);
  EXPECT_EQ(greedy[0], runtime::Argmax(Logits()));
  sampling_.top_p = 2;
  EXPECT_EQ(moepack_runtime_set_sampling(runtime_, 0, &sampling_), kUsage);
}

TEST_F(RuntimeC, TheSameTokensWhateverTheOptions) {
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  const std::vector<int32_t> tokens = Generate(0, {5, 6, 7}, 30);
  moepack_runtime_info info = {};
  info.struct_bytes = sizeof(info);
  ASSERT_EQ(moepack_runtime_get_info(runtime_, &info), MOEPACK_OK);
  options_.expert_ram_bytes = info.expert_bytes / 2;  // two of four: what one token needs
  for (const uint32_t prefetch : {0u, 1u, 2u, MOEPACK_NO_PREFETCH}) {
    options_.prefetch = prefetch;
    options_.prefetch_lanes = prefetch == 2 ? 2 : 0;
    options_.threads = prefetch == MOEPACK_NO_PREFETCH ? 1 : 2;
    options_.tile_tokens = 1 + prefetch % 3;
    ASSERT_EQ(Open(), MOEPACK_OK) << message_;
    EXPECT_EQ(Generate(0, {5, 6, 7}, 30), tokens) << prefetch;
  }
}

TEST_F(RuntimeC, SequencesAreTheirOwn) {
  options_.sequences = 3;
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  const std::vector<int32_t> prefix = {7, 8, 9}, one = {10}, two = {11, 12};
  ASSERT_EQ(moepack_runtime_evaluate(runtime_, 0, prefix.data(), prefix.size()), MOEPACK_OK);
  uint32_t fork = 0, fresh = 0, none = 99;
  ASSERT_EQ(moepack_runtime_fork_sequence(runtime_, 0, 2, &fork), MOEPACK_OK);
  ASSERT_EQ(moepack_runtime_open_sequence(runtime_, &fresh), MOEPACK_OK);
  EXPECT_EQ(moepack_runtime_open_sequence(runtime_, &none), kLimit);
  EXPECT_EQ(none, 99u);
  moepack_runtime_batch batch[2] = {{sizeof(moepack_runtime_batch), fork, two.data(), two.size()},
                                    {sizeof(moepack_runtime_batch), fresh, one.data(), one.size()}};
  ASSERT_EQ(moepack_runtime_evaluate_batch(runtime_, batch, 2), MOEPACK_OK) << moepack_runtime_last_error(runtime_);
  const std::vector<float> of_fork = Logits(0), of_fresh = Logits(1);
  const float* logits = nullptr;
  EXPECT_EQ(moepack_runtime_logits(runtime_, 2, &logits), kUsage);
  uint32_t position = 0;
  ASSERT_EQ(moepack_runtime_position(runtime_, fork, &position), MOEPACK_OK);
  EXPECT_EQ(position, 4u);
  ASSERT_EQ(moepack_runtime_reset(runtime_, 0), MOEPACK_OK);
  const std::vector<int32_t> whole = {7, 8, 11, 12};
  ASSERT_EQ(moepack_runtime_evaluate(runtime_, 0, whole.data(), whole.size()), MOEPACK_OK);
  EXPECT_EQ(Logits(), of_fork);
  ASSERT_EQ(moepack_runtime_reset(runtime_, 0), MOEPACK_OK);
  ASSERT_EQ(moepack_runtime_evaluate(runtime_, 0, one.data(), one.size()), MOEPACK_OK);
  EXPECT_EQ(Logits(), of_fresh);
  ASSERT_EQ(moepack_runtime_release_sequence(runtime_, fork), MOEPACK_OK);
  EXPECT_EQ(moepack_runtime_evaluate(runtime_, fork, one.data(), one.size()), kUsage);
  EXPECT_EQ(moepack_runtime_release_sequence(runtime_, 0), kUsage);
  int32_t token = 0;
  EXPECT_EQ(moepack_runtime_position(runtime_, fork, &position), kUsage) << "it is not open any more";
  EXPECT_EQ(moepack_runtime_set_sampling(runtime_, fork, nullptr), kUsage);
  ASSERT_EQ(moepack_runtime_evaluate(runtime_, 0, one.data(), one.size()), MOEPACK_OK);
  EXPECT_EQ(moepack_runtime_sample(runtime_, 0, 0, &token), MOEPACK_OK);
  EXPECT_EQ(moepack_runtime_sample(runtime_, fork, 0, &token), kUsage);
}

TEST_F(RuntimeC, ASavedSequenceGoesOn) {
  const std::string saved = path_ + ".seq";
  for (const uint32_t kv_bits : {0u, 8u}) {
    options_.kv_bits = kv_bits;
    ASSERT_EQ(Open(), MOEPACK_OK) << message_;
    const std::vector<int32_t> whole = Generate(0, {1, 2, 3}, 20);
    ASSERT_EQ(moepack_runtime_reset(runtime_, 0), MOEPACK_OK);
    std::vector<int32_t> tokens = Generate(0, {1, 2, 3}, 8);
    ASSERT_EQ(moepack_runtime_save_sequence(runtime_, 0, &tokens.back(), 1, saved.c_str()), MOEPACK_OK)
        << moepack_runtime_last_error(runtime_);
    ASSERT_EQ(Open(), MOEPACK_OK) << message_;
    int32_t next = -1;
    size_t count = 0;
    EXPECT_EQ(moepack_runtime_restore_sequence(runtime_, 0, saved.c_str(), nullptr, 0, &count), kLimit);
    EXPECT_EQ(count, 1u);
    options_.context = 9;
    ASSERT_EQ(Open(), MOEPACK_OK) << message_;
    EXPECT_EQ(moepack_runtime_restore_sequence(runtime_, 0, saved.c_str(), &next, 1, &count), kLimit);
    EXPECT_EQ(count, 0u) << "not for want of capacity: it is longer than the context";
    options_.context = 0;
    ASSERT_EQ(Open(), MOEPACK_OK) << message_;
    ASSERT_EQ(moepack_runtime_restore_sequence(runtime_, 0, saved.c_str(), &next, 1, &count), MOEPACK_OK)
        << moepack_runtime_last_error(runtime_);
    EXPECT_EQ(next, tokens.back());
    const std::vector<int32_t> rest = Generate(0, {next}, 12);
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    EXPECT_EQ(tokens, whole);
    EXPECT_EQ(moepack_runtime_restore_sequence(runtime_, 0, saved.c_str(), &next, 1, &count), kUsage) << "it has tokens";
    EXPECT_EQ(moepack_runtime_restore_sequence(runtime_, 0, path_.c_str(), &next, 1, &count), kUsage);
    ASSERT_EQ(moepack_runtime_reset(runtime_, 0), MOEPACK_OK);
    EXPECT_EQ(moepack_runtime_restore_sequence(runtime_, 0, path_.c_str(), &next, 1, &count), kBadInput);
    EXPECT_EQ(moepack_runtime_restore_sequence(runtime_, 0, "no such file", &next, 1, &count), 313);
  }
  (void)PosixEnv().Remove(saved);
}

TEST_F(RuntimeC, WhatCouldNotBeRestoredIsNotSaved) {
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  const std::string saved = path_ + ".seq";
  const int32_t unknown = kVocabulary;
  EXPECT_EQ(moepack_runtime_save_sequence(runtime_, 0, &unknown, 1, saved.c_str()), kBadInput);
  EXPECT_EQ(PosixEnv().OpenRead(saved).status().code(), ErrorCode::kNotFound);
}

TEST_F(RuntimeC, ABatchOfOneTokenEachIsDecoding) {
  options_.sequences = 2;
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  uint32_t second = 0;
  ASSERT_EQ(moepack_runtime_open_sequence(runtime_, &second), MOEPACK_OK);
  const int32_t tokens[] = {7, 8};
  for (const size_t count : {2, 1, 1}) {
    moepack_runtime_batch batch[2] = {{sizeof(moepack_runtime_batch), 0, tokens, count},
                                      {sizeof(moepack_runtime_batch), second, tokens, count}};
    ASSERT_EQ(moepack_runtime_evaluate_batch(runtime_, batch, 2), MOEPACK_OK) << moepack_runtime_last_error(runtime_);
  }
  std::vector<char> text(65536);
  size_t bytes = 0;
  ASSERT_EQ(moepack_runtime_metrics(runtime_, MOEPACK_METRICS_JSON, text.data(), text.size(), &bytes), MOEPACK_OK);
  EXPECT_NE(std::strstr(text.data(), "\"prefilled_tokens\": 4,"), nullptr) << text.data();
  EXPECT_NE(std::strstr(text.data(), "\"decoded_tokens\": 4,"), nullptr) << text.data();
}

TEST_F(RuntimeC, RuntimesOnDifferentThreads) {
  options_.threads = 1;
  std::vector<std::vector<int32_t>> tokens(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < tokens.size(); ++i) {
    threads.emplace_back([&, i] {
      moepack_runtime* mine = nullptr;
      if (moepack_runtime_open(path_.c_str(), &trust_, &options_, &mine, nullptr, 0) != MOEPACK_OK) return;
      const int32_t prompt = 5;
      const auto take = [](void* user, int32_t token, const char*, size_t) {
        if (token >= 0) static_cast<std::vector<int32_t>*>(user)->push_back(token);
        return 0;
      };
      (void)moepack_runtime_generate(mine, 0, &prompt, 1, 20, take, &tokens[i], nullptr);
      moepack_runtime_close(mine);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(tokens[0].size(), 20u);
  for (const auto& others : tokens) EXPECT_EQ(others, tokens[0]);
}

TEST_F(RuntimeC, TextGoesIntoTheCallersBuffers) {
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  int32_t tokens[4] = {-7, -7, -7, -7};
  size_t count = 0;
  ASSERT_EQ(moepack_runtime_tokenize(runtime_, "\x02\x03", 2, 1, tokens, 4, &count), MOEPACK_OK);
  EXPECT_EQ(count, 3u);
  EXPECT_EQ(std::vector<int32_t>(tokens, tokens + 4), (std::vector<int32_t>{1, 2, 3, -7}));
  EXPECT_EQ(moepack_runtime_tokenize(runtime_, "\x02\x03", 2, 0, nullptr, 0, &count), kLimit);
  EXPECT_EQ(count, 2u);
  EXPECT_EQ(moepack_runtime_tokenize(runtime_, nullptr, 0, 0, nullptr, 0, &count), MOEPACK_OK);
  EXPECT_EQ(count, 0u);
  char text[4] = "xxx";
  size_t bytes = 0;
  const int32_t letters[] = {'1', '2', '3'};
  ASSERT_EQ(moepack_runtime_detokenize(runtime_, letters, 2, text, 2, &bytes), MOEPACK_OK);
  EXPECT_EQ(std::string(text, 3), "12x");
  EXPECT_EQ(moepack_runtime_detokenize(runtime_, letters, 3, text, 2, &bytes), kLimit);
  EXPECT_EQ(bytes, 3u);
  EXPECT_EQ(std::string(text, 3), "12x") << "nothing is written that is not whole";
  ASSERT_EQ(moepack_runtime_detokenize(runtime_, letters, 3, text, 4, &bytes), MOEPACK_OK);
  EXPECT_STREQ(text, "123");
}

TEST_F(RuntimeC, AConversationBecomesItsTokens) {
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  moepack_runtime_message messages[3] = {};
  const char* const contents[] = {"ab", "c", nullptr};
  for (uint32_t i = 0; i < 3; ++i) {
    messages[i].struct_bytes = sizeof(messages[i]);
    messages[i].role = i == 1 ? MOEPACK_ROLE_ASSISTANT : MOEPACK_ROLE_USER;
    messages[i].content = contents[i];
    messages[i].content_bytes = contents[i] != nullptr ? std::strlen(contents[i]) : 0;
  }
  int32_t tokens[16] = {};
  size_t count = 0;
  ASSERT_EQ(moepack_runtime_tokenize_chat(runtime_, messages, 3, tokens, 16, &count), MOEPACK_OK)
      << moepack_runtime_last_error(runtime_);
  EXPECT_EQ(std::string(tokens, tokens + count), "|ab|c|>") << "no beginning before it";
  EXPECT_EQ(moepack_runtime_tokenize_chat(runtime_, messages, 3, tokens, 6, &count), kLimit);
  EXPECT_EQ(count, 7u);
  const auto refused = [&](size_t message_count, const char* says) {
    EXPECT_EQ(moepack_runtime_tokenize_chat(runtime_, messages, message_count, tokens, 16, &count), kUsage);
    EXPECT_NE(std::strstr(moepack_runtime_last_error(runtime_), says), nullptr) << moepack_runtime_last_error(runtime_);
  };
  refused(0, "must be set");
  refused(2, "the last message is not the user's");
  messages[0].role = 3;
  refused(3, "no such role");
  messages[0].role = MOEPACK_ROLE_SYSTEM;
  refused(3, "message 1");
  messages[0].role = MOEPACK_ROLE_USER;
  messages[2].content_bytes = 1;
  refused(3, "no content");
  messages[2].struct_bytes -= 4;
  refused(3, "struct_bytes");
}

TEST_F(RuntimeC, ExpertsAreSkippedOnlyWhenAskedFor) {
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  Generate(0, {5, 6, 7}, 30);
  moepack_runtime_info info = {};
  info.struct_bytes = sizeof(info);
  ASSERT_EQ(moepack_runtime_get_info(runtime_, &info), MOEPACK_OK);
  options_.expert_ram_bytes = info.expert_bytes / 2;
  options_.prefetch = MOEPACK_NO_PREFETCH;
  const auto skipped = [&] {
    EXPECT_EQ(Open(), MOEPACK_OK) << message_;
    Generate(0, {5, 6, 7}, 30);
    char json[1 << 14];
    size_t bytes = 0;
    EXPECT_EQ(moepack_runtime_metrics(runtime_, MOEPACK_METRICS_JSON, json, sizeof(json), &bytes), MOEPACK_OK);
    return std::strstr(json, "\"experts_skipped\": 0,") == nullptr;
  };
  EXPECT_FALSE(skipped());
  options_.on_miss = MOEPACK_ON_MISS_SKIP;
  options_.miss_lower_above = options_.miss_skip_above = 1e-9;
  EXPECT_TRUE(skipped());
  options_.miss_lower_above = options_.miss_skip_above = 1;
  EXPECT_FALSE(skipped()) << "no expert is behind all of the weight";
  const auto refused = [&] { return Open() == kUsage && runtime_ == nullptr; };
  options_.miss_lower_above = 2;
  EXPECT_TRUE(refused()) << message_;
  options_.miss_lower_above = std::nan("");
  EXPECT_TRUE(refused()) << message_;
  options_.miss_lower_above = 0;
  options_.on_miss = 3;
  EXPECT_TRUE(refused()) << message_;
  options_.on_miss = MOEPACK_ON_MISS_LOAD;
  EXPECT_TRUE(refused()) << "thresholds without a use";
  options_.miss_skip_above = 0;
  options_.router_input_bits = 7;
  EXPECT_TRUE(refused()) << message_;
}

// Programs built with an earlier header give options that end where misses begin.
TEST_F(RuntimeC, TakesOptionsOfEarlierHeaders) {
  options_.struct_bytes = 64;
  options_.on_miss = 99;
  options_.sequences = 3;
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  moepack_runtime_info info = {};
  info.struct_bytes = sizeof(info);
  ASSERT_EQ(moepack_runtime_get_info(runtime_, &info), MOEPACK_OK);
  EXPECT_EQ(info.sequences, 3u);
}

TEST_F(RuntimeC, MetricsInBothForms) {
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  (void)Generate(0, {1, 2, 3}, 6);
  size_t bytes = 0;
  ASSERT_EQ(moepack_runtime_metrics(runtime_, MOEPACK_METRICS_JSON, nullptr, 0, &bytes), kLimit);
  std::vector<char> text(bytes + 512);
  ASSERT_EQ(moepack_runtime_metrics(runtime_, MOEPACK_METRICS_JSON, text.data(), text.size(), &bytes), MOEPACK_OK);
  const std::string json = text.data();
  EXPECT_NE(json.find("\"prefilled_tokens\": 3,"), std::string::npos) << json;
  EXPECT_NE(json.find("\"decoded_tokens\": 5,"), std::string::npos) << json;
  EXPECT_NE(json.find("\"verified\": true"), std::string::npos) << json;
  text.resize(65536);
  ASSERT_EQ(moepack_runtime_metrics(runtime_, MOEPACK_METRICS_PROMETHEUS, text.data(), text.size(), &bytes), MOEPACK_OK);
  EXPECT_NE(std::string(text.data()).find("\nmoepack_prefilled_tokens_total 3\n"), std::string::npos) << text.data();
  ASSERT_EQ(moepack_runtime_reset_metrics(runtime_), MOEPACK_OK);
  ASSERT_EQ(moepack_runtime_metrics(runtime_, MOEPACK_METRICS_JSON, text.data(), text.size(), &bytes), MOEPACK_OK);
  EXPECT_NE(std::string(text.data()).find("\"decoded_tokens\": 0,"), std::string::npos) << text.data();
  EXPECT_NE(std::string(text.data()).find("\"expert_hits\": 0,"), std::string::npos) << text.data();
  EXPECT_EQ(moepack_runtime_metrics(runtime_, 7, text.data(), text.size(), &bytes), kUsage);
}

TEST_F(RuntimeC, TheCallbackStopsAndMayNotCallBack) {
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  struct Seen {
    moepack_runtime* runtime;
    int calls, code;
  } seen = {runtime_, 0, 0};
  const auto take = [](void* user, int32_t, const char*, size_t) {
    Seen* s = static_cast<Seen*>(user);
    s->code = moepack_runtime_reset(s->runtime, 0);
    return ++s->calls == 3 ? 1 : 0;
  };
  const int32_t prompt[] = {1, 2};
  int stopped = -1;
  ASSERT_EQ(moepack_runtime_generate(runtime_, 0, prompt, 2, 50, take, &seen, &stopped), MOEPACK_OK);
  EXPECT_EQ(stopped, MOEPACK_STOPPED_CALLER);
  EXPECT_EQ(seen.calls, 3);
  EXPECT_EQ(seen.code, kUsage);
  uint32_t position = 0;
  ASSERT_EQ(moepack_runtime_position(runtime_, 0, &position), MOEPACK_OK);
  EXPECT_EQ(position, 4u) << "the prompt and two of three tokens";
}

TEST_F(RuntimeC, TrustComesAsStructFileOrPath) {
  const std::string json = verify::WriteTrustJson(testing::TinyPolicy()), json_path = path_ + ".json";
  Write(json_path, Bytes(json.begin(), json.end()));
  moepack_runtime_trust file = {};
  file.struct_bytes = sizeof(file);
  file.file = reinterpret_cast<const uint8_t*>(json.data());
  file.file_bytes = json.size();
  moepack_runtime_trust path = {};
  path.struct_bytes = sizeof(path);
  path.path = json_path.c_str();
  for (moepack_runtime_trust* trust : {&file, &path}) {
    trust_ = *trust;
    EXPECT_EQ(Open(), MOEPACK_OK) << message_;
    trust_.key_epoch = 3;
    trust_.minimum_security_counter = 8;
    EXPECT_EQ(Open(), static_cast<int>(ErrorCode::kRollback)) << "the device's own floor is higher";
    trust_.minimum_security_counter = 1;
    EXPECT_EQ(Open(), MOEPACK_OK) << "the file's floor is higher: " << message_;
  }
  file.path = path.path;
  trust_ = file;
  EXPECT_EQ(Open(), kUsage);
  EXPECT_NE(std::strstr(message_, "exactly one"), nullptr) << message_;
  file.path = nullptr;
  for (const moepack_runtime_trust& trust : {file, path}) {
    trust_ = trust;
    trust_.threshold = 1;
    EXPECT_EQ(Open(), kUsage) << "a threshold that would not count";
    trust_ = trust;
    trust_.release_keys = key_.data();
    EXPECT_EQ(Open(), kUsage) << "keys that would not count";
    trust_ = trust;
    trust_.release_key_count = 1;
    EXPECT_EQ(Open(), kUsage);
  }
  trust_ = path;
  trust_.file_bytes = 1;
  EXPECT_EQ(Open(), kUsage);
  file.file_bytes -= 5;
  trust_ = file;
  EXPECT_EQ(Open(), static_cast<int>(ErrorCode::kTrustRecord));
  (void)PosixEnv().Remove(json_path);
}

TEST_F(RuntimeC, RefusesBundlesWithCodeAndMessage) {
  trust_.minimum_security_counter = 8;
  EXPECT_EQ(Open(), static_cast<int>(ErrorCode::kRollback));
  EXPECT_EQ(runtime_, nullptr);
  EXPECT_NE(std::strstr(message_, "counter"), nullptr) << message_;
  trust_.minimum_security_counter = 7;
  Bytes damaged = RunnableBundle();
  damaged.back() ^= 1;
  Write(path_, damaged);
  ASSERT_EQ(Open(), MOEPACK_OK) << "the last expert is not among the hot ones: " << message_;
  std::vector<int32_t> all(kVocabulary);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(moepack_runtime_evaluate(runtime_, 0, all.data(), all.size()), static_cast<int>(ErrorCode::kDigest));
  EXPECT_NE(std::strstr(moepack_runtime_last_error(runtime_), "expert 3"), nullptr) << moepack_runtime_last_error(runtime_);
  uint32_t position = 99;
  ASSERT_EQ(moepack_runtime_position(runtime_, 0, &position), MOEPACK_OK);
  EXPECT_EQ(position, 0u);
  const float* logits = nullptr;
  size_t failed = 0;
  for (const int32_t token : all) {
    const bool evaluated = moepack_runtime_evaluate(runtime_, 0, &token, 1) == MOEPACK_OK;
    EXPECT_EQ(moepack_runtime_logits(runtime_, 0, &logits), evaluated ? MOEPACK_OK : kUsage);
    failed += !evaluated;
  }
  EXPECT_GT(failed, 0u);
  EXPECT_LT(failed, all.size());
  (void)PosixEnv().Remove(path_);
  EXPECT_EQ(Open(), static_cast<int>(ErrorCode::kNotFound));
  char small[6];
  moepack_runtime_close(runtime_);
  EXPECT_EQ(moepack_runtime_open(path_.c_str(), &trust_, nullptr, &runtime_, small, sizeof(small)), 313);
  EXPECT_EQ(std::strlen(small), sizeof(small) - 1);
}

TEST_F(RuntimeC, WithoutATokenizerThereAreTokensOnly) {
  Write(path_, RunnableBundle(false));
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  size_t count = 0;
  EXPECT_EQ(moepack_runtime_tokenize(runtime_, "1", 1, 0, nullptr, 0, &count), kTokenizer);
  EXPECT_EQ(Generate(0, {4}, 5).size(), 5u);
}

TEST_F(RuntimeC, MemoryThatEndsIsAnError) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "what is unwound without exceptions is not freed, and sanitizers replace operator new";
#endif
  options_.threads = 1;
  options_.prefetch = MOEPACK_NO_PREFETCH;
  const int no_memory = static_cast<int>(ErrorCode::kNoMemory);
  const int32_t prompt[] = {5, 6, 7};
  const auto go_on = [](void*, int32_t, const char*, size_t) { return 0; };
  uint64_t failed_opens = 0, failed_runs = 0;
  for (uint64_t left = 0;; ++left) {
    allocations_left = left;
    int code = moepack_runtime_open(path_.c_str(), &trust_, &options_, &runtime_, message_, sizeof(message_));
    if (code == MOEPACK_OK) {
      code = moepack_runtime_generate(runtime_, 0, prompt, 3, 10, go_on, nullptr, nullptr);
      allocations_left = UINT64_MAX;
      if (code == MOEPACK_OK) break;
      ++failed_runs;
      EXPECT_STRNE(moepack_runtime_last_error(runtime_), "");
      EXPECT_EQ(moepack_runtime_reset(runtime_, 0), no_memory);
      moepack_runtime_close(runtime_);
      runtime_ = nullptr;
    } else {
      allocations_left = UINT64_MAX;
      ++failed_opens;
      EXPECT_EQ(runtime_, nullptr);
    }
    ASSERT_EQ(code, no_memory) << message_;
  }
  EXPECT_GT(failed_opens, 100u);
  EXPECT_GT(failed_runs, 0u);
}

TEST_F(RuntimeC, OtherExceptionsAreNotCalledWantOfMemory) {
#if defined(__SANITIZE_ADDRESS__)
  const __lsan::ScopedDisabler leaks;  // what is unwound through code without exceptions is not freed
#endif
  options_.threads = 1;
  options_.prefetch = MOEPACK_NO_PREFETCH;
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  const int32_t prompt = 5;
  const auto throws = [](void*, int32_t, const char*, size_t) -> int { throw 1; };  // for want of another that does
  const int internal = static_cast<int>(ErrorCode::kInternal);
  EXPECT_EQ(moepack_runtime_generate(runtime_, 0, &prompt, 1, 5, throws, nullptr, nullptr), internal);
  EXPECT_EQ(moepack_runtime_reset(runtime_, 0), internal);
  EXPECT_NE(std::strstr(moepack_runtime_last_error(runtime_), "only be closed"), nullptr);
  EXPECT_EQ(std::strstr(moepack_runtime_last_error(runtime_), "memory"), nullptr);
}

TEST_F(RuntimeC, MisuseIsAnErrorNotACrash) {
  const int32_t prompt = 1, unknown = kVocabulary;
  size_t size = 0;
  uint32_t number = 0;
  int32_t token = 0;
  int flag = 0;
  const auto go_on = [](void*, int32_t, const char*, size_t) { return 0; };
  ASSERT_EQ(Open(), MOEPACK_OK) << message_;
  const float* logits = nullptr;
  EXPECT_EQ(moepack_runtime_logits(runtime_, 0, &logits), kUsage) << "nothing was evaluated";
  EXPECT_EQ(moepack_runtime_sample(runtime_, 0, 0, &token), kUsage);
  for (moepack_runtime* runtime : {runtime_, static_cast<moepack_runtime*>(nullptr)}) {
    EXPECT_EQ(moepack_runtime_get_info(runtime, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_tokenize(runtime, nullptr, 1, 0, nullptr, 0, &size), kUsage);
    EXPECT_EQ(moepack_runtime_tokenize(runtime, "", 0, 0, nullptr, 0, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_tokenize_chat(runtime, nullptr, 1, nullptr, 0, &size), kUsage);
    EXPECT_EQ(moepack_runtime_detokenize(runtime, nullptr, 1, nullptr, 0, &size), kUsage);
    EXPECT_EQ(moepack_runtime_is_end_of_text(runtime, 1, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_evaluate(runtime, 0, nullptr, 1), kUsage);
    EXPECT_EQ(moepack_runtime_evaluate(runtime, 0, &prompt, 0), kUsage);
    EXPECT_EQ(moepack_runtime_evaluate(runtime, 9, &prompt, 1), kUsage);
    EXPECT_EQ(moepack_runtime_evaluate_batch(runtime, nullptr, 1), kUsage);
    EXPECT_EQ(moepack_runtime_logits(runtime, 0, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_set_sampling(runtime, 9, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_sample(runtime, 0, 0, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_generate(runtime, 0, nullptr, 1, 1, go_on, nullptr, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_generate(runtime, 0, &prompt, 1, 0, go_on, nullptr, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_generate(runtime, 0, &prompt, 1, 1, nullptr, nullptr, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_generate(runtime, 9, &prompt, 1, 1, go_on, nullptr, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_position(runtime, 9, &number), kUsage);
    EXPECT_EQ(moepack_runtime_position(runtime, 0, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_reset(runtime, 9), kUsage);
    EXPECT_EQ(moepack_runtime_open_sequence(runtime, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_fork_sequence(runtime, 9, 0, &number), kUsage);
    EXPECT_EQ(moepack_runtime_release_sequence(runtime, 9), kUsage);
    EXPECT_EQ(moepack_runtime_save_sequence(runtime, 0, nullptr, 0, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_save_sequence(runtime, 0, nullptr, 1, "path"), kUsage);
    EXPECT_EQ(moepack_runtime_restore_sequence(runtime, 0, nullptr, nullptr, 0, &size), kUsage);
    EXPECT_EQ(moepack_runtime_restore_sequence(runtime, 0, "path", nullptr, 0, nullptr), kUsage);
    EXPECT_EQ(moepack_runtime_metrics(runtime, 0, nullptr, 1, &size), kUsage);
    EXPECT_STRNE(moepack_runtime_last_error(runtime), "");
  }
  EXPECT_EQ(moepack_runtime_evaluate(runtime_, 0, &unknown, 1), kBadInput);
  EXPECT_NE(std::strstr(moepack_runtime_last_error(runtime_), "64"), nullptr);
  EXPECT_EQ(moepack_runtime_is_end_of_text(runtime_, -1, &flag), MOEPACK_OK);
  EXPECT_STREQ(moepack_runtime_last_error(runtime_), "");
  EXPECT_EQ(moepack_runtime_reset_metrics(nullptr), kUsage);
  moepack_runtime_close(nullptr);
}

TEST_F(RuntimeC, RefusesStructsThatItDoesNotKnow) {
  EXPECT_EQ(moepack_runtime_open(nullptr, &trust_, &options_, &runtime_, message_, sizeof(message_)), kUsage);
  EXPECT_EQ(moepack_runtime_open(path_.c_str(), nullptr, &options_, &runtime_, message_, sizeof(message_)), kUsage);
  EXPECT_EQ(moepack_runtime_open(path_.c_str(), &trust_, &options_, nullptr, message_, sizeof(message_)), kUsage);
  const auto refused = [&] { return Open() == kUsage && runtime_ == nullptr; };
  trust_.struct_bytes += 8;
  EXPECT_TRUE(refused());
  trust_.struct_bytes -= 8;
  trust_.release_keys = nullptr;
  EXPECT_TRUE(refused());
  trust_.release_keys = key_.data();
  options_.kv_bits = 16;
  EXPECT_TRUE(refused());
  options_.kv_bits = 0;
  options_.struct_bytes = 4;
  EXPECT_TRUE(refused());
  options_.struct_bytes = sizeof(options_);
  for (uint32_t moepack_runtime_options::*field :
       {&moepack_runtime_options::threads, &moepack_runtime_options::context, &moepack_runtime_options::tile_tokens,
        &moepack_runtime_options::sequences, &moepack_runtime_options::prefetch, &moepack_runtime_options::prefetch_lanes}) {
    options_.*field = 1000000;
    EXPECT_TRUE(refused()) << message_;
    options_.*field = 0;
  }
  options_.cache_policy = "fifo";
  EXPECT_FALSE(Open() == MOEPACK_OK);
  options_.cache_policy = "lru";
  options_.expert_ram_bytes = 1;
  EXPECT_TRUE(refused()) << message_;
  options_.expert_ram_bytes = MOEPACK_AUTO_EXPERT_RAM;
  EXPECT_EQ(Open(), MOEPACK_OK) << message_;
}

}  // namespace
}  // namespace moepack
