// Envelope: the only bytes of a bundle that are read before a signature has been checked.
#include "format/envelope.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const moepack::ByteSpan bytes(data, size);
  (void)moepack::ParseEnvelopeHead(bytes.first(std::min<size_t>(size, moepack::kEnvelopeHeadBytes)));
  const auto envelope = moepack::ParseEnvelope(bytes);
  if (envelope.ok() && moepack::SerializeEnvelope(*envelope) != moepack::Bytes(data, data + std::min<size_t>(size, envelope->envelope_bytes())))
    __builtin_trap();  // an accepted envelope has one form only
  return 0;
}
