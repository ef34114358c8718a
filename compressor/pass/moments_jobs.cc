#include "compressor/pass/moments_jobs.h"

#include "compressor/pass/prune.h"

namespace moepack {

Result<MomentFactors> FactorMoments(const std::vector<TensorRef>& wanted, bool gptq, HessianCollector* moments,
                                    ThreadPool& pool) {
  struct Item {
    const InputMoments* moments;
    const Matrix* pooled;
  };
  static const Matrix kNoPool;
  MomentFactors factors;
  if (!gptq) return factors;
  std::vector<Item> items;
  std::map<uint32_t, Matrix> pools;
  for (const TensorRef& tensor : wanted) {
    const InputMoments* found = moments->Find(tensor);
    if (found == nullptr || found->hessian.size() == 0 || factors.contains(found)) continue;
    factors[found];
    // Columns of gate and up mean the same in all experts of a layer, those of down do not.
    const bool pooled = tensor.is_expert() && tensor.matrix != ExpertMatrix::kDown;
    if (pooled && !pools.contains(tensor.table)) pools[tensor.table] = moments->Pooled(tensor.table);
    items.push_back({found, pooled ? &pools.at(tensor.table) : &kNoPool});
  }
  std::vector<Status> statuses(items.size());
  pool.ParallelFor(items.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      auto factor = FactorHessian(ShrinkHessian(items[i].moments->hessian, items[i].moments->tokens, *items[i].pooled));
      statuses[i] = factor.status();
      if (factor.ok()) factors.at(items[i].moments) = std::move(*factor);
    }
  });
  for (const Status& status : statuses) MOEPACK_RETURN_IF_ERROR(status);
  return factors;
}

Status PrepareJob(const TensorRef& tensor, const RatedCodec& rated, const Recipe& recipe, const Matrix& weights,
                  HessianCollector* moments, const MomentFactors& factors, ThreadPool& pool, MatrixJob* job) {
  const Codec& codec = rated.codec;
  job->weights = &weights;
  job->codec = codec;
  if (rated.rate != 0) {
    MOEPACK_ASSIGN_OR_RETURN(job->stored_bytes, StoredBytes(rated, tensor.shape));
    job->rows_of_whole = tensor.shape.rows;
  }
  const bool discrete = codec.coded() || codec.sparsity != Sparsity::kNone;
  const InputMoments* found = moments != nullptr && discrete ? moments->Find(tensor) : nullptr;
  if (found != nullptr && found->hessian.size() > 0) {
    job->hessian = &found->hessian;
    job->importance = found->diagonal();
    const auto factor = factors.find(found);
    if (factor != factors.end()) job->factor = &factor->second;
  }
  if (codec.sparsity == Sparsity::kNone) return Status::Ok();
  const PruneMethod method = recipe.prune ? recipe.prune->method : PruneMethod::kMagnitude;
  if (job->hessian == nullptr && method != PruneMethod::kMagnitude) {
    return Status(ErrorCode::kUsage,
                  "pruning " + tensor.name + " needs the inputs it sees: give --profile, or prune by magnitude");
  }
  const std::vector<double> none;
  const Matrix scores = PruneScores(method, weights, found != nullptr ? found->in_sq : none, job->importance);
  job->mask = codec.sparsity == Sparsity::kNM ? MaskNM(scores, codec.n, codec.m, pool)
                                              : MaskRows(scores, codec.kept_per_row, pool);
  return Status::Ok();
}

}  // namespace moepack
