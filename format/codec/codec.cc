#include "format/codec/codec.h"

#include "base/checked.h"

namespace moepack {
namespace {

bool IsOneOf(uint32_t value, std::initializer_list<uint32_t> set) {
  for (uint32_t candidate : set) {
    if (value == candidate) return true;
  }
  return false;
}

Status Malformed(const char* what) { return Status(ErrorCode::kMalformed, std::string("codec: ") + what); }

Status ValidateElement(const Codec& codec) {
  if (codec.element > Element::kTrellis) return Malformed("unknown element type");
  if (codec.coded()) {
    if (codec.element == Element::kTrellis) {
      if (!IsOneOf(codec.bits, {2, 3, 4, 5, 6})) return Malformed("a trellis has 2 to 6 bits");
      if (codec.has_min || codec.sparsity != Sparsity::kNone) return Malformed("a trellis has no minimum and no mask");
    }
    if (!IsOneOf(codec.bits, {2, 3, 4, 5, 6, 8})) return Malformed("bits must be 2, 3, 4, 5, 6 or 8");
    if (!IsOneOf(codec.group_size, {0, 16, 32, 64, 128, 256})) {
      return Malformed("group size must be 16, 32, 64, 128, 256 or 0 for a row");
    }
  } else if (codec.bits != 0 || codec.has_min || codec.group_size != 0) {
    return Malformed("bits, minimum and group size must be zero for float elements");
  }
  return Status::Ok();
}

Status ValidateSparsity(const Codec& codec) {
  switch (codec.sparsity) {
    case Sparsity::kNone:
      if (codec.kept_per_row != 0 || codec.n != 0 || codec.m != 0)
        return Malformed("sparsity fields of a dense codec must be zero");
      return Status::Ok();
    case Sparsity::kBitmask:
      if (codec.n != 0 || codec.m != 0) return Malformed("n and m of a bitmask codec must be zero");
      if (codec.kept_per_row == 0 || codec.kept_per_row > kMaxCols) return Malformed("kept weights a row are out of range");
      return Status::Ok();
    case Sparsity::kNM:
      if (codec.kept_per_row != 0) return Malformed("kept weights a row of an N:M codec must be zero");
      if (!IsOneOf(codec.m, {4, 8, 16})) return Malformed("m of N:M must be 4, 8 or 16");
      if (codec.n == 0 || codec.n >= codec.m) return Malformed("n of N:M must be at least 1 and below m");
      return Status::Ok();
  }
  return Malformed("unknown sparsity");
}

// Consumes text from the front.
class NameReader {
 public:
  explicit NameReader(std::string_view text) : text_(text) {}
  bool done() const { return text_.empty(); }
  bool Literal(std::string_view word) {
    if (text_.substr(0, word.size()) != word) return false;
    text_.remove_prefix(word.size());
    return true;
  }
  // A decimal number without sign or leading zero, at most `max`.
  bool Number(uint32_t max, uint32_t* out) {
    if (text_.empty() || text_[0] < '1' || text_[0] > '9') return false;
    uint64_t value = 0;
    while (!text_.empty() && text_[0] >= '0' && text_[0] <= '9') {
      value = value * 10 + static_cast<uint64_t>(text_[0] - '0');
      if (value > max) return false;
      text_.remove_prefix(1);
    }
    *out = static_cast<uint32_t>(value);
    return true;
  }

 private:
  std::string_view text_;
};

bool ParseElement(NameReader* in, Codec* codec) {
  if (in->Literal("f32")) return codec->element = Element::kF32, true;
  if (in->Literal("bf16")) return codec->element = Element::kBf16, true;
  if (in->Literal("f16")) return codec->element = Element::kF16, true;
  uint32_t bits = 0, group = 0;
  const bool trellis = in->Literal("t");
  if ((!trellis && !in->Literal("i")) || !in->Number(8, &bits)) return false;
  codec->element = trellis ? Element::kTrellis : Element::kGroupInt;
  codec->bits = static_cast<uint8_t>(bits);
  codec->has_min = in->Literal("m");
  if (in->Literal("r")) return true;
  if (!in->Literal("g") || !in->Number(256, &group)) return false;
  codec->group_size = static_cast<uint16_t>(group);
  return true;
}

bool ParseSparsity(NameReader* in, Codec* codec) {
  if (in->done()) return true;
  if (!in->Literal("+")) return false;
  if (in->Literal("keep")) {
    codec->sparsity = Sparsity::kBitmask;
    return in->Number(static_cast<uint32_t>(kMaxCols), &codec->kept_per_row);
  }
  uint32_t n = 0, m = 0;
  if (!in->Number(16, &n) || !in->Literal(":") || !in->Number(16, &m)) return false;
  codec->sparsity = Sparsity::kNM;
  codec->n = static_cast<uint8_t>(n);
  codec->m = static_cast<uint8_t>(m);
  return true;
}

}  // namespace

std::string Codec::Name() const {
  std::string name;
  switch (element) {
    case Element::kF32:
      name = "f32";
      break;
    case Element::kBf16:
      name = "bf16";
      break;
    case Element::kF16:
      name = "f16";
      break;
    case Element::kGroupInt:
    case Element::kTrellis:
      name = StrFormat("%s%u%s", element == Element::kTrellis ? "t" : "i", bits, has_min ? "m" : "");
      name += group_size == 0 ? std::string("r") : StrFormat("g%u", group_size);
      break;
  }
  if (sparsity == Sparsity::kBitmask) name += StrFormat("+keep%u", kept_per_row);
  if (sparsity == Sparsity::kNM) name += StrFormat("+%u:%u", n, m);
  return name;
}

Result<Codec> ParseCodec(std::string_view name) {
  Codec codec;
  NameReader in(name);
  if (ParseElement(&in, &codec) && ParseSparsity(&in, &codec) && in.done() && ValidateCodec(codec).ok()) return codec;
  return Status(ErrorCode::kRecipe,
                "codec '" + std::string(name.substr(0, 64)) +
                    "' is not known: use f32, bf16, f16, iB[m]gG / iB[m]r with B of 2 3 4 5 6 8, or tBgG / tBr with B of "
                    "2 to 6, G of 16 32 64 128 256, and for sparse ones +keepK or +N:M with M of 4 8 16");
}

Status ValidateCodec(const Codec& codec) {
  MOEPACK_RETURN_IF_ERROR(ValidateElement(codec));
  return ValidateSparsity(codec);
}

uint64_t GroupsPerRow(const Codec& codec, uint64_t cols) {
  if (!codec.coded()) return 0;
  return codec.group_size == 0 ? 1 : CeilDiv(cols, codec.group_size);
}

uint64_t KeptPerRow(const Codec& codec, uint64_t cols) {
  switch (codec.sparsity) {
    case Sparsity::kNone:
      return cols;
    case Sparsity::kBitmask:
      return codec.kept_per_row;
    case Sparsity::kNM:
      return cols / codec.m * codec.n;
  }
  return cols;
}

}  // namespace moepack
