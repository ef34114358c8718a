// Byte-pair merging of one piece of text.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moepack {

// (left token, right token) -> (rank, token). Built once, then read by any number of threads.
class MergeTable {
 public:
  static constexpr uint32_t kNoMerge = 0xffffffffu;
  struct Merge {
    uint32_t left = 0, right = 0;
    uint32_t rank = kNoMerge;
    uint32_t token = 0;
  };

  // Room for `count` merges.
  explicit MergeTable(size_t count);
  // False when the pair is already there.
  bool Insert(const Merge& merge);
  // rank is kNoMerge when the pair does not merge.
  Merge Find(uint32_t left, uint32_t right) const;

 private:
  size_t SlotOf(uint32_t left, uint32_t right) const;
  std::vector<Merge> slots_;  // open addressing, a power of two of them, at most half full
};

// Merges neighbours of `symbols` by rank, the leftmost of equal ranks first, until no pair merges, and appends what is left
// to *out. O(n log n).
void MergePiece(const MergeTable& merges, std::span<const uint32_t> symbols, std::vector<int32_t>* out);

}  // namespace moepack
