// PackResident: plain bytes to resident bytes (format/codec/layout.h has both layouts).
#include <cstring>

#include "runtime-min/kernels/kernels_internal.h"

namespace moepack::kernels {
namespace {

// A run of low bytes and a run of high bytes become little-endian u16.
void MergeBytes(const uint8_t* in, uint64_t count, uint8_t* out) {
  for (uint64_t i = 0; i < count; ++i) {
    out[2 * i] = in[i];
    out[2 * i + 1] = in[count + i];
  }
}

}  // namespace

Status PackResident(const Codec& codec, const MatrixShape& shape, ByteSpan plain, std::span<uint8_t> out) {
  MOEPACK_RETURN_IF_ERROR(CheckPlain(codec, shape, plain));
  MOEPACK_ASSIGN_OR_RETURN(const MatrixLayout from, PlainLayoutOf(codec, shape));
  MOEPACK_ASSIGN_OR_RETURN(const MatrixLayout to, ResidentLayoutOf(codec, shape));
  if (out.size() != to.total_bytes) {
    return Status(ErrorCode::kInternal, "PackResident: output has not the size ResidentBytes gives");
  }
  std::memset(out.data(), 0, out.size());
  std::memcpy(out.data() + to.mask_offset, plain.data() + from.mask_offset, shape.rows * from.mask_row_bytes);
  for (uint8_t i = 0; i < from.plane_count; ++i) {
    std::memcpy(out.data() + to.planes[i].offset, plain.data() + from.planes[i].offset,
                shape.rows * from.planes[i].row_bytes);
  }
  std::memcpy(out.data() + to.values_offset, plain.data() + from.values_offset, shape.rows * from.kept * from.value_bytes);
  MergeBytes(plain.data() + from.scales_offset, shape.rows * from.groups, out.data() + to.scales_offset);
  if (codec.has_min) MergeBytes(plain.data() + from.mins_offset, shape.rows * from.groups, out.data() + to.mins_offset);
  return Status::Ok();
}

}  // namespace moepack::kernels
