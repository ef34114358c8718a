#include "compressor/pass/distill_nodes.h"

#include <algorithm>
#include <cmath>

namespace moepack {
namespace {

// Rows of a weight gradient that one task computes.
constexpr size_t kPanel = 64;

// Calls body(first, rows) for blocks of rows.
template <typename Body>
void ForRows(ThreadPool& pool, size_t rows, const Body& body) {
  pool.ParallelFor(rows, kRowBlock, [&](size_t begin, size_t end) { body(begin, end - begin); });
}

// Sums over blocks of rows that were written apart, in block order.
void AddBlocks(const std::vector<Eigen::RowVectorXf>& blocks, Matrix* out) {
  if (out == nullptr) return;
  for (const auto& block : blocks) out->row(0) += block;
}

}  // namespace

void LinearBackward(const Matrix& in, const Matrix& weight, const Matrix& d_out, ThreadPool& pool, Matrix* d_in,
                    Matrix* d_weight, Matrix* d_bias) {
  if (d_in != nullptr) {
    ForRows(pool, in.rows(), [&](size_t first, size_t rows) {
      d_in->middleRows(first, rows).noalias() += d_out.middleRows(first, rows) * weight;
    });
  }
  if (d_weight != nullptr) {
    pool.ParallelFor(d_weight->rows(), kPanel, [&](size_t begin, size_t end) {
      d_weight->middleRows(begin, end - begin).noalias() += d_out.middleCols(begin, end - begin).transpose() * in;
    });
  }
  if (d_bias != nullptr) d_bias->row(0) += d_out.colwise().sum();
}

namespace {

// One group of one row. d_weight and d_bias [group]: always added to.
void NormGroupBackward(const NormNode& node, const float* in, const float* weight, const float* d_out, float* d_in,
                       float* d_weight, float* d_bias) {
  const auto n = static_cast<Eigen::Index>(node.group);
  const Eigen::Map<const Eigen::ArrayXf> x(in, n), dy(d_out, n);
  const float mean = node.kind == NormKind::kLayer ? x.mean() : 0.0f;
  const float inverse = 1.0f / std::sqrt((x - mean).square().mean() + node.eps);
  const Eigen::ArrayXf unit = (x - mean) * inverse;
  Eigen::Map<Eigen::ArrayXf>(d_weight, n) += dy * unit;
  Eigen::Map<Eigen::ArrayXf>(d_bias, n) += dy;
  if (d_in == nullptr) return;
  Eigen::ArrayXf d_unit = dy;
  if (weight != nullptr) d_unit *= Eigen::Map<const Eigen::ArrayXf>(weight, n) + (node.one_plus_weight ? 1.0f : 0.0f);
  const float shift = node.kind == NormKind::kLayer ? d_unit.mean() : 0.0f;
  Eigen::Map<Eigen::ArrayXf>(d_in, n) += inverse * (d_unit - shift - unit * (d_unit * unit).mean());
}

}  // namespace

void NormBackward(const NormNode& node, const Matrix& in, const Matrix* weight, const Matrix& d_out, ThreadPool& pool,
                  Matrix* d_in, Matrix* d_weight, Matrix* d_bias) {
  const size_t blocks = (in.rows() + kRowBlock - 1) / kRowBlock, group = node.group;
  std::vector<Eigen::RowVectorXf> weights(blocks, Eigen::RowVectorXf::Zero(group)), biases = weights;
  ForRows(pool, in.rows(), [&](size_t first, size_t rows) {
    const size_t b = first / kRowBlock;
    for (size_t t = first; t < first + rows; ++t) {
      for (size_t c = 0; c < static_cast<size_t>(in.cols()); c += group) {
        NormGroupBackward(node, &in(t, c), weight ? weight->data() : nullptr, &d_out(t, c), d_in ? &(*d_in)(t, c) : nullptr,
                          weights[b].data(), biases[b].data());
      }
    }
  });
  AddBlocks(weights, d_weight);
  AddBlocks(biases, d_bias);
}

void RotaryBackward(const RotaryNode& node, std::span<const uint32_t> positions, const Matrix& d_out, ThreadPool& pool,
                    Matrix* d_in) {
  // A rotation's transpose turns the other way: the same node at the negative angle.
  RotaryNode back = node;
  for (float& frequency : back.inv_freq) frequency = -frequency;
  Matrix turned;
  // One sequence will do: plain nodes do not ask for its length.
  const TileSequence all{0, static_cast<uint64_t>(d_out.rows()), static_cast<uint64_t>(d_out.rows())};
  RunRotary(back, {&all, 1}, positions, d_out, pool, &turned);
  // Columns that are not rotated are copied by both directions.
  *d_in += turned;
}

namespace {

using Strided = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;
using StridedOut = Eigen::Map<Matrix, 0, Eigen::OuterStride<>>;

constexpr uint64_t kQueryBlock = 128;

struct AttentionPass {
  const AttentionNode& node;
  const Matrix &q, &k, &v, &d_out;
  Matrix *d_q, *d_k, *d_v;

