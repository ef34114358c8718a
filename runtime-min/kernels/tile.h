// The loops that all vector instruction sets share; what differs between them is in `Ops`, a struct each file defines in an
// unnamed namespace (so that every instantiation stays inside its file).
//
// Up to kTileRows rows are multiplied with batches of kTokenBatch tokens, panel of columns by panel. With several tokens a
// panel of codes is unpacked once into a buffer that stays in the first-level cache; with one token codes go from memory
// through registers, and the rows to come are asked for ahead. The last rows, where they are no whole tile, always go
// through the buffer. Either way gives the same bits: integer dots are exact, and each (row, token) has its own float
// accumulator that takes the same terms in the same order.
//
// Ops provides:
//   kLanes, kTileTokens        floats of an accumulator; tokens multiplied at a time
//   Code                       element of the code buffer, kBlock of them a block
//   Codes                      a block of codes in registers
//   LoadPlanes<kBits>(p0, p1)  -> Codes: a block of centred codes from its planes
//   kCentresSums, LoadRaw<kBits>(p0, p1), LoadRawTrellis<kBits>(p0, p1, first)   when true: a block of codes as they are;
//                              DotCodes begins its integer sums with what centring takes away (ActivationView::centres),
//                              which gives the same integers
//   LoadTrellis<kBits>(p0, p1, first)  -> Codes: values of a block of a trellis, which depend on the byte in front of each
//                              plane's unless the block is the first of its row
//   LoadCodes(p), StoreCodes(p, codes)
//   StoreNatural<kBits>(p0, p1, out)       a block of centred codes as int8 in column order
//   Expand(kept, mask)         -> Codes: entries of the int8 array `kept` where mask has a bit, 0 elsewhere
//   ExpandOnes(mask)           -> Codes: 1 where mask has a bit
//   ConvertF16(in, count, out) count numbers, then zeros up to kScaleSlack more
//   DotCodes<R, T>(source, group, scales, x, span, acc)
//   RaiseMins(offset, scales, count, mins) mins += offset * scales, whole vectors
//   AddMins(mins, sums, count, acc)        acc += mins . sums
//   DotFloats<R, T>(source, x, span, acc)
//   LoadFloats<kElement>(p, i), StoreFloats(p, i, v), ExpandFloats<kElement>(kept, mask)
//   Reduce(acc)                sum of the lanes
#pragma once

#include "runtime-min/kernels/kernels_internal.h"

