#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer_blob.h"
#include "tokenizer/unicode.h"

namespace moepack {
namespace {

// 256 bytes as tokens 0..255, then "he" 256, "ll" 257, "hell" 258, "aa" 259, "aaaa" 260, a special token 261, an unused id.
TokenizerData SmallTokenizer() {
  TokenizerData data;
  data.normalizer = Normalizer::kNfc;
  for (int byte = 0; byte < 256; ++byte) data.tokens.emplace_back(1, static_cast<char>(byte));
  for (const char* token : {"he", "ll", "hell", "aa", "aaaa", "<end>", ""}) data.tokens.emplace_back(token);
  data.merges = {{'l', 'l'}, {'h', 'e'}, {256, 257}, {'a', 'a'}, {259, 259}};
  data.special = {261};
  data.end_of_text = {261};
  return data;
}

std::unique_ptr<Tokenizer> MustParse(const TokenizerData& data) {
  auto parsed = Tokenizer::Parse(SerializeTokenizer(data));
  EXPECT_TRUE(parsed.ok()) << parsed.status().message();
  return std::move(parsed).value();
}

// The error of a blob that must be refused.
std::string Refusal(ByteSpan blob) {
  const auto parsed = Tokenizer::Parse(blob);
  EXPECT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), ErrorCode::kTokenizer);
  return parsed.status().message();
}
std::string Refusal(const TokenizerData& data) { return Refusal(SerializeTokenizer(data)); }

std::vector<std::string> Pieces(std::string_view text, PreTokenizer kind = PreTokenizer::kQwen2) {
  std::vector<std::string> pieces;
  std::string joined;
  CutIntoPieces(kind, text, [&](std::string_view piece) {
    EXPECT_FALSE(piece.empty());
    pieces.emplace_back(piece);
    joined += piece;
  });
  EXPECT_EQ(joined, text);
  return pieces;
}

using Strings = std::vector<std::string>;

TEST(PreTokenizerTest, FollowsThePattern) {
  EXPECT_EQ(Pieces("Hello, world!"), (Strings{"Hello", ",", " world", "!"}));
  EXPECT_EQ(Pieces("a  b"), (Strings{"a", " ", " b"}));
  EXPECT_EQ(Pieces("a   "), (Strings{"a", "   "}));
  EXPECT_EQ(Pieces("12 3"), (Strings{"1", "2", " ", "3"}));
  EXPECT_EQ(Pieces("x \n \n  y"), (Strings{"x", " \n \n", " ", " y"}));
  EXPECT_EQ(Pieces("a!\r\n\nb"), (Strings{"a", "!\r\n\n", "b"}));
  EXPECT_EQ(Pieces("\tx\t\t1"), (Strings{"\tx", "\t", "\t", "1"}));
  EXPECT_EQ(Pieces("\u00a0y\u2003\u2003z"), (Strings{"\u00a0y", "\u2003", "\u2003z"}));
  EXPECT_EQ(Pieces("\nx"), (Strings{"\n", "x"}));
  EXPECT_EQ(Pieces(" \u0085!"), (Strings{" ", "\u0085", "!"}));
}

TEST(PreTokenizerTest, ContractionsIgnoreCaseAndComeFirst) {
  EXPECT_EQ(Pieces("we'LL go"), (Strings{"we", "'LL", " go"}));
  EXPECT_EQ(Pieces("it'sx"), (Strings{"it", "'s", "x"}));
  EXPECT_EQ(Pieces("I'Mre"), (Strings{"I", "'M", "re"}));
  EXPECT_EQ(Pieces("x'ra'v"), (Strings{"x", "'ra", "'v"}));
  EXPECT_EQ(Pieces("'l"), (Strings{"'l"}));
  EXPECT_EQ(Pieces("x'\u017fy"), (Strings{"x", "'\u017f", "y"}));
  EXPECT_EQ(Pieces("''s"), (Strings{"''", "s"}));
}

