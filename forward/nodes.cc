#include "forward/nodes.h"

#include <algorithm>
#include <cmath>

namespace moepack {
namespace {

// Output columns of one task of a matrix product: cuts wide ones (a vocabulary) when there are few rows.
constexpr size_t kColumnBlock = 1024;

// Calls body(first, rows) for blocks of rows.
template <typename Body>
void ForRows(ThreadPool& pool, size_t rows, const Body& body) {
  pool.ParallelFor(rows, kRowBlock, [&](size_t begin, size_t end) { body(begin, end - begin); });
}

// Sums of f(x) in double over eight lanes, a shape that compilers vectorise without reordering.
template <typename F>
double LaneSum(const float* x, size_t n, const F& f) {
  constexpr size_t kLanes = 8;
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) lanes[j] += f(static_cast<double>(x[i + j]));
  }
  for (; i < n; ++i) lanes[i % kLanes] += f(static_cast<double>(x[i]));
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

void NormGroup(const NormNode& node, const float* x, const float* weight, const float* bias, float* y) {
  const size_t n = node.group;
  const double count = static_cast<double>(n);
  double mean = 0;
  if (node.kind == NormKind::kLayer) mean = LaneSum(x, n, [](double v) { return v; }) / count;
  const double variance = LaneSum(x, n, [mean](double v) { return (v - mean) * (v - mean); }) / count;
  const float inverse = static_cast<float>(1 / std::sqrt(variance + static_cast<double>(node.eps)));
  const float shift = static_cast<float>(mean), one = node.one_plus_weight ? 1.0f : 0.0f;
  for (size_t j = 0; j < n; ++j) y[j] = (x[j] - shift) * inverse;
  if (weight != nullptr) {
    for (size_t j = 0; j < n; ++j) y[j] *= one + weight[j];
  }
  if (bias != nullptr) {
    for (size_t j = 0; j < n; ++j) y[j] += bias[j];
  }
}

// cos and sin of every position that occurs, times magnitude. [positions, rotary_dim / 2]
struct RotaryTable {
  Matrix cosine, sine;
  RotaryTable(std::span<const float> inv_freq, float magnitude, uint32_t positions)
      : cosine(positions, inv_freq.size()), sine(positions, inv_freq.size()) {
    for (uint32_t p = 0; p < positions; ++p) {
      for (size_t i = 0; i < inv_freq.size(); ++i) {
        const double angle = static_cast<double>(p) * static_cast<double>(inv_freq[i]);
        cosine(p, i) = static_cast<float>(std::cos(angle) * magnitude);
        sine(p, i) = static_cast<float>(std::sin(angle) * magnitude);
      }
    }
  }
};

void RotateHead(const RotaryNode& node, const float* cosine, const float* sine, const float* x, float* y) {
  const size_t half = node.rotary_dim / 2;
  const size_t step = node.interleaved ? 2 : 1, other = node.interleaved ? 1 : half;
  std::copy(x, x + node.offset, y);
  std::copy(x + node.offset + node.rotary_dim, x + node.head_dim, y + node.offset + node.rotary_dim);
  x += node.offset;
  y += node.offset;
  for (size_t i = 0; i < half; ++i) {
    const float a = x[i * step], b = x[i * step + other];
    y[i * step] = a * cosine[i] - b * sine[i];
    y[i * step + other] = b * cosine[i] + a * sine[i];
  }
}

void Combine(ElementOp op, Eigen::Ref<const Matrix> a, Eigen::Ref<const Matrix> b, Eigen::Ref<Matrix> out) {
  const bool broadcast = b.cols() != a.cols();
  if (op == ElementOp::kAdd && broadcast) {
    out = a.colwise() + b.col(0);
  } else if (op == ElementOp::kAdd) {
    out = a + b;
  } else if (broadcast) {
    out.array() = a.array().colwise() * b.col(0).array();
  } else {
    out.array() = a.array() * b.array();
  }
}

void Transform(const ElementwiseNode& node, Eigen::Ref<Matrix> values) {
  auto x = values.array();
  switch (node.op) {
    case ElementOp::kAdd:
    case ElementOp::kMul:
      break;  // two inputs: Combine
    case ElementOp::kScale:
      x *= node.alpha;
      break;
    case ElementOp::kSigmoid:
      x = 1 / (1 + (-x).exp());
      break;
    case ElementOp::kSilu:
      Activate(Activation::kSilu, values);
      break;
    case ElementOp::kGelu:
      Activate(Activation::kGelu, values);
      break;
    case ElementOp::kGeluTanh:
      Activate(Activation::kGeluTanh, values);
      break;
    case ElementOp::kRelu:
      Activate(Activation::kRelu, values);
      break;
    case ElementOp::kClamp:
      x = x.max(-node.alpha).min(node.alpha);
      break;
  }
}

}  // namespace

void Activate(Activation function, Eigen::Ref<Matrix> values) {
  constexpr float kSqrtHalf = 0.70710678118654752f, kSqrt2OverPi = 0.79788456080286536f;
  auto x = values.array();
  switch (function) {
    case Activation::kSilu:
      x = x / (1 + (-x).exp());
      break;
    case Activation::kGelu:
      x = x.unaryExpr([](float v) { return 0.5f * v * (1 + std::erf(v * kSqrtHalf)); });
      break;
    case Activation::kGeluTanh:
      x = 0.5f * x * (1 + (kSqrt2OverPi * (x + 0.044715f * x * x * x)).tanh());
      break;
    case Activation::kRelu:
      x = x.max(0.0f);
      break;
    case Activation::kIdentity:
      break;
  }
}

