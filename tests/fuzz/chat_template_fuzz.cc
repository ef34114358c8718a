// Chat templates: whatever they are, reducing them ends, and what comes of it is what the device takes.
#include "model/chat/reduce.h"
#include "tokenizer/chat_blob.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using moepack::ByteSpan;
  const auto reduced = moepack::ReduceChatTemplate(moepack::AsText(ByteSpan(data, size)), {{"bos_token", "<s>"}});
  if (!reduced.ok()) return 0;
  moepack::ByteWriter writer;
  moepack::AppendChatTemplate(reduced->chat, &writer);
  const moepack::Bytes blob = writer.Release();
  moepack::ByteReader reader(blob);
  const auto read = moepack::ReadChatTemplate(&reader, 1);
  if (!read.ok() || reader.remaining() != 0 || !(*read == reduced->chat)) __builtin_trap();
  return 0;
}
