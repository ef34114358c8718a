// Tokenizer blob, and text of any bytes through the tokenizers that are accepted. Input: u16 length of text, text, blob.
#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const size_t text_bytes = std::min<size_t>(size - 2, data[0] | data[1] << 8);
  const std::string_view text(reinterpret_cast<const char*>(data + 2), text_bytes);
  const auto tokenizer = moepack::Tokenizer::Parse(moepack::ByteSpan(data + 2 + text_bytes, size - 2 - text_bytes));
  if (!tokenizer.ok()) return 0;
  const std::vector<int32_t> ids = (*tokenizer)->Encode(text);
  for (const int32_t id : ids) {
    if (id < 0 || static_cast<uint32_t>(id) >= (*tokenizer)->vocab_size()) __builtin_trap();
  }
  (void)(*tokenizer)->Decode(ids);
  return 0;
}