  static Strided Part(const Matrix& m, uint64_t row, uint64_t rows, uint64_t column, uint64_t columns) {
    return {&m(row, column), static_cast<Eigen::Index>(rows), static_cast<Eigen::Index>(columns),
            Eigen::OuterStride<>(m.cols())};
  }
  static StridedOut Part(Matrix* m, uint64_t row, uint64_t rows, uint64_t column, uint64_t columns) {
    return {&(*m)(row, column), static_cast<Eigen::Index>(rows), static_cast<Eigen::Index>(columns),
            Eigen::OuterStride<>(m->cols())};
  }

  // All queries of one sequence and head: adds to that head's d_q and its kv head's d_k and d_v.
  void Head(const TileSequence& s, uint32_t head) const {
    const uint64_t dim = node.head_dim, column = head * dim, kv_column = head / (node.heads / node.kv_heads) * dim;
    for (uint64_t query = s.begin; query < s.end; query += kQueryBlock) {
      const uint64_t queries = std::min(kQueryBlock, s.end - query), keys = query + queries - s.begin;
      Matrix p = Part(q, query, queries, column, dim) * Part(k, s.begin, keys, kv_column, dim).transpose();
      p *= node.scale;
      Matrix slope;  // of the softcap
      if (node.softcap > 0) {
        p.array() = (p.array() / node.softcap).tanh();
        slope = 1 - p.array().square();
        p *= node.softcap;
      }
      for (uint64_t i = 0; i < queries; ++i) Softmax(query + i - s.begin, p.row(i));
      const auto out_part = Part(d_out, query, queries, column, dim);
      Part(d_v, s.begin, keys, kv_column, dim).noalias() += p.transpose() * out_part;
      Matrix d = out_part * Part(v, s.begin, keys, kv_column, dim).transpose();
      const Eigen::VectorXf mean = (p.array() * d.array()).rowwise().sum();
      d.array() = p.array() * (d.array().colwise() - mean.array()) * node.scale;
      if (node.softcap > 0) d.array() *= slope.array();
      Part(d_q, query, queries, column, dim).noalias() += d * Part(k, s.begin, keys, kv_column, dim);
      Part(d_k, s.begin, keys, kv_column, dim).noalias() += d.transpose() * Part(q, query, queries, column, dim);
    }
  }