TEST(PreTokenizerTest, EachKindCutsItsOwnWay) {
  const std::string_view text = "HelloWorld's 12345 a/b//\n";
  EXPECT_EQ(Pieces(text, PreTokenizer::kGpt2), (Strings{"HelloWorld", "'s", " 12345", " a", "/", "b", "//", "\n"}));
  EXPECT_EQ(Pieces(text, PreTokenizer::kQwen2),
            (Strings{"HelloWorld", "'s", " ", "1", "2", "3", "4", "5", " a", "/b", "//\n"}));
  EXPECT_EQ(Pieces(text, PreTokenizer::kLlama3), (Strings{"HelloWorld", "'s", " ", "123", "45", " a", "/b", "//\n"}));
  EXPECT_EQ(Pieces(text, PreTokenizer::kO200k), (Strings{"Hello", "World's", " ", "123", "45", " a", "/b", "//\n"}));
  EXPECT_EQ(Pieces(text, PreTokenizer::kGranite),
            (Strings{"HelloWorld", "'s", " ", "1", "2", "3", "4", "5", " a", "/", "b", "//", "\n"}));
  EXPECT_EQ(Pieces(text, PreTokenizer::kDeepseekV3), (Strings{"HelloWorld", "'s", " ", "123", "45", " a", "/b", "//\n"}));
  EXPECT_EQ(Pieces(text, PreTokenizer::kSentencePiece), (Strings{std::string(text)}));
}

TEST(PreTokenizerTest, SmallDifferencesBetweenKinds) {
  EXPECT_EQ(Pieces("we'LL", PreTokenizer::kGpt2), (Strings{"we", "'", "LL"}));
  EXPECT_EQ(Pieces("!/\n/", PreTokenizer::kO200k), (Strings{"!/\n/"}));
  EXPECT_EQ(Pieces("!/\n/", PreTokenizer::kLlama3), (Strings{"!/\n", "/"}));
  EXPECT_EQ(Pieces("abc漢字かな def", PreTokenizer::kDeepseekV3), (Strings{"abc", "漢字かな", " def"}));
  EXPECT_EQ(Pieces("abc漢字かな def", PreTokenizer::kLlama3), (Strings{"abc漢字かな", " def"}));
  EXPECT_EQ(Pieces("(foo)bar", PreTokenizer::kDeepseekV3), (Strings{"(foo", ")bar"}));
  EXPECT_EQ(Pieces("e\u0301x", PreTokenizer::kLlama3), (Strings{"e", "\u0301x"}));
  EXPECT_EQ(Pieces("e\u0301x", PreTokenizer::kDeepseekV3), (Strings{"e\u0301x"}));
  EXPECT_EQ(Pieces("ABCdef GHI", PreTokenizer::kO200k), (Strings{"ABCdef", " GHI"}));
  EXPECT_EQ(Pieces("  x", PreTokenizer::kGpt2), (Strings{" ", " x"}));
}

TEST(PreTokenizerTest, LongRunsAreLinear) {
  for (size_t kind = 1; kind <= kLastPreTokenizer; ++kind) {
    for (const char c : {'a', 'A', ' ', '\n', '1', '!', '\xff'}) {
      size_t bytes = 0;
      CutIntoPieces(static_cast<PreTokenizer>(kind), std::string(1 << 18, c),
                    [&](std::string_view p) { bytes += p.size(); });
      EXPECT_EQ(bytes, size_t{1} << 18);
    }
  }
}

TEST(PreTokenizerTest, InvalidBytesAreSymbols) {
  EXPECT_EQ(Pieces("a\xff\xfe b"), (Strings{"a", "\xff\xfe", " b"}));
  EXPECT_EQ(Pieces("\xc3"), (Strings{"\xc3"}));
  EXPECT_EQ(Pieces("\xed\xa0\x80"), (Strings{"\xed\xa0\x80"}));
}

