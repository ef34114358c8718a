#include "runtime-min/plan.h"

#include <algorithm>

#include "base/checked.h"

namespace moepack::runtime {
namespace {

constexpr uint64_t kPlaceAlignment = 16;  // floats: a cache line

// Values that reach keys or values of an attention: every row of them is needed.
std::vector<bool> ValuesThatReachState(const Program& program) {
  std::vector<bool> whole(program.values.size(), false);
  for (size_t i = program.nodes.size(); i-- > 0;) {
    const Node& node = program.nodes[i];
    const bool output_whole = whole[node.output];
    for (size_t input = 0; input < node.inputs.size(); ++input) {
      const bool state = node.kind == NodeKind::kAttention && input > 0;
      if (output_whole || state) whole[node.inputs[input]] = true;
    }
  }
  return whole;
}

// Linear nodes move up to the first one that reads the same input: they depend on nothing else and nodes have no side
// effects, so only lifetimes change.
std::vector<Step> MakeSteps(const Program& program, const std::vector<bool>& whole) {
  std::vector<Step> steps;
  for (uint32_t i = 0; i < program.nodes.size(); ++i) {
    const Node& node = program.nodes[i];
    const bool tail = !whole[node.output];
    Step* joined = nullptr;
    for (size_t s = 0; node.kind == NodeKind::kLinear && s < steps.size(); ++s) {
      const Step& step = steps[s];
      if (step.kind == NodeKind::kLinear && step.tail == tail && program.nodes[step.nodes[0]].inputs[0] == node.inputs[0]) {
        joined = &steps[s];
      }
    }
    if (joined != nullptr) {
      joined->nodes.push_back(i);
    } else {
      steps.push_back({node.kind, {i}, tail});
    }
  }
  return steps;
}

struct Lifetime {
  size_t first = 0, last = 0;  // steps, both included
};

std::vector<Lifetime> Lifetimes(const Program& program, const std::vector<Step>& steps) {
  std::vector<Lifetime> lifetimes(program.values.size());
  for (size_t s = 0; s < steps.size(); ++s) {
    for (uint32_t n : steps[s].nodes) {
      const Node& node = program.nodes[n];
      lifetimes[node.output] = {s, s};
      for (ValueId input : node.inputs) lifetimes[input].last = s;
    }
  }
  lifetimes[program.output].last = steps.size();
  return lifetimes;
}

struct Placed {
  uint64_t begin = 0, end = 0;
  size_t last = 0;
};

// The lowest gap of `size` floats between places that are alive at step `first`.
uint64_t FindGap(std::vector<Placed>& alive, size_t first, uint64_t size) {
  std::erase_if(alive, [first](const Placed& p) { return p.last < first; });
  std::sort(alive.begin(), alive.end(), [](const Placed& a, const Placed& b) { return a.begin < b.begin; });
  uint64_t at = 0;
  for (const Placed& p : alive) {
    if (p.begin >= at && p.begin - at >= size) return at;
    at = std::max(at, p.end);
  }
  return at;
}

}  // namespace

Result<Plan> MakePlan(const Program& program, uint32_t tile_tokens, uint32_t logit_rows) {
  const std::vector<bool> whole = ValuesThatReachState(program);
  Plan plan;
  plan.steps = MakeSteps(program, whole);
  plan.values.resize(program.values.size());
  const std::vector<Lifetime> lifetimes = Lifetimes(program, plan.steps);
  std::vector<Placed> alive;
  for (const Step& step : plan.steps) {
    for (uint32_t n : step.nodes) {
      const ValueId id = program.nodes[n].output;
      ValuePlace& place = plan.values[id];
      place.width = program.values[id].width;
      place.tail = step.tail;
      uint64_t size = 0, end = 0;
      const bool fits = CheckedMul(place.width, place.tail ? logit_rows : tile_tokens, &size) &&
                        CheckedAlign(size, kPlaceAlignment, &size);
      if (!fits) return Status(ErrorCode::kLimit, StrFormat("value %u: size overflows", id));
      place.offset = FindGap(alive, lifetimes[id].first, size);
      if (!CheckedAdd(place.offset, size, &end)) return Status(ErrorCode::kLimit, StrFormat("value %u: size overflows", id));
      alive.push_back({place.offset, end, lifetimes[id].last});
      plan.arena_floats = std::max(plan.arena_floats, end);
    }
  }
  return plan;
}

}  // namespace moepack::runtime