  // Scores of the query at `position` to probabilities; 0 for keys that it does not see.
  void Softmax(uint64_t position, Eigen::Ref<Eigen::RowVectorXf> row) const {
    const uint64_t first = node.window == 0 || position < node.window ? 0 : position + 1 - node.window;
    auto seen = row.segment(static_cast<Eigen::Index>(first), static_cast<Eigen::Index>(position + 1 - first));
    seen.array() = (seen.array() - seen.maxCoeff()).exp();
    seen /= seen.sum();
    row.head(static_cast<Eigen::Index>(first)).setZero();
    row.tail(row.size() - static_cast<Eigen::Index>(position) - 1).setZero();
  }
};

}  // namespace

void AttentionBackward(const AttentionNode& node, std::span<const TileSequence> sequences, const Matrix& q, const Matrix& k,
                       const Matrix& v, const Matrix& d_out, ThreadPool& pool, Matrix* d_q, Matrix* d_k, Matrix* d_v) {
  const AttentionPass pass{node, q, k, v, d_out, d_q, d_k, d_v};
  // Heads that share keys run in one task, so that their sums keep one order.
  pool.ParallelFor(sequences.size() * node.kv_heads, 1, [&](size_t begin, size_t end) {
    const uint32_t shared = node.heads / node.kv_heads;
    for (size_t i = begin; i < end; ++i) {
      const auto kv = static_cast<uint32_t>(i % node.kv_heads);
      for (uint32_t h = 0; h < shared; ++h) pass.Head(sequences[i / node.kv_heads], kv * shared + h);
    }
  });
}

void ActivateDerivative(Activation function, Eigen::Ref<Matrix> values) {
  constexpr float kSqrtHalf = 0.70710678118654752f, kSqrt2OverPi = 0.79788456080286536f, kInvSqrt2Pi = 0.3989422804014327f;
  auto x = values.array();
  switch (function) {
    case Activation::kSilu: {
      const Matrix s = (1 / (1 + (-x).exp())).matrix();
      x = s.array() * (1 + x * (1 - s.array()));
      break;
    }
    case Activation::kGelu:
      x = x.unaryExpr(
          [](float v) { return 0.5f * (1 + std::erf(v * kSqrtHalf)) + v * kInvSqrt2Pi * std::exp(-0.5f * v * v); });
      break;
    case Activation::kGeluTanh:
      x = x.unaryExpr([](float v) {
        const float t = std::tanh(kSqrt2OverPi * (v + 0.044715f * v * v * v));
        return 0.5f * (1 + t) + 0.5f * v * (1 - t * t) * kSqrt2OverPi * (1 + 3 * 0.044715f * v * v);
      });
      break;
    case Activation::kRelu:
      x = (x > 0).cast<float>();
      break;
    case Activation::kIdentity:
      x.setOnes();
      break;
  }
}

namespace {

// Derivative of a node with one input, at `in`.
Matrix Slope(const ElementwiseNode& node, const Eigen::Ref<const Matrix>& in) {
  Matrix slope = in;
  switch (node.op) {
    case ElementOp::kAdd:
    case ElementOp::kMul:
      break;  // two inputs
    case ElementOp::kScale:
      slope.setConstant(node.alpha);
      break;
    case ElementOp::kSigmoid: {
      const Matrix s = (1 / (1 + (-in.array()).exp())).matrix();
      slope = s.array() * (1 - s.array());
      break;
    }
    case ElementOp::kSilu:
      ActivateDerivative(Activation::kSilu, slope);
      break;
    case ElementOp::kGelu:
      ActivateDerivative(Activation::kGelu, slope);
      break;
    case ElementOp::kGeluTanh:
      ActivateDerivative(Activation::kGeluTanh, slope);
      break;
    case ElementOp::kRelu:
      ActivateDerivative(Activation::kRelu, slope);
      break;
    case ElementOp::kClamp:
      slope = (in.array().abs() < node.alpha).cast<float>();
      break;
  }
  return slope;
}

}  // namespace

void ElementwiseBackward(const ElementwiseNode& node, const Matrix& first, const Matrix* second, const Matrix& d_out,
                         ThreadPool& pool, Matrix* d_first, Matrix* d_second) {
  ForRows(pool, first.rows(), [&](size_t begin, size_t rows) {
    const auto a = first.middleRows(begin, rows), d = d_out.middleRows(begin, rows);
    if (second == nullptr) {
      if (d_first != nullptr) d_first->middleRows(begin, rows).array() += d.array() * Slope(node, a).array();
      return;
    }
    const auto b = second->middleRows(begin, rows);
    const bool add = node.op == ElementOp::kAdd, broadcast = b.cols() != a.cols();
    if (d_first != nullptr) {
      auto target = d_first->middleRows(begin, rows);
      if (add) {
        target += d;
      } else if (broadcast) {
        target.array() += d.array().colwise() * b.col(0).array();
      } else {
        target.array() += d.array() * b.array();
      }
    }
    if (d_second == nullptr) return;
    auto target = d_second->middleRows(begin, rows);
    if (broadcast && add) {
      target += d.rowwise().sum();
    } else if (broadcast) {
      target += d.cwiseProduct(a).rowwise().sum();
    } else if (add) {
      target += d;
    } else {
      target.array() += d.array() * a.array();
    }
  });
}

void RouteBackward(const RoutingRecord& routing, std::span<const float> logits, std::span<const uint32_t> ids,
                   std::span<const float> d_weights, std::span<float> d_logits) {
  // Scores of the chosen experts, as Route has them.
  double largest = logits[ids[0]], denominator = 1;
  const bool softmax = routing.score == ScoreFunction::kSoftmax;
  if (softmax) {
    denominator = 0;
    if (routing.score_before_topk) {
      for (float logit : logits) denominator += std::exp(logit - largest);
    } else {
      for (uint32_t id : ids) denominator += std::exp(logits[id] - largest);
    }
  }
  std::vector<double> score(ids.size()), d_score(ids.size());
  double sum = routing.eps, weighted = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const double logit = logits[ids[i]];
    score[i] = softmax ? std::exp(logit - largest) / denominator : 1 / (1 + std::exp(-logit));
    sum += score[i];
    weighted += static_cast<double>(d_weights[i]) * score[i];
  }
  double mean = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const double d = static_cast<double>(d_weights[i]) * static_cast<double>(routing.scale);
    d_score[i] = routing.renormalise ? (d - weighted * static_cast<double>(routing.scale) / sum) / sum : d;
    mean += d_score[i] * score[i];
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    d_logits[ids[i]] += static_cast<float>(score[i] * d_score[i] * (softmax ? 1 : 1 - score[i]));
  }
  if (!softmax) return;
  if (routing.score_before_topk) {
    for (size_t e = 0; e < logits.size(); ++e)
      d_logits[e] -= static_cast<float>(mean * std::exp(logits[e] - largest) / denominator);
  } else {
    for (size_t i = 0; i < ids.size(); ++i) d_logits[ids[i]] -= static_cast<float>(mean * score[i]);
  }
}

