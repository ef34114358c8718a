#include "model/frontend/onnx_blocks.h"

#include <algorithm>

#include "base/checked.h"
#include "format/codec/codec.h"

namespace moepack {
namespace {

using Unsigned = unsigned long long;

Status Bad(ErrorCode code, const OnnxTensor& tensor, const std::string& what) {
  return Status(code, "'" + tensor.name + "' " + what);
}

bool IsFloat(const OnnxTensor& tensor) {
  Codec codec;
  return DtypeCodec(tensor.dtype, &codec);
}

// Code at bit `bit`; codes never cross a byte.
int32_t CodeAt(const OnnxTensor& tensor, uint64_t bit, uint32_t bits, bool is_signed) {
  const uint32_t code = (tensor.data[bit / 8] >> (bit % 8)) & ((1u << bits) - 1);
  const bool negative = is_signed && (code >> (bits - 1)) != 0;
  return static_cast<int32_t>(code) - (negative ? 1 << bits : 0);
}

Status CheckZeros(const OnnxTensor& codes, const OnnxTensor& zeros, const OnnxBlockShape& shape, OnnxBlocks* blocks) {
  const uint64_t count = blocks->rows * blocks->blocks();
  if (IsFloat(zeros)) {
    if (zeros.elements == count) return Status::Ok();
    return Bad(ErrorCode::kShape, zeros, StrFormat("must have %llu zero points", static_cast<Unsigned>(count)));
  }
  if (zeros.dtype != codes.dtype || zeros.nibbles != codes.nibbles) {
    return Bad(ErrorCode::kUnsupported, zeros, "zero points must be floats or have the element type of the codes");
  }
  const bool dense = shape.dense_zeros || zeros.nibbles;
  const uint64_t row_bits = blocks->blocks() * blocks->bits;
  blocks->zero_row_bits = dense ? row_bits : CeilDiv(row_bits, 8) * 8;
  const uint64_t bytes = CeilDiv(blocks->rows * blocks->zero_row_bits, 8);
  if (zeros.data.size() == bytes) return Status::Ok();
  return Bad(ErrorCode::kShape, zeros, StrFormat("must have %llu bytes of zero points", static_cast<Unsigned>(bytes)));
}

}  // namespace

Result<std::shared_ptr<const OnnxBlocks>> BindBlocks(const OnnxTensor& codes, const OnnxTensor& scales,
                                                     const OnnxTensor* zeros, const OnnxBlockShape& shape) {
  const int64_t bits = shape.bits;
  if (bits != 2 && bits != 4 && bits != 8) {
    return Bad(ErrorCode::kUnsupported, codes, StrFormat("has %lld bits, must be 2, 4 or 8", static_cast<long long>(bits)));
  }
  const bool power = shape.block >= 16 && (shape.block & (shape.block - 1)) == 0;
  // The bound keeps what follows far below 2^64.
  if (shape.block != 0 && (!power || shape.block > static_cast<int64_t>(kMaxCols))) {
    return Bad(ErrorCode::kUnsupported, codes, "must have blocks of a power of two from 16 to 2^20");
  }
  if (shape.rows == 0 || shape.cols == 0 || shape.rows > kMaxBlockRows || shape.cols > kMaxCols) {
    return Bad(ErrorCode::kShape, codes, "has no rows or columns, or too many");
  }
  if (codes.dtype != Dtype::kU8 && !(codes.dtype == Dtype::kI8 && codes.nibbles)) {
    return Bad(ErrorCode::kUnsupported, codes, "must hold codes: uint8, uint4 or int4");
  }
  if (codes.nibbles && bits != 4) return Bad(ErrorCode::kUnsupported, codes, "has 4-bit elements, but other bits are said");
  OnnxBlocks blocks;
  blocks.scales = &scales;
  blocks.zeros = zeros;
  blocks.bits = static_cast<uint32_t>(bits);
  blocks.is_signed = codes.dtype == Dtype::kI8;
  blocks.rows = shape.rows;
  blocks.cols = shape.cols;
  blocks.block = shape.block == 0 ? shape.cols : static_cast<uint64_t>(shape.block);
  blocks.zero = codes.nibbles ? 0 : 1 << (bits - 1);
  const uint64_t cols = shape.padded_rows ? blocks.blocks() * blocks.block : shape.cols;
  blocks.row_bits = cols * blocks.bits;
  if (!codes.nibbles) blocks.row_bits = CeilDiv(blocks.row_bits, 8) * 8;
  const uint64_t bytes = CeilDiv(blocks.rows * blocks.row_bits, 8);
  if (codes.data.size() != bytes) {
    return Bad(ErrorCode::kShape, codes,
               StrFormat("holds %zu bytes of codes, must be %llu", codes.data.size(), static_cast<Unsigned>(bytes)));
  }
  if (!IsFloat(scales)) return Bad(ErrorCode::kUnsupported, scales, "must hold scales as floats");
  if (scales.elements != blocks.rows * blocks.blocks()) {
    return Bad(ErrorCode::kShape, scales,
               StrFormat("must have %llu scales", static_cast<Unsigned>(blocks.rows * blocks.blocks())));
  }
  if (zeros != nullptr) MOEPACK_RETURN_IF_ERROR(CheckZeros(codes, *zeros, shape, &blocks));
  return std::make_shared<const OnnxBlocks>(blocks);
}

Result<std::vector<float>> ReadBlocks(const OnnxFile& file, const OnnxTensor& codes, const OnnxBlocks& blocks,
                                      uint64_t first, uint64_t count) {
  uint64_t end = 0;
  if (!CheckedAdd(first, count, &end) || end > blocks.rows * blocks.cols) {
    return Status(ErrorCode::kInternal, "read past a tensor");
  }
  std::vector<float> out;
  out.reserve(count);
  const uint64_t per_row = blocks.blocks();
  while (first < end) {
    const uint64_t row = first / blocks.cols, begin = first % blocks.cols;
    const uint64_t stop = std::min(blocks.cols, begin + (end - first));
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> scales, file.ReadFloats(*blocks.scales, row * per_row, per_row));
    std::vector<float> zeros(per_row, static_cast<float>(blocks.zero));
    if (blocks.zeros != nullptr && IsFloat(*blocks.zeros)) {
      MOEPACK_ASSIGN_OR_RETURN(zeros, file.ReadFloats(*blocks.zeros, row * per_row, per_row));
    } else if (blocks.zeros != nullptr) {
      for (uint64_t b = 0; b < per_row; ++b) {
        const uint64_t bit = row * blocks.zero_row_bits + b * blocks.bits;
        zeros[b] = static_cast<float>(CodeAt(*blocks.zeros, bit, blocks.bits, blocks.is_signed));
      }
    }
    for (uint64_t c = begin; c < stop; ++c) {
      const int32_t code = CodeAt(codes, row * blocks.row_bits + c * blocks.bits, blocks.bits, blocks.is_signed);
      out.push_back((static_cast<float>(code) - zeros[c / blocks.block]) * scales[c / blocks.block]);
    }
    first += stop - begin;
  }
  if (const uint64_t bad = FirstNotFinite(out); bad < out.size()) {
    return Bad(ErrorCode::kNotFinite, codes,
               StrFormat("value %llu is not finite", static_cast<Unsigned>(end - count + bad)));
  }
  if (codes.mapping != nullptr) {
    const auto byte_of = [&](uint64_t element) {
      return (element / blocks.cols * blocks.row_bits + element % blocks.cols * blocks.bits) / 8;
    };
    const uint64_t begin = byte_of(end - count), size = count == 0 ? 0 : byte_of(end - 1) + 1 - begin;
    codes.mapping->Release(static_cast<uint64_t>(codes.data.data() - codes.mapping->bytes().data()) + begin, size);
  }
  return out;
}

}  // namespace moepack
