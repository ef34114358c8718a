#include "format/manifest/wire_check.h"

#include <algorithm>

namespace moepack::wire_check {
namespace {

enum class WireType : uint32_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

class Scanner {
 public:
  explicit Scanner(ByteSpan bytes) : bytes_(bytes) {}
  Status ScanMessage(const Message& message, size_t end);
  // Shortest-form varint that ends before `end`; false otherwise.
  bool ReadVarint(size_t end, uint64_t* value);

 private:
  Status Bad(const Message& message, const char* field, const char* rule) const {
    return Status(ErrorCode::kMalformed,
                  StrFormat("%s%s%s at byte %zu: %s", message.name, *field ? "." : "", field, offset_, rule));
  }
  Status ScanTag(const Message& message, size_t end, const Field** field);
  Status ScanValue(const Message& message, const Field& field, size_t end);
  Status ScanScalar(const Message& message, const Field& field, size_t end, bool allow_default);
  Status ScanPacked(const Message& message, const Field& field, size_t end);

  ByteSpan bytes_;
  size_t offset_ = 0;
};

WireType WireTypeOf(const Field& field) {
  if (field.type == Type::kMessage || field.type == Type::kBytes || field.repeated) return WireType::kLengthDelimited;
  return field.type == Type::kFloat ? WireType::kFixed32 : WireType::kVarint;
}

uint64_t MaxOf(const Field& field) {
  if (field.type == Type::kBool) return 1;
  if (!field.repeated && field.limit != 0) return field.limit;
  return field.type == Type::kUint32 ? UINT32_MAX : UINT64_MAX;
}

bool Scanner::ReadVarint(size_t end, uint64_t* value) {
  *value = 0;
  for (int shift = 0; shift < 70; shift += 7) {
    if (offset_ >= end) return false;
    const uint8_t byte = bytes_[offset_++];
    if (shift == 63 && byte > 1) return false;
    *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return byte != 0 || shift == 0;
  }
  return false;
}

Status Scanner::ScanTag(const Message& message, size_t end, const Field** field) {
  uint64_t tag = 0;
  if (!ReadVarint(end, &tag)) return Bad(message, "", "field tag is cut off or overlong");
  const uint64_t number = tag >> 3;
  const auto found =
      std::find_if(message.fields.begin(), message.fields.end(), [&](const Field& f) { return f.number == number; });
  if (found == message.fields.end()) return Bad(message, "", "unknown field");
  if (static_cast<WireType>(tag & 7) != WireTypeOf(*found)) return Bad(message, found->name, "wrong wire type");
  *field = &*found;
  return Status::Ok();
}

Status Scanner::ScanScalar(const Message& message, const Field& field, size_t end, bool allow_default) {
  uint64_t value = 0;
  if (field.type == Type::kFloat) {
    if (end - offset_ < 4) return Bad(message, field.name, "is cut off");
    for (int i = 0; i < 4; ++i) value |= static_cast<uint64_t>(bytes_[offset_ + static_cast<size_t>(i)]) << (8 * i);
    offset_ += 4;
  } else if (!ReadVarint(end, &value)) {
    return Bad(message, field.name, "varint is cut off or overlong");
  } else if (value > MaxOf(field)) {
    return Bad(message, field.name, "value is out of range");
  }
  if (value == 0 && !allow_default) return Bad(message, field.name, "default value must be left out");
  return Status::Ok();
}

Status Scanner::ScanPacked(const Message& message, const Field& field, size_t end) {
  if (offset_ == end) return Bad(message, field.name, "empty list must be left out");
  for (uint64_t count = 0; offset_ < end; ++count) {
    if (count == field.limit)
      return Status(ErrorCode::kLimit, Bad(message, field.name, "more elements than allowed").message());
    MOEPACK_RETURN_IF_ERROR(ScanScalar(message, field, end, true));
  }
  return Status::Ok();
}

Status Scanner::ScanValue(const Message& message, const Field& field, size_t end) {
  if (WireTypeOf(field) != WireType::kLengthDelimited) return ScanScalar(message, field, end, false);
  uint64_t length = 0;
  if (!ReadVarint(end, &length)) return Bad(message, field.name, "length is cut off or overlong");
  if (length > end - offset_) return Bad(message, field.name, "length reaches past the end");
  const size_t inner_end = offset_ + static_cast<size_t>(length);
  if (field.type == Type::kMessage) return ScanMessage(*field.message, inner_end);
  if (field.type != Type::kBytes) return ScanPacked(message, field, inner_end);
  if (length == 0) return Bad(message, field.name, "empty bytes must be left out");
  if (field.exact != 0 && length != field.exact) return Bad(message, field.name, "has the wrong length");
  if (length > field.limit) return Status(ErrorCode::kLimit, Bad(message, field.name, "longer than allowed").message());
  offset_ = inner_end;
  return Status::Ok();
}

Status Scanner::ScanMessage(const Message& message, size_t end) {
  const Field* previous = nullptr;
  const Field* expected = message.fields.data();  // first field that may still come
  uint64_t count = 0;
  bool oneof_seen = false;
  while (offset_ < end) {
    const Field* field = nullptr;
    MOEPACK_RETURN_IF_ERROR(ScanTag(message, end, &field));
    if (previous != nullptr && field < previous) return Bad(message, field->name, "fields must be in ascending order");
    const bool again = field == previous;
    if (again && !(field->repeated && field->type == Type::kMessage)) return Bad(message, field->name, "appears twice");
    count = again ? count + 1 : 1;
    if (field->repeated && field->type == Type::kMessage && count > field->limit) {
      return Status(ErrorCode::kLimit, Bad(message, field->name, "more elements than allowed").message());
    }
    if (static_cast<size_t>(field - message.fields.data()) >= message.oneof_begin) {
      if (oneof_seen) return Bad(message, field->name, "excludes the field before it");
      oneof_seen = true;
    }
    for (; expected < field; ++expected) {
      if (expected->required) return Bad(message, expected->name, "is missing");
    }
    expected = field + 1;
    previous = field;
    MOEPACK_RETURN_IF_ERROR(ScanValue(message, *field, end));
  }
  for (; expected < message.fields.data() + message.fields.size(); ++expected) {
    if (expected->required) return Bad(message, expected->name, "is missing");
  }
  if (message.oneof_begin < message.fields.size() && !oneof_seen) return Bad(message, "", "one of its kinds is missing");
  return Status::Ok();
}

}  // namespace

uint64_t LeadingNumber(ByteSpan bytes) {
  constexpr uint64_t kField1Varint = 1 << 3;
  Scanner scanner(bytes);
  uint64_t tag = 0, value = 0;
  const bool ok = scanner.ReadVarint(bytes.size(), &tag) && tag == kField1Varint && scanner.ReadVarint(bytes.size(), &value);
  return ok ? value : 0;
}

Status Check(const Message& message, ByteSpan bytes) { return Scanner(bytes).ScanMessage(message, bytes.size()); }

}  // namespace moepack::wire_check
