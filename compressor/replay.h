// Replay: the calibration tokens go through the model block by block; each block is encoded by what reaches it through the
// blocks already encoded, written, and then run again with its encoded weights.
#pragma once

#include <map>
#include <vector>

#include "base/progress.h"
#include "compressor/calibration.h"
#include "compressor/pass/gptq.h"
#include "compressor/plan/plan.h"
#include "compressor/recipe.h"
#include "format/manifest/model_folder.h"
#include "forward/forward.h"
#include "model/model.h"

namespace moepack {

struct ReplayInput {
  const Program* original = nullptr;  // the full model
  const TensorSource* original_source = nullptr;
  const Program* program = nullptr;  // the model to encode: the same, or with structure removed
  const TensorSource* source = nullptr;
  const Plan* plan = nullptr;  // one codec a tensor of `program`
  const Recipe* recipe = nullptr;
  const Calibration* calibration = nullptr;  // null: nothing is run, weights are rounded to nearest
  ModelFolderWriter* writer = nullptr;       // null: nothing is written (a trial for --max-kld)
};

struct ReplayReport {
  std::vector<double> relative_errors;    // one a tensor of the plan: sqrt of output error energy over output energy
  double kld = -1;                        // mean on held-back sequences; -1 when there are none
  std::map<uint32_t, double> domain_kld;  // the same of each domain that held-back sequences are of
};

// Blocks that `writer` already has are not encoded again, only run. Results do not depend on the number of threads.
Result<ReplayReport> Replay(const ReplayInput& input, ThreadPool& pool, Progress& progress);

// errors.json: one line a tensor, and the KLD, of each of `domains` too, where it was measured.
std::string SerializeErrors(const Plan& plan, const ReplayReport& report, const std::vector<std::string>& domains);

}  // namespace moepack
