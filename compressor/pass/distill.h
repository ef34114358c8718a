// Distillation: what is left of an encoded model learns to predict as the full model does. All weights that the recipe lets
// learn take gradient steps (Adam) on the mean KLD to the full model's next-token distributions over the calibration
// tokens: kept weights of sparse and float matrices, vectors, and of integer matrices the scales, minima and the rounding
// of every code (straight-through, after AutoRound 2309.05516). Masks never change.
#pragma once

#include "base/progress.h"
#include "compressor/calibration.h"
#include "compressor/plan/plan.h"
#include "compressor/recipe.h"
#include "format/manifest/model_folder.h"
#include "forward/forward.h"

namespace moepack {

struct DistillInput {
  const Program* original = nullptr;  // the full model
  const TensorSource* original_source = nullptr;
  const Program* program = nullptr;  // the encoded one
  const TensorSource* source = nullptr;
  const Recipe* recipe = nullptr;  // `distill` is set
  const Plan* plan = nullptr;      // one codec a tensor of `program`
  const Calibration* calibration = nullptr;
  const ModelFolderWriter* encoded = nullptr;  // has every block
  ModelFolderWriter* writer = nullptr;         // gets every block
};

// Writes all blocks: as they learnt, or as they were encoded when that is nearer to the full model on held-back text.
// Returns the mean KLD there, -1 without such text. The same bytes on any number of threads. kUsage when what is to learn
// needs more memory than kMaxLearningBytes; kRecipe when every domain weighs 0. Embeddings do not learn, nor do tensors
// whose codec has a rate: other codes would take other bytes than the plan says.
inline constexpr uint64_t kMaxLearningBytes = uint64_t{32} << 30;
Result<double> Distill(const DistillInput& input, ThreadPool& pool, Progress& progress);

}  // namespace moepack
