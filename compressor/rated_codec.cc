#include "compressor/rated_codec.h"

#include "base/checked.h"

namespace moepack {

std::string RatedCodec::Name() const {
  std::string name = codec.Name();
  if (rate == 0) return name;
  std::string digits = StrFormat("%u.%02u", rate / 100u, rate % 100u);
  while (digits.back() == '0') digits.pop_back();
  if (digits.back() == '.') digits.pop_back();
  return name + "@" + digits;
}

Result<RatedCodec> ParseRatedCodec(std::string_view name) {
  const size_t at = name.find('@');
  MOEPACK_ASSIGN_OR_RETURN(const Codec codec, ParseCodec(name.substr(0, at)));
  if (at == std::string_view::npos) return RatedCodec(codec);
  const bool fits =
      codec.element == Element::kGroupInt && codec.group_size == 0 && !codec.has_min && codec.sparsity == Sparsity::kNone;
  uint32_t rate = 0, decimals = 0;
  bool point = false, valid = fits;
  for (char c : name.substr(at + 1)) {
    if (c == '.' && !point) {
      point = true;
    } else if (c >= '0' && c <= '9' && rate <= kMaxRate && decimals < 2) {
      rate = rate * 10 + static_cast<uint32_t>(c - '0');
      decimals += point ? 1 : 0;
    } else {
      valid = false;
    }
  }
  for (; decimals < 2; ++decimals) rate *= 10;
  if (valid && rate >= kMinRate && rate <= kMaxRate) return RatedCodec(codec, static_cast<uint16_t>(rate));
  return Status(ErrorCode::kRecipe,
                "codec '" + std::string(name.substr(0, 64)) +
                    "': a rate such as @2.25 stands behind iBr only, from 0.5 to 8 bits with at most two "
                    "decimals");
}

Result<uint64_t> StoredBytes(const RatedCodec& codec, const MatrixShape& shape) {
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t plain, PlainBytes(codec, shape));
  if (codec.rate == 0) return plain;
  CheckedU64 bits = CheckedU64(shape.rows) * shape.cols * codec.rate;
  if (!bits.valid()) return Status(ErrorCode::kLimit, "matrix size overflows 64 bits");
  return std::min(plain, bits.value() / 800);
}

}  // namespace moepack
