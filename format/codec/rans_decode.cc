#include <algorithm>
#include <array>
#include <bit>

#include "base/checked.h"
#include "format/codec/rans.h"

namespace moepack {
namespace {

Status Bad(const char* what) { return Status(ErrorCode::kMalformed, std::string("rANS chunk: ") + what); }

struct Table {
  // By slot: frequency - 1, slots since the symbol's first, symbol; 12, 12 and 8 bits.
  std::array<uint32_t, kRansTotal> slots;
};

// A frequency takes one byte below 128, else two: seven low bits first.
uint32_t ReadFrequency(ByteReader* in) {
  const uint32_t low = in->U8();
  if (low < 128) return low;
  const uint32_t high = in->U8();
  return high == 0 ? kRansTotal + 1 : (low & 127) | high << 7;
}

Status ReadTable(ByteReader* in, Table* table) {
  const uint32_t first = in->U8(), stride = in->U8(), count = in->U16();
  if (!in->ok() || stride == 0 || count == 0 || count > 256 || first + (count - 1) * stride > 255) {
    return Bad("a table names symbols outside a byte");
  }
  uint32_t sum = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t frequency = ReadFrequency(in);
    if (!in->ok() || frequency > kRansTotal - sum) return Bad("a table's frequencies exceed their total");
    const uint32_t symbol = first + i * stride;
    for (uint32_t s = 0; s < frequency; ++s) table->slots[sum + s] = (frequency - 1) << 20 | s << 8 | symbol;
    sum += frequency;
  }
  return sum == kRansTotal ? Status::Ok() : Bad("a table's frequencies fall short of their total");
}

// Numbers of `bits` bits, lowest bits first; all below `limit`, and zero bits behind the last.
Status ReadMap(ByteReader* in, uint64_t entries, uint32_t bits, uint32_t limit, Bytes* map) {
  const ByteSpan packed = in->Take(CeilDiv(entries * bits, 8));
  if (!in->ok()) return Bad("its map is cut off");
  map->resize(entries);
  for (uint64_t i = 0; i < entries; ++i) {
    uint32_t value = 0;
    for (uint32_t b = 0; b < bits; ++b) {
      const uint64_t at = i * bits + b;
      value |= static_cast<uint32_t>(packed[at / 8] >> (at % 8) & 1) << b;
    }
    if (value >= limit) return Bad("its map names a table that is not there");
    (*map)[i] = static_cast<uint8_t>(value);
  }
  const uint64_t used = entries * bits % 8;
  if (used != 0 && packed.back() >> used != 0) return Bad("its map has bits past the last entry");
  return Status::Ok();
}

class Decoder {
 public:
  explicit Decoder(ByteSpan words) : words_(words) {}

  bool Start() {
    if (words_.size() < 4 * kRansStates) return false;
    for (uint32_t& state : states_) {
      state = Word();
      state |= static_cast<uint32_t>(Word()) << 16;
      if (state < kRansLow) return false;
    }
    return true;
  }
  // One byte; false when the words are used up.
  bool Next(const Table& table, uint32_t* state, uint8_t* out) {
    *state = Step(table, *state, out);
    if (*state >= kRansLow) return true;
    if (at_ == words_.size()) return false;
    *state = *state << 16 | Word();
    return true;
  }
  // `table_of(i)` for bytes [begin, end); byte i belongs to state i % kRansStates.
  template <typename TableOf>
  bool Fill(uint64_t begin, uint64_t end, const TableOf& table_of, uint8_t* out) {
    uint64_t i = begin;
    for (; i < end && i % kRansStates != 0; ++i) {
      if (!Next(table_of(i), &states_[i % kRansStates], out + i)) return false;
    }
    i = FillQuickly(i, end, table_of, out);
    for (; i + kRansStates <= end; i += kRansStates) {
      bool fine = true;
      for (size_t s = 0; s < kRansStates; ++s) fine &= Next(table_of(i + s), &states_[s], out + i + s);
      if (!fine) return false;
    }
    for (; i < end; ++i) {
      if (!Next(table_of(i), &states_[i % kRansStates], out + i)) return false;
    }
    return true;
  }
  bool AtEnd() const {
    return at_ == words_.size() && std::all_of(states_.begin(), states_.end(), [](uint32_t x) { return x == kRansLow; });
  }

