#include "runtime-min/route_predictor.h"

#include <algorithm>
#include <cmath>

#include "runtime-min/parallel.h"
#include "runtime-min/prepare.h"
#include "runtime-min/routing.h"
#include "runtime-min/vector_math.h"

namespace moepack::runtime {

Result<std::unique_ptr<RoutePredictor>> RoutePredictor::Create(const Program& program, const DenseWeights& weights,
                                                               ExpertCache& cache, ThreadPool& pool, kernels::Isa isa,
                                                               uint32_t depth) {
  std::unique_ptr<RoutePredictor> predictor(new RoutePredictor(program, weights, cache, pool, isa, depth));
  MOEPACK_RETURN_IF_ERROR(predictor->FindRouters());
  return predictor;
}

Status RoutePredictor::FindRouters() {
  router_at_.assign(program_.nodes.size(), kNone);
  const auto index_of = [&](const Node* node) { return static_cast<size_t>(node - program_.nodes.data()); };
  uint64_t widest = 0, experts = 0, k = 0;
  for (const Node& node : program_.nodes) {
    if (node.kind != NodeKind::kMoe) continue;
    const Node* const linear = ProducerOf(program_, node.inputs[1]);
    if (linear == nullptr || linear->kind != NodeKind::kLinear) continue;
    const Node* norm = ProducerOf(program_, linear->inputs[0]);
    if (norm != nullptr && norm->kind != NodeKind::kNorm) norm = nullptr;
    const Node* const first = norm != nullptr ? norm : linear;
    router_at_[index_of(first)] = static_cast<uint32_t>(routers_.size());
    routers_.push_back({&node, linear, norm, first->inputs[0]});
    widest = std::max(widest, program_.values[first->inputs[0]].width);
    experts = std::max<uint64_t>(experts, program_.expert_tables[node.moe.table].experts());
    k = std::max<uint64_t>(k, node.moe.routing.k);
  }
  MOEPACK_ASSIGN_OR_RETURN(normed_, FloatBuffer::Create(kMostRows * widest));
  MOEPACK_ASSIGN_OR_RETURN(logits_, FloatBuffer::Create(kMostRows * experts));
  scores_.resize(2 * experts);
  sums_.resize(experts);
  ids_.resize(k);
  gates_.resize(k);
  experts_.reserve(kMostRows * k);
  return Status::Ok();
}

void RoutePredictor::Run(uint32_t node, const float* values, size_t rows) {
  if (rows == 0 || rows > kMostRows) return;
  const uint32_t now = router_at_[node];
  const uint64_t width = program_.values[routers_[now].from].width;
  for (uint32_t next = now + 1; next < routers_.size() && next <= now + depth_; ++next) {
    if (program_.values[routers_[next].from].width == width) Foretell(routers_[next], values, width, rows);
  }
}

void RoutePredictor::Logits(const Router& router, const float* values, size_t width, size_t rows) {
  if (router.norm != nullptr) {
    const NormNode& norm = router.norm->norm;
    for (size_t t = 0; t < rows; ++t) {
      NormRow(norm, weights_.vector(norm.weight), weights_.vector(norm.bias), values + t * width, width,
              normed_.data() + t * width);
    }
    values = normed_.data();
  }
  const RowsToPrepare job{values, rows, width, width, &activations_};
  PrepareRows(pool_, isa_, {&job, 1});
  const ResidentTensor& weight = weights_.matrix(router.linear->linear.weight);
  const size_t experts = weight.shape().rows, block = RowsPerBlock(width, rows, experts, pool_.threads());
  pool_.ParallelFor(experts, block, [&](size_t begin, size_t end) {
    kernels::MatMul(isa_, weight, activations_, logits_.data(), experts, begin, end);
  });
  const float* const bias = weights_.vector(router.linear->linear.bias);
  for (size_t i = 0; bias != nullptr && i < rows * experts; ++i) logits_.data()[i] += bias[i % experts];
}

// Experts of all rows, those with the largest sum of gates first. Gates that are no numbers (a restored sequence may hold
// anything) say nothing, or the order would be none.
void RoutePredictor::Foretell(const Router& router, const float* values, size_t width, size_t rows) {
  Logits(router, values, width, rows);
  const MoeNode& moe = router.moe->moe;
  const ExpertTableDecl& table = program_.expert_tables[moe.table];
  const size_t experts = table.experts(), k = moe.routing.k;
  const RoutingTables tables{weights_.vector(moe.selection_bias), table.original};
  std::fill_n(sums_.begin(), experts, 0.0f);
  experts_.clear();
  for (size_t t = 0; t < rows; ++t) {
    std::copy_n(logits_.data() + t * experts, experts, scores_.begin());
    Route(moe.routing, tables, std::span(scores_).first(2 * experts), std::span(ids_).first(k), std::span(gates_).first(k));
    for (size_t i = 0; i < k; ++i) {
      if (std::find(experts_.begin(), experts_.end(), ids_[i]) == experts_.end()) experts_.push_back(ids_[i]);
      if (std::isfinite(gates_[i])) sums_[ids_[i]] += gates_[i];
    }
  }
  std::sort(experts_.begin(), experts_.end(),
            [&](uint32_t a, uint32_t b) { return sums_[a] != sums_[b] ? sums_[a] > sums_[b] : a < b; });
  cache_.Expect(moe.table, experts_);
}

}  // namespace moepack::runtime
