#include "format/codec/layout.h"

#include "base/checked.h"

namespace moepack {
namespace {

Status CheckShape(const Codec& codec, const MatrixShape& shape) {
  if (shape.rows == 0 || shape.cols == 0) {
    return Status(ErrorCode::kMalformed, "matrix shape has a zero: rows and cols must be at least 1");
  }
  if (shape.rows > kMaxRows || shape.cols > kMaxCols) {
    return Status(ErrorCode::kLimit,
                  StrFormat("matrix shape %llu x %llu is above the cap of %llu x %llu",
                            static_cast<unsigned long long>(shape.rows), static_cast<unsigned long long>(shape.cols),
                            static_cast<unsigned long long>(kMaxRows), static_cast<unsigned long long>(kMaxCols)));
  }
  if (codec.sparsity == Sparsity::kBitmask && codec.kept_per_row > shape.cols) {
    return Status(ErrorCode::kMalformed, StrFormat("codec keeps %u weights a row, but a row has %llu columns",
                                                   codec.kept_per_row, static_cast<unsigned long long>(shape.cols)));
  }
  if (codec.sparsity == Sparsity::kNM && shape.cols % codec.m != 0) {
    return Status(ErrorCode::kMalformed, StrFormat("codec %u:%u needs a multiple of %u columns, the matrix has %llu",
                                                   codec.n, codec.m, codec.m, static_cast<unsigned long long>(shape.cols)));
  }
  return Status::Ok();
}

// Gives sections their offsets one after another.
class SectionWriter {
 public:
  explicit SectionWriter(uint64_t alignment) : alignment_(alignment) {}
  uint64_t Add(uint64_t rows, uint64_t row_bytes) {
    uint64_t offset = 0;
    if (!end_.valid() || !CheckedAlign(end_.value(), alignment_, &offset)) {
      end_ = CheckedU64(UINT64_MAX) + 1;
      return 0;
    }
    end_ = CheckedU64(offset) + CheckedU64(rows) * row_bytes;
    return offset;
  }
  CheckedU64 end() const { return end_; }

 private:
  const uint64_t alignment_;
  CheckedU64 end_ = 0;
};

Result<MatrixLayout> LayoutOf(const Codec& codec, const MatrixShape& shape, uint64_t alignment, uint64_t tail) {
  MOEPACK_RETURN_IF_ERROR(ValidateCodec(codec));
  MOEPACK_RETURN_IF_ERROR(CheckShape(codec, shape));
  MatrixLayout layout;
  layout.kept = KeptPerRow(codec, shape.cols);
  layout.groups = GroupsPerRow(codec, shape.cols);
  SectionWriter sections(alignment);
  if (codec.sparsity != Sparsity::kNone) {
    layout.mask_row_bytes = CeilDiv(shape.cols, 8);
    layout.mask_offset = sections.Add(shape.rows, layout.mask_row_bytes);
  }
  if (codec.coded()) {
    const auto low = static_cast<uint8_t>(LowPlaneBits(codec.bits));
    layout.plane_count = low == 0 ? 1 : 2;
    layout.planes[0].bits = static_cast<uint8_t>(codec.bits - low);
    layout.planes[0].shift = layout.planes[1].bits = low;
    for (uint8_t i = 0; i < layout.plane_count; ++i) {
      PlaneLayout& plane = layout.planes[i];
      plane.row_bytes = CeilDiv(layout.kept * plane.bits, 8);
      plane.offset = sections.Add(shape.rows, plane.row_bytes);
    }
    layout.scales_offset = sections.Add(shape.rows, 2 * layout.groups);
    if (codec.has_min) layout.mins_offset = sections.Add(shape.rows, 2 * layout.groups);
  } else {
    layout.value_bytes = codec.element == Element::kF32 ? 4 : 2;
    layout.values_offset = sections.Add(shape.rows, layout.kept * layout.value_bytes);
  }
  const CheckedU64 end = sections.end() + tail;
  if (!end.valid() || !CheckedAlign(end.value(), alignment, &layout.total_bytes)) {
    return Status(ErrorCode::kLimit, "matrix size overflows 64 bits");
  }
  return layout;
}

}  // namespace

Result<MatrixLayout> PlainLayoutOf(const Codec& codec, const MatrixShape& shape) { return LayoutOf(codec, shape, 1, 0); }

Result<MatrixLayout> ResidentLayoutOf(const Codec& codec, const MatrixShape& shape) {
  return LayoutOf(codec, shape, kResidentAlignment, kResidentTail);
}

Result<uint64_t> PlainBytes(const Codec& codec, const MatrixShape& shape) {
  MOEPACK_ASSIGN_OR_RETURN(const MatrixLayout layout, PlainLayoutOf(codec, shape));
  return layout.total_bytes;
}

Result<uint64_t> ResidentBytes(const Codec& codec, const MatrixShape& shape) {
  MOEPACK_ASSIGN_OR_RETURN(const MatrixLayout layout, ResidentLayoutOf(codec, shape));
  return layout.total_bytes;
}

}  // namespace moepack
