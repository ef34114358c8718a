// Envelope: the only bytes of a bundle that are read before a signature has been checked.
#include <algorithm>

#include "format/envelope.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const moepack::ByteSpan bytes(data, size);
  (void)moepack::ParseEnvelopeHead(bytes.first(std::min<size_t>(size, moepack::kEnvelopeHeadBytes)));
  const auto envelope = moepack::ParseEnvelope(bytes);
  // An accepted envelope has one form only.
  if (envelope.ok() && moepack::SerializeEnvelope(*envelope) != moepack::Bytes(data, data + size)) __builtin_trap();
  return 0;
}