namespace moepack::kernels {
namespace {

constexpr size_t kTileRows = 4;
constexpr size_t kTokenBatch = 64;
constexpr size_t kBytesAhead = 8192;      // of codes that are asked for before they are read
constexpr size_t kPanelCols = 2048;       // of codes
constexpr size_t kFloatPanelCols = 1024;  // of floats
// Kernels load scales by whole vectors: zeros that follow the scales of a panel.
constexpr size_t kScaleSlack = 16;
constexpr size_t kPanelScales = kPanelCols / 16 + kScaleSlack;

// Scale of a block: group (block << up) >> down of its panel. Blocks have 4 or 2 groups when group_size is 16 or 32.
struct GroupIndex {
  unsigned up, down;
  size_t operator()(size_t block) const { return (block << up) >> down; }
};

constexpr GroupIndex GroupIndexOf(uint16_t group_size) {
  switch (group_size) {
    case 16:
      return {2, 0};
    case 32:
      return {1, 0};
    case 64:
      return {0, 0};
    case 128:
      return {0, 1};
    case 256:
      return {0, 2};
    default:
      return {0, 31};
  }
}

// Which part of the activations a dot is over, and whether its sums begin with it (then acc is set, otherwise added to).
struct Span {
  size_t token;  // the first of T
  size_t col;    // of the panel
  size_t count;  // blocks of codes or vectors of floats
  bool first;
};

constexpr size_t Min(size_t a, size_t b) { return a < b ? a : b; }

// Bits of the two planes of a code (the second is 0 when there is one plane).
constexpr int HighBits(int bits) { return bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits; }
constexpr int LowBits(int bits) { return bits - HighBits(bits); }
// Bits of a window of a trellis that lie in the first plane.
constexpr int WindowBits(int bits) { return LowBits(bits) == 0 ? 10 : 8; }

inline uint64_t LoadMask(const uint8_t* mask_row, size_t block, uint64_t cols) {
  uint64_t mask;
  __builtin_memcpy(&mask, mask_row + block * (kBlock / 8), sizeof(mask));
  const uint64_t left = cols - block * kBlock;
  return left >= kBlock ? mask : mask & ((uint64_t{1} << left) - 1);
}

// Codes of R rows from a buffer.
template <class Ops, int R>
struct BufferSource {
  static constexpr int kCentre = 0;
  const typename Ops::Code* rows;  // [R, kPanelCols]
  void Prefetch(size_t) const {}
  typename Ops::Codes Load(int r, size_t block) const { return Ops::LoadCodes(rows + r * kPanelCols + block * kBlock); }
};

// Asks for the share of block `block` in R rows of a plane that begin at `next`, line after line: in the order of memory,
// which is faster than in the order in which they will be read.
template <int kPlaneBits, int R>
inline void PrefetchPlane(const uint8_t* next, size_t block) {
  constexpr size_t kShare = R * (kBlock / 8) * kPlaneBits, kBlocksALine = kShare >= 64 ? 1 : 64 / kShare;
  if (block % kBlocksALine != 0) return;
  for (size_t i = 0; i < kShare; i += 64) __builtin_prefetch(next + block * kShare + i);
}

// Codes of R rows straight from their planes. The rows that come next are asked for meanwhile: several rows at a time are
// short streams that the processor does not foresee.
template <class Ops, int kBits, int R, bool kRaw>
struct PlaneSource {
  static constexpr int kCentre = kRaw ? 1 << (kBits - 1) : 0;  // what Load leaves to be taken away from every code
  const uint8_t *high[R], *low[R];
  const uint8_t *next_high, *next_low;  // of rows to come
  void Prefetch(size_t block) const {
    PrefetchPlane<HighBits(kBits), R>(next_high, block);
    if constexpr (LowBits(kBits) != 0) PrefetchPlane<LowBits(kBits), R>(next_low, block);
  }
  const uint8_t* High(int r, size_t block) const { return high[r] + block * (kBlock / 8) * HighBits(kBits); }
  const uint8_t* Low(int r, size_t block) const { return low[r] + block * (kBlock / 8) * LowBits(kBits); }
  typename Ops::Codes Load(int r, size_t block) const {
    if constexpr (kRaw) {
      return Ops::template LoadRaw<kBits>(High(r, block), Low(r, block));
    } else {
      return Ops::template LoadPlanes<kBits>(High(r, block), Low(r, block));
    }
  }
};

// Values of R rows of a trellis. The byte in front of each plane's panel holds what the panel's first values depend on.
template <class Ops, int kBits, int R, bool kRaw>
struct TrellisSource {
  static constexpr int kCentre = kRaw ? kTrellisCentre : 0;  // what Load leaves to be taken away from every value
  PlaneSource<Ops, kBits, R, kRaw> planes;
  bool first;  // the panel begins the rows
  void Prefetch(size_t block) const { planes.Prefetch(block); }
  typename Ops::Codes Load(int r, size_t block) const {
    const uint8_t *p0 = planes.High(r, block), *p1 = planes.Low(r, block);
    if constexpr (kRaw) {
      return Ops::template LoadRawTrellis<kBits>(p0, p1, first && block == 0);
    } else {
      return Ops::template LoadTrellis<kBits>(p0, p1, first && block == 0);
    }
  }
};

// A panel of a sparse row: kept codes in column order of the kept, and for each block its mask and its first kept code.
struct SparsePanel {
  uint64_t masks[kPanelCols / kBlock];
  uint16_t first[kPanelCols / kBlock];
  int8_t kept[kPanelCols + 3 * kBlock];
};

// Codes of R sparse rows, 0 where masked out.
template <class Ops, int R>
struct SparseSource {
  static constexpr int kCentre = 0;
  const SparsePanel* rows;
  void Prefetch(size_t) const {}
  typename Ops::Codes Load(int r, size_t block) const {
    return Ops::Expand(rows[r].kept + rows[r].first[block], rows[r].masks[block]);
  }
};

// The masks of R sparse rows as codes 1 and 0.
template <class Ops, int R>
struct MaskSource {
  static constexpr int kCentre = 0;
  const SparsePanel* rows;
  void Prefetch(size_t) const {}
  typename Ops::Codes Load(int r, size_t block) const { return Ops::ExpandOnes(rows[r].masks[block]); }
};

// Rows of floats of a type, from memory or (as float32) from a buffer.
template <class Ops, Element kElement, int R>
struct FloatSource {
  const uint8_t* rows[R];
  auto Load(int r, size_t vector) const { return Ops::template LoadFloats<kElement>(rows[r], vector); }
};

// One for the codecs of all bits: inlined into each, these loops would be half of the device program's kernels.
template <class Ops, int R, int T>
__attribute__((noinline)) void DotBuffer(const BufferSource<Ops, R>& codes, GroupIndex group,
                                         const float (*scales)[kPanelScales], const ActivationView& x, const Span& span,
                                         float* acc) {
  Ops::template DotCodes<R, T>(codes, group, scales, x, span, acc);
}

template <class Ops, int kBits, bool kSparse, bool kTrellis = false>
class IntTile {
  using Code = typename Ops::Code;

