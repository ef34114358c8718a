#include "model/frontend/tokenizer_steps.h"

#include "tokenizer/pre_tokenizer.h"

namespace moepack {
namespace {

constexpr char kMark[] = "\xE2\x96\x81";  // U+2581
constexpr char kNormalizerField[] = "tokenizer.json: normalizer", kPreTokenizerField[] = "tokenizer.json: pre_tokenizer";

// Steps of a Sequence, or the one step that `json` is; none for null.
std::vector<Json> Steps(const Json& json, const char* list) {
  if (json.is_null()) return {};
  const Json& steps = Member(json, list);
  if (!IsType(json, "Sequence") || !steps.is_array()) return {json};
  return steps.get<std::vector<Json>>();
}

bool IsReplace(const Json& step, const char* from, const char* to) {
  return IsType(step, "Replace") && Member(Member(step, "pattern"), "String") == from && Member(step, "content") == to;
}

Status ReadNormalizer(const Json& json, TokenizerData* data, bool* sentence_piece) {
  for (const Json& step : Steps(json, "normalizers")) {
    if (IsType(step, "NFC")) {
      data->normalizer = Normalizer::kNfc;
    } else if (IsType(step, "Prepend") && Member(step, "prepend") == kMark) {
      data->space_prefix = SpacePrefix::kAlways;
    } else if (IsReplace(step, " ", kMark)) {
      *sentence_piece = true;
    } else {
      return Unsupported(kNormalizerField, step);
    }
  }
  const bool prefixed = data->space_prefix != SpacePrefix::kNone;
  const bool whole = !prefixed || (*sentence_piece && data->normalizer == Normalizer::kNone);
  return whole ? Status::Ok() : Unsupported(kNormalizerField, json);
}

bool IsByteLevel(const Json& step, bool use_regex) {
  return IsType(step, "ByteLevel") && Member(step, "add_prefix_space") == false &&
         (Member(step, "use_regex") == use_regex || (use_regex && Member(step, "use_regex").is_null()));
}

// The kind whose expressions are exactly these splits.
std::optional<PreTokenizer> KindOf(const std::vector<std::string>& expressions) {
  for (size_t k = 1; k <= kLastPreTokenizer; ++k) {
    const auto kind = static_cast<PreTokenizer>(k);
    const auto patterns = PreTokenizerPatterns(kind);
    if (patterns.empty() || patterns.size() != expressions.size()) continue;
    if (std::equal(patterns.begin(), patterns.end(), expressions.begin())) return kind;
  }
  return std::nullopt;
}

// Line ends may stand in an expression as they are.
std::string WithEscapes(const std::string& expression) {
  std::string out;
  for (const char c : expression) {
    if (c == '\r') {
      out += "\\r";
    } else if (c == '\n') {
      out += "\\n";
    } else {
      out.push_back(c);
    }
  }
  return out;
}

// Splits, then bytes; ByteLevel with use_regex stands for GPT-2's expression, Digits for single digits.
Status ReadByteLevel(const std::vector<Json>& steps, const Json& whole, TokenizerData* data) {
  std::vector<std::string> expressions;
  for (size_t i = 0; i < steps.size(); ++i) {
    const Json& step = steps[i];
    const bool last = i + 1 == steps.size();
    const Json& regex = Member(Member(step, "pattern"), "Regex");
    const bool split = IsType(step, "Split") && Member(step, "behavior") == "Isolated" && Member(step, "invert") == false;
    if (!last && split && regex.is_string()) {
      expressions.push_back(WithEscapes(regex.get<std::string>()));
    } else if (!last && IsType(step, "Digits") && Member(step, "individual_digits") == true) {
      expressions.push_back("\\p{N}");
    } else if (last && IsByteLevel(step, true)) {
      expressions.emplace_back(PreTokenizerPatterns(PreTokenizer::kGpt2)[0]);
    } else if (!last || !IsByteLevel(step, false)) {
      return Unsupported(steps.size() == 1 ? kPreTokenizerField : StrFormat("%s[%zu]", kPreTokenizerField, i), step);
    }
  }
  const std::optional<PreTokenizer> kind = KindOf(expressions);
  if (!kind.has_value())
    return Unsupported(steps.empty() ? kPreTokenizerField : std::string(kPreTokenizerField) + "[0]",
                       steps.empty() ? whole : steps[0]);
  data->pre_tokenizer = *kind;
  return Status::Ok();
}

// Metaspace without cuts does what the normalizers Prepend and Replace do, but puts no mark before one. "first" is the
// first part of a text between special tokens, which is all of it: text never becomes a special token.
Status ReadMetaspace(const Json& step, TokenizerData* data) {
  const Json& scheme = Member(step, "prepend_scheme");
  const bool first =
      scheme == "first" || scheme == "always" || (scheme.is_null() && Member(step, "add_prefix_space") == true);
  const bool never = scheme == "never" || (scheme.is_null() && Member(step, "add_prefix_space") == false);
  if (Member(step, "replacement") != kMark || Member(step, "split") != false || (!first && !never)) {
    return Unsupported(kPreTokenizerField, step);
  }
  if (first) data->space_prefix = SpacePrefix::kUnlessThere;
  return Status::Ok();
}

Status CheckSentencePieceDecoder(const Json& decoder) {
  bool bytes = false;
  for (const Json& step : Steps(decoder, "decoders")) {
    const bool strip = IsType(step, "Strip") && Member(step, "content") == " ";
    bytes = bytes || IsType(step, "ByteFallback");
    if (!strip && !IsType(step, "ByteFallback") && !IsType(step, "Fuse") && !IsType(step, "Metaspace") &&
        !IsReplace(step, kMark, " ")) {
      return Unsupported("tokenizer.json: decoder", step);
    }
  }
  return bytes ? Status::Ok() : Unsupported("tokenizer.json: decoder", decoder);
}

}  // namespace

Status ReadTextSteps(const Json& tokenizer, TokenizerData* data) {
  bool sentence_piece = false;
  MOEPACK_RETURN_IF_ERROR(ReadNormalizer(Member(tokenizer, "normalizer"), data, &sentence_piece));
  const Json &pre = Member(tokenizer, "pre_tokenizer"), &decoder = Member(tokenizer, "decoder");
  const std::vector<Json> steps = Steps(pre, "pretokenizers");
  const bool metaspace = steps.size() == 1 && IsType(steps[0], "Metaspace") && !sentence_piece;
  if (metaspace) MOEPACK_RETURN_IF_ERROR(ReadMetaspace(steps[0], data));
  if (metaspace || sentence_piece) {
    if (!metaspace && !pre.is_null()) return Unsupported(kPreTokenizerField, pre);
    if (data->normalizer != Normalizer::kNone) return Unsupported(kNormalizerField, Member(tokenizer, "normalizer"));
    data->pre_tokenizer = PreTokenizer::kSentencePiece;
    return CheckSentencePieceDecoder(decoder);
  }
  MOEPACK_RETURN_IF_ERROR(ReadByteLevel(steps, pre, data));
  return IsType(decoder, "ByteLevel") ? Status::Ok() : Unsupported("tokenizer.json: decoder", decoder);
}

Status ReadPostProcessor(const Json& post, const std::function<std::optional<uint32_t>(const std::string&)>& id,
                         std::vector<uint32_t>* beginning) {
  const std::string field = "tokenizer.json: post_processor";
  for (const Json& step : Steps(post, "processors")) {
    if (IsType(step, "ByteLevel")) continue;
    const Json& single = Member(step, "single");
    if (!IsType(step, "TemplateProcessing") || !single.is_array()) return Unsupported(field, step);
    bool after_text = false;
    for (const Json& part : single) {
      if (Member(part, "Sequence").is_object()) {
        after_text = true;
        continue;
      }
      const Json& name = Member(Member(part, "SpecialToken"), "id");
      if (after_text || !name.is_string()) return Unsupported(field + ".single", part);
      const std::optional<uint32_t> token = id(name.get<std::string>());
      if (!token.has_value()) return Refuse(field, "\"" + name.get<std::string>() + "\" is not a token");
      beginning->push_back(*token);
    }
  }
  return Status::Ok();
}

std::optional<uint8_t> ByteTokenValue(const std::string& text) {
  if (text.size() != 6 || text.compare(0, 3, "<0x") != 0 || text[5] != '>') return std::nullopt;
  uint32_t value = 0;
  for (const char c : {text[3], text[4]}) {
    const bool digit = c >= '0' && c <= '9', letter = c >= 'A' && c <= 'F';
    if (!digit && !letter) return std::nullopt;
    value = value * 16 + static_cast<uint32_t>(digit ? c - '0' : c - 'A' + 10);
  }
  return static_cast<uint8_t>(value);
}

}  // namespace moepack
