#include "model/frontend/tokenizer_json.h"

#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>

#include "base/env.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer_blob.h"
#include "tokenizer/unicode.h"

namespace moepack {
namespace {

using Json = nlohmann::json;

const std::string kModel = std::string(MOEPACK_SOURCE_DIR) + "/examples/wren/model/";

std::string ReadText(const std::string& path) {
  const auto bytes = ReadFile(PosixEnv(), path, 64 << 20);
  EXPECT_TRUE(bytes.ok()) << bytes.status().message();
  return bytes.ok() ? std::string(AsText(*bytes)) : std::string();
}

Json WrenJson() { return Json::parse(ReadText(kModel + "tokenizer.json")); }

Result<Bytes> Compile(const Json& tokenizer, const std::string& config = "", const std::string& generation = "",
                      uint64_t vocab_size = 4096) {
  const std::string text = tokenizer.dump();
  return CompileTokenizerJson(AsBytes(text), AsBytes(config), AsBytes(generation), vocab_size);
}

std::unique_ptr<Tokenizer> Wren() {
  const auto blob =
      Compile(WrenJson(), ReadText(kModel + "tokenizer_config.json"), ReadText(kModel + "generation_config.json"));
  EXPECT_TRUE(blob.ok()) << blob.status().message();
  auto parsed = Tokenizer::Parse(*blob);
  EXPECT_TRUE(parsed.ok()) << parsed.status().message();
  return std::move(parsed).value();
}

Json GoldenTokens() { return Json::parse(ReadText(std::string(MOEPACK_SOURCE_DIR) + "/tests/golden/wren_tokens.json")); }

TEST(TokenizerJsonTest, EvaluationTextsEqualTheGoldenIds) {
  const auto wren = Wren();
  const Json golden = GoldenTokens();
  const auto begin = std::chrono::steady_clock::now();
  for (const auto& [name, ids] : golden["files"].items()) {
    const std::string text = ReadText(std::string(MOEPACK_SOURCE_DIR) + "/examples/wren/text/" + name);
    const std::vector<int32_t> encoded = wren->Encode(text);
    EXPECT_EQ(encoded, ids.get<std::vector<int32_t>>()) << name;
    EXPECT_EQ(wren->Decode(encoded), NormalizeNfc(text)) << name;
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(TokenizerJsonTest, HostileStringsEqualTheGoldenIds) {
  const auto wren = Wren();
  const Json golden = GoldenTokens();
  for (const Json& entry : golden["strings"]) {
    const std::string text = entry["text"].get<std::string>();
    EXPECT_EQ(wren->Encode(text), entry["ids"].get<std::vector<int32_t>>()) << text;
    EXPECT_EQ(wren->Decode(wren->Encode(text)), NormalizeNfc(text));
  }
}

TEST(TokenizerJsonTest, EndOfTextFromBothConfigurations) {
  EXPECT_TRUE(Wren()->IsEndOfText(4093));
  EXPECT_FALSE(Wren()->IsEndOfText(4095));
  const auto blob = Compile(WrenJson(), R"({"eos_token": {"content": "<|im_end|>"}})", R"({"eos_token_id": [4094, 4093]})");
  ASSERT_TRUE(blob.ok()) << blob.status().message();
  const auto tokenizer = Tokenizer::Parse(*blob);
  ASSERT_TRUE(tokenizer.ok());
  for (int32_t id : {4093, 4094, 4095}) EXPECT_TRUE((*tokenizer)->IsEndOfText(id)) << id;
  EXPECT_FALSE((*tokenizer)->IsEndOfText(4092));
}

TEST(TokenizerJsonTest, MergesAsPairsGiveTheSameBlob) {
  Json json = WrenJson();
  const auto strings = Compile(json);
  for (Json& merge : json["model"]["merges"]) {
    const std::string text = merge.get<std::string>();
    merge = Json::array({text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)});
  }
  const auto pairs = Compile(json);
  ASSERT_TRUE(strings.ok() && pairs.ok());
  EXPECT_EQ(*strings, *pairs);
}

TEST(TokenizerJsonTest, AddedTokensThatAreNotSpecialAreShownButNeverMadeFromText) {
  Json json = WrenJson();
  json["added_tokens"][2]["special"] = false;
  const auto blob = Compile(json);
  ASSERT_TRUE(blob.ok()) << blob.status().message();
  const auto tokenizer = Tokenizer::Parse(*blob);
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->Decode(std::vector<int32_t>{4095}), "<|im_end|>");
  EXPECT_GT((*tokenizer)->Encode("<|im_end|>").size(), 1u);
}

Tokenizer& Parsed(const Result<Bytes>& blob, std::unique_ptr<Tokenizer>* keep) {
  EXPECT_TRUE(blob.ok()) << blob.status().message();
  *keep = Tokenizer::Parse(*blob).value();
  return **keep;
}

PreTokenizer KindOf(const Json& json) {
  const auto blob = Compile(json);
  EXPECT_TRUE(blob.ok()) << blob.status().message();
  return blob.ok() ? ParseTokenizerBlob(*blob)->pre_tokenizer : PreTokenizer::kSentencePiece;
}

Json ByteLevel(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

TEST(TokenizerJsonTest, PreTokenizersAreKnownByTheirSteps) {
  Json json = WrenJson();
  for (size_t k = 1; k <= kLastPreTokenizer; ++k) {
    const auto kind = static_cast<PreTokenizer>(k);
    if (kind == PreTokenizer::kSentencePiece) continue;  // has no cuts: SentencePieceByNormalizersOrByMetaspace
    Json steps = Json::array();
    for (const std::string_view expression : PreTokenizerPatterns(kind)) {
      steps.push_back({{"type", "Split"},
                       {"pattern", {{"Regex", std::string(expression)}}},
                       {"behavior", "Isolated"},
                       {"invert", false}});
    }
    steps.push_back(ByteLevel(false));
    json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
    EXPECT_EQ(KindOf(json), kind) << k;
  }
  json["pre_tokenizer"] = ByteLevel(true);
  EXPECT_EQ(KindOf(json), PreTokenizer::kGpt2);
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {digits, ByteLevel(true)}}};
  EXPECT_EQ(KindOf(json), PreTokenizer::kGranite);
  json["pre_tokenizer"]["pretokenizers"] = {ByteLevel(true), digits};
  EXPECT_FALSE(Compile(json).ok());
}

TEST(TokenizerJsonTest, ATemplateGivesTheBeginning) {
  Json json = WrenJson();
  const Json special = {{"SpecialToken", {{"id", "<|im_end|>"}, {"type_id", 0}}}},
             text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  json["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single", {special, text}},
                            {"pair", Json::array()},
                            {"special_tokens", Json::object()}};
  std::unique_ptr<Tokenizer> tokenizer;
  Parsed(Compile(json), &tokenizer);
  ASSERT_EQ(tokenizer->beginning().size(), 1u);
  EXPECT_EQ(tokenizer->beginning()[0], 4095u);
  EXPECT_EQ(tokenizer->Encode("a").size(), 1u) << "text alone never makes a special token";
  json["post_processor"]["single"] = {text, special};
  EXPECT_FALSE(Compile(json).ok());
  Parsed(Compile(WrenJson(), R"({"add_bos_token": true, "bos_token": "<|im_end|>"})"), &tokenizer);
  EXPECT_EQ(tokenizer->beginning().size(), 1u);
}

