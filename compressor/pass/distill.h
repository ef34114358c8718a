// The second stage of distillation, against the full model's predictions: gradient steps (Adam) on the mean KLD to its
// next-token distributions over the calibration tokens move norms, biases, and scales and minima of integer matrices; by the
// recipe's choice also kept weights of float matrices and the rounding of every code. Masks and codecs never change,
// embeddings do not learn, and of tensors whose codec has a rate only the scales do. A step goes through the model a block
// at a time, forward and back: one block's weights are held, and of the whole model only what learns.
#pragma once

#include "base/env.h"
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
  const Recipe* recipe = nullptr;    // `distill` is set
  const Plan* plan = nullptr;        // one codec a tensor of `program`
  const Calibration* calibration = nullptr;
  const ModelFolderWriter* encoded = nullptr;  // has every block
  ModelFolderWriter* writer = nullptr;         // gets every block
  // Training is saved to and goes on from `encoded`'s StatePath.
  Env* env = nullptr;
  double save_seconds = 0;  // between two states saved
};

// Writes all blocks: as they learnt, or as they were encoded when that is nearer to the full model on held-back text. The
// same bytes on any number of threads, and however often training was interrupted. kUsage when what learns takes more memory than kMaxLearningBytes.
inline constexpr uint64_t kMaxLearningBytes = uint64_t{32} << 30;
Status Distill(const DistillInput& input, ThreadPool& pool, Progress& progress);

}  // namespace moepack