 public:
  IntTile(const MatrixView& w, const ActivationView& x)
      : w_(w),
        x_(x),
        group_(GroupIndexOf(w.group_size)),
        sums_(x.sums + x.sum_layout.offset[SumLevelOf(w.group_size)]),
        rows_ahead_(RowsAhead(w)) {}

  // Rows [row, row + R) of all tokens.
  template <int R>
  void Rows(size_t row, float* y, size_t y_stride) {
    for (size_t t0 = 0; t0 < x_.tokens; t0 += kTokenBatch) {
      const size_t tokens = Min(kTokenBatch, x_.tokens - t0);
      for (int r = 0; r < R; ++r) kept_[r] = 0;
      for (size_t c = 0; c < w_.cols; c += kPanelCols) Panel<R>(row, t0, tokens, c);
      for (size_t t = 0; t < tokens; ++t) {
        for (int r = 0; r < R; ++r) {
          y[(t0 + t) * y_stride + row + static_cast<size_t>(r)] = x_.scales[RowOf(x_, t0 + t)] * Ops::Reduce(Acc(r, t));
        }
      }
    }
  }

 private:
  // Whole tiles of rows, at least one.
  static size_t RowsAhead(const MatrixView& w) {
    const size_t tile_bytes = kTileRows * (w.layout.planes[0].row_bytes + w.layout.planes[1].row_bytes);
    return kTileRows * (tile_bytes >= kBytesAhead ? 1 : kBytesAhead / tile_bytes);
  }

  float* Acc(int r, size_t t) { return acc_ + (static_cast<size_t>(r) * kTokenBatch + t) * Ops::kLanes; }

  template <int R>
  void Panel(size_t row, size_t t0, size_t tokens, size_t col) {
    const size_t blocks = (Min(kPanelCols, w_.cols - col) + kBlock - 1) / kBlock;
    const size_t group_begin = w_.group_size == 0 ? 0 : col / w_.group_size;
    const size_t groups = Min(w_.layout.groups - group_begin, w_.group_size == 0 ? 1 : kPanelCols / w_.group_size);
    Span span{.token = t0, .col = col, .count = blocks, .first = col == 0};
    for (int r = 0; r < R; ++r) LoadScales(r, row + static_cast<size_t>(r), group_begin, groups);
    if constexpr (kSparse) {
      for (int r = 0; r < R; ++r) LoadSparse(r, row + static_cast<size_t>(r), col, blocks);
      Dot<R>(SparseSource<Ops, R>{sparse_}, scales_, span, tokens);
      // A minimum counts for kept columns only: a product with the mask, scaled by the minima.
      span.first = false;
      if (w_.has_min) Dot<R>(MaskSource<Ops, R>{sparse_}, mins_, span, tokens);
      return;
    }
    DotDense<R>(row, col, span, tokens);
    // The one minimum of a row that is a group counts once, with its first panel.
    if (!w_.has_min || (w_.group_size == 0 && col != 0)) return;
    for (size_t t = 0; t < tokens; ++t) {
      const float* sums = sums_ + RowOf(x_, t0 + t) * x_.sum_layout.stride + group_begin;
      for (int r = 0; r < R; ++r) Ops::AddMins(mins_[r], sums, groups, Acc(r, t));
    }
  }

