// Bounded little-endian reader and writer over bytes in memory. Never reads or writes outside the span it was given.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moepack {

using ByteSpan = std::span<const uint8_t>;
using Bytes = std::vector<uint8_t>;

inline ByteSpan AsBytes(std::string_view s) { return {reinterpret_cast<const uint8_t*>(s.data()), s.size()}; }
inline std::string_view AsText(ByteSpan b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

// "0123abcd": lower-case hexadecimal of `data`.
std::string ToHex(ByteSpan data);
// Inverse of ToHex; false unless `text` is exactly 2 * out.size() lower- or upper-case digits.
bool FromHex(std::string_view text, std::span<uint8_t> out);

// Reads fixed-width values from a span it does not own. After the first read past the end ok() is false for good and
// every read returns zero, so a parser may check once at the end of a record.
class ByteReader {
 public:
  explicit ByteReader(ByteSpan data) : data_(data) {}
  bool ok() const { return ok_; }
  size_t offset() const { return offset_; }
  size_t remaining() const { return data_.size() - offset_; }
  uint8_t U8() { return Fixed<uint8_t>(); }
  uint16_t U16() { return Fixed<uint16_t>(); }
  uint32_t U32() { return Fixed<uint32_t>(); }
  uint64_t U64() { return Fixed<uint64_t>(); }
  // View of the next n bytes (empty and !ok() when fewer remain).
  ByteSpan Take(size_t n) {
    if (!ok_ || n > remaining()) {
      ok_ = false;
      return {};
    }
    ByteSpan s = data_.subspan(offset_, n);
    offset_ += n;
    return s;
  }

 private:
  template <typename T>
  T Fixed() {
    T v = 0;
    ByteSpan s = Take(sizeof(T));
    for (size_t i = 0; i < s.size(); ++i) v = static_cast<T>(v | (static_cast<T>(s[i]) << (8 * i)));
    return v;
  }
  ByteSpan data_;
  size_t offset_ = 0;
  bool ok_ = true;
};

// Appends little-endian values to a buffer it owns.
class ByteWriter {
 public:
  void U8(uint8_t v) { out_.push_back(v); }
  void U16(uint16_t v) { Fixed(v); }
  void U32(uint32_t v) { Fixed(v); }
  void U64(uint64_t v) { Fixed(v); }
  void Append(ByteSpan s) { out_.insert(out_.end(), s.begin(), s.end()); }
  void Zeros(size_t n) { out_.resize(out_.size() + n, 0); }
  size_t size() const { return out_.size(); }
  const Bytes& bytes() const { return out_; }
  Bytes Release() { return std::move(out_); }

 private:
  template <typename T>
  void Fixed(T v) {
    for (size_t i = 0; i < sizeof(T); ++i) out_.push_back(static_cast<uint8_t>(v >> (8 * i)));
  }
  Bytes out_;
};

}  // namespace moepack
