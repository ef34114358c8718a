#include "compressor/pass/dense_fallback.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace moepack {
namespace {

// Rows of one matrix product.
constexpr Eigen::Index kRows = 64, kColumns = 128;
// A fit of as many unknowns as neurons hardly changes after so many tokens for each.
constexpr uint64_t kTokensANeuron = 16;
// Share of the mean diagonal that is added to it.
constexpr float kRidge = 0.01f;

struct Neuron {
  uint32_t expert = 0;
  Eigen::Index channel = 0;
};

// What both passes see of the node: rows of the experts in question that have a weight.
class RowsOfExperts : public Observer {
 public:
  explicit RowsOfExperts(const DenseFallbackInput& in) : in_(in) {}
  bool wants_moe() const override { return true; }
  bool wants_node(const Node& node) const override {
    return node.kind == NodeKind::kMoe && node.moe.table == in_.node->moe.table;
  }
  bool wants_expert(uint32_t, uint32_t expert) const override {
    return std::find(in_.experts.begin(), in_.experts.end(), expert) != in_.experts.end();
  }

 protected:
  float WeightOf(const MoeCapture& capture, const ExpertCapture& expert, size_t row) const {
    const float gate = expert.gates[row];
    return in_.token_weights[capture.first_token + expert.rows[row]] * gate * gate;
  }
  const Matrix& Weights(uint32_t expert, ExpertMatrix matrix) const {
    return in_.weights->expert(in_.node->moe.table, expert, matrix);
  }

  const DenseFallbackInput& in_;
};

// Energy that each neuron adds to the output of its expert, over all tokens.
class NeuronEnergies : public RowsOfExperts {
 public:
  using RowsOfExperts::RowsOfExperts;
  void OnMoe(const MoeCapture& capture) override {
    for (const ExpertCapture& expert : capture.experts) {
      Eigen::ArrayXd& sums = squares_[expert.expert];
      if (sums.size() == 0) sums = Eigen::ArrayXd::Zero(expert.down_input.cols());
      for (size_t i = 0; i < expert.rows.size(); ++i) {
        const double weight = WeightOf(capture, expert, i);
        if (weight > 0) sums += weight * expert.down_input.row(static_cast<Eigen::Index>(i)).array().cast<double>().square();
      }
    }
    tokens_ += capture.input->rows();
  }
  uint64_t tokens() const { return tokens_; }

  // As many as one expert has, those with the most; by expert and channel.
  std::vector<Neuron> Largest() const {
    struct Ranked {
      double energy;
      Neuron neuron;
    };
    std::vector<Ranked> all;
    for (const uint32_t e : in_.experts) {
      const Matrix& down = Weights(e, ExpertMatrix::kDown);
      const auto squares = squares_.find(e);
      for (Eigen::Index j = 0; j < down.cols(); ++j) {
        const double seen = squares == squares_.end() ? 0 : squares->second[j];
        const double energy = seen * down.col(j).cast<double>().squaredNorm();
        all.push_back({std::isfinite(energy) ? energy : 0, {e, j}});
      }
    }
    std::stable_sort(all.begin(), all.end(), [](const Ranked& a, const Ranked& b) { return a.energy > b.energy; });
    std::vector<Neuron> out;
    for (size_t i = 0; i < all.size() / in_.experts.size(); ++i) out.push_back(all[i].neuron);
    std::sort(out.begin(), out.end(), [](const Neuron& a, const Neuron& b) {
      return a.expert != b.expert ? a.expert < b.expert : a.channel < b.channel;
    });
    return out;
  }

 private:
  std::map<uint32_t, Eigen::ArrayXd> squares_;
  uint64_t tokens_ = 0;
};

// The normal equations of the down matrix: sums of v g^2 h h^T and v g^2 E h^T.
class NormalEquations : public RowsOfExperts {
 public:
  NormalEquations(const DenseFallbackInput& in, DenseFallback* fit, uint64_t stride, ThreadPool& pool)
      : RowsOfExperts(in), fit_(*fit), stride_(stride), pool_(pool) {
    const Eigen::Index width = fit_.up.rows();
    inner_ = Matrix::Zero(width, width);
    outer_ = Matrix::Zero(fit_.up.cols(), width);
  }

