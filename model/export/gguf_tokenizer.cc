#include "model/export/gguf_tokenizer.h"

#include <algorithm>

#include "model/byte_alphabet.h"
#include "tokenizer/tokenizer_blob.h"

namespace moepack {
namespace {

constexpr int32_t kNormal = 1, kControl = 3, kUnused = 5;  // tokenizer.ggml.token_type

struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<std::string> merges;
};

Vocabulary Print(const TokenizerData& data, uint64_t vocab) {
  const ByteAlphabet alphabet;
  Vocabulary out;
  for (uint64_t id = 0; id < vocab; ++id) {
    const bool used = id < data.tokens.size() && !data.tokens[id].empty();
    const bool special = std::binary_search(data.special.begin(), data.special.end(), static_cast<uint32_t>(id));
    if (!used) out.tokens.push_back(StrFormat("[PAD%llu]", static_cast<unsigned long long>(id)));
    if (used) out.tokens.push_back(special ? data.tokens[id] : alphabet.Encode(data.tokens[id]));
    out.types.push_back(!used ? kUnused : special ? kControl : kNormal);
  }
  for (const auto& [left, right] : data.merges)
    out.merges.push_back(alphabet.Encode(data.tokens[left]) + " " + alphabet.Encode(data.tokens[right]));
  return out;
}

// llama.cpp's name of the cuts. With "llama-bpe", and with no other of these, a piece that is a token is that token whatever
// the merges; "smaug-bpe" cuts as "llama-bpe" does (src/llama-vocab.cpp). Null when it has no name for both together.
const char* PreTokenizerName(PreTokenizer pre, bool whole_pieces) {
  if (pre == PreTokenizer::kLlama3) return whole_pieces ? "llama-bpe" : "smaug-bpe";
  if (whole_pieces) return nullptr;
  switch (pre) {
    case PreTokenizer::kQwen2:
      return "qwen2";
    case PreTokenizer::kGpt2:
      return "gpt-2";
    case PreTokenizer::kO200k:
      return "gpt-4o";
    case PreTokenizer::kDeepseekV3:
      return "deepseek-v3";
    case PreTokenizer::kGranite:
      return "refact";
    case PreTokenizer::kLlama3:
    case PreTokenizer::kSentencePiece:
      break;
  }
  return nullptr;
}

Status Refused(const std::string& what) { return Status(ErrorCode::kTokenizer, "GGUF: the tokenizer " + what); }

// The beginning of a prompt, which GGUF knows as one token.
Status AddBeginning(const TokenizerData& data, GgufHeader* header) {
  if (data.beginning.size() > 1) {
    return Refused(StrFormat("begins a prompt with %zu tokens (post_processor), GGUF with one at most; export to ONNX instead",
                             data.beginning.size()));
  }
  // Without this key llama.cpp takes id 11 for the beginning of text.
  const std::vector<uint32_t>& first = data.beginning.empty() ? data.end_of_text : data.beginning;
  if (!first.empty()) header->U32("tokenizer.ggml.bos_token_id", first[0]);
  header->Flag("tokenizer.ggml.add_bos_token", !data.beginning.empty());
  return Status::Ok();
}

}  // namespace

Status AddGgufTokenizer(ByteSpan blob, uint64_t vocab, GgufHeader* header) {
  if (blob.empty()) {
    header->Text("tokenizer.ggml.model", "no_vocab");
    return Status::Ok();
  }
  MOEPACK_ASSIGN_OR_RETURN(const TokenizerData data, ParseTokenizerBlob(blob));
  if (data.tokens.size() > vocab) {
    return Refused(StrFormat("has %zu tokens, the model %llu", data.tokens.size(), static_cast<unsigned long long>(vocab)));
  }
  if (data.pre_tokenizer == PreTokenizer::kSentencePiece) {
    return Refused("is a SentencePiece one: GGUF wants a score of every piece, which tokenizer.json does not hold; export "
                   "to ONNX, or convert the checkpoint with its tokenizer.model");
  }
  const char* pre = PreTokenizerName(data.pre_tokenizer, data.whole_pieces);
  if (pre == nullptr) {
    return Refused("has ignore_merges with a pre-tokenizer that llama.cpp has without it only; export to ONNX instead");
  }
  const Vocabulary vocabulary = Print(data, vocab);
  header->Text("tokenizer.ggml.model", "gpt2");
  header->Text("tokenizer.ggml.pre", pre);
  header->Texts("tokenizer.ggml.tokens", vocabulary.tokens);
  header->I32s("tokenizer.ggml.token_type", vocabulary.types);
  header->Texts("tokenizer.ggml.merges", vocabulary.merges);
  if (!data.end_of_text.empty()) header->U32("tokenizer.ggml.eos_token_id", data.end_of_text[0]);
  if (data.end_of_text.size() > 1) header->U32("tokenizer.ggml.eot_token_id", data.end_of_text[1]);
  MOEPACK_RETURN_IF_ERROR(AddBeginning(data, header));
  header->Flag("tokenizer.ggml.add_eos_token", false);
  return Status::Ok();
}

}  // namespace moepack