 private:
  // The state after one byte, before words are taken in.
  static uint32_t Step(const Table& table, uint32_t state, uint8_t* out) {
    const uint32_t slot = state & (kRansTotal - 1);
    const uint32_t entry = table.slots[slot];
    *out = static_cast<uint8_t>(entry);
    return ((entry >> 20) + 1) * (state >> kRansBits) + (entry >> 8 & (kRansTotal - 1));
  }
  // Groups of bytes as long as each state may take a word: nothing to check, and no branch that depends on the data. The
  // end of the last group.
  template <typename TableOf>
  uint64_t FillQuickly(uint64_t begin, uint64_t end, const TableOf& table_of, uint8_t* out) {
    std::array<uint32_t, kRansStates> states = states_;
    const uint8_t* words = words_.data();
    uint64_t i = begin;
    size_t at = at_;
    for (; i + kRansStates <= end && words_.size() - at >= 2 * kRansStates; i += kRansStates) {
      for (size_t s = 0; s < kRansStates; ++s) {
        const uint32_t x = Step(table_of(i + s), states[s], out + i + s);
        const uint32_t more = x < kRansLow ? 1 : 0, word = static_cast<uint32_t>(words[at] | words[at + 1] << 8);
        states[s] = x << (16 * more) | (word & (0 - more));
        at += 2 * more;
      }
    }
    states_ = states;
    at_ = at;
    return i;
  }
  uint16_t Word() {
    const auto word = static_cast<uint16_t>(words_[at_] | words_[at_ + 1] << 8);
    at_ += 2;
    return word;
  }
  ByteSpan words_;
  size_t at_ = 0;
  std::array<uint32_t, kRansStates> states_ = {};
};

struct RunHeader {
  RansOrder order = RansOrder::kOneTable;
  uint32_t period = 1, phase = 0;
  Bytes map;
};

Status ReadHeader(ByteReader* in, uint64_t bytes, RunHeader* header, std::vector<Table>* tables) {
  const uint8_t order = in->U8();
  if (order > static_cast<uint8_t>(RansOrder::kByRow)) return Bad("unknown order of tables");
  header->order = static_cast<RansOrder>(order);
  const bool mapped = header->order != RansOrder::kOneTable;
  if (mapped) {
    header->period = in->U32();
    header->phase = in->U32();
    if (header->period == 0 || header->period > kMaxRansPeriod || header->phase >= header->period) {
      return Bad("period or phase out of range");
    }
  }
  const uint32_t count = in->U8();
  if (!in->ok() || count > kMaxRansTables || count < (mapped ? 2u : 1u) || (!mapped && count != 1)) {
    return Bad("number of tables out of range");
  }
  if (mapped) {
    const uint64_t entries =
        header->order == RansOrder::kByColumn ? header->period : CeilDiv(header->phase + bytes, header->period);
    MOEPACK_RETURN_IF_ERROR(ReadMap(in, entries, std::bit_width(count - 1), count, &header->map));
  }
  tables->resize(count);
  for (Table& table : *tables) MOEPACK_RETURN_IF_ERROR(ReadTable(in, &table));
  return Status::Ok();
}

bool FillRun(const RunHeader& header, const std::vector<Table>& tables, std::span<uint8_t> out, Decoder* decoder) {
  if (header.order == RansOrder::kOneTable) {
    return decoder->Fill(
        0, out.size(), [&](uint64_t) -> const Table& { return tables[0]; }, out.data());
  }
  // Row by row: bytes [begin, end) are those of one row.
  uint64_t row = 0;
  for (uint64_t begin = 0; begin < out.size(); ++row) {
    const uint64_t column = begin == 0 ? header.phase : 0;
    const uint64_t end = std::min<uint64_t>(out.size(), begin + header.period - column);
    bool fine = false;
    if (header.order == RansOrder::kByRow) {
      const Table& table = tables[header.map[row]];
      fine = decoder->Fill(
          begin, end, [&](uint64_t) -> const Table& { return table; }, out.data());
    } else {
      const uint8_t* map = header.map.data() + column;
      fine = decoder->Fill(
          begin, end, [&](uint64_t i) -> const Table& { return tables[map[i - begin]]; }, out.data());
    }
    if (!fine) return false;
    begin = end;
  }
  return true;
}

}  // namespace

Status DecodeRans(ByteSpan stored, std::span<uint8_t> plain) {
  ByteReader in(stored);
  std::vector<Table> tables;
  while (!plain.empty()) {
    const uint8_t coded = in.U8();
    const uint64_t bytes = in.U32();
    if (!in.ok() || bytes == 0 || bytes > plain.size()) return Bad("a run is longer than the chunk");
    const std::span<uint8_t> out = plain.first(bytes);
    plain = plain.subspan(bytes);
    if (coded == 0) {
      const ByteSpan copy = in.Take(bytes);
      if (!in.ok()) return Bad("a plain run is cut off");
      std::copy(copy.begin(), copy.end(), out.begin());
      continue;
    }
    if (coded != 1) return Bad("unknown kind of run");
    RunHeader header;
    MOEPACK_RETURN_IF_ERROR(ReadHeader(&in, bytes, &header, &tables));
    const uint64_t words = in.U32();
    const ByteSpan body = in.Take(2 * words);
    if (!in.ok()) return Bad("a run's words are cut off");
    Decoder decoder(body);
    if (!decoder.Start()) return Bad("a run has no valid states");
    if (!FillRun(header, tables, out, &decoder)) return Bad("a run has too few words");
    if (!decoder.AtEnd()) return Bad("a run does not end where its words end");
  }
  return in.remaining() == 0 ? Status::Ok() : Bad("bytes behind the last run");
}

}  // namespace moepack
