// Structural pruning as a change of program: experts dropped, intermediate channels removed. Everything after it (replay,
// quantization, the device) sees an ordinary, smaller program and an ordinary source of weights.
#pragma once

#include <memory>
#include <vector>

#include "compressor/recipe.h"
#include "model/model.h"
#include "model/profile.h"

namespace moepack {

// What stays of one expert table.
struct TableStructure {
  std::vector<uint32_t> experts;                // indices in the original table, increasing
  std::vector<std::vector<uint32_t>> channels;  // one list a kept expert, increasing; empty: all
};

struct Structure {
  std::vector<TableStructure> tables;  // one a Program::expert_tables
  bool changed = false;
};

// Chooses by the recipe: a pure function of recipe, profile and weights. kRecipe when fewer experts would stay than the
// router chooses, or the program's routing cannot be sliced. profile may be null when the recipe removes nothing.
Result<Structure> ChooseStructure(const Recipe& recipe, const Model& model, const Profile* profile);

// The program with the structure applied: smaller expert tables, router rows sliced.
Result<Program> ApplyStructure(const Program& program, const Structure& structure);

// Weights of the changed program, cut out of the original's. Keeps `source` alive.
std::shared_ptr<const TensorSource> CutSource(const Program& original, const Structure& structure,
                                              std::shared_ptr<const TensorSource> source);

}  // namespace moepack