  void LoadScales(int r, size_t row, size_t group_begin, size_t groups) {
    __builtin_prefetch(ScaleRow(w_, row + rows_ahead_) + 2 * group_begin);
    if (w_.has_min) __builtin_prefetch(MinRow(w_, row + rows_ahead_) + 2 * group_begin);
    Ops::ConvertF16(ScaleRow(w_, row) + 2 * group_begin, groups, scales_[r]);
    if (!w_.has_min) return;
    Ops::ConvertF16(MinRow(w_, row) + 2 * group_begin, groups, mins_[r]);
    Ops::RaiseMins(static_cast<float>(CodeOffset(w_)), scales_[r], groups, mins_[r]);
  }

  template <int R, bool kRaw>
  PlaneSource<Ops, kBits, R, kRaw> Planes(size_t row, size_t col) const {
    PlaneSource<Ops, kBits, R, kRaw> source;
    for (int r = 0; r < R; ++r) {
      source.high[r] = PlaneAt(0, row + static_cast<size_t>(r), col);
      source.low[r] = LowBits(kBits) == 0 ? source.high[r] : PlaneAt(1, row + static_cast<size_t>(r), col);
    }
    source.next_high = PlaneAt(0, row + rows_ahead_, R * col);
    source.next_low = LowBits(kBits) == 0 ? source.next_high : PlaneAt(1, row + rows_ahead_, R * col);
    return source;
  }

  // Code `index` (a multiple of 8) of a row.
  const uint8_t* PlaneAt(size_t plane, size_t row, size_t index) const {
    return PlaneRow(w_, plane, row) + index / 8 * static_cast<size_t>(plane == 0 ? HighBits(kBits) : LowBits(kBits));
  }

  // Kept codes are unpacked from a multiple of 8 on, where every plane has a whole byte.
  void LoadSparse(int r, size_t row, size_t col, size_t blocks) {
    SparsePanel& panel = sparse_[r];
    const uint8_t* mask_row = MaskRow(w_, row);
    const size_t begin = kept_[r] / 8 * 8;
    size_t end = kept_[r];
    for (size_t b = 0; b < blocks; ++b) {
      panel.masks[b] = LoadMask(mask_row, col / kBlock + b, w_.cols);
      panel.first[b] = static_cast<uint16_t>(end - begin);
      end += static_cast<size_t>(__builtin_popcountll(panel.masks[b]));
    }
    kept_[r] = end;
    for (size_t i = begin; i < end; i += kBlock) {
      const uint8_t* high = PlaneAt(0, row, i);
      Ops::template StoreNatural<kBits>(high, LowBits(kBits) == 0 ? high : PlaneAt(1, row, i), panel.kept + (i - begin));
    }
  }

  template <int R, bool kRaw>
  auto SourceAt(size_t row, size_t col) const {
    if constexpr (kTrellis) {
      return TrellisSource<Ops, kBits, R, kRaw>{Planes<R, kRaw>(row, col), col == 0};
    } else {
      return Planes<R, kRaw>(row, col);
    }
  }

  template <int R>
  void DotDense(size_t row, size_t col, const Span& span, size_t tokens) {
    if constexpr (R == kTileRows) {
      if (tokens == 1) {
        const auto source = SourceAt<R, Ops::kCentresSums>(row, col);
        return Ops::template DotCodes<R, 1>(source, group_, scales_, x_, span, Acc(0, 0));
      }
    }
    DotUnpacked<R>(SourceAt<R, false>(row, col), scales_, span, tokens);
  }

  template <int R, class Source>
  void Dot(const Source& source, const float (*scales)[kPanelScales], const Span& span, size_t tokens) {
    if constexpr (R == kTileRows) {
      if (tokens == 1) return Ops::template DotCodes<R, 1>(source, group_, scales, x_, span, Acc(0, 0));
    }
    DotUnpacked<R>(source, scales, span, tokens);
  }

