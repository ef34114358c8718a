#include "base/divergence.h"

#include <algorithm>
#include <cmath>

namespace moepack {
namespace {

size_t Largest(std::span<const float> v) { return static_cast<size_t>(std::max_element(v.begin(), v.end()) - v.begin()); }

// Mean of values and the standard error of that mean.
struct Moments {
  double mean = 0, stderr_of_mean = 0;
};

template <typename At>
Moments MomentsOf(size_t n, const At& at) {
  Moments m;
  for (size_t i = 0; i < n; ++i) m.mean += at(i);
  m.mean /= static_cast<double>(n);
  double squares = 0;
  for (size_t i = 0; i < n; ++i) squares += (at(i) - m.mean) * (at(i) - m.mean);
  if (n > 1) m.stderr_of_mean = std::sqrt(squares / (static_cast<double>(n) * static_cast<double>(n - 1)));
  return m;
}

double Percentile(const std::vector<double>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(place), above = std::min(below + 1, sorted.size() - 1);
  const double rest = place - static_cast<double>(below);
  return sorted[below] * (1 - rest) + sorted[above] * rest;
}

// NaN sorts last, so that the order stays total.
bool Less(double a, double b) { return std::isnan(b) ? !std::isnan(a) : a < b; }

double LogSumExp(std::span<const float> logits) {
  const double largest = logits[Largest(logits)];
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

}  // namespace

Status CheckTargets(std::span<const int32_t> tokens, uint64_t vocabulary) {
  for (const int32_t token : tokens) {
    if (token >= 0 && static_cast<uint64_t>(token) < vocabulary) continue;
    return Status(ErrorCode::kTokenizer, StrFormat("token %d of the text: the model has logits for %llu tokens", token,
                                                   static_cast<unsigned long long>(vocabulary)));
  }
  return Status::Ok();
}

double NegativeLogLikelihood(std::span<const float> logits, int32_t target) {
  return LogSumExp(logits) - static_cast<double>(logits[static_cast<size_t>(target)]);
}

void Divergence::Add(std::span<const float> base, std::span<const float> other, int32_t target) {
  const size_t top_base = Largest(base), top_other = Largest(other);
  const double max_base = base[top_base];
  // KLD = sum p_base (log p_base - log p_other) = E_base[base - other] - (lse_base - lse_other).
  double sum = 0, weighted = 0;
  for (size_t i = 0; i < base.size(); ++i) {
    const double e = std::exp(base[i] - max_base);
    sum += e;
    weighted += e * (static_cast<double>(base[i]) - static_cast<double>(other[i]));
  }
  const double lse_base = max_base + std::log(sum), lse_other = LogSumExp(other);
  kld_.push_back(weighted / sum - (lse_base - lse_other));
  const size_t t = static_cast<size_t>(target);
  nll_base_.push_back(lse_base - static_cast<double>(base[t]));
  nll_.push_back(lse_other - static_cast<double>(other[t]));
  same_ += top_base == top_other;
  hits_ += top_other == t;
  hits_base_ += top_base == t;
  const double delta = std::exp(-nll_.back()) - std::exp(-nll_base_.back());
  delta_sum_ += delta;
  delta_sq_ += delta * delta;
}

DivergenceReport Divergence::Report() const {
  DivergenceReport report;
  const size_t n = kld_.size();
  if (n == 0) return report;
  const double count = static_cast<double>(n);
  report.tokens = n;
  report.ppl = std::exp(MomentsOf(n, [&](size_t i) { return nll_[i]; }).mean);
  report.ppl_base = std::exp(MomentsOf(n, [&](size_t i) { return nll_base_[i]; }).mean);
  report.ln_ratio_stderr = MomentsOf(n, [&](size_t i) { return nll_[i] - nll_base_[i]; }).stderr_of_mean;
  const Moments kld = MomentsOf(n, [&](size_t i) { return kld_[i]; });
  report.kld_mean = kld.mean;
  report.kld_stderr = kld.stderr_of_mean;
  std::vector<double> sorted = kld_;
  std::sort(sorted.begin(), sorted.end(), Less);
  report.kld_median = Percentile(sorted, 0.5);
  report.kld_p90 = Percentile(sorted, 0.9);
  report.kld_p95 = Percentile(sorted, 0.95);
  report.kld_p99 = Percentile(sorted, 0.99);
  report.kld_p999 = Percentile(sorted, 0.999);
  report.kld_max = sorted.back();
  report.same_top1 = static_cast<double>(same_) / count;
  report.top1_accuracy = static_cast<double>(hits_) / count;
  report.top1_accuracy_base = static_cast<double>(hits_base_) / count;
  report.delta_p_mean = delta_sum_ / count;
  report.delta_p_rms = std::sqrt(delta_sq_ / count);
  return report;
}

}  // namespace moepack
