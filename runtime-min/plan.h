// How a program is executed: its nodes in steps, and a place in one arena for every value.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "format/program.h"

namespace moepack::runtime {

// Nodes that run together: for kLinear all that read one input, so that it is prepared once; otherwise one node.
struct Step {
  NodeKind kind = NodeKind::kLinear;
  std::vector<uint32_t> nodes;
  // Nothing that this step produces reaches the state of a later token, so only rows whose logits are wanted need it.
  bool last_row_only = false;
};

struct ValuePlace {
  uint64_t offset = 0;  // floats from the start of the arena, a multiple of 16
  uint64_t width = 0;
  bool single_row = false;  // one row instead of one a token of the tile
};

struct Plan {
  std::vector<Step> steps;
  std::vector<ValuePlace> values;  // by ValueId; token inputs have width 0
  uint64_t arena_floats = 0;
};

// `program` is validated. tile_tokens: most tokens a run. all_logits: every row of the output is wanted, otherwise the
// last. Values share memory when their lifetimes do not overlap; the output lives to the end. kLimit on overflow.
Result<Plan> MakePlan(const Program& program, uint32_t tile_tokens, bool all_logits);

}  // namespace moepack::runtime