// Characters "a" 3, "b" 4, a space 5, "ab" 6, " a" 7; bytes 10 to 265; special 0 to 2.
TokenizerData SmallSentencePiece() {
  TokenizerData data;
  data.pre_tokenizer = PreTokenizer::kSentencePiece;
  data.space_prefix = SpacePrefix::kAlways;
  for (const char* token : {"<unk>", "<s>", "</s>", "a", "b", " ", "ab", " a", "", ""}) data.tokens.emplace_back(token);
  for (uint32_t byte = 0; byte < 256; ++byte) {
    data.bytes.push_back(static_cast<uint32_t>(data.tokens.size()));
    data.tokens.emplace_back(1, static_cast<char>(byte));
  }
  data.merges = {{5, 3}, {3, 4}};
  data.special = {0, 1, 2};
  data.end_of_text = {2};
  data.beginning = {1};
  return data;
}

TEST(SentencePieceTest, ASpaceBeforeUnlessThere) {
  TokenizerData data = SmallSentencePiece();
  data.space_prefix = SpacePrefix::kUnlessThere;
  const auto tokenizer = MustParse(data);
  EXPECT_EQ(tokenizer->Encode("b"), (std::vector<int32_t>{5, 4}));
  for (const char* text : {" b", "\u2581b"}) EXPECT_EQ(tokenizer->Encode(text), (std::vector<int32_t>{5, 4})) << text;
  EXPECT_EQ(tokenizer->Encode("  b"), (std::vector<int32_t>{5, 5, 4}));
  EXPECT_EQ(tokenizer->Encode(""), std::vector<int32_t>{});
  Bytes both = SerializeTokenizer(data);
  both[7] |= 2;
  EXPECT_NE(Refusal(both).find("T2"), std::string::npos);
}

TEST(SentencePieceTest, CharactersThenBytesWithASpaceBefore) {
  const auto tokenizer = MustParse(SmallSentencePiece());
  EXPECT_EQ(tokenizer->Encode("ab"), (std::vector<int32_t>{7, 4}));
  EXPECT_EQ(tokenizer->Encode("bab"), (std::vector<int32_t>{5, 4, 6}));
  EXPECT_EQ(tokenizer->Encode("b\u00e9"), (std::vector<int32_t>{5, 4, 10 + 0xc3, 10 + 0xa9}));
  EXPECT_EQ(tokenizer->Encode("b\u2581b"), (std::vector<int32_t>{5, 4, 5, 4}));
  EXPECT_EQ(tokenizer->Encode("\xff"), (std::vector<int32_t>{5, 10 + 0xff}));
  EXPECT_EQ(tokenizer->Encode(""), std::vector<int32_t>{});
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("ab \u00e9")), " ab \u00e9");
  EXPECT_EQ(tokenizer->Encode(" b"), (std::vector<int32_t>{5, 5, 4}));
  ASSERT_EQ(tokenizer->beginning().size(), 1u);
  EXPECT_EQ(tokenizer->beginning()[0], 1u);
}

TEST(SentencePieceTest, ByteTokensMustBeTheirBytes) {
  TokenizerData data = SmallSentencePiece();
  std::swap(data.bytes[0], data.bytes[1]);
  EXPECT_NE(Refusal(data).find("T8"), std::string::npos);
}

TEST(TokenizerTest, WholePiecesComeBeforeMerges) {
  TokenizerData data = SmallTokenizer();
  data.tokens.push_back("hello");
  EXPECT_EQ(MustParse(data)->Encode("hello"), (std::vector<int32_t>{258, 'o'}));
  data.whole_pieces = true;
  EXPECT_EQ(MustParse(data)->Encode("hello"), std::vector<int32_t>{263});
}

