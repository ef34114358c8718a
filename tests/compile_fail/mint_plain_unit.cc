// Only runtime::ChunkDecoder makes PlainUnits, from verified chunks.
#include "format/verified.h"

moepack::ByteSpan Use(const moepack::PlainUnit& unit) { return unit.bytes(); }
#ifdef MOEPACK_MISUSE
moepack::PlainUnit Forge(moepack::Bytes bytes) { return moepack::PlainUnit(std::move(bytes)); }
#endif
