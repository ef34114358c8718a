// Only verify::VerifiedBundle makes VerifiedBytes.
#include "format/verified.h"

moepack::ByteSpan Use(const moepack::VerifiedBytes& bytes) { return bytes.bytes(); }
#ifdef MOEPACK_MISUSE
moepack::VerifiedBytes Forge(moepack::Bytes bytes) { return moepack::VerifiedBytes(std::move(bytes)); }
#endif
