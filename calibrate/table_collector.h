// Sums over what the experts of one table saw, tile by tile.
#pragma once

#include <span>
#include <vector>

#include "forward/forward.h"
#include "model/profile.h"

namespace moepack {

class TableCollector {
 public:
  TableCollector(const ExpertTableDecl& table, uint32_t k, size_t domains);
  // token_domain: of all tokens of the batch. Tiles must come in token order.
  void Add(const MoeCapture& capture, std::span<const uint32_t> token_domain, ThreadPool& pool);
  // Everything but attribution and locality. The collector is used up.
  TableProfile Finish();

 private:
  struct ExpertSums {
    double gated_norm = 0, norm = 0;
    std::vector<double> in_sq, in_gate_sq, down_sq, down_gate_sq, output;
  };
  void AddExpert(const MoeCapture& capture, const ExpertCapture& expert, std::span<const uint32_t> token_domain);
  void AddChoices(const MoeCapture& capture);

  TableProfile profile_;
  std::vector<ExpertSums> sums_;
};

// sums[c] += sum over rows of x[r, c]^2, in row order.
void AddSquares(const Matrix& x, ThreadPool& pool, std::vector<double>* sums);

}  // namespace moepack
