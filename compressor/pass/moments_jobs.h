// From collected moments to jobs: what replay (which writes) and the error table (which measures) have in common.
#pragma once

#include <map>
#include <vector>

#include "compressor/pass/gptq.h"
#include "compressor/pass/hessian.h"
#include "compressor/recipe.h"

namespace moepack {

// Rounds of scale refit and coordinate descent after every GPTQ pass.
inline constexpr int kSweeps = 3;

inline Matrix& WeightsOf(const TensorRef& tensor, BlockWeights& weights) {
  return tensor.is_expert() ? weights.expert(tensor.table, tensor.expert, tensor.matrix) : weights.dense(tensor.dense);
}

// One factor for each input that several matrices may share. Empty: round to nearest.
using MomentFactors = std::map<const InputMoments*, GptqFactor>;

// Factors for the inputs of `wanted` when `gptq`, each shrunk towards its layer's pooled moments.
Result<MomentFactors> FactorMoments(const std::vector<TensorRef>& wanted, bool gptq, HessianCollector* moments,
                                    ThreadPool& pool);

// The job that encodes `weights` (all rows of the tensor, or a sample) as `codec`: factor, importance, Hessian and mask
// filled in from the moments. moments: null when nothing was run. The job refers to all arguments. kUsage when the
// recipe's pruning metric needs inputs that were not collected.
Status PrepareJob(const TensorRef& tensor, const RatedCodec& codec, const Recipe& recipe, const Matrix& weights,
                  HessianCollector* moments, const MomentFactors& factors, ThreadPool& pool, MatrixJob* job);

}  // namespace moepack
