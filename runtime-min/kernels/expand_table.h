// Byte shuffles that move the next entries of a packed run to the columns a mask of 8 bits keeps.
#pragma once

#include <cstdint>

namespace moepack::kernels {
namespace {

// order[mask][c]: index of the entry for column c, or 0x80 (which byte shuffles turn into zero) where mask lacks bit c.
struct ExpandTable {
  uint8_t order[256][8];
};

constexpr ExpandTable MakeExpandTable() {
  ExpandTable table = {};
  for (unsigned mask = 0; mask < 256; ++mask) {
    uint8_t next = 0;
    for (unsigned c = 0; c < 8; ++c) table.order[mask][c] = (mask >> c & 1) != 0 ? next++ : uint8_t{0x80};
  }
  return table;
}

constexpr ExpandTable kExpandTable = MakeExpandTable();

// Byte i: bits set in bytes 0 .. i-1 of `mask`, which is where the entries for byte i begin.
constexpr uint64_t EntriesBefore(uint64_t mask) {
  uint64_t count = mask - (mask >> 1 & 0x5555555555555555);
  count = (count & 0x3333333333333333) + (count >> 2 & 0x3333333333333333);
  count = (count + (count >> 4)) & 0x0f0f0f0f0f0f0f0f;
  return count * 0x0101010101010100;
}

}  // namespace
}  // namespace moepack::kernels
