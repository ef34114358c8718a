#include "runtime-min/plan.h"

#include <array>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "base/checked.h"

namespace moepack::runtime {
namespace {

constexpr uint64_t kPlaceAlignment = 16;  // floats: a cache line

// Values that reach keys or values of an attention or the state of a convolution: every row of them is needed.
std::vector<bool> ValuesThatReachState(const Program& program) {
  std::vector<bool> whole(program.values.size(), false);
  for (size_t i = program.nodes.size(); i-- > 0;) {
    const Node& node = program.nodes[i];
    const bool output_whole = whole[node.output];
    for (size_t input = 0; input < node.inputs.size(); ++input) {
      const bool state = (node.kind == NodeKind::kAttention && input > 0) || node.kind == NodeKind::kConvolution;
      if (output_whole || state) whole[node.inputs[input]] = true;
    }
  }
  return whole;
}

// Linear nodes move up to the first one that reads the same input: they depend on nothing else and nodes have no side
// effects, so only lifetimes change.
std::vector<Step> MakeSteps(const Program& program, const std::vector<bool>& whole) {
  std::vector<Step> steps;
  // The step that linear nodes of an input join: [input][tail].
  std::vector<std::array<uint32_t, 2>> step_of(program.values.size(), {kNone, kNone});
  for (uint32_t i = 0; i < program.nodes.size(); ++i) {
    const Node& node = program.nodes[i];
    const bool tail = !whole[node.output];
    if (node.kind == NodeKind::kLinear) {
      uint32_t& step = step_of[node.inputs[0]][tail ? 1 : 0];
      if (step != kNone) {
        steps[step].nodes.push_back(i);
        continue;
      }
      step = static_cast<uint32_t>(steps.size());
    }
    steps.push_back({node.kind, {i}, tail});
  }
  return steps;
}

// The last step that makes or reads each value; steps.size() for the output.
std::vector<size_t> LastSteps(const Program& program, const std::vector<Step>& steps) {
  std::vector<size_t> last(program.values.size(), 0);
  for (size_t s = 0; s < steps.size(); ++s) {
    for (uint32_t n : steps[s].nodes) {
      const Node& node = program.nodes[n];
      last[node.output] = s;
      for (ValueId input : node.inputs) last[input] = s;
    }
  }
  last[program.output] = steps.size();
  return last;
}

// Gives out pieces of an arena that grows at its end: the smallest gap that is large enough, of equal ones the lowest.
class Places {
 public:
  // kLimit on overflow.
  Result<uint64_t> Take(uint64_t size) {
    if (size == 0) return uint64_t{0};
    const auto gap = by_size_.lower_bound({size, 0});
    if (gap == by_size_.end()) return Extend(size);
    const auto [gap_size, offset] = *gap;
    RemoveGap(offset, gap_size);
    AddGap(offset + size, gap_size - size);
    return offset;
  }

  void GiveBack(uint64_t offset, uint64_t size) {
    if (size == 0) return;
    auto after = by_offset_.lower_bound(offset);
    if (after != by_offset_.end() && after->first == offset + size) {
      size += after->second;
      RemoveGap(after->first, after->second);
    }
    auto before = by_offset_.lower_bound(offset);
    if (before != by_offset_.begin() && std::prev(before)->first + std::prev(before)->second == offset) {
      --before;
      const auto [begin, bytes] = *before;
      RemoveGap(begin, bytes);
      offset = begin;
      size += bytes;
    }
    AddGap(offset, size);
  }

  uint64_t end() const { return end_; }

 private:
  // From the gap at the end on, if there is one.
  Result<uint64_t> Extend(uint64_t size) {
    uint64_t begin = end_;
    if (!by_offset_.empty()) {
      const auto [offset, gap] = *by_offset_.rbegin();
      if (offset + gap == end_) begin = offset;
    }
    uint64_t end = 0;
    if (!CheckedAdd(begin, size, &end)) return Status(ErrorCode::kLimit, "size overflows");
    if (begin != end_) RemoveGap(begin, end_ - begin);
    end_ = end;
    return begin;
  }

  void AddGap(uint64_t offset, uint64_t size) {
    if (size == 0) return;
    by_offset_.emplace(offset, size);
    by_size_.emplace(size, offset);
  }

  void RemoveGap(uint64_t offset, uint64_t size) {
    by_offset_.erase(offset);
    by_size_.erase({size, offset});
  }

  std::map<uint64_t, uint64_t> by_offset_;           // gaps: offset -> size
  std::set<std::pair<uint64_t, uint64_t>> by_size_;  // the same: (size, offset)
  uint64_t end_ = 0;
};

// Values whose last step is s, at [s].
std::vector<std::vector<ValueId>> EndingAt(const std::vector<size_t>& last, size_t steps) {
  std::vector<std::vector<ValueId>> ending(steps + 1);
  for (ValueId id = 0; id < last.size(); ++id) ending[last[id]].push_back(id);
  return ending;
}

}  // namespace

Result<Plan> MakePlan(const Program& program, uint32_t tile_tokens, uint32_t logit_rows) {
  const std::vector<bool> whole = ValuesThatReachState(program);
  Plan plan;
  plan.steps = MakeSteps(program, whole);
  plan.values.resize(program.values.size());
  const std::vector<std::vector<ValueId>> ending = EndingAt(LastSteps(program, plan.steps), plan.steps.size());
  std::vector<uint64_t> sizes(program.values.size(), 0);
  Places places;
  const auto place_value = [&](ValueId id, bool tail) {
    ValuePlace& place = plan.values[id];
    place.width = program.values[id].width;
    place.tail = tail;
    const bool fits = CheckedMul(place.width, tail ? logit_rows : tile_tokens, &sizes[id]) &&
                      CheckedAlign(sizes[id], kPlaceAlignment, &sizes[id]);
    if (!fits) return Status(ErrorCode::kLimit, StrFormat("value %u: size overflows", id));
    Result<uint64_t> offset = places.Take(sizes[id]);
    if (!offset.ok()) return offset.status().With(StrFormat("value %u", id));
    place.offset = *offset;
    return Status::Ok();
  };
  // An input of tokens is 0 wide and takes nothing.
  MOEPACK_RETURN_IF_ERROR(place_value(program.inputs[0], false));
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    if (s > 0) {
      for (ValueId id : ending[s - 1]) places.GiveBack(plan.values[id].offset, sizes[id]);
    }
    for (uint32_t n : plan.steps[s].nodes) MOEPACK_RETURN_IF_ERROR(place_value(program.nodes[n].output, plan.steps[s].tail));
  }
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kLinear || node.kind == NodeKind::kMoe) plan.values[node.inputs[0]].multiplied = true;
  }
  plan.arena_floats = places.end();
  return plan;
}

}  // namespace moepack::runtime
