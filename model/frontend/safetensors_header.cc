#include "model/frontend/safetensors_header.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/checked.h"
#include "model/frontend/json_text.h"

namespace moepack {
namespace {

using nlohmann::json;
using Unsigned = unsigned long long;

constexpr char kMetadataKey[] = "__metadata__";
constexpr size_t kMaxTensorNameBytes = 1024;

// Receives the header's JSON events and builds the entries directly, so that a hostile header costs no document tree. The
// first event that breaks the schema ends the parse with error() set.
class HeaderBuilder final : public nlohmann::json_sax<json> {
 public:
  explicit HeaderBuilder(SafetensorsHeader* out) : out_(out) {}
  const Status& error() const { return error_; }

  bool start_object(size_t) override {
    if (state_ == State::kStart) return Go(State::kRoot);
    if (state_ == State::kRootKey) return StartTensor();
    return Unexpected("an object");
  }

  bool key(std::string& name) override {
    if (state_ == State::kRoot) {
      key_ = name;
      return Go(State::kRootKey);
    }
    if (state_ == State::kMetadata) {
      key_ = name;
      return Go(State::kMetadataKey);
    }
    if (state_ == State::kTensor) return TensorKey(name);
    return Unexpected("a key");
  }

  bool end_object() override {
    if (state_ == State::kTensor) return EndTensor();
    if (state_ == State::kMetadata) return Go(State::kRoot);
    return Go(State::kDone);
  }

  bool string(std::string& value) override {
    if (state_ == State::kMetadataKey) {
      if (!out_->metadata.emplace(key_, value).second) return Fail("key '" + key_ + "' stands twice in __metadata__");
      return Go(State::kMetadata);
    }
    if (state_ == State::kDtype) {
      if (!ParseDtype(value, &entry_.dtype)) {
        return Fail("tensor " + entry_.name + ": element type '" + value + "' is not supported", ErrorCode::kUnsupported);
      }
      return Go(State::kTensor);
    }
    return Unexpected("a string");
  }

  bool start_array(size_t) override {
    if (state_ == State::kShape) return Go(State::kShapeItems);
    if (state_ == State::kOffsets) return Go(State::kOffsetItems);
    return Unexpected("an array");
  }

  bool number_unsigned(uint64_t value) override {
    if (state_ == State::kShapeItems) {
      if (entry_.shape.size() == kMaxSafetensorsRank) {
        return Fail(StrFormat("tensor %s: more than %zu dimensions", entry_.name.c_str(), kMaxSafetensorsRank));
      }
      entry_.shape.push_back(value);
      return true;
    }
    if (state_ == State::kOffsetItems) {
      if (offsets_.size() == 2) return Fail("tensor " + entry_.name + ": data_offsets has more than two numbers");
      offsets_.push_back(value);
      return true;
    }
    return Unexpected("a number");
  }

  bool end_array() override { return Go(State::kTensor); }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(int64_t) override { return Unexpected("a negative number"); }
  bool number_float(double, const std::string&) override { return Unexpected("a fraction"); }
  bool binary(json::binary_t&) override { return Unexpected("binary data"); }
  bool parse_error(size_t, const std::string&, const json::exception& error) override {
    return Fail("header is not valid JSON: " + JsonErrorText(error));
  }

 private:
  enum class State {
    kStart,
    kRoot,
    kRootKey,
    kMetadata,
    kMetadataKey,
    kTensor,
    kDtype,
    kShape,
    kShapeItems,
    kOffsets,
    kOffsetItems,
    kDone
  };

  bool Go(State next) {
    state_ = next;
    return true;
  }
  bool Fail(const std::string& reason, ErrorCode code = ErrorCode::kBadInput) {
    if (error_.ok()) error_ = Status(code, reason);
    return false;
  }
  bool Unexpected(const char* what) {
    const std::string where = key_.empty() ? "" : " at '" + key_ + "'";
    return Fail("header has " + std::string(what) + where + " where the format does not allow one");
  }

  bool StartTensor() {
    if (key_ == kMetadataKey) {
      if (seen_metadata_) return Fail("__metadata__ stands twice in the header");
      seen_metadata_ = true;
      return Go(State::kMetadata);
    }
    if (key_.empty() || key_.size() > kMaxTensorNameBytes) {
      return Fail(StrFormat("a tensor name of %zu bytes (1 to %zu are accepted)", key_.size(), kMaxTensorNameBytes));
    }
    entry_ = SafetensorsEntry();
    entry_.name = key_;
    offsets_.clear();
    seen_dtype_ = seen_shape_ = seen_offsets_ = false;
    return Go(State::kTensor);
  }

  bool TensorKey(const std::string& name) {
    bool* seen = nullptr;
    State next = State::kTensor;
    if (name == "dtype") seen = &seen_dtype_, next = State::kDtype;
    if (name == "shape") seen = &seen_shape_, next = State::kShape;
    if (name == "data_offsets") seen = &seen_offsets_, next = State::kOffsets;
    if (seen == nullptr) return Fail("tensor " + entry_.name + ": unknown key '" + name + "'");
    if (*seen) return Fail("tensor " + entry_.name + ": key '" + name + "' stands twice");
    *seen = true;
    return Go(next);
  }

