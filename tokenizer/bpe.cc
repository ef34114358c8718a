#include "tokenizer/bpe.h"

#include <algorithm>
#include <bit>

namespace moepack {
namespace {

constexpr size_t kEnd = static_cast<size_t>(-1);

struct Link {
  uint32_t token;
  bool alive;
  size_t previous, next;
};

struct Candidate {
  MergeTable::Merge merge;
  size_t position;
};

// Order of a heap whose top is the lowest rank, then the leftmost position.
bool Later(const Candidate& a, const Candidate& b) {
  return a.merge.rank != b.merge.rank ? a.merge.rank > b.merge.rank : a.position > b.position;
}

// The symbols as a linked list with a heap of the pairs that merge. A heap entry is stale once one of its symbols changed.
class Merger {
 public:
  Merger(const MergeTable& merges, std::span<const uint32_t> symbols) : merges_(merges) {
    links_.reserve(symbols.size());
    for (size_t i = 0; i < symbols.size(); ++i) {
      links_.push_back({symbols[i], true, i == 0 ? kEnd : i - 1, i + 1 < symbols.size() ? i + 1 : kEnd});
    }
    for (size_t i = 0; i + 1 < symbols.size(); ++i) Offer(i);
  }

  void Run(std::vector<int32_t>* out) {
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), Later);
      const Candidate candidate = heap_.back();
      heap_.pop_back();
      if (Current(candidate)) Apply(candidate);
    }
    for (size_t i = links_.empty() ? kEnd : 0; i != kEnd; i = links_[i].next) {
      out->push_back(static_cast<int32_t>(links_[i].token));
    }
  }

 private:
  void Offer(size_t position) {
    const Link& link = links_[position];
    if (link.next == kEnd) return;
    const MergeTable::Merge merge = merges_.Find(link.token, links_[link.next].token);
    if (merge.rank == MergeTable::kNoMerge) return;
    heap_.push_back({merge, position});
    std::push_heap(heap_.begin(), heap_.end(), Later);
  }

  bool Current(const Candidate& c) const {
    const Link& link = links_[c.position];
    return link.alive && link.token == c.merge.left && link.next != kEnd && links_[link.next].token == c.merge.right;
  }

  void Apply(const Candidate& c) {
    Link& link = links_[c.position];
    Link& removed = links_[link.next];
    removed.alive = false;
    link.token = c.merge.token;
    link.next = removed.next;
    if (link.next != kEnd) links_[link.next].previous = c.position;
    if (link.previous != kEnd) Offer(link.previous);
    Offer(c.position);
  }

  const MergeTable& merges_;
  std::vector<Link> links_;
  std::vector<Candidate> heap_;
};

}  // namespace

MergeTable::MergeTable(size_t count) : slots_(std::bit_ceil(2 * count + 1)) {}

size_t MergeTable::SlotOf(uint32_t left, uint32_t right) const {
  uint64_t key = (static_cast<uint64_t>(left) << 32) | right;
  key *= 0x9E3779B97F4A7C15u;
  size_t slot = (key ^ (key >> 32)) & (slots_.size() - 1);
  while (slots_[slot].rank != kNoMerge && (slots_[slot].left != left || slots_[slot].right != right)) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slot;
}

bool MergeTable::Insert(const Merge& merge) {
  Merge& slot = slots_[SlotOf(merge.left, merge.right)];
  if (slot.rank != kNoMerge) return false;
  slot = merge;
  return true;
}

MergeTable::Merge MergeTable::Find(uint32_t left, uint32_t right) const { return slots_[SlotOf(left, right)]; }

void MergePiece(const MergeTable& merges, std::span<const uint32_t> symbols, std::vector<int32_t>* out) {
  Merger(merges, symbols).Run(out);
}

}  // namespace moepack