  template <int R, class Source>
  void DotUnpacked(const Source& source, const float (*scales)[kPanelScales], Span span, size_t tokens) {
    static_assert(Source::kCentre == 0);
    for (int r = 0; r < R; ++r) {
      Code* out = codes_ + static_cast<size_t>(r) * kPanelCols;
      for (size_t b = 0; b < span.count; ++b) Ops::StoreCodes(out + b * kBlock, source.Load(r, b));
    }
    for (size_t b = 0; b < span.count; ++b) source.Prefetch(b);
    const BufferSource<Ops, R> unpacked{codes_};
    size_t t = 0;
    for (; t + Ops::kTileTokens <= tokens; t += Ops::kTileTokens, span.token += Ops::kTileTokens) {
      DotBuffer<Ops, R, Ops::kTileTokens>(unpacked, group_, scales, x_, span, Acc(0, t));
    }
    if (Ops::kTileTokens > 2 && t + 2 <= tokens) {
      DotBuffer<Ops, R, 2>(unpacked, group_, scales, x_, span, Acc(0, t));
      t += 2;
      span.token += 2;
    }
    for (; t < tokens; ++t, ++span.token) DotBuffer<Ops, R, 1>(unpacked, group_, scales, x_, span, Acc(0, t));
  }

  const MatrixView& w_;
  const ActivationView& x_;
  const GroupIndex group_;
  const float* sums_;  // of token 0, of the matrix's group size
  const size_t rows_ahead_;
  size_t kept_[kTileRows];
  alignas(64) Code codes_[kTileRows * kPanelCols];
  alignas(64) float acc_[kTileRows * kTokenBatch * Ops::kLanes];
  alignas(64) float scales_[kTileRows][kPanelScales];
  alignas(64) float mins_[kTileRows][kPanelScales];
  SparsePanel sparse_[kSparse ? kTileRows : 1];
};

template <class Ops, Element kElement, bool kSparse>
class FloatTile {
 public:
  FloatTile(const MatrixView& w, const ActivationView& x) : w_(w), x_(x) {}

  template <int R>
  void Rows(size_t row, float* y, size_t y_stride) {
    for (size_t t0 = 0; t0 < x_.tokens; t0 += kTokenBatch) {
      const size_t tokens = Min(kTokenBatch, x_.tokens - t0);
      for (int r = 0; r < R; ++r) kept_[r] = 0;
      for (size_t c = 0; c < w_.cols; c += kFloatPanelCols) Panel<R>(row, t0, tokens, c);
      for (size_t t = 0; t < tokens; ++t) {
        for (int r = 0; r < R; ++r) y[(t0 + t) * y_stride + row + static_cast<size_t>(r)] = Ops::Reduce(Acc(r, t));
      }
    }
  }

 private:
  float* Acc(int r, size_t t) { return acc_ + (static_cast<size_t>(r) * kTokenBatch + t) * Ops::kLanes; }

  // Float32 rows, and rows of any type that are read once, need no buffer.
  template <int R>
  void Panel(size_t row, size_t t0, size_t tokens, size_t col) {
    const size_t cols = Min(kFloatPanelCols, w_.cols - col);
    if (!kSparse && (kElement == Element::kF32 || tokens == 1)) {
      FloatSource<Ops, kElement, R> source;
      for (int r = 0; r < R; ++r) source.rows[r] = ValueRow(w_, row + static_cast<size_t>(r)) + col * w_.layout.value_bytes;
      Dot<R>(source, t0, tokens, col, cols);
      return;
    }
    FloatSource<Ops, Element::kF32, R> source;
    for (int r = 0; r < R; ++r) {
      float* out = values_ + static_cast<size_t>(r) * kFloatPanelCols;
      Unpack(r, row + static_cast<size_t>(r), col, cols, out);
      source.rows[r] = reinterpret_cast<const uint8_t*>(out);
    }
    Dot<R>(source, t0, tokens, col, cols);
  }

