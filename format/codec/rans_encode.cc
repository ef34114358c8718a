#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "format/codec/layout.h"
#include "format/codec/rans.h"

namespace moepack {
namespace {

// log2 in 1/256 of a bit, by squaring: integers only, so that every processor makes the same choices.
constexpr uint32_t kLogOne = 256;
std::array<uint16_t, 257> MakeLogs() {
  std::array<uint16_t, 257> logs = {};
  for (uint32_t i = 0; i <= 256; ++i) {
    uint64_t y = (uint64_t{256} + i) << 22;  // 1 + i / 256 in 2.30
    uint32_t log = 0;
    for (uint32_t bit = kLogOne; bit > 0; bit >>= 1) {
      if (y >= uint64_t{1} << 31) {
        log += bit;
        y >>= 1;
      }
      y = y * y >> 30;
    }
    logs[i] = static_cast<uint16_t>(log);
  }
  return logs;
}
uint32_t Log2(uint64_t x) {
  static const std::array<uint16_t, 257> kLogs = MakeLogs();
  const int top = std::bit_width(x) - 1;
  const uint64_t mantissa = top >= 8 ? x >> (top - 8) : x << (8 - top);
  return static_cast<uint32_t>(top) * kLogOne + kLogs[mantissa - 256];
}

using Histogram = std::array<uint32_t, 256>;
using Costs = std::array<uint32_t, 256>;

uint64_t TotalOf(const Histogram& h) { return std::accumulate(h.begin(), h.end(), uint64_t{0}); }

// Frequencies that add up to kRansTotal, at least 1 for every symbol that occurs.
std::array<uint16_t, 256> Normalise(const Histogram& h) {
  const uint64_t total = TotalOf(h);
  std::array<uint16_t, 256> out = {};
  int64_t left = kRansTotal;
  for (size_t s = 0; s < 256; ++s) {
    if (h[s] == 0) continue;
    out[s] = static_cast<uint16_t>(std::max<uint64_t>(1, h[s] * uint64_t{kRansTotal} / total));
    left -= out[s];
  }
  for (; left != 0; left += left > 0 ? -1 : 1) {
    // The symbol that gains most, or loses least.
    size_t best = 256;
    for (size_t s = 0; s < 256; ++s) {
      if (h[s] == 0 || (left < 0 && out[s] == 1)) continue;
      if (best == 256) best = s;
      const uint64_t here = uint64_t{h[s]} * out[best], there = uint64_t{h[best]} * out[s];
      if (left > 0 ? here > there : here < there) best = s;
    }
    out[best] = static_cast<uint16_t>(out[best] + (left > 0 ? 1 : -1));
  }
  return out;
}

struct Table {
  std::array<uint16_t, 256> frequency, start;
  Bytes header;
};

Table MakeTable(const Histogram& h) {
  Table out;
  out.frequency = Normalise(h);
  uint32_t first = 256, last = 0, stride = 0, sum = 0;
  for (uint32_t s = 0; s < 256; ++s) {
    out.start[s] = static_cast<uint16_t>(sum);
    sum += out.frequency[s];
    if (out.frequency[s] == 0) continue;
    if (first == 256) first = s;
    stride = std::gcd(stride, s - first);
    last = s;
  }
  stride = std::max(stride, 1u);
  ByteWriter writer;
  writer.U8(static_cast<uint8_t>(first));
  writer.U8(static_cast<uint8_t>(stride));
  writer.U16(static_cast<uint16_t>((last - first) / stride + 1));
  for (uint32_t s = first; s <= last; s += stride) {
    const uint32_t f = out.frequency[s];
    if (f < 128) {
      writer.U8(static_cast<uint8_t>(f));
    } else {
      writer.U8(static_cast<uint8_t>(128 | (f & 127)));
      writer.U8(static_cast<uint8_t>(f >> 7));
    }
  }
  out.header = writer.Release();
  return out;
}

// Bytes that a table and the symbols of its histogram take, in 1/256 bits.
uint64_t CostOf(const Histogram& h) {
  const Table table = MakeTable(h);
  uint64_t cost = table.header.size() * 8 * kLogOne;
  for (size_t s = 0; s < 256; ++s) {
    if (h[s] != 0) cost += uint64_t{h[s]} * (kRansBits * kLogOne - Log2(table.frequency[s]));
  }
  return cost;
}

// How a run is coded.
struct Coding {
  RansOrder order = RansOrder::kOneTable;
  Bytes map;
  std::vector<Histogram> histograms;
  uint64_t cost = 0;  // 1/256 bits
};

// Columns or rows of a run with the symbols that occur in each.
struct Item {
  std::vector<std::pair<uint8_t, uint32_t>> symbols;
  uint64_t entropy = 0;
};

std::vector<Item> ListItems(ByteSpan plain, const RansRun& run, bool rows) {
  const uint64_t count = rows ? (run.phase + run.bytes + run.period - 1) / run.period : run.period;
  std::vector<Histogram> histograms(count, Histogram{});
  for (uint64_t i = 0; i < run.bytes; ++i) {
    const uint64_t at = run.phase + i;
    ++histograms[rows ? at / run.period : at % run.period][plain[i]];
  }
  std::vector<Item> items(count);
  for (uint64_t k = 0; k < count; ++k) {
    const uint64_t total = TotalOf(histograms[k]);
    for (size_t s = 0; s < 256; ++s) {
      const uint32_t n = histograms[k][s];
      if (n == 0) continue;
      items[k].symbols.emplace_back(static_cast<uint8_t>(s), n);
      items[k].entropy += uint64_t{n} * (Log2(total) - Log2(n));
    }
    if (total > 0) items[k].entropy = items[k].entropy * 16 / total;
  }
  return items;
}

std::vector<Histogram> SumItems(const std::vector<Item>& items, const Bytes& map, size_t tables) {
  std::vector<Histogram> out(tables, Histogram{});
  for (size_t i = 0; i < items.size(); ++i) {
    for (const auto& [symbol, n] : items[i].symbols) out[map[i]][symbol] += n;
  }
  return out;
}

// Every item to the table that codes it in the fewest bits (k-means under relative entropy).
void Assign(const std::vector<Item>& items, const std::vector<Histogram>& tables, Bytes* map) {
  std::vector<Costs> costs(tables.size());
  for (size_t t = 0; t < tables.size(); ++t) {
    const uint64_t total = TotalOf(tables[t]) * 16 + 256;
    for (size_t s = 0; s < 256; ++s) costs[t][s] = Log2(total) - Log2(uint64_t{tables[t][s]} * 16 + 1);
  }
  for (size_t i = 0; i < items.size(); ++i) {
    uint64_t best = UINT64_MAX;
    for (size_t t = 0; t < tables.size(); ++t) {
      uint64_t cost = 0;
      for (const auto& [symbol, n] : items[i].symbols) cost += uint64_t{n} * costs[t][symbol];
      if (cost < best) {
        best = cost;
        (*map)[i] = static_cast<uint8_t>(t);
      }
    }
  }
}

// Leaves out tables that nothing uses.
void DropUnused(std::vector<Histogram>* tables, Bytes* map) {
  std::array<uint8_t, kMaxRansTables> place = {};
  std::vector<Histogram> kept;
  for (size_t t = 0; t < tables->size(); ++t) {
    place[t] = static_cast<uint8_t>(kept.size());
    if (TotalOf((*tables)[t]) > 0) kept.push_back((*tables)[t]);
  }
  for (uint8_t& entry : *map) entry = entry != 0 && place[entry] >= kept.size() ? uint8_t{0} : place[entry];
  *tables = std::move(kept);
}

Coding Cluster(const std::vector<Item>& items, RansOrder order, size_t wanted) {
  static constexpr int kRounds = 6;
  std::vector<size_t> by_entropy(items.size());
  std::iota(by_entropy.begin(), by_entropy.end(), size_t{0});
  std::stable_sort(by_entropy.begin(), by_entropy.end(),
                   [&](size_t a, size_t b) { return items[a].entropy < items[b].entropy; });
  Coding out{.order = order, .map = Bytes(items.size(), 0)};
  for (size_t i = 0; i < items.size(); ++i) out.map[by_entropy[i]] = static_cast<uint8_t>(i * wanted / items.size());
  for (int round = 0; round < kRounds; ++round) Assign(items, SumItems(items, out.map, wanted), &out.map);
  out.histograms = SumItems(items, out.map, wanted);
  DropUnused(&out.histograms, &out.map);
  const size_t bits = static_cast<size_t>(std::bit_width(out.histograms.size() - 1));
  out.cost = (9 * 8 + items.size() * bits) * kLogOne;
  for (const Histogram& h : out.histograms) out.cost += CostOf(h);
  return out;
}

Coding OneTable(ByteSpan plain) {
  Coding out;
  out.histograms.emplace_back();
  for (uint8_t byte : plain) ++out.histograms[0][byte];
  out.cost = CostOf(out.histograms[0]);
  return out;
}

Coding Choose(ByteSpan plain, const RansRun& run) {
  static constexpr uint64_t kMaxItems = 16384;
  Coding best = OneTable(plain);
  for (const bool rows : {false, true}) {
    if (run.period == 0 || run.period > kMaxRansPeriod) continue;
    const uint64_t count = rows ? (run.phase + run.bytes) / run.period : run.period;
    if (count < 2 || count > kMaxItems || run.bytes / count < 16) continue;
    const std::vector<Item> items = ListItems(plain, run, rows);
    for (size_t wanted : {3, 6, 12}) {
      if (wanted > items.size()) break;
      Coding coding = Cluster(items, rows ? RansOrder::kByRow : RansOrder::kByColumn, wanted);
      if (coding.histograms.size() > 1 && coding.cost < best.cost) best = std::move(coding);
    }
  }
  return best;
}

// Words of the body in reading order: the states, then what the decoder pulls.
std::vector<uint16_t> EncodeWords(ByteSpan plain, const RansRun& run, const Coding& coding,
                                  const std::vector<Table>& tables) {
  std::array<uint32_t, kRansStates> states;
  states.fill(kRansLow);
  std::vector<uint16_t> words;
  for (uint64_t i = plain.size(); i-- > 0;) {
    const uint64_t at = run.phase + i;
    const size_t t = coding.order == RansOrder::kOneTable   ? 0
                     : coding.order == RansOrder::kByColumn ? coding.map[at % run.period]
                                                            : coding.map[at / run.period];
    const uint32_t frequency = tables[t].frequency[plain[i]], start = tables[t].start[plain[i]];
    uint32_t& x = states[i % kRansStates];
    if (x >= uint64_t{frequency} << (32 - kRansBits)) {
      words.push_back(static_cast<uint16_t>(x));
      x >>= 16;
    }
    x = (x / frequency << kRansBits) + x % frequency + start;
  }
  for (size_t s = kRansStates; s-- > 0;) {
    words.push_back(static_cast<uint16_t>(states[s] >> 16));
    words.push_back(static_cast<uint16_t>(states[s]));
  }
  std::reverse(words.begin(), words.end());
  return words;
}

void WriteMap(const Bytes& map, size_t tables, ByteWriter* out) {
  const auto bits = static_cast<uint32_t>(std::bit_width(tables - 1));
  Bytes packed((map.size() * bits + 7) / 8, 0);
  for (size_t i = 0; i < map.size(); ++i) {
    for (uint32_t b = 0; b < bits; ++b) {
      const size_t at = i * bits + b;
      packed[at / 8] = static_cast<uint8_t>(packed[at / 8] | (map[i] >> b & 1) << (at % 8));
    }
  }
  out->Append(packed);
}

void EncodeRun(ByteSpan plain, const RansRun& run, ByteWriter* out) {
  const Coding coding = Choose(plain, run);
  ByteWriter coded;
  coded.U8(static_cast<uint8_t>(coding.order));
  if (coding.order != RansOrder::kOneTable) {
    coded.U32(run.period);
    coded.U32(run.phase);
  }
  coded.U8(static_cast<uint8_t>(coding.histograms.size()));
  if (coding.order != RansOrder::kOneTable) WriteMap(coding.map, coding.histograms.size(), &coded);
  std::vector<Table> tables;
  for (const Histogram& h : coding.histograms) {
    tables.push_back(MakeTable(h));
    coded.Append(tables.back().header);
  }
  const std::vector<uint16_t> words = EncodeWords(plain, run, coding, tables);
  coded.U32(static_cast<uint32_t>(words.size()));
  for (uint16_t word : words) coded.U16(word);
  const bool pays = coded.size() < plain.size();
  out->U8(pays ? 1 : 0);
  out->U32(static_cast<uint32_t>(plain.size()));
  out->Append(pays ? ByteSpan(coded.bytes()) : plain);
}

}  // namespace

Status AppendRansRuns(const Codec& codec, const MatrixShape& shape, std::vector<RansRun>* runs) {
  MOEPACK_ASSIGN_OR_RETURN(const MatrixLayout layout, PlainLayoutOf(codec, shape));
  const auto add = [&](uint64_t rows, uint64_t row_bytes) {
    const bool columns = row_bytes <= kMaxRansPeriod && rows > 1;
    if (rows * row_bytes > 0) runs->push_back({rows * row_bytes, columns ? static_cast<uint32_t>(row_bytes) : 0, 0});
  };
  add(shape.rows, layout.mask_row_bytes);
  for (uint8_t i = 0; i < layout.plane_count; ++i) add(shape.rows, layout.planes[i].row_bytes);
  if (layout.plane_count == 0) {
    add(shape.rows, layout.kept * layout.value_bytes);
    return Status::Ok();
  }
  for (int run = 0; run < (codec.has_min ? 4 : 2); ++run) add(shape.rows * layout.groups, 1);
  return Status::Ok();
}

std::vector<RansRun> CutRansRuns(std::span<const RansRun> runs, uint64_t begin, uint64_t end) {
  std::vector<RansRun> out;
  uint64_t at = 0;
  for (const RansRun& run : runs) {
    const uint64_t from = std::max(at, begin), to = std::min(at + run.bytes, end);
    if (from < to) {
      const uint64_t skipped = run.phase + (from - at);
      out.push_back({to - from, run.period, run.period == 0 ? 0 : static_cast<uint32_t>(skipped % run.period)});
    }
    at += run.bytes;
  }
  return out;
}

Bytes EncodeRans(ByteSpan plain, std::span<const RansRun> runs) {
  ByteWriter out;
  for (const RansRun& run : runs) {
    EncodeRun(plain.first(run.bytes), run, &out);
    plain = plain.subspan(run.bytes);
  }
  return out.Release();
}

}  // namespace moepack
