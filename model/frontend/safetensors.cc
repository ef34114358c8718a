#include "model/frontend/safetensors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "base/checked.h"
#include "model/frontend/safetensors_header.h"

namespace moepack {
namespace {

using Unsigned = unsigned long long;

struct DtypeRow {
  Dtype dtype;
  const char* name;
  uint64_t bytes;
};
constexpr DtypeRow kDtypes[] = {
    {Dtype::kF64, "F64", 8},   {Dtype::kF32, "F32", 4},        {Dtype::kF16, "F16", 2}, {Dtype::kBf16, "BF16", 2},
    {Dtype::kI64, "I64", 8},   {Dtype::kI32, "I32", 4},        {Dtype::kI16, "I16", 2}, {Dtype::kI8, "I8", 1},
    {Dtype::kU64, "U64", 8},   {Dtype::kU32, "U32", 4},        {Dtype::kU16, "U16", 2}, {Dtype::kU8, "U8", 1},
    {Dtype::kBool, "BOOL", 1}, {Dtype::kF8E4M3, "F8_E4M3", 1},
};

const DtypeRow& Row(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)]; }

// Bits of an F16 or BF16 element at `p`.
uint16_t Half(const uint8_t* p) { return static_cast<uint16_t>(p[0] | (p[1] << 8)); }

float ReadF32(const uint8_t* p) {
  const uint32_t bits = static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 |
                        static_cast<uint32_t>(p[3]) << 24;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Four exponent bits with a bias of 7, three of mantissa, no infinity; all ones is not a number.
float F8E4M3ToF32(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if ((bits & 127) == 127) value = std::numeric_limits<float>::quiet_NaN();
  return (bits & 128) != 0 ? -value : value;
}

const std::array<float, 256>& F8E4M3Table() {
  static const std::array<float, 256> kTable = [] {
    std::array<float, 256> table;
    for (int i = 0; i < 256; ++i) table[static_cast<size_t>(i)] = F8E4M3ToF32(static_cast<uint8_t>(i));
    return table;
  }();
  return kTable;
}

}  // namespace

void WidenElements(Dtype dtype, const uint8_t* data, uint64_t count, float* out) {
  switch (dtype) {
    case Dtype::kF32:
      for (uint64_t i = 0; i < count; ++i) out[i] = ReadF32(data + 4 * i);
      break;
    case Dtype::kBf16:
      for (uint64_t i = 0; i < count; ++i) out[i] = Bf16ToF32(Half(data + 2 * i));
      break;
    case Dtype::kF8E4M3:
      for (uint64_t i = 0; i < count; ++i) out[i] = F8E4M3Table()[data[i]];
      break;
    default:
      for (uint64_t i = 0; i < count; ++i) out[i] = F16ToF32(Half(data + 2 * i));
  }
}

uint64_t FirstNotFinite(std::span<const float> values) {
  const auto bad = std::find_if_not(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
  return static_cast<uint64_t>(bad - values.begin());
}

const char* DtypeName(Dtype dtype) { return Row(dtype).name; }
uint64_t DtypeBytes(Dtype dtype) { return Row(dtype).bytes; }

bool ParseDtype(const std::string& name, Dtype* dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (name != row.name) continue;
    *dtype = row.dtype;
    return true;
  }
  return false;
}

bool DtypeCodec(Dtype dtype, Codec* codec) {
  *codec = Codec();
  switch (dtype) {
    case Dtype::kF32:
      codec->element = Element::kF32;
      return true;
    case Dtype::kF16:
      codec->element = Element::kF16;
      return true;
    case Dtype::kBf16:
      codec->element = Element::kBf16;
      return true;
    default:
      return false;
  }
}

Result<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(auto map, env.Map(path));
  MOEPACK_ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensors(map->bytes(), path));
  return std::unique_ptr<SafetensorsFile>(new SafetensorsFile(path, std::move(map), std::move(header)));
}

const SafetensorsEntry* SafetensorsFile::Find(const std::string& name) const {
  const auto& all = header_.entries;
  const auto it = std::lower_bound(all.begin(), all.end(), name,
                                   [](const SafetensorsEntry& e, const std::string& n) { return e.name < n; });
  return it != all.end() && it->name == name ? &*it : nullptr;
}

ByteSpan SafetensorsFile::data(const SafetensorsEntry& entry) const {
  return map_->bytes().subspan(header_.data_offset + entry.begin, entry.end - entry.begin);
}

void SafetensorsFile::Release(const SafetensorsEntry& entry) const {
  map_->Release(header_.data_offset + entry.begin, entry.end - entry.begin);
}

void SafetensorsFile::Release(const SafetensorsEntry& entry, uint64_t begin, uint64_t bytes) const {
  map_->Release(header_.data_offset + entry.begin + begin, bytes);
}

Result<std::vector<float>> SafetensorsFile::LoadFloats(const SafetensorsEntry& entry) const {
  Codec codec;
  if (!DtypeCodec(entry.dtype, &codec)) {
    return Status(ErrorCode::kUnsupported, StrFormat("%s: tensor %s has element type %s, weights must be F32, F16 or BF16",
                                                     path_.c_str(), entry.name.c_str(), DtypeName(entry.dtype)));
  }
  std::vector<float> out(entry.elements());
  WidenElements(entry.dtype, data(entry).data(), out.size(), out.data());
  Release(entry);
  if (const uint64_t bad = FirstNotFinite(out); bad < out.size()) {
    return Status(ErrorCode::kNotFinite,
                  StrFormat("%s: tensor %s, value %llu is %s: the checkpoint is damaged", path_.c_str(), entry.name.c_str(),
                            static_cast<Unsigned>(bad), std::isnan(out[bad]) ? "NaN" : "infinite"));
  }
  return out;
}

}  // namespace moepack