ExpertMatrices MatricesOf(const MoeNode& node, const BlockWeights& weights, uint32_t expert) {
  return {node.activation.gated ? &weights.expert(node.table, expert, ExpertMatrix::kGate) : nullptr,
          weights.expert(node.table, expert, ExpertMatrix::kUp), weights.expert(node.table, expert, ExpertMatrix::kDown)};
}

Matrix RunPlainExpert(Activation function, const ExpertMatrices& w, const Matrix& in, Matrix* down_input) {
  Matrix h(in.rows(), w.up.rows());
  h.noalias() = in * w.up.transpose();
  if (w.gate != nullptr) {
    Matrix g(in.rows(), w.up.rows());
    g.noalias() = in * w.gate->transpose();
    Activate(function, g);
    h.array() *= g.array();
  } else {
    Activate(function, h);
  }
  Matrix out(in.rows(), w.down.rows());
  out.noalias() = h * w.down.transpose();
  if (down_input != nullptr) *down_input = std::move(h);
  return out;
}

void ExpertBackward(Activation function, const ExpertMatrices& w, const Matrix& in, const Matrix& down_input,
                    const Matrix& d_out, const ExpertGradient& gradient, Matrix* d_in) {
  if (gradient.down != nullptr) gradient.down->noalias() += d_out.transpose() * down_input;
  Matrix dh(in.rows(), w.up.rows()), u(in.rows(), w.up.rows());
  dh.noalias() = d_out * w.down;
  u.noalias() = in * w.up.transpose();
  if (w.gate != nullptr) {
    Matrix g(in.rows(), w.gate->rows());
    g.noalias() = in * w.gate->transpose();
    Matrix dg = g;
    ActivateDerivative(function, dg);
    dg.array() *= dh.array() * u.array();
    Activate(function, g);
    dh.array() *= g.array();
    if (gradient.gate != nullptr) gradient.gate->noalias() += dg.transpose() * in;
    if (d_in != nullptr) d_in->noalias() = dg * *w.gate;
  } else {
    ActivateDerivative(function, u);
    dh.array() *= u.array();
    if (d_in != nullptr) d_in->setZero(in.rows(), in.cols());
  }
  if (d_in != nullptr) d_in->noalias() += dh * w.up;
  if (gradient.up != nullptr) gradient.up->noalias() += dh.transpose() * in;
}

void MoeBackward(const MoeNode& node, const BlockWeights& weights, const MoeCapture& capture, const Matrix& d_out,
                 ThreadPool& pool, std::span<const ExpertGradient> gradients, Matrix* d_in, Matrix* d_logits) {
  const size_t experts = capture.experts.size(), k = node.routing.k;
  std::vector<Matrix> d_x(experts);
  std::vector<Eigen::VectorXf> d_gate(experts);
  pool.ParallelFor(experts, 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const ExpertCapture& c = capture.experts[i];
      const auto rows = static_cast<Eigen::Index>(c.rows.size());
      Matrix dy(rows, d_out.cols());
      for (Eigen::Index r = 0; r < rows; ++r) dy.row(r) = d_out.row(c.rows[r]);
      d_gate[i] = dy.cwiseProduct(c.output).rowwise().sum();
      for (Eigen::Index r = 0; r < rows; ++r) dy.row(r) *= c.gates[r];
      d_x[i].resize(rows, c.input.cols());
      ExpertBackward(node.activation.function, MatricesOf(node, weights, c.expert), c.input, c.down_input, dy,
                     gradients[c.expert], &d_x[i]);
    }
  });
  std::vector<float> d_weights(capture.ids.size(), 0.0f);
  for (size_t i = 0; i < experts; ++i) {
    const ExpertCapture& c = capture.experts[i];
    for (size_t r = 0; r < c.rows.size(); ++r) {
      if (d_in != nullptr) d_in->row(c.rows[r]) += d_x[i].row(r);
      for (size_t s = 0; s < k; ++s) {
        if (capture.ids[c.rows[r] * k + s] == c.expert) d_weights[c.rows[r] * k + s] = d_gate[i][r];
      }
    }
  }
  if (d_logits == nullptr) return;
  const Matrix& logits = *capture.logits;
  ForRows(pool, logits.rows(), [&](size_t first, size_t rows) {
    for (size_t t = first; t < first + rows; ++t) {
      const auto width = static_cast<size_t>(logits.cols());
      RouteBackward(node.routing, {&logits(t, 0), width}, {&capture.ids[t * k], k}, {&d_weights[t * k], k},
                    {&(*d_logits)(t, 0), width});
    }
  });
}

}  // namespace moepack
