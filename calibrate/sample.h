// Which tokens of the texts are used.
#pragma once

#include <span>
#include <vector>

#include "calibrate/calibrate.h"
#include "forward/forward.h"

namespace moepack {

// Sequences of equal length, by domain in the order of the texts.
struct CalibrationSample {
  TokenBatch batch;
  std::vector<uint32_t> sequence_domain;
  std::vector<uint32_t> token_domain;
};

// How many sequences each domain gives when `wanted` are taken evenly and none gives more than it has.
std::vector<uint64_t> ShareEvenly(uint64_t wanted, std::span<const uint64_t> available);

// Sequences spread over the whole of each text.
Result<CalibrationSample> SampleTexts(const Model& model, const std::vector<CalibrationText>& texts,
                                      const CalibrateOptions& options, Progress& progress);

// All rows of all tables. kUsage for domains that are not told apart.
Result<CalibrationSample> SampleRows(const std::vector<CalibrationRows>& tables);

}  // namespace moepack
