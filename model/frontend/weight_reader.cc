#include "model/frontend/weight_reader.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/checked.h"

namespace moepack {
namespace {

using Unsigned = unsigned long long;
using Location = SafetensorsSet::Location;

constexpr uint64_t kMxfp4Group = 32;
constexpr char kBlocks[] = "_blocks", kScales[] = "_scales", kInverseScale[] = "_scale_inv";

std::string Where(const Location& location) { return location.file->path() + ": tensor " + location.entry->name; }

std::string ShapeText(const std::vector<uint64_t>& shape) {
  std::string out;
  for (uint64_t d : shape) out += StrFormat("%s%llu", out.empty() ? "" : ", ", static_cast<Unsigned>(d));
  return "[" + out + "]";
}

Status CheckShape(const Location& location, const std::vector<uint64_t>& want) {
  if (location.entry->shape == want) return Status::Ok();
  return Status(ErrorCode::kShape, Where(location) + " has shape " + ShapeText(location.entry->shape) +
                                       ", the configuration implies " + ShapeText(want));
}

Status CheckType(const Location& location, bool ok, const char* expected) {
  if (ok) return Status::Ok();
  return Status(ErrorCode::kUnsupported,
                Where(location) + " has element type " + DtypeName(location.entry->dtype) + ", " + expected);
}

// Rows and columns of the weight as they are stored, before transposition is undone.
struct StoredShape {
  uint64_t rows = 0, cols = 0;
};
StoredShape Stored(const BoundWeight& weight) {
  const StoredShape shape{weight.ref.rows.Stored(weight.rows), weight.ref.columns.Stored(weight.cols)};
  return weight.ref.transposed ? StoredShape{shape.cols, shape.rows} : shape;
}

float ReadScale(const Location& location, uint64_t i) {
  float out = 0;
  WidenElements(location.entry->dtype, location.file->data(*location.entry).data() + i * DtypeBytes(location.entry->dtype),
                1, &out);
  return out;
}

// Sign, two exponent bits, one mantissa bit.
constexpr float kMxfp4Values[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

}  // namespace

Result<Location> WeightReader::Find(const std::string& name, std::set<std::string>* used) const {
  const auto it = set_.tensors().find(name);
  if (it == set_.tensors().end()) {
    return Status(ErrorCode::kMissingTensor, "the checkpoint lacks tensor " + name + ", which its configuration implies");
  }
  used->insert(name);
  return it->second;
}

Result<BoundWeight> WeightReader::Bind(const WeightRef& ref, uint64_t rows, uint64_t cols,
                                       std::set<std::string>* used) const {
  BoundWeight weight{ref, rows, cols, {}, {}};
  if (ref.mxfp4) {
    MOEPACK_RETURN_IF_ERROR(BindMxfp4(&weight, used));
    return weight;
  }
  MOEPACK_ASSIGN_OR_RETURN(weight.values, Find(ref.name, used));
  MOEPACK_RETURN_IF_ERROR(CheckPlain(weight));
  if (weight.values.entry->dtype == Dtype::kF8E4M3) {
    MOEPACK_RETURN_IF_ERROR(BindFp8(&weight, used));
    return weight;
  }
  Codec codec;
  MOEPACK_RETURN_IF_ERROR(
      CheckType(weight.values, DtypeCodec(weight.values.entry->dtype, &codec), "weights must be F32, F16 or BF16"));
  return weight;
}

// [rows, cols], with the stack before it; a vector may be [cols], a weight of a convolution [rows, 1, cols].
Status WeightReader::CheckPlain(const BoundWeight& weight) const {
  const StoredShape shape = Stored(weight);
  std::vector<uint64_t> want = {shape.rows, shape.cols};
  if (weight.ref.stack > 0) {
    want.insert(want.begin(), weight.ref.stack);
  } else {
    const std::vector<uint64_t>& have = weight.values.entry->shape;
    if (weight.rows == 1 && have == std::vector<uint64_t>{shape.cols}) return Status::Ok();
    if (have == std::vector<uint64_t>{shape.rows, 1, shape.cols}) return Status::Ok();
  }
  return CheckShape(weight.values, want);
}

Status WeightReader::BindFp8(BoundWeight* weight, std::set<std::string>* used) const {
  const bool known = fp8_.rows > 0 && weight->ref.stack == 0 && !weight->ref.transposed;
  MOEPACK_RETURN_IF_ERROR(CheckType(
      weight->values, known, "which needs a quantization_config with a weight_block_size, and one matrix in the tensor"));
  MOEPACK_ASSIGN_OR_RETURN(weight->scales, Find(weight->ref.name + kInverseScale, used));
  const StoredShape shape = Stored(*weight);
  MOEPACK_RETURN_IF_ERROR(CheckShape(weight->scales, {CeilDiv(shape.rows, fp8_.rows), CeilDiv(shape.cols, fp8_.cols)}));
  Codec codec;
  return CheckType(weight->scales, DtypeCodec(weight->scales.entry->dtype, &codec), "scales must be F32, F16 or BF16");
}

Status WeightReader::BindMxfp4(BoundWeight* weight, std::set<std::string>* used) const {
  MOEPACK_ASSIGN_OR_RETURN(weight->values, Find(weight->ref.name + kBlocks, used));
  MOEPACK_ASSIGN_OR_RETURN(weight->scales, Find(weight->ref.name + kScales, used));
  const StoredShape shape = Stored(*weight);
  if (shape.cols % kMxfp4Group != 0) {
    return Status(ErrorCode::kShape, StrFormat("%s: MXFP4 needs a multiple of %llu columns, the configuration implies %llu",
                                               Where(weight->values).c_str(), static_cast<Unsigned>(kMxfp4Group),
                                               static_cast<Unsigned>(shape.cols)));
  }
  const uint64_t groups = shape.cols / kMxfp4Group;
  MOEPACK_RETURN_IF_ERROR(CheckShape(weight->values, {weight->ref.stack, shape.rows, groups, kMxfp4Group / 2}));
  MOEPACK_RETURN_IF_ERROR(CheckShape(weight->scales, {weight->ref.stack, shape.rows, groups}));
  MOEPACK_RETURN_IF_ERROR(CheckType(weight->values, weight->values.entry->dtype == Dtype::kU8, "MXFP4 codes must be U8"));
  return CheckType(weight->scales, weight->scales.entry->dtype == Dtype::kU8, "MXFP4 scales must be U8");
}

Codec WeightReader::StoredCodec(const BoundWeight& weight) {
  Codec codec;
  if (weight.ref.mxfp4) {
    codec.element = Element::kBf16;
  } else if (weight.values.entry->dtype != Dtype::kF8E4M3) {
    (void)DtypeCodec(weight.values.entry->dtype, &codec);  // Bind accepted only element types that have one
  }
  return codec;
}

Result<std::vector<float>> WeightReader::Load(const BoundWeight& weight) const {
  std::vector<float> out(weight.rows * weight.cols);
  if (weight.ref.mxfp4) {
    LoadMxfp4(weight, &out);
  } else {
    LoadPlain(weight, &out);
  }
  if (const uint64_t bad = FirstNotFinite(out); bad < out.size()) {
    return Status(ErrorCode::kNotFinite,
                  StrFormat("%s, value %llu%s is %s: the checkpoint is damaged", Where(weight.values).c_str(),
                            static_cast<Unsigned>(bad),
                            weight.ref.stack > 0 ? StrFormat(" of entry %u", weight.ref.index).c_str() : "",
                            std::isnan(out[bad]) ? "NaN" : "infinite"));
  }
  return out;
}

// Stored row `row` of the weight's part of the tensor, which begins at `data`, as float32.
void WeightReader::ReadRow(const BoundWeight& weight, const uint8_t* data, uint64_t row, uint64_t cols, float* out) const {
  const Dtype dtype = weight.values.entry->dtype;
  WidenElements(dtype, data + row * cols * DtypeBytes(dtype), cols, out);
  if (weight.scales.entry == nullptr) return;
  const uint64_t blocks = CeilDiv(cols, fp8_.cols);
  for (uint64_t b = 0; b < blocks; ++b) {
    const float scale = ReadScale(weight.scales, row / fp8_.rows * blocks + b);
    for (uint64_t c = b * fp8_.cols; c < std::min(cols, (b + 1) * fp8_.cols); ++c) out[c] *= scale;
  }
}

void WeightReader::LoadPlain(const BoundWeight& weight, std::vector<float>* out) const {
  const SafetensorsEntry& entry = *weight.values.entry;
  const StoredShape shape = Stored(weight);
  const uint64_t bytes = shape.rows * shape.cols * DtypeBytes(entry.dtype), begin = weight.ref.index * bytes;
  const uint8_t* data = weight.values.file->data(entry).data() + begin;
  const WeightRuns &rows = weight.ref.rows, &columns = weight.ref.columns;
  if (weight.ref.transposed) {
    // Some stored rows at a time, so that what is written lies together.
    constexpr uint64_t kTogether = 16;
    std::vector<float> stored(kTogether * shape.cols);
    for (uint64_t first = 0; first < weight.cols; first += kTogether) {
      const uint64_t count = std::min(kTogether, weight.cols - first);
      for (uint64_t i = 0; i < count; ++i) {
        ReadRow(weight, data, columns.Place(first + i), shape.cols, stored.data() + i * shape.cols);
      }
      for (uint64_t r = 0; r < weight.rows; ++r) {
        const uint64_t place = rows.Place(r);
        for (uint64_t i = 0; i < count; ++i) (*out)[r * weight.cols + first + i] = stored[i * shape.cols + place];
      }
    }
  } else {
    std::vector<float> row(columns.block == 0 ? 0 : shape.cols);
    for (uint64_t r = 0; r < weight.rows; ++r) {
      float* to = out->data() + r * weight.cols;
      ReadRow(weight, data, rows.Place(r), shape.cols, row.empty() ? to : row.data());
      for (uint64_t c = 0; c < weight.cols && !row.empty(); ++c) to[c] = row[columns.Place(c)];
    }
  }
  weight.values.file->Release(entry, begin, bytes);
}

void WeightReader::LoadMxfp4(const BoundWeight& weight, std::vector<float>* out) const {
  const StoredShape shape = Stored(weight);
  const uint64_t groups = shape.cols / kMxfp4Group, first = weight.ref.index * shape.rows * groups;
  const uint8_t* codes = weight.values.file->data(*weight.values.entry).data() + first * (kMxfp4Group / 2);
  const uint8_t* scales = weight.scales.file->data(*weight.scales.entry).data() + first;
  for (uint64_t r = 0; r < weight.rows; ++r) {
    const uint64_t stored = weight.ref.rows.Place(r);
    float* to = out->data() + r * weight.cols;
    for (uint64_t g = stored * groups; g < (stored + 1) * groups; ++g) {
      // A power of two: products are exact. 255 is not a number.
      const float scale = scales[g] == 255 ? NAN : std::ldexp(1.0f, scales[g] - 127);
      for (uint64_t i = 0; i < kMxfp4Group / 2; ++i) {
        const uint8_t pair = codes[g * (kMxfp4Group / 2) + i];
        *to++ = kMxfp4Values[pair & 15] * scale;
        *to++ = kMxfp4Values[pair >> 4] * scale;
      }
    }
  }
  weight.values.file->Release(*weight.values.entry, first * (kMxfp4Group / 2), shape.rows * groups * (kMxfp4Group / 2));
}

}  // namespace moepack