Status RunEmbedding(const Matrix& table, std::span<const int32_t> tokens, Matrix* out) {
  out->resize(tokens.size(), table.cols());
  for (size_t t = 0; t < tokens.size(); ++t) {
    if (tokens[t] < 0 || tokens[t] >= table.rows()) {
      return Status(ErrorCode::kBadInput, StrFormat("token %d at position %zu is outside of the model's vocabulary of %lld",
                                                    tokens[t], t, static_cast<long long>(table.rows())));
    }
    out->row(t) = table.row(tokens[t]);
  }
  return Status::Ok();
}

void RunLinear(const Matrix& in, const Matrix& weight, const Matrix* bias, ThreadPool& pool, Matrix* out) {
  const size_t rows = in.rows(), columns = weight.rows();
  out->resize(rows, columns);
  const size_t column_blocks = (columns + kColumnBlock - 1) / kColumnBlock;
  const size_t row_blocks = (rows + kRowBlock - 1) / kRowBlock;
  pool.ParallelFor(row_blocks * column_blocks, 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const size_t row = i / column_blocks * kRowBlock, column = i % column_blocks * kColumnBlock;
      const size_t n = std::min(kRowBlock, rows - row), m = std::min(kColumnBlock, columns - column);
      auto block = out->block(row, column, n, m);
      block.noalias() = in.middleRows(row, n) * weight.middleRows(column, m).transpose();
      if (bias != nullptr) block.rowwise() += bias->row(0).segment(column, m);
    }
  });
}

void RunNorm(const NormNode& node, const Matrix& in, const Matrix* weight, const Matrix* bias, ThreadPool& pool,
             Matrix* out) {
  out->resize(in.rows(), in.cols());
  const float* w = weight ? weight->data() : nullptr;
  const float* b = bias ? bias->data() : nullptr;
  ForRows(pool, in.rows(), [&](size_t first, size_t rows) {
    for (size_t t = first; t < first + rows; ++t) {
      for (size_t c = 0; c < static_cast<size_t>(in.cols()); c += node.group)
        NormGroup(node, &in(t, c), w, b, &(*out)(t, c));
    }
  });
}

void RunRotary(const RotaryNode& node, std::span<const TileSequence> sequences, std::span<const uint32_t> positions,
               const Matrix& in, ThreadPool& pool, Matrix* out) {
  out->resize(in.rows(), in.cols());
  if (positions.empty()) return;
  const uint32_t most = *std::max_element(positions.begin(), positions.end()) + 1;
  const RotaryTable usual(node.inv_freq, node.magnitude, most);
  const RotaryTable longer(node.long_inv_freq, node.long_magnitude, node.long_from > 0 ? most : 0);
  std::vector<const RotaryTable*> table_of(in.rows(), &usual);
  for (const TileSequence& s : sequences) {
    if (node.long_from > 0 && s.length > node.long_from) {
      std::fill(table_of.begin() + static_cast<std::ptrdiff_t>(s.begin),
                table_of.begin() + static_cast<std::ptrdiff_t>(s.end), &longer);
    }
  }
  ForRows(pool, in.rows(), [&](size_t first, size_t rows) {
    for (size_t t = first; t < first + rows; ++t) {
      const RotaryTable& table = *table_of[t];
      const float* cosine = table.cosine.row(positions[t]).data();
      const float* sine = table.sine.row(positions[t]).data();
      for (size_t h = 0; h < node.heads; ++h) {
        RotateHead(node, cosine, sine, &in(t, h * node.head_dim), &(*out)(t, h * node.head_dim));
      }
    }
  });
}

void RunConvolution(std::span<const TileSequence> sequences, const Matrix& in, const Matrix& weight, const Matrix* bias,
                    ThreadPool& pool, Matrix* out) {
  out->resize(in.rows(), in.cols());
  const uint64_t width = static_cast<uint64_t>(weight.cols());
  for (const TileSequence& s : sequences) {
    ForRows(pool, s.end - s.begin, [&](size_t first, size_t rows) {
      for (uint64_t t = s.begin + first; t < s.begin + first + rows; ++t) {
        auto y = out->row(static_cast<Eigen::Index>(t));
        if (bias != nullptr) {
          y = bias->row(0);
        } else {
          y.setZero();
        }
        for (uint64_t back = std::min(width, t - s.begin + 1); back-- > 0;) {
          y.array() += weight.col(static_cast<Eigen::Index>(width - 1 - back)).transpose().array() *
                       in.row(static_cast<Eigen::Index>(t - back)).array();
        }
      }
    });
  }
}

void RunConcat(const ConcatNode& node, std::span<const Matrix* const> inputs, Matrix* out) {
  const Eigen::Index heads = std::max<uint32_t>(node.heads, 1);
  const size_t own = inputs.size() - node.shared;
  Eigen::Index width = 0, column = 0;
  for (size_t i = 0; i < inputs.size(); ++i) width += inputs[i]->cols() * (i < own ? 1 : heads);
  out->resize(inputs[0]->rows(), width);
  for (Eigen::Index head = 0; head < heads; ++head) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Eigen::Index part = i < own ? inputs[i]->cols() / heads : inputs[i]->cols();
      out->middleCols(column, part) = inputs[i]->middleCols(i < own ? head * part : 0, part);
      column += part;
    }
  }
}

void RunElementwise(const ElementwiseNode& node, const Matrix& first, const Matrix* second, ThreadPool& pool, Matrix* out) {
  out->resize(first.rows(), first.cols());
  ForRows(pool, first.rows(), [&](size_t begin, size_t rows) {
    auto block = out->middleRows(begin, rows);
    if (second != nullptr) {
      Combine(node.op, first.middleRows(begin, rows), second->middleRows(begin, rows), block);
    } else {
      block = first.middleRows(begin, rows);
      Transform(node, block);
    }
  });
}

}  // namespace moepack