TEST(UnicodeTest, Utf8RoundTripsAndRefusesWhatIsNotUtf8) {
  for (const char32_t code : {U'\0', U'\x7f', U'\x80', U'\u07ff', U'\u0800', U'\uffff', U'\U00010000', U'\U0010ffff'}) {
    std::string text;
    AppendUtf8(code, &text);
    const CodePoint point = DecodeUtf8(text, 0);
    EXPECT_EQ(point.code, code);
    EXPECT_EQ(point.length, text.size());
  }
  for (const std::string_view bad : {"\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xed\xbf\xbf", "\xf4\x90\x80\x80",
                                     "\xf8", "\x80", "\xe2\x82", "\xe2\x28\xa1"}) {
    EXPECT_EQ(DecodeUtf8(bad, 0).length, 1u);
    EXPECT_GE(DecodeUtf8(bad, 0).code, kInvalidByte);
  }
}

TEST(UnicodeTest, NfcComposesOrdersAndExcludes) {
  EXPECT_EQ(NormalizeNfc("cafe\u0301"), "caf\u00e9");
  EXPECT_EQ(NormalizeNfc("a\u0323\u0302"), "\u1ead");       // two steps
  EXPECT_EQ(NormalizeNfc("a\u0302\u0323"), "\u1ead");       // marks ordered first
  EXPECT_EQ(NormalizeNfc("\u1112\u1161\u11ab"), "\ud55c");  // Hangul L + V + T
  EXPECT_EQ(NormalizeNfc("\ud55c"), "\ud55c");
  EXPECT_EQ(NormalizeNfc("\u0958"), "\u0915\u093c");  // composition exclusion
  EXPECT_EQ(NormalizeNfc("\u212b"), "\u00c5");        // singleton
  EXPECT_EQ(NormalizeNfc("a\u0315\u0300\u05ae\u0300b"), "\u00e0\u05ae\u0300\u0315b");
  EXPECT_EQ(NormalizeNfc("e\xff\u0301"), "e\xff\u0301");  // an invalid byte blocks
  EXPECT_EQ(NormalizeNfc("\u0301"), "\u0301");
}

TEST(TokenizerTest, MergesByRank) {
  const auto tokenizer = MustParse(SmallTokenizer());
  EXPECT_EQ(tokenizer->Encode("hello"), (std::vector<int32_t>{258, 'o'}));
  EXPECT_EQ(tokenizer->Encode("aaaaaaa"), (std::vector<int32_t>{260, 259, 'a'}));
  EXPECT_EQ(tokenizer->Encode(""), std::vector<int32_t>{});
  EXPECT_EQ(tokenizer->vocab_size(), 263u);
}

TEST(TokenizerTest, TextNeverBecomesASpecialToken) {
  const auto tokenizer = MustParse(SmallTokenizer());
  const std::vector<int32_t> ids = tokenizer->Encode("<end>");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 261), 0);
  EXPECT_EQ(tokenizer->Decode(ids), "<end>");
}

TEST(TokenizerTest, DecodeLeavesOutSpecialAndUnknownIds) {
  const auto tokenizer = MustParse(SmallTokenizer());
  const std::vector<int32_t> ids = {256, 261, -1, 262, 1 << 30, 'x'};
  EXPECT_EQ(tokenizer->Decode(ids), "hex");
  EXPECT_TRUE(tokenizer->IsEndOfText(261));
  EXPECT_FALSE(tokenizer->IsEndOfText(-1));
  EXPECT_FALSE(tokenizer->IsEndOfText('x'));
}

TEST(TokenizerTest, AnyBytesRoundTrip) {
  const auto tokenizer = MustParse(SmallTokenizer());
  uint32_t state = 1;
  for (int length = 0; length < 300; ++length) {
    std::string text;
    for (int i = 0; i < length; ++i) {
      state = state * 1664525u + 1013904223u;
      text.push_back(static_cast<char>(state >> 24));
    }
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), NormalizeNfc(text));
  }
}

