#include "calibrate/table_collector.h"

#include <cmath>

namespace moepack {
namespace {

// sums[c] += x[c]^2 and gated[c] += (g x[c])^2.
void AddRowSquares(const float* x, double gate, std::vector<double>* sums, std::vector<double>* gated) {
  const double gate_sq = gate * gate;
  double* s = sums->data();
  double* g = gated->data();
  for (size_t c = 0; c < sums->size(); ++c) {
    const double square = static_cast<double>(x[c]) * static_cast<double>(x[c]);
    s[c] += square;
    g[c] += gate_sq * square;
  }
}

std::vector<float> ToFloat(const std::vector<double>& sums, double factor = 1) {
  std::vector<float> out(sums.size());
  for (size_t i = 0; i < sums.size(); ++i) out[i] = static_cast<float>(sums[i] * factor);
  return out;
}

}  // namespace

void AddSquares(const Matrix& x, ThreadPool& pool, std::vector<double>* sums) {
  constexpr size_t kColumns = 64;
  pool.ParallelFor(sums->size(), kColumns, [&](size_t begin, size_t end) {
    double* s = sums->data();
    for (Eigen::Index r = 0; r < x.rows(); ++r) {
      const float* row = x.row(r).data();
      for (size_t c = begin; c < end; ++c) s[c] += static_cast<double>(row[c]) * static_cast<double>(row[c]);
    }
  });
}

TableCollector::TableCollector(const ExpertTableDecl& table, uint32_t k, size_t domains) {
  const size_t experts = table.experts();
  profile_.experts = table.experts();
  profile_.k = k;
  profile_.tokens.assign(domains * experts, 0);
  profile_.gate_sum.assign(domains * experts, 0);
  profile_.gate_sq_sum.assign(domains * experts, 0);
  profile_.coactivation.assign(experts * experts, 0);
  sums_.resize(experts);
  for (size_t e = 0; e < experts; ++e) {
    for (auto* v : {&sums_[e].in_sq, &sums_[e].in_gate_sq, &sums_[e].output}) v->assign(table.hidden, 0);
    for (auto* v : {&sums_[e].down_sq, &sums_[e].down_gate_sq}) v->assign(table.intermediate[e], 0);
  }
}

void TableCollector::AddExpert(const MoeCapture& capture, const ExpertCapture& expert,
                               std::span<const uint32_t> token_domain) {
  ExpertSums& sums = sums_[expert.expert];
  for (size_t i = 0; i < expert.rows.size(); ++i) {
    const double gate = expert.gates[i];
    const size_t cell = token_domain[capture.first_token + expert.rows[i]] * profile_.experts + expert.expert;
    ++profile_.tokens[cell];
    profile_.gate_sum[cell] += gate;
    profile_.gate_sq_sum[cell] += gate * gate;
    AddRowSquares(expert.input.row(i).data(), gate, &sums.in_sq, &sums.in_gate_sq);
    AddRowSquares(expert.down_input.row(i).data(), gate, &sums.down_sq, &sums.down_gate_sq);
    const float* y = expert.output.row(i).data();
    double square = 0;
    for (size_t c = 0; c < sums.output.size(); ++c) {
      sums.output[c] += static_cast<double>(y[c]);
      square += static_cast<double>(y[c]) * static_cast<double>(y[c]);
    }
    sums.norm += std::sqrt(square);
    sums.gated_norm += gate * std::sqrt(square);
  }
}

void TableCollector::AddChoices(const MoeCapture& capture) {
  const size_t k = profile_.k, experts = profile_.experts;
  for (size_t t = 0; t < capture.ids.size(); t += k) {
    for (size_t i = t; i < t + k; ++i) {
      profile_.trace.push_back(static_cast<uint16_t>(capture.ids[i]));
      for (size_t j = t; j < t + k; ++j) ++profile_.coactivation[capture.ids[i] * experts + capture.ids[j]];
    }
  }
}

void TableCollector::Add(const MoeCapture& capture, std::span<const uint32_t> token_domain, ThreadPool& pool) {
  AddChoices(capture);
  pool.ParallelFor(capture.experts.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) AddExpert(capture, capture.experts[i], token_domain);
  });
}

TableProfile TableCollector::Finish() {
  const size_t experts = profile_.experts;
  for (size_t e = 0; e < experts; ++e) {
    const ExpertSums& sums = sums_[e];
    const uint64_t tokens = profile_.coactivation[e * experts + e];
    const double mean = tokens == 0 ? 0 : 1 / static_cast<double>(tokens);
    profile_.reap.push_back(sums.gated_norm * mean);
    profile_.output_norm.push_back(sums.norm * mean);
    profile_.in_sq.push_back(ToFloat(sums.in_sq));
    profile_.in_gate_sq.push_back(ToFloat(sums.in_gate_sq));
    profile_.down_sq.push_back(ToFloat(sums.down_sq));
    profile_.down_gate_sq.push_back(ToFloat(sums.down_gate_sq));
    profile_.output_mean.push_back(ToFloat(sums.output, mean));
  }
  profile_.attribution.assign(experts, 0);
  sums_.clear();
  return std::move(profile_);
}

}  // namespace moepack