// A vocabulary of bytes, a few characters and "\u2581a".
Json PieceJson() {
  Json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) vocab[StrFormat("<0x%02X>", byte)] = 3 + byte;
  for (const char* token : {"\u2581", "a", "b", "\u2581a", "é"}) vocab[token] = vocab.size();
  const auto special = [](int id, const char* text) { return Json{{"id", id}, {"content", text}, {"special", true}}; };
  return {{"added_tokens", {special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")}},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers",
             {{{"type", "Prepend"}, {"prepend", "\u2581"}},
              {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}}}}},
          {"pre_tokenizer", nullptr},
          {"decoder", {{"type", "Sequence"}, {"decoders", {{{"type", "ByteFallback"}}, {{"type", "Fuse"}}}}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", {"\u2581 a"}}}}};
}

TEST(TokenizerJsonTest, SentencePieceByNormalizersOrByMetaspace) {
  std::unique_ptr<Tokenizer> tokenizer;
  const std::vector<int32_t> expected = {262, 261, 259, 263, 3 + 0xE2, 3 + 0x82, 3 + 0xAC};
  EXPECT_EQ(Parsed(Compile(PieceJson()), &tokenizer).Encode("ab é€"), expected);
  EXPECT_EQ(tokenizer->Decode(expected), " ab é€");
  Json json = PieceJson();
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "first"}, {"split", false}};
  EXPECT_EQ(Parsed(Compile(json), &tokenizer).Encode("ab é€"), expected);
  // A text that begins with a space: Prepend puts another before it, Metaspace does not.
  const std::vector<int32_t> one = {262, 261}, two = {259, 262, 261};
  for (const char* text : {" ab", "\u2581ab"}) {
    EXPECT_EQ(Parsed(Compile(json), &tokenizer).Encode(text), one);
    EXPECT_EQ(Parsed(Compile(PieceJson()), &tokenizer).Encode(text), two);
  }
  EXPECT_TRUE(Parsed(Compile(json), &tokenizer).Encode("").empty());
  json["pre_tokenizer"]["split"] = true;
  EXPECT_FALSE(Compile(json).ok());
  json = PieceJson();
  json["model"]["byte_fallback"] = false;
  EXPECT_FALSE(Compile(json).ok());
  json = PieceJson();
  json["model"]["vocab"].erase("<0x7F>");
  EXPECT_FALSE(Compile(json).ok());
}