TEST(TokenizerTest, OneLongWordIsNotQuadratic) {
  const auto tokenizer = MustParse(SmallTokenizer());
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(tokenizer->Encode(std::string(1 << 20, 'a')).size(), size_t{1} << 18);
  EXPECT_EQ(tokenizer->Encode(std::string(1 << 20, ' ')).size(), size_t{1} << 20);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST(TokenizerTest, ThreadsShareATokenizer) {
  const auto tokenizer = MustParse(SmallTokenizer());
  const std::vector<int32_t> expected = tokenizer->Encode("hello hello");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) EXPECT_EQ(tokenizer->Encode("hello hello"), expected);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(TokenizerBlobTest, EveryTruncationAndExtensionIsRefused) {
  Bytes blob = SerializeTokenizer(SmallTokenizer());
  for (size_t size = 0; size < blob.size(); ++size) {
    EXPECT_FALSE(Tokenizer::Parse(ByteSpan(blob).first(size)).ok()) << size;
  }
  blob.push_back(0);
  EXPECT_NE(Refusal(blob).find("T5"), std::string::npos);
}

TEST(TokenizerBlobTest, FlippedBytesNeverCrash) {
  const Bytes blob = SerializeTokenizer(SmallTokenizer());
  for (size_t i = 0; i < blob.size(); ++i) {
    Bytes damaged = blob;
    damaged[i] ^= 0x81;
    const auto parsed = Tokenizer::Parse(damaged);
    if (parsed.ok()) (*parsed)->Encode("hello aaaa");
  }
}

TEST(TokenizerBlobTest, HeaderRules) {
  const Bytes good = SerializeTokenizer(SmallTokenizer());
  const auto with = [&](size_t offset, uint8_t value) {
    Bytes blob = good;
    blob[offset] = value;
    return Refusal(blob);
  };
  EXPECT_NE(with(0, 'X').find("T1"), std::string::npos);
  EXPECT_NE(with(4, 2).find("T1"), std::string::npos);
  EXPECT_NE(with(6, 9).find("T2"), std::string::npos);
  EXPECT_NE(with(7, 64).find("T2"), std::string::npos);
  EXPECT_NE(with(11, 0xff).find("T3"), std::string::npos);
  EXPECT_NE(with(15, 0xff).find("T3"), std::string::npos);
  EXPECT_NE(with(19, 0xff).find("T3"), std::string::npos);
}

TEST(TokenizerBlobTest, ContentRules) {
  const auto with = [](auto change) {
    TokenizerData data = SmallTokenizer();
    change(data);
    return Refusal(data).substr(0, 80);
  };
  EXPECT_NE(with([](TokenizerData& d) { d.tokens[258] = std::string(1025, 'x'); }).find("T4"), std::string::npos);
  EXPECT_NE(with([](TokenizerData& d) { d.merges[0].first = 263; }).find("T6"), std::string::npos);
  EXPECT_NE(with([](TokenizerData& d) { d.end_of_text = {263}; }).find("T6"), std::string::npos);
  EXPECT_NE(with([](TokenizerData& d) { d.special = {261, 261}; }).find("T7"), std::string::npos);
  EXPECT_NE(with([](TokenizerData& d) { d.tokens['q'] = "qq"; }).find("T8"), std::string::npos);
  EXPECT_NE(with([](TokenizerData& d) { d.tokens[262] = "he"; }).find("T9"), std::string::npos);
  EXPECT_NE(with([](TokenizerData& d) { d.merges[0] = {'x', 'y'}; }).find("T10"), std::string::npos);
  EXPECT_NE(with([](TokenizerData& d) { d.merges[0] = {262, 'y'}; }).find("T10"), std::string::npos);
  EXPECT_NE(with([](TokenizerData& d) { d.merges[0] = {261, 'y'}; }).find("T10"), std::string::npos);
  EXPECT_NE(with([](TokenizerData& d) { d.merges.push_back({'h', 'e'}); }).find("T11"), std::string::npos);
}

}  // namespace
}  // namespace moepack
