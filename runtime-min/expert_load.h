// One expert from stored bytes to matrices that kernels take.
#pragma once

#include <array>
#include <cstdint>

#include "base/status.h"
#include "format/program.h"
#include "format/verified.h"
#include "runtime-min/unit_source.h"

namespace moepack::runtime {

inline constexpr uint64_t kExpertAlignment = 64;

// The matrices of one expert, by ExpertMatrix; kGate is empty when the table is not gated.
using ExpertWeights = std::array<ResidentTensor, kExpertMatrices>;

// Reads, verifies and packs a physical expert of `table` to `place`: ResidentBytes of its matrices in load order, each
// rounded up to kExpertAlignment. `place` stays the caller's and outlives the weights. Errors of UnitSource::ReadExpert and
// TensorPacker. Thread-safe for different places.
Status LoadExpert(UnitSource& source, uint32_t table, uint32_t physical, uint8_t* place, ExpertWeights* weights);

}  // namespace moepack::runtime
