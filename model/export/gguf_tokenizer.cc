#include "model/export/gguf_tokenizer.h"

#include <algorithm>
#include <array>

#include "tokenizer/tokenizer_blob.h"

namespace moepack {
namespace {

constexpr int32_t kNormal = 1, kControl = 3, kUnused = 5;  // tokenizer.ggml.token_type

std::string Utf8(uint32_t code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | (code_point >> 6)), static_cast<char>(0x80 | (code_point & 0x3f))};
}

// The printable alphabet of byte-level BPE (GPT-2): a byte that prints as one character stands for itself, the others are
// the code points from 256 on, in order.
std::array<std::string, 256> PrintableBytes() {
  std::array<std::string, 256> out;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    out[byte] = Utf8(prints ? byte : next++);
  }
  return out;
}

struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<std::string> merges;
};

Vocabulary Print(const TokenizerData& data, uint64_t vocab) {
  const std::array<std::string, 256> printable = PrintableBytes();
  const auto print = [&](const std::string& token) {
    std::string out;
    for (const char byte : token) out += printable[static_cast<uint8_t>(byte)];
    return out;
  };
  Vocabulary out;
  for (uint64_t id = 0; id < vocab; ++id) {
    const bool used = id < data.tokens.size() && !data.tokens[id].empty();
    const bool special = std::binary_search(data.special.begin(), data.special.end(), static_cast<uint32_t>(id));
    if (!used) out.tokens.push_back(StrFormat("[PAD%llu]", static_cast<unsigned long long>(id)));
    if (used) out.tokens.push_back(special ? data.tokens[id] : print(data.tokens[id]));
    out.types.push_back(!used ? kUnused : special ? kControl : kNormal);
  }
  for (const auto& [left, right] : data.merges)
    out.merges.push_back(print(data.tokens[left]) + " " + print(data.tokens[right]));
  return out;
}

const char* PreTokenizerName(PreTokenizer pre) {
  switch (pre) {
    case PreTokenizer::kQwen2:
      return "qwen2";
    case PreTokenizer::kGpt2:
      return "gpt-2";
    case PreTokenizer::kLlama3:
      return "llama-bpe";
    case PreTokenizer::kO200k:
      return "gpt-4o";
    case PreTokenizer::kDeepseekV3:
      return "deepseek-v3";
    case PreTokenizer::kGranite:
      return "refact";
    case PreTokenizer::kSentencePiece:
      break;
  }
  return nullptr;
}

}  // namespace

Status AddGgufTokenizer(ByteSpan blob, uint64_t vocab, GgufHeader* header) {
  if (blob.empty()) {
    header->Text("tokenizer.ggml.model", "no_vocab");
    return Status::Ok();
  }
  MOEPACK_ASSIGN_OR_RETURN(const TokenizerData data, ParseTokenizerBlob(blob));
  const char* pre = PreTokenizerName(data.pre_tokenizer);
  if (pre == nullptr || data.tokens.size() > vocab) {
    return Status(ErrorCode::kTokenizer,
                  "GGUF: the tokenizer has a pre-tokenizer that llama.cpp lacks, or more tokens than the model");
  }
  const Vocabulary vocabulary = Print(data, vocab);
  header->Text("tokenizer.ggml.model", "gpt2");
  header->Text("tokenizer.ggml.pre", pre);
  header->Texts("tokenizer.ggml.tokens", vocabulary.tokens);
  header->I32s("tokenizer.ggml.token_type", vocabulary.types);
  header->Texts("tokenizer.ggml.merges", vocabulary.merges);
  if (!data.end_of_text.empty()) {
    header->U32("tokenizer.ggml.eos_token_id", data.end_of_text[0]);
    // Without this key llama.cpp takes id 11 for the beginning of text.
    header->U32("tokenizer.ggml.bos_token_id", data.end_of_text[0]);
  }
  if (data.end_of_text.size() > 1) header->U32("tokenizer.ggml.eot_token_id", data.end_of_text[1]);
  header->Flag("tokenizer.ggml.add_bos_token", false);
  header->Flag("tokenizer.ggml.add_eos_token", false);
  return Status::Ok();
}

}  // namespace moepack