std::string RefusalOf(const std::string& text) {
  const auto blob = CompileTokenizerJson(AsBytes(text), {}, {}, 4096);
  EXPECT_FALSE(blob.ok());
  EXPECT_EQ(blob.status().code(), ErrorCode::kTokenizer);
  return blob.status().message();
}

TEST(TokenizerJsonTest, RefusesDeepNestingAndKeysThatStandTwice) {
  const size_t depth = 1 << 20;
  const std::string deep =
      RefusalOf(R"({"normalizer": )" + std::string(depth, '[') + std::string(depth, ']') + "}");
  EXPECT_NE(deep.find("nested deeper than 64 levels"), std::string::npos) << deep;
  std::string text = WrenJson().dump();
  const size_t vocab = text.find(R"("vocab":{)");
  ASSERT_NE(vocab, std::string::npos);
  text.insert(vocab + 9, R"("!":7,)");
  const std::string twice = RefusalOf(text);
  EXPECT_NE(twice.find("key '!' stands twice"), std::string::npos) << twice;
}

// Every field that changes the tokens is refused by name unless it has the value that is implemented.
TEST(TokenizerJsonTest, RefusesWhatIsNotImplementedByName) {
  const struct {
    const char* pointer;
    Json value;
    const char* named;
  } cases[] = {
      {"/normalizer/type", "NFKC", "normalizer"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\p{L}+", "pre_tokenizer"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "Removed", "pre_tokenizer"},
      {"/pre_tokenizer/pretokenizers/1/add_prefix_space", true, "pre_tokenizer"},
      {"/pre_tokenizer", nullptr, "pre_tokenizer"},
      {"/post_processor/type", "TemplateProcessing", "post_processor"},
      {"/decoder/type", "Metaspace", "decoder"},
      {"/model/type", "Unigram", "model.type"},
      {"/model/byte_fallback", true, "byte_fallback"},
      {"/model/ignore_merges", "yes", "ignore_merges"},
      {"/model/unk_token", "<unk>", "unk_token"},
      {"/model/dropout", 0.1, "dropout"},
      {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
      {"/model/surprise", 1, "model.surprise"},
      {"/surprise", 1, "surprise"},
      {"/model/vocab", nullptr, "model.vocab"},
      {"/model/vocab/!", 1, "already taken"},
      {"/model/vocab/!", -1, "model.vocab[\"!\"]"},
      {"/model/vocab/!", 4096, "4096 tokens"},
      {"/model/vocab/日", 4000, "model.vocab"},
      {"/model/merges/0", "nospace", "merges[0]"},
      {"/model/merges/0", "q jjj", "merges[0]"},
      {"/model/merges/0", Json::array({"a"}), "merges[0]"},
      {"/added_tokens/0/id", 5000, "added_tokens[0]"},
      {"/added_tokens/0/id", 5, "added_tokens[0]"},
      {"/added_tokens/0/special", "yes", "added_tokens[0]"},
  };
  for (const auto& c : cases) {
    Json json = WrenJson();
    json[Json::json_pointer(c.pointer)] = c.value;
    const auto blob = Compile(json);
    ASSERT_FALSE(blob.ok()) << c.pointer;
    EXPECT_EQ(blob.status().code(), ErrorCode::kTokenizer) << c.pointer;
    EXPECT_NE(blob.status().message().find(c.named), std::string::npos) << blob.status().message();
  }
}

TEST(TokenizerJsonTest, RefusesContradictoryConfigurations) {
  EXPECT_FALSE(Compile(WrenJson(), R"({"eos_token": "<|nothing|>"})").ok());
  EXPECT_FALSE(Compile(WrenJson(), R"({"add_bos_token": true})").ok());
  EXPECT_FALSE(Compile(WrenJson(), "", R"({"eos_token_id": 4096})").ok());
  EXPECT_FALSE(Compile(WrenJson(), "", R"({"eos_token_id": -1})").ok());
  EXPECT_FALSE(Compile(WrenJson(), "", "", 4000).ok());
  EXPECT_FALSE(Compile(WrenJson(), "{").ok());
  EXPECT_FALSE(CompileTokenizerJson(AsBytes("[]"), {}, {}, 4096).ok());
  EXPECT_FALSE(CompileTokenizerJson({}, {}, {}, 4096).ok());
}

}  // namespace
}  // namespace moepack
