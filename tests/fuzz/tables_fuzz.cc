// Unit tables, hot list and golden prompts: what is accepted has exactly one wire form. The first byte chooses the parser.
#include "format/manifest/golden.h"
#include "format/manifest/manifest.h"

namespace {

template <typename Parse, typename Serialize>
void RoundTrip(moepack::ByteSpan bytes, Parse parse, Serialize serialize) {
  const auto parsed = parse(bytes);
  if (parsed.ok() && serialize(*parsed) != moepack::Bytes(bytes.begin(), bytes.end())) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const moepack::ByteSpan bytes(data + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      RoundTrip(bytes, moepack::ParseExpertTable, moepack::SerializeExpertTable);
      break;
    case 1:
      RoundTrip(bytes, moepack::ParseDenseTable, moepack::SerializeDenseTable);
      break;
    case 2:
      RoundTrip(bytes, moepack::ParseHotList, moepack::SerializeHotList);
      break;
    default:
      RoundTrip(bytes, moepack::ParseGoldenPrompts, moepack::SerializeGoldenPrompts);
      break;
  }
  return 0;
}