  void OnMoe(const MoeCapture& capture) override {
    Collect(capture);
    if (weights_.empty()) return;
    const auto rows = static_cast<Eigen::Index>(weights_.size());
    Matrix hidden(rows, fit_.up.rows());
    pool_.ParallelFor(static_cast<size_t>((rows + kRows - 1) / kRows), 1, [&](size_t begin, size_t end) {
      for (size_t b = begin; b < end; ++b) {
        const Eigen::Index at = static_cast<Eigen::Index>(b) * kRows, count = std::min(kRows, rows - at);
        const Matrix x = inputs_.middleRows(at, count);
        Matrix h = x * fit_.up.transpose(), gate;
        if (fit_.gate.size() > 0) gate = x * fit_.gate.transpose();
        ActivateExpert(in_.node->moe.activation, &gate, &h);
        for (Eigen::Index r = 0; r < count; ++r) {
          const float root = std::sqrt(weights_[static_cast<size_t>(at + r)]);
          hidden.row(at + r) = root * h.row(r);
          outputs_.row(at + r) /= root;
        }
      }
    });
    const Eigen::Index width = hidden.cols();
    pool_.ParallelFor(static_cast<size_t>((width + kColumns - 1) / kColumns), 1, [&](size_t begin, size_t end) {
      for (size_t b = begin; b < end; ++b) {
        const Eigen::Index at = static_cast<Eigen::Index>(b) * kColumns, count = std::min(kColumns, width - at);
        inner_.middleCols(at, count).noalias() += hidden.transpose() * hidden.middleCols(at, count);
        outer_.middleCols(at, count).noalias() += outputs_.transpose() * hidden.middleCols(at, count);
      }
    });
  }

  void Solve() {
    const Eigen::Index width = inner_.rows(), hidden = outer_.rows();
    const float mean = inner_.diagonal().mean();
    fit_.down = Matrix::Zero(hidden, width);
    fit_.down_input.assign(static_cast<size_t>(width), 0);
    fit_.energy = fit_.error = energy_;
    if (!(mean > 0) || !std::isfinite(mean)) return;
    for (Eigen::Index c = 0; c < width; ++c) fit_.down_input[static_cast<size_t>(c)] = inner_(c, c);
    for (float ridge = kRidge; ridge <= 1; ridge *= 10) {
      Matrix damped = inner_;
      damped.diagonal().array() += ridge * mean;
      const Eigen::LLT<Eigen::Ref<Matrix>> factor(damped);  // in place
      if (factor.info() != Eigen::Success) continue;
      std::vector<double> gains(static_cast<size_t>((hidden + kRows - 1) / kRows));
      pool_.ParallelFor(gains.size(), 1, [&](size_t begin, size_t end) {
        for (size_t b = begin; b < end; ++b) {
          const Eigen::Index at = static_cast<Eigen::Index>(b) * kRows, count = std::min(kRows, hidden - at);
          const Matrix wanted = outer_.middleRows(at, count);
          const Matrix down = factor.solve(wanted.transpose()).transpose();
          fit_.down.middleRows(at, count) = down;
          // |E|^2 - 2 E.Wh + |Wh|^2, summed, is less than |E|^2 by this.
          gains[b] = (2 * wanted - down * inner_).cast<double>().cwiseProduct(down.cast<double>()).sum();
        }
      });
      for (const double gain : gains) fit_.error -= gain;
      return;
    }
  }