  bool EndTensor() {
    if (!seen_dtype_ || !seen_shape_ || !seen_offsets_ || offsets_.size() != 2) {
      return Fail("tensor " + entry_.name + ": needs dtype, shape and two data_offsets");
    }
    entry_.begin = offsets_[0];
    entry_.end = offsets_[1];
    out_->entries.push_back(std::move(entry_));
    return Go(State::kRoot);
  }

  SafetensorsHeader* out_;
  Status error_;
  State state_ = State::kStart;
  std::string key_;
  SafetensorsEntry entry_;
  std::vector<uint64_t> offsets_;
  bool seen_metadata_ = false, seen_dtype_ = false, seen_shape_ = false, seen_offsets_ = false;
};

// Offsets of one tensor: ordered, inside the data, and exactly the bytes of its type and shape.
Status CheckExtent(const SafetensorsEntry& entry, uint64_t data_bytes) {
  if (entry.begin > entry.end || entry.end > data_bytes) {
    return Status(ErrorCode::kBadInput, StrFormat("tensor %s: data_offsets [%llu, %llu] outside of the %llu data bytes",
                                                  entry.name.c_str(), static_cast<Unsigned>(entry.begin),
                                                  static_cast<Unsigned>(entry.end), static_cast<Unsigned>(data_bytes)));
  }
  CheckedU64 bytes = DtypeBytes(entry.dtype);
  for (uint64_t dimension : entry.shape) bytes = bytes * dimension;
  if (!bytes.valid()) return Status(ErrorCode::kBadInput, "tensor " + entry.name + ": its shape overflows 64 bits");
  if (bytes.value() != entry.end - entry.begin) {
    return Status(ErrorCode::kBadInput,
                  StrFormat("tensor %s: %llu bytes of data, its shape and type need %llu", entry.name.c_str(),
                            static_cast<Unsigned>(entry.end - entry.begin), static_cast<Unsigned>(bytes.value())));
  }
  return Status::Ok();
}

// Together the tensors cover the data exactly once.
Status CheckCoverage(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes) {
  std::vector<const SafetensorsEntry*> order;
  order.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const SafetensorsEntry* a, const SafetensorsEntry* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  uint64_t expected = 0;
  for (const SafetensorsEntry* entry : order) {
    if (entry->begin != expected) {
      return Status(ErrorCode::kBadInput,
                    StrFormat("tensor %s: %s at data byte %llu, expected it to begin at %llu", entry->name.c_str(),
                              entry->begin > expected ? "a hole before it" : "overlaps another tensor",
                              static_cast<Unsigned>(entry->begin), static_cast<Unsigned>(expected)));
    }
    expected = entry->end;
  }
  if (expected != data_bytes) {
    return Status(ErrorCode::kBadInput,
                  StrFormat("%llu data bytes follow the last tensor", static_cast<Unsigned>(data_bytes - expected)));
  }
  return Status::Ok();
}

Status ParseHeaderText(ByteSpan text, SafetensorsHeader* header) {
  if (text.empty() || text[0] != '{')
    return Status(ErrorCode::kBadInput, "header does not begin with '{': not a safetensors file");
  HeaderBuilder builder(header);
  if (!json::sax_parse(text.begin(), text.end(), &builder)) return builder.error();
  auto& entries = header->entries;
  std::sort(entries.begin(), entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) { return a.name < b.name; });
  const auto twice = std::adjacent_find(
      entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) { return a.name == b.name; });
  if (twice != entries.end()) return Status(ErrorCode::kBadInput, "tensor " + twice->name + " stands twice in the header");
  return Status::Ok();
}

Result<SafetensorsHeader> Parse(ByteSpan file) {
  ByteReader reader(file);
  const uint64_t length = reader.U64();
  if (!reader.ok())
    return Status(ErrorCode::kBadInput, StrFormat("%zu bytes, too short for a safetensors file", file.size()));
  if (length > kMaxSafetensorsHeader) {
    return Status(ErrorCode::kLimit,
                  StrFormat("header of %llu bytes, at most %llu are accepted (is this a safetensors file?)",
                            static_cast<Unsigned>(length), static_cast<Unsigned>(kMaxSafetensorsHeader)));
  }
  const ByteSpan text = reader.Take(length);
  if (!reader.ok()) {
    return Status(ErrorCode::kBadInput,
                  StrFormat("header of %llu bytes goes past the end of the file (%zu bytes): truncated?",
                            static_cast<Unsigned>(length), file.size()));
  }
  SafetensorsHeader header;
  MOEPACK_RETURN_IF_ERROR(ParseHeaderText(text, &header));
  header.data_offset = reader.offset();
  const uint64_t data_bytes = reader.remaining();
  for (const SafetensorsEntry& entry : header.entries) MOEPACK_RETURN_IF_ERROR(CheckExtent(entry, data_bytes));
  MOEPACK_RETURN_IF_ERROR(CheckCoverage(header.entries, data_bytes));
  return header;
}

}  // namespace

Result<SafetensorsHeader> ParseSafetensors(ByteSpan file, const std::string& label) {
  Result<SafetensorsHeader> header = Parse(file);
  if (!header.ok()) return header.status().With(label);
  return header;
}

}  // namespace moepack
