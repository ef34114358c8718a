#include "model/export/onnx_data.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <span>

#include "base/checked.h"

namespace moepack {
namespace {

static_assert(std::endian::native == std::endian::little, "ONNX data is little endian");

constexpr uint64_t kAlignment = 4096;

// Counts what it hands on, so that a blob that is not as long as it was placed shows.
class Sink {
 public:
  explicit Sink(AtomicFile* file) : file_(*file) {}
  Status Floats(const float* values, size_t count) {
    written_ += count * sizeof(float);
    return file_.Append({reinterpret_cast<const uint8_t*>(values), count * sizeof(float)});
  }
  Status Floats(const std::vector<float>& values) { return Floats(values.data(), values.size()); }
  // At most kAlignment bytes on.
  Status ZerosTo(uint64_t offset) {
    static constexpr std::array<uint8_t, kAlignment> kZeros{};
    const uint64_t gap = offset - written_;
    written_ = offset;
    return file_.Append(ByteSpan(kZeros).first(gap));
  }
  uint64_t written() const { return written_; }

 private:
  AtomicFile& file_;
  uint64_t written_ = 0;
};

std::vector<float> Transposed(const std::vector<float>& in, uint64_t rows, uint64_t cols) {
  std::vector<float> out(in.size());
  constexpr uint64_t kTile = 64;  // both sides of a tile stay in the first-level cache
  for (uint64_t r0 = 0; r0 < rows; r0 += kTile) {
    for (uint64_t c0 = 0; c0 < cols; c0 += kTile) {
      for (uint64_t r = r0; r < std::min(r0 + kTile, rows); ++r) {
        for (uint64_t c = c0; c < std::min(c0 + kTile, cols); ++c) out[c * rows + r] = in[r * cols + c];
      }
    }
  }
  return out;
}

Status WriteTensor(const Model& model, const OnnxBlob& blob, Sink* sink) {
  MOEPACK_ASSIGN_OR_RETURN(std::vector<float> values, model.tensors->Load(blob.tensor));
  const TensorDecl& tensor = model.program.tensors[blob.tensor];
  if (blob.kind == OnnxBlobKind::kTensorPlusOne) {
    for (float& value : values) value += 1;
  }
  if (blob.kind == OnnxBlobKind::kTensorPair) {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> second, model.tensors->Load(blob.second));
    std::vector<float> pairs;
    for (size_t i = 0; i < values.size(); ++i) pairs.insert(pairs.end(), {values[i], second[i]});
    values = std::move(pairs);
  }
  if (blob.kind == OnnxBlobKind::kTensorTransposed) values = Transposed(values, tensor.rows, tensor.cols);
  return sink->Floats(values);
}

// Rows of up to two matrices in turn, then rows of zeros up to `width` rows each.
Status WriteRows(const std::vector<std::vector<float>>& parts, uint64_t rows, uint64_t cols, uint64_t width, Sink* sink) {
  const std::vector<float> zeros(cols, 0.0f);
  for (uint64_t r = 0; r < width; ++r) {
    for (const std::vector<float>& part : parts) {
      MOEPACK_RETURN_IF_ERROR(sink->Floats(r < rows ? part.data() + r * cols : zeros.data(), cols));
    }
  }
  return Status::Ok();
}

Status WriteExperts(const Model& model, const OnnxBlob& blob, Sink* sink) {
  const ExpertTableDecl& table = model.program.expert_tables[blob.table];
  const uint64_t width = *std::max_element(table.intermediate.begin(), table.intermediate.end());
  static constexpr ExpertMatrix kBoth[] = {ExpertMatrix::kGate, ExpertMatrix::kUp};
  std::span<const ExpertMatrix> matrices = kBoth;
  if (blob.kind == OnnxBlobKind::kGate) matrices = matrices.first(1);
  if (blob.kind == OnnxBlobKind::kUp) matrices = matrices.last(1);
  for (uint32_t e = 0; e < table.experts(); ++e) {
    std::vector<std::vector<float>> parts;
    for (const ExpertMatrix matrix : matrices) {
      MOEPACK_ASSIGN_OR_RETURN(std::vector<float> values, model.tensors->LoadExpert(blob.table, e, matrix));
      parts.push_back(std::move(values));
    }
    MOEPACK_RETURN_IF_ERROR(WriteRows(parts, table.intermediate[e], table.hidden, width, sink));
  }
  return Status::Ok();
}

Status WriteDown(const Model& model, const OnnxBlob& blob, Sink* sink) {
  const ExpertTableDecl& table = model.program.expert_tables[blob.table];
  const uint64_t width = *std::max_element(table.intermediate.begin(), table.intermediate.end());
  for (uint32_t e = 0; e < table.experts(); ++e) {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> values, model.tensors->LoadExpert(blob.table, e, ExpertMatrix::kDown));
    std::vector<float> row(width, 0.0f);
    for (uint64_t r = 0; r < table.hidden; ++r) {
      std::copy_n(values.begin() + static_cast<ptrdiff_t>(r * table.intermediate[e]), table.intermediate[e], row.begin());
      MOEPACK_RETURN_IF_ERROR(sink->Floats(row));
    }
  }
  return Status::Ok();
}