 private:
  // Rows to fit: inputs_, weights_ (above 0), and outputs_, the sum of their experts' outputs times weights. A token is one
  // row, unless its input differs by expert.
  void Collect(const MoeCapture& capture) {
    const bool by_expert = in_.node->moe.routing.weight_on_input;
    constexpr uint32_t kNoRow = UINT32_MAX;
    std::vector<uint32_t> row_of(static_cast<size_t>(capture.input->rows()), kNoRow);
    struct Taken {
      uint32_t from = 0, to = 0;
      float weight = 0;
    };
    std::vector<std::vector<Taken>> taken(capture.experts.size());
    weights_.clear();
    for (size_t e = 0; e < capture.experts.size(); ++e) {
      const ExpertCapture& expert = capture.experts[e];
      for (uint32_t i = 0; i < expert.rows.size(); ++i) {
        const float weight = WeightOf(capture, expert, i);
        if (!(weight > 0) || (capture.first_token + expert.rows[i]) % stride_ != 0) continue;
        uint32_t& row = row_of[expert.rows[i]];
        if (row == kNoRow || by_expert) {
          row = static_cast<uint32_t>(weights_.size());
          weights_.push_back(0);
        }
        weights_[row] += weight;
        taken[e].push_back({i, row, weight});
      }
    }
    inputs_.resize(static_cast<Eigen::Index>(weights_.size()), fit_.up.cols());
    outputs_ = Matrix::Zero(inputs_.rows(), inputs_.cols());
    std::vector<Matrix> outputs(capture.experts.size());
    pool_.ParallelFor(outputs.size(), 1, [&](size_t begin, size_t end) {
      for (size_t e = begin; e < end; ++e) {
        const ExpertCapture& expert = capture.experts[e];
        Matrix middle(static_cast<Eigen::Index>(taken[e].size()), expert.down_input.cols());
        for (size_t i = 0; i < taken[e].size(); ++i)
          middle.row(static_cast<Eigen::Index>(i)) = expert.down_input.row(taken[e][i].from);
        outputs[e] = middle * Weights(expert.expert, ExpertMatrix::kDown).transpose();
        if (in_.node->moe.down_bias != kNone)
          outputs[e].rowwise() += in_.weights->dense(in_.node->moe.down_bias).row(expert.expert);
      }
    });
    for (size_t e = 0; e < outputs.size(); ++e) {
      for (size_t i = 0; i < taken[e].size(); ++i) {
        const Taken& row = taken[e][i];
        const auto output = outputs[e].row(static_cast<Eigen::Index>(i));
        inputs_.row(row.to) = capture.experts[e].input.row(row.from);
        outputs_.row(row.to) += row.weight * output;
        energy_ += double{row.weight} * output.cast<double>().squaredNorm();
      }
    }
  }

  DenseFallback& fit_;
  const uint64_t stride_;
  ThreadPool& pool_;
  Matrix inner_, outer_;
  double energy_ = 0;
  Matrix inputs_, outputs_;  // of the tile
  std::vector<float> weights_;
};

}  // namespace

Result<DenseFallback> FitDenseFallback(const DenseFallbackInput& input, ThreadPool& pool) {
  NeuronEnergies energies(input);
  MOEPACK_RETURN_IF_ERROR(input.observe(&energies));
  const std::vector<Neuron> neurons = energies.Largest();
  DenseFallback fit;
  const auto take = [&](ExpertMatrix matrix, Matrix* out) {
    const uint32_t table = input.node->moe.table;
    out->resize(static_cast<Eigen::Index>(neurons.size()), input.weights->expert(table, input.experts[0], matrix).cols());
    for (size_t i = 0; i < neurons.size(); ++i)
      out->row(static_cast<Eigen::Index>(i)) =
          input.weights->expert(table, neurons[i].expert, matrix).row(neurons[i].channel);
  };
  take(ExpertMatrix::kUp, &fit.up);
  if (input.node->moe.activation.gated) take(ExpertMatrix::kGate, &fit.gate);
  NormalEquations equations(input, &fit, std::max<uint64_t>(1, energies.tokens() / (kTokensANeuron * neurons.size())), pool);
  MOEPACK_RETURN_IF_ERROR(input.observe(&equations));
  equations.Solve();
  return fit;
}

}  // namespace moepack
