#include "base/npy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/checked.h"

namespace moepack {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read as they lie in the file");

constexpr std::string_view kMagic("\x93NUMPY", 6);

Status Malformed(const char* what) { return Status(ErrorCode::kBadInput, std::string("header: ") + what); }

// The few Python literals that a header holds.
class Literal {
 public:
  explicit Literal(std::string_view text) : text_(text) {}

  bool Take(char c) {
    SkipSpace();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool TakeWord(std::string_view word) {
    SkipSpace();
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  // Between quotes, without escapes.
  bool TakeText(std::string_view* out) {
    const char quote = Take('\'') ? '\'' : Take('"') ? '"' : '\0';
    const size_t end = quote == '\0' ? std::string_view::npos : text_.find(quote, at_);
    if (end == std::string_view::npos) return false;
    *out = text_.substr(at_, end - at_);
    at_ = end + 1;
    return out->find('\\') == std::string_view::npos;
  }
  bool TakeNumber(uint64_t* out) {
    SkipSpace();
    const size_t begin = at_;
    *out = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      if (!CheckedMul(*out, 10, out) || !CheckedAdd(*out, static_cast<uint64_t>(text_[at_] - '0'), out)) return false;
    }
    return at_ > begin && (at_ == begin + 1 || text_[begin] != '0');
  }
  bool AtEnd() {
    SkipSpace();
    return at_ == text_.size();
  }

 private:
  void SkipSpace() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  std::string_view text_;
  size_t at_ = 0;
};

Status ReadType(Literal* literal, NpyHeader* out) {
  std::string_view type;
  if (!literal->TakeText(&type)) return Malformed("'descr' is not the name of one element type");
  out->float64 = type == "<f8";
  if (out->float64 || type == "<f4") return Status::Ok();
  return Status(ErrorCode::kUnsupported, "header: 'descr' is '" + std::string(type.substr(0, 20)) +
                                             "', expected '<f4' or '<f8'; save with .astype(numpy.float32)");
}

Status ReadOrder(Literal* literal) {
  if (literal->TakeWord("False")) return Status::Ok();
  if (!literal->TakeWord("True")) return Malformed("'fortran_order' is neither True nor False");
  return Status(ErrorCode::kUnsupported, "header: the array is in Fortran order; save numpy.ascontiguousarray of it");
}

Status ReadShape(Literal* literal, NpyHeader* out) {
  if (!literal->Take('(')) return Malformed("'shape' is not a tuple");
  std::array<uint64_t, 2> shape{};
  size_t dimensions = 0;
  for (; !literal->Take(')'); ++dimensions) {
    uint64_t size = 0;
    if (!literal->TakeNumber(&size)) return Malformed("'shape' holds something else than sizes below 2^64");
    if (dimensions < shape.size()) shape[dimensions] = size;
    if (literal->Take(',')) continue;
    if (!literal->Take(')')) return Malformed("'shape' has no end");
    ++dimensions;
    break;
  }
  if (dimensions != 2) {
    return Status(ErrorCode::kUnsupported,
                  StrFormat("header: an array of %zu dimensions, expected two: rows and columns", dimensions));
  }
  if (shape[0] == 0 || shape[1] == 0) return Status(ErrorCode::kBadInput, "header: the array is empty");
  out->rows = shape[0];
  out->columns = shape[1];
  return Status::Ok();
}

// Length of the literal and where it begins. Versions 2 and 3 count in 32 bits.
Status ReadLengths(const RandomAccessFile& file, uint64_t size, uint64_t* begin, uint64_t* length) {
  std::array<uint8_t, 12> head{};
  if (size < head.size()) return Status(ErrorCode::kBadInput, "not a .npy file: too short");
  MOEPACK_RETURN_IF_ERROR(file.Read(0, head));
  if (std::memcmp(head.data(), kMagic.data(), kMagic.size()) != 0)
    return Status(ErrorCode::kBadInput, "not a .npy file (numpy.save writes one)");
  if (head[6] < 1 || head[6] > 3 || head[7] != 0) {
    return Status(ErrorCode::kVersion, StrFormat("version %d.%d of .npy, expected 1.0, 2.0 or 3.0", head[6], head[7]));
  }
  *begin = head[6] == 1 ? 10 : 12;
  *length = uint64_t{head[8]} | uint64_t{head[9]} << 8;
  if (head[6] > 1) *length |= uint64_t{head[10]} << 16 | uint64_t{head[11]} << 24;
  if (*length > kMaxNpyHeader) return Status(ErrorCode::kLimit, "header: longer than 65536 bytes");
  if (*length > size - *begin) return Status(ErrorCode::kBadInput, "header: reaches past the end of the file");
  return Status::Ok();
}

Status CheckSize(const NpyHeader& header, uint64_t data, uint64_t size) {
  const CheckedU64 bytes = CheckedU64(header.rows) * CheckedU64(header.columns) * CheckedU64(header.float64 ? 8 : 4);
  if (!bytes.valid()) return Status(ErrorCode::kLimit, "header: 'shape' overflows");
  const uint64_t there = size - data;
  if (there == bytes.value()) return Status::Ok();
  return Status(ErrorCode::kBadInput,
                StrFormat("%llu bytes of numbers, 'shape' says %llu", static_cast<unsigned long long>(there),
                          static_cast<unsigned long long>(bytes.value())));
}

}  // namespace

Result<NpyHeader> ParseNpyHeader(std::string_view text) {
  Literal literal(text);
  NpyHeader header;
  bool type = false, order = false, shape = false;
  if (!literal.Take('{')) return Malformed("not a dictionary");
  while (!literal.Take('}')) {
    std::string_view key;
    if (!literal.TakeText(&key) || !literal.Take(':')) return Malformed("not a dictionary of texts");
    bool* const seen = key == "descr" ? &type : key == "fortran_order" ? &order : key == "shape" ? &shape : nullptr;
    if (seen == nullptr || *seen) return Malformed("a key that is unknown or stands twice");
    *seen = true;
    MOEPACK_RETURN_IF_ERROR(seen == &type    ? ReadType(&literal, &header)
                            : seen == &order ? ReadOrder(&literal)
                                             : ReadShape(&literal, &header));
    if (literal.Take(',')) continue;
    if (!literal.Take('}')) return Malformed("the dictionary has no end");
    break;
  }
  if (!literal.AtEnd()) return Malformed("something stands after the dictionary");
  if (!type || !order || !shape) return Malformed("'descr', 'fortran_order' or 'shape' is missing");
  return header;
}

Result<std::unique_ptr<NpyFile>> NpyFile::Open(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(auto file, env.OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  uint64_t begin = 0, length = 0;
  if (const Status status = ReadLengths(*file, size, &begin, &length); !status.ok()) return status.With(path);
  std::string text(length, '\0');
  MOEPACK_RETURN_IF_ERROR(file->Read(begin, {reinterpret_cast<uint8_t*>(text.data()), text.size()}));
  const Result<NpyHeader> header = ParseNpyHeader(text);
  if (!header.ok()) return header.status().With(path);
  if (const Status status = CheckSize(*header, begin + length, size); !status.ok()) return status.With(path);
  return std::unique_ptr<NpyFile>(new NpyFile(std::move(file), *header, begin + length));
}

Status NpyFile::CheckColumns(uint64_t expected) const {
  if (header_.columns == expected) return Status::Ok();
  return Status(ErrorCode::kShape,
                StrFormat("%s: %llu columns, the model takes %llu", file_->path().c_str(),
                          static_cast<unsigned long long>(header_.columns), static_cast<unsigned long long>(expected)));
}

Status NpyFile::Read(uint64_t first, uint64_t count, std::span<float> out) const {
  const size_t size = header_.float64 ? sizeof(double) : sizeof(float);
  const uint64_t values = count * header_.columns, offset = data_ + first * header_.columns * size;
  if (!header_.float64) {
    MOEPACK_RETURN_IF_ERROR(file_->Read(offset, {reinterpret_cast<uint8_t*>(out.data()), values * size}));
  }
  std::array<double, 1024> wide;
  for (uint64_t at = 0; header_.float64 && at < values; at += wide.size()) {
    const uint64_t part = std::min<uint64_t>(wide.size(), values - at);
    MOEPACK_RETURN_IF_ERROR(file_->Read(offset + at * size, {reinterpret_cast<uint8_t*>(wide.data()), part * size}));
    for (uint64_t i = 0; i < part; ++i) out[at + i] = static_cast<float>(wide[i]);
  }
  for (uint64_t i = 0; i < values; ++i) {
    if (std::isfinite(out[i])) continue;
    return Status(ErrorCode::kNotFinite,
                  StrFormat("%s: row %llu, column %llu is not a finite float32; fill in what is missing",
                            file_->path().c_str(), static_cast<unsigned long long>(first + i / header_.columns),
                            static_cast<unsigned long long>(i % header_.columns)));
  }
  return Status::Ok();
}

}  // namespace moepack
