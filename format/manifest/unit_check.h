// What must hold between a program and the units that store it, in a bundle as in a model folder. Internal to
// format/manifest.
#pragma once

#include <vector>

#include "format/manifest/manifest.h"

namespace moepack {

// Sum of PlainBytes over the tensors. kLimit above kMaxUnitPlainBytes.
Result<uint64_t> UnitPlainBytes(const std::vector<UnitTensor>& tensors);

// `stored` holds exactly `wanted` (TensorsOfBlock) in that order and shape. kMissingTensor names the first tensor that is
// absent, kShape one of another shape.
Status CheckDenseUnit(const Program& program, const std::vector<TensorId>& wanted, const std::vector<UnitTensor>& stored);

// Every expert of table `index` has a variant, variants name units, every unit is named, and each unit holds gate (when
// gated), up and down in the shapes of all experts that use it. kMissingTensor names an expert without a unit.
Status CheckExpertUnits(const Program& program, uint32_t index, const std::vector<ExpertEntry>& experts,
                        const std::vector<const std::vector<UnitTensor>*>& units);

}  // namespace moepack