  void Unpack(int r, size_t row, size_t col, size_t cols, float* out) {
    const uint8_t* values = ValueRow(w_, row);
    const size_t vectors = (cols + Ops::kLanes - 1) / Ops::kLanes;
    if constexpr (!kSparse) {
      const uint8_t* begin = values + col * w_.layout.value_bytes;
      for (size_t i = 0; i < vectors; ++i) Ops::StoreFloats(out, i, Ops::template LoadFloats<kElement>(begin, i));
      return;
    }
    uint64_t mask = 0;
    size_t kept = kept_[r];
    for (size_t i = 0; i < vectors; ++i, mask >>= Ops::kLanes) {
      const size_t lane = i * Ops::kLanes;
      if (lane % kBlock == 0) mask = LoadMask(MaskRow(w_, row), (col + lane) / kBlock, w_.cols);
      const uint32_t bits = static_cast<uint32_t>(mask & ((1u << Ops::kLanes) - 1));
      Ops::StoreFloats(out, i, Ops::template ExpandFloats<kElement>(values + kept * w_.layout.value_bytes, bits));
      kept += static_cast<size_t>(__builtin_popcount(bits));
    }
    kept_[r] = kept;
  }

  template <int R, class Source>
  void Dot(const Source& source, size_t t0, size_t tokens, size_t col, size_t cols) {
    Span span{.token = t0, .col = col, .count = (cols + Ops::kLanes - 1) / Ops::kLanes, .first = col == 0};
    size_t t = 0;
    for (; t + Ops::kTileTokens <= tokens; t += Ops::kTileTokens, span.token += Ops::kTileTokens) {
      Ops::template DotFloats<R, Ops::kTileTokens>(source, x_, span, Acc(0, t));
    }
    for (; t < tokens; ++t, ++span.token) Ops::template DotFloats<R, 1>(source, x_, span, Acc(0, t));
  }

  const MatrixView& w_;
  const ActivationView& x_;
  size_t kept_[kTileRows];
  alignas(64) float values_[kTileRows * kFloatPanelCols];
  alignas(64) float acc_[kTileRows * kTokenBatch * Ops::kLanes];
};

template <class Tile>
void MatMulTiles(const MatrixView& w, const ActivationView& x, float* y, size_t y_stride, size_t row_begin, size_t row_end) {
  Tile tile(w, x);
  size_t row = row_begin;
  for (; row + kTileRows <= row_end; row += kTileRows) tile.template Rows<kTileRows>(row, y, y_stride);
  for (; row < row_end; ++row) tile.template Rows<1>(row, y, y_stride);
}

template <class Ops, bool kSparse>
constexpr void FillKinds(MatMulFunction* kinds) {
  kinds[0] = MatMulTiles<FloatTile<Ops, Element::kF32, kSparse>>;
  kinds[1] = MatMulTiles<FloatTile<Ops, Element::kBf16, kSparse>>;
  kinds[2] = MatMulTiles<FloatTile<Ops, Element::kF16, kSparse>>;
  kinds[3] = MatMulTiles<IntTile<Ops, 2, kSparse>>;
  kinds[4] = MatMulTiles<IntTile<Ops, 3, kSparse>>;
  kinds[5] = MatMulTiles<IntTile<Ops, 4, kSparse>>;
  kinds[6] = MatMulTiles<IntTile<Ops, 5, kSparse>>;
  kinds[7] = MatMulTiles<IntTile<Ops, 6, kSparse>>;
  kinds[8] = MatMulTiles<IntTile<Ops, 8, kSparse>>;
}

// All kinds, in the order of Kind.
template <class Ops>
constexpr std::array<MatMulFunction, kKinds> AllKinds() {
  std::array<MatMulFunction, kKinds> kinds = {};
  FillKinds<Ops, false>(kinds.data());
  FillKinds<Ops, true>(kinds.data() + static_cast<size_t>(Kind::kSparseF32));
  kinds[static_cast<size_t>(Kind::kTrellis2)] = MatMulTiles<IntTile<Ops, 2, false, true>>;
  kinds[static_cast<size_t>(Kind::kTrellis3)] = MatMulTiles<IntTile<Ops, 3, false, true>>;
  kinds[static_cast<size_t>(Kind::kTrellis4)] = MatMulTiles<IntTile<Ops, 4, false, true>>;
  kinds[static_cast<size_t>(Kind::kTrellis5)] = MatMulTiles<IntTile<Ops, 5, false, true>>;
  kinds[static_cast<size_t>(Kind::kTrellis6)] = MatMulTiles<IntTile<Ops, 6, false, true>>;
  return kinds;
}

}  // namespace
}  // namespace moepack::kernels
