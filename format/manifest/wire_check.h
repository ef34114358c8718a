// A strict look at protobuf bytes before protobuf sees them: protobuf itself accepts unknown and repeated fields, overlong
// varints, any field order and values it silently cuts, so many byte strings mean the same message. Here exactly one does.
// Internal to format/manifest.
#pragma once

#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "base/status.h"

namespace moepack::wire_check {

enum class Type : uint8_t { kBool, kUint32, kUint64, kFloat, kBytes, kMessage };

struct Message;

struct Field {
  uint32_t number = 0;
  const char* name = "";
  Type type = Type::kUint32;
  bool repeated = false;
  // kBytes: most bytes; repeated: most elements; singular numbers: largest value, 0 for all that the type holds.
  uint64_t limit = 0;
  const Message* message = nullptr;  // kMessage
  bool required = false;             // must be present (an empty message is present)
  uint64_t exact = 0;                // kBytes: exactly so many bytes
};

// The rows of such tables.
constexpr Field Number(uint32_t number, const char* name, Type type, uint64_t largest = 0) {
  return {number, name, type, false, largest};
}
constexpr Field Packed(uint32_t number, const char* name, Type type, uint64_t limit) {
  return {number, name, type, true, limit};
}
constexpr Field Text(uint32_t number, const char* name, uint64_t limit) {
  return {number, name, Type::kBytes, false, limit};
}
constexpr Field Sha256Field(uint32_t number, const char* name) {
  return {number, name, Type::kBytes, false, 32, nullptr, true, 32};
}
constexpr Field One(uint32_t number, const char* name, const Message* message, bool required) {
  return {number, name, Type::kMessage, false, 0, message, required};
}
constexpr Field Many(uint32_t number, const char* name, const Message* message, uint64_t limit) {
  return {number, name, Type::kMessage, true, limit, message};
}

struct Message {
  const char* name = "";
  std::span<const Field> fields;  // ascending by number
  // Members of fields[oneof_begin ..] exclude each other and one must be present; fields.size() when there is no oneof.
  size_t oneof_begin = SIZE_MAX;
};

// kMalformed (kLimit above a limit) with message, field and byte offset unless `bytes` are the canonical form of
// `message`: known fields only, ascending, singular ones once, defaults left out, numbers packed, varints shortest and in
// range, lengths exact, limits kept, no trailing bytes. Uses no memory; depth is that of the tables.
Status Check(const Message& message, ByteSpan bytes);

// Value of field 1 when the bytes start with it as a varint; otherwise 0.
uint64_t LeadingNumber(ByteSpan bytes);

}  // namespace moepack::wire_check
