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
  // Nothing that this step produces reaches the state that later tokens read, so it is done only for the last tokens of a
  // run, whose logits are wanted.
  bool tail = false;
};

struct ValuePlace {
  uint64_t offset = 0;  // floats from the start of the arena, a multiple of 16
  uint64_t width = 0;
  bool tail = false;        // of a tail step: row 0 is the first token whose logits are wanted
  bool multiplied = false;  // some product of matrices reads it: linear nodes, experts
};

struct Plan {
  std::vector<Step> steps;
  std::vector<ValuePlace> values;  // by ValueId; token inputs have width 0
  uint64_t arena_floats = 0;
};

// `program` is validated. tile_tokens: most tokens of a run; logit_rows: most of them whose logits are wanted. Values share
// memory when their lifetimes do not overlap; the output lives to the end. kLimit on overflow.
Result<Plan> MakePlan(const Program& program, uint32_t tile_tokens, uint32_t logit_rows);

}  // namespace moepack::runtime
