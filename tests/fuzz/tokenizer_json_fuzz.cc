// tokenizer.json: what compiles must parse on the device.
#include "model/frontend/tokenizer_json.h"
#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto blob = moepack::CompileTokenizerJson(moepack::ByteSpan(data, size), {}, {}, 4096);
  if (blob.ok() && !moepack::Tokenizer::Parse(*blob).ok()) __builtin_trap();
  return 0;
}