Status WriteCache(const OnnxBlob& blob, Sink* sink) {
  const RotaryNode& rotary = *blob.rotary;
  std::vector<float> row(rotary.inv_freq.size());
  for (uint64_t position = 0; position < blob.shape[0]; ++position) {
    for (size_t i = 0; i < row.size(); ++i) {
      const double angle = static_cast<double>(position) * rotary.inv_freq[i];
      const double value = blob.kind == OnnxBlobKind::kCos ? std::cos(angle) : std::sin(angle);
      row[i] = static_cast<float>(rotary.magnitude * value);
    }
    MOEPACK_RETURN_IF_ERROR(sink->Floats(row));
  }
  return Status::Ok();
}

Status WriteBlob(const Model& model, const OnnxBlob& blob, Sink* sink) {
  switch (blob.kind) {
    case OnnxBlobKind::kTensor:
    case OnnxBlobKind::kTensorTransposed:
    case OnnxBlobKind::kTensorPlusOne:
    case OnnxBlobKind::kTensorPair:
      return WriteTensor(model, blob, sink);
    case OnnxBlobKind::kGateUp:
    case OnnxBlobKind::kGate:
    case OnnxBlobKind::kUp:
      return WriteExperts(model, blob, sink);
    case OnnxBlobKind::kDown:
      return WriteDown(model, blob, sink);
    case OnnxBlobKind::kCos:
    case OnnxBlobKind::kSin:
      return WriteCache(blob, sink);
  }
  return Status(ErrorCode::kInternal, "unknown blob kind");
}

}  // namespace

Result<std::vector<OnnxExtent>> PlaceOnnxBlobs(const std::vector<OnnxBlob>& blobs) {
  std::vector<OnnxExtent> extents;
  uint64_t end = 0;
  for (const OnnxBlob& blob : blobs) {
    CheckedU64 length = sizeof(float);
    for (const uint64_t dim : blob.shape) length = length * dim;
    OnnxExtent extent;
    if (!length.valid() || !CheckedAlign(end, kAlignment, &extent.offset) ||
        !CheckedAdd(extent.offset, length.value(), &end)) {
      return Status(ErrorCode::kLimit, "weights of more than 2^64 bytes");
    }
    extent.length = length.value();
    extents.push_back(extent);
  }
  return extents;
}

Status WriteOnnxBlobs(const Model& model, const std::vector<OnnxBlob>& blobs, const std::vector<OnnxExtent>& extents,
                      AtomicFile* file) {
  Sink sink(file);
  for (size_t i = 0; i < blobs.size(); ++i) {
    MOEPACK_RETURN_IF_ERROR(sink.ZerosTo(extents[i].offset));
    MOEPACK_RETURN_IF_ERROR(WriteBlob(model, blobs[i], &sink).With(blobs[i].name));
    if (sink.written() != extents[i].offset + extents[i].length) {
      return Status(ErrorCode::kInternal, blobs[i].name + ": weights do not fit their shape");
    }
  }
  return Status::Ok();
}

}  // namespace moepack
