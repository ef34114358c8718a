#include "compressor/pass/gptq.h"

#include <algorithm>
#include <cmath>

#include "compressor/pass/rated.h"
#include "compressor/pass/trellis.h"

namespace moepack {
namespace {

using MatrixD = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMap = Eigen::Map<Eigen::RowVectorXf>;
using ConstRowMap = Eigen::Map<const Eigen::RowVectorXf>;

// U = R^-1 where H = R R^T with R upper triangular: the Cholesky factor of the matrix with both axes reversed, so
// H is factored once and never inverted.
bool InverseUpperFactor(const Matrix& hessian, double ridge, Matrix* upper) {
  const Eigen::Index n = hessian.rows();
  MatrixD reversed(n, n);
  for (Eigen::Index i = 0; i < n; ++i) {
    for (Eigen::Index j = 0; j <= i; ++j) reversed(i, j) = hessian(n - 1 - i, n - 1 - j);
    reversed(i, i) += ridge;
  }
  const Eigen::LLT<Eigen::Ref<MatrixD>, Eigen::Lower> factor(reversed);
  if (factor.info() != Eigen::Success) return false;
  MatrixD inverse = MatrixD::Identity(n, n);
  factor.matrixL().solveInPlace(inverse);
  upper->setZero(n, n);
  for (Eigen::Index i = 0; i < n; ++i) {
    for (Eigen::Index j = i; j < n; ++j) (*upper)(i, j) = static_cast<float>(inverse(n - 1 - i, n - 1 - j));
  }
  return upper->allFinite() && upper->diagonal().minCoeff() > 0;
}

// Rows that go through the columns together, so that a row of the factor is read once for all of them.
constexpr size_t kRowsTogether = 16;

// Columns of a trellis whose codes are decided at a time (divides every group size), and columns that a path is found for.
constexpr size_t kCommitted = 8, kSeen = 32;

// Encodes a run of rows: first the error-feedback pass, then coordinate descent.
class RowEncoder {
 public:
  RowEncoder(const GptqFactor& factor, const StepPlan* steps, size_t row_begin, size_t row_end, QuantizedMatrix* out)
      : factor_(factor),
        steps_(steps),
        codec_(out->codec),
        out_(out),
        begin_(row_begin),
        rows_(row_end - row_begin),
        cols_(out->shape.cols),
        width_(GroupWidth(out->codec, cols_)),
        groups_((cols_ + width_ - 1) / width_),
        is_int_(codec_.element == Element::kGroupInt),
        is_trellis_(codec_.element == Element::kTrellis),
        search_(codec_.bits, codec_.has_min),
        trellis_(is_trellis_ ? codec_.bits : 2),
        grids_(rows_ * groups_),
        codes_(rows_ * cols_),
        values_(rows_, cols_) {}

  void Pass(const Matrix& weights) {
    Matrix work = weights.middleRows(begin_, rows_);
    if (is_trellis_) return PassTrellis(&work);
    for (size_t column = 0; column < cols_; ++column) {
      if (is_int_ && steps_ == nullptr && column % width_ == 0) FindGrids(work, column / width_);
      for (size_t r = 0; r < rows_; ++r) {
        PushError(r, column, Encode(r, column, work(r, column), StepPlan::kPull), &work);
      }
    }
  }

  // Lowers (w - v) H (w - v)^T further: scales by exact line search, then each code to its best value given the others.
  // Rows are independent; they go through groups and columns together only because they share the rows of H.
  void Descend(const Matrix& weights, int sweeps) {
    Matrix gradient(rows_, cols_);
    gradient.noalias() = (weights.middleRows(begin_, rows_) - values_) * factor_.hessian;
    std::vector<bool> moving(rows_, true);
    for (int sweep = 0; sweep < sweeps; ++sweep) {
      std::vector<bool> moved(rows_, false);
      for (size_t g = 0; (is_int_ || is_trellis_) && steps_ == nullptr && g < groups_; ++g) {
        for (size_t r = 0; r < rows_; ++r) {
          if (moving[r] && RefitGroup(r, g, gradient.row(r).data())) moved[r] = true;
        }
      }
      for (size_t c = 0; is_trellis_ && c < cols_; c += kCommitted) {
        for (size_t r = 0; r < rows_; ++r) {
          if (moving[r] && MovePath(r, c, gradient.row(r).data())) moved[r] = true;
        }
      }
      for (size_t c = 0; !is_trellis_ && c < cols_; ++c) {
        for (size_t r = 0; r < rows_; ++r) {
          if (moving[r] && MoveCode(r, c, gradient.row(r).data())) moved[r] = true;
        }
      }
      moving = std::move(moved);
    }
  }

  void Store() {
    for (size_t r = 0; r < rows_; ++r) {
      const size_t row = begin_ + r;
      if (!codec_.coded()) {
        std::copy_n(values_.row(r).data(), cols_, out_->values.begin() + static_cast<ptrdiff_t>(row * cols_));
        continue;
      }
      std::copy_n(codes_.begin() + static_cast<ptrdiff_t>(r * cols_), cols_,
                  out_->codes.begin() + static_cast<ptrdiff_t>(row * cols_));
      for (size_t g = 0; g < groups_; ++g) {
        if (steps_ != nullptr) {
          out_->scales[row] = F32ToF16(steps_->scales[row]);
          continue;
        }
        out_->scales[row * groups_ + g] = F32ToF16(grids_[r * groups_ + g].scale);
        if (codec_.has_min) out_->mins[row * groups_ + g] = F32ToF16(grids_[r * groups_ + g].min);
      }
    }
  }

  const Matrix& values() const { return values_; }

 private:
  bool Masked(size_t r, size_t column) const {
    return !out_->mask.empty() && out_->mask[(begin_ + r) * cols_ + column] == 0;
  }

  // What is lost at a column goes on to those that are still free.
  void PushError(size_t r, size_t column, float value, Matrix* work) const {
    const float* upper = factor_.upper.data() + column * cols_;
    const float error = ((*work)(r, column) - value) / upper[column];
    const Eigen::Index rest = cols_ - column - 1;
    if (error == 0 || rest == 0) return;
    RowMap(work->data() + r * cols_ + column + 1, rest).noalias() -= error * ConstRowMap(upper + column + 1, rest);
  }

  // A path is found for kSeen columns, all with the scale of the first; the codes of kCommitted of them stay, and their
  // errors move the weights behind before the next path is found. BlockLDLQ of 2402.04396, along rows.
  void PassTrellis(Matrix* work) {
    for (size_t column = 0; column < cols_; column += kCommitted) {
      const size_t group = column / width_, from = group * width_, group_end = std::min(from + width_, cols_);
      const size_t end = std::min(column + kCommitted, group_end), seen = std::min(column + kSeen, cols_);
      for (size_t r = 0; r < rows_; ++r) {
        const uint32_t before = WindowBefore(r, column);
        const std::span<const float> weight(factor_.weight);
        float& scale = grids_[r * groups_ + group].scale;
        if (column == from)
          scale = trellis_.FindScale({work->data() + r * cols_ + from, group_end - from},
                                     weight.subspan(from, group_end - from), before);
        float targets[kSeen];
        for (size_t c = column; c < seen; ++c) targets[c - column] = scale > 0 ? (*work)(r, c) / scale : 0.0f;
        uint8_t codes[kSeen];
        trellis_.Find({targets, seen - column}, weight.subspan(column, seen - column), before, std::nullopt,
                      {codes, seen - column});
        std::copy_n(codes, end - column, codes_.begin() + static_cast<ptrdiff_t>(r * cols_ + column));
        SetValues(r, column, end);
        for (size_t c = column; c < end; ++c) PushError(r, c, values_(r, c), work);
      }
    }
  }

  // The window of the column before `column`.
  uint32_t WindowBefore(size_t r, size_t column) const {
    uint32_t window = 0;
    for (size_t c = column - std::min<size_t>(column, TrellisSpan(codec_.bits)); c < column; ++c)
      window = NextTrellisWindow(codec_.bits, window, codes_[r * cols_ + c]);
    return window;
  }

  void SetValues(size_t r, size_t begin, size_t end) {
    uint32_t window = WindowBefore(r, begin);
    for (size_t c = begin; c < end; ++c) {
      window = NextTrellisWindow(codec_.bits, window, codes_[r * cols_ + c]);
      values_(r, c) = grids_[r * groups_ + c / width_].scale * static_cast<float>(TrellisValue(codec_.bits, window));
    }
  }

  // The best path through kCommitted columns given all other weights of the row, kept when the loss really falls. Windows
  // behind stay as they are, so the path goes on through the columns whose windows it is in.
  bool MovePath(size_t r, size_t begin, float* gradient) {
    const size_t end = std::min(begin + kCommitted + TrellisSpan(codec_.bits) - 1, cols_), size = end - begin;
    constexpr size_t kMost = kCommitted + TrellisSpan(2);
    float targets[kMost], weights[kMost], old[kMost];
    uint8_t codes[kMost], old_codes[kMost];
    for (size_t i = 0; i < size; ++i) {
      const size_t c = begin + i;
      const float scale = grids_[r * groups_ + c / width_].scale, h = factor_.hessian(c, c);
      old[i] = values_(r, c);
      old_codes[i] = codes_[r * cols_ + c];
      targets[i] = scale > 0 ? (old[i] + gradient[c] / h) / scale : 0.0f;
      weights[i] = h * scale * scale;
    }
    const std::optional<uint32_t> last = end < cols_ ? std::optional<uint32_t>(WindowBefore(r, end)) : std::nullopt;
    trellis_.Find({targets, size}, {weights, size}, WindowBefore(r, begin), last, {codes, size});
    if (std::equal(codes, codes + size, old_codes)) return false;
    std::copy_n(codes, size, codes_.begin() + static_cast<ptrdiff_t>(r * cols_ + begin));
    SetValues(r, begin, end);
    Eigen::RowVectorXf moved(size);
    for (size_t i = 0; i < size; ++i) moved[i] = values_(r, begin + i) - old[i];
    const float slope = moved.dot(ConstRowMap(gradient + begin, size));
    const float curvature = (moved * factor_.hessian.block(begin, begin, size, size)).dot(moved);
    if (curvature < 2 * slope) {
      RowMap(gradient, cols_).noalias() -= moved * factor_.hessian.middleRows(begin, size);
      return true;
    }
    std::copy_n(old_codes, size, codes_.begin() + static_cast<ptrdiff_t>(r * cols_ + begin));
    SetValues(r, begin, end);
    return false;
  }

  // Grids of a group for all rows, from the weights as the error of earlier columns has moved them.
  void FindGrids(const Matrix& work, size_t group) {
    const size_t from = group * width_, size = std::min(width_, cols_ - from);
    std::vector<float> w(size), importance(size);
    for (size_t r = 0; r < rows_; ++r) {
      for (size_t i = 0; i < size; ++i) {
        w[i] = work(r, from + i);
        importance[i] = Masked(r, from + i) ? 0.0f : factor_.weight[from + i];
      }
      grids_[r * groups_ + group] = search_.Find(w, importance);
    }
  }

  float Encode(size_t r, size_t column, float w, float pull) {
    if (Masked(r, column)) return values_(r, column) = 0;
    if (!is_int_) return values_(r, column) = RoundToElement(codec_.element, w);
    if (steps_ != nullptr) {
      const int code = steps_->Level(begin_ + r, column, w, pull);
      codes_[r * cols_ + column] = static_cast<uint8_t>(code);
      return values_(r, column) = steps_->scales[begin_ + r] * static_cast<float>(code - steps_->half);
    }
    const GroupGrid& grid = grids_[r * groups_ + column / width_];
    const uint8_t code = NearestCode(codec_, grid, w);
    codes_[r * cols_ + column] = code;
    return values_(r, column) = GridValue(codec_, grid, code);
  }

  // Rounds a weight to its best value given all others of its row; whether that changed it.
  bool MoveCode(size_t r, size_t c, float* gradient) {
    if (Masked(r, c)) return false;
    const float* h = factor_.hessian.data() + c * cols_;
    const float before = values_(r, c);
    // A bit is worth as much here as in the pass, where an error in this column costs less: the others did not follow it.
    const float pull = steps_ != nullptr ? StepPlan::kPull * factor_.weight[c] / h[c] : 0.0f;
    const float step = Encode(r, c, before + gradient[c] / h[c], pull) - before;
    if (step == 0) return false;
    RowMap(gradient, cols_) -= step * ConstRowMap(h, cols_);
    return true;
  }

  bool RefitGroup(size_t r, size_t g, float* gradient) {
    const size_t from = g * width_, size = std::min(width_, cols_ - from);
    GroupGrid& grid = grids_[r * groups_ + g];
    Eigen::RowVectorXf direction(size);
    const GroupGrid unit{1, 0};
    uint32_t window = is_trellis_ ? WindowBefore(r, from) : 0;
    for (size_t i = 0; i < size; ++i) {
      const uint8_t code = codes_[r * cols_ + from + i];
      if (is_trellis_) window = NextTrellisWindow(codec_.bits, window, code);
      direction[i] = Masked(r, from + i) ? 0.0f
                     : is_trellis_       ? static_cast<float>(TrellisValue(codec_.bits, window))
                                         : GridValue(codec_, unit, code);
    }
    bool changed = StepAlong(r, from, direction, &grid.scale, gradient);
    if (!codec_.has_min) return changed;
    for (size_t i = 0; i < size; ++i) direction[i] = Masked(r, from + i) ? 0.0f : 1.0f;
    return StepAlong(r, from, direction, &grid.min, gradient) || changed;
  }

  // Moves *parameter to the f16 number nearest to the minimum along `direction` if that lowers the loss.
  bool StepAlong(size_t r, size_t from, const Eigen::RowVectorXf& d, float* parameter, float* gradient) {
    const Eigen::Index size = d.size();
    const float slope = d.dot(ConstRowMap(gradient + from, size));
    const float curvature = (d * factor_.hessian.block(from, from, size, size)).dot(d);
    if (!(curvature > 0)) return false;
    const float moved = RoundToElement(Element::kF16, *parameter + slope / curvature);
    const float step = moved - *parameter;
    if (step == 0 || moved == 0 || !(step * (step * curvature - 2 * slope) < 0)) return false;
    *parameter = moved;
    RowMap(gradient, cols_).noalias() -= step * (d * factor_.hessian.middleRows(from, size));
    if (is_trellis_) {
      SetValues(r, from, from + static_cast<size_t>(size));
      return true;
    }
    for (size_t c = from; c < from + static_cast<size_t>(size); ++c) {
      if (!Masked(r, c)) values_(r, c) = GridValue(codec_, grids_[r * groups_ + c / width_], codes_[r * cols_ + c]);
    }
    return true;
  }

  const GptqFactor& factor_;
  const StepPlan* const steps_;
  const Codec codec_;
  QuantizedMatrix* out_;
  const size_t begin_, rows_, cols_, width_, groups_;
  const bool is_int_, is_trellis_;
  GridSearch search_;
  TrellisSearch trellis_;
  std::vector<GroupGrid> grids_;  // [rows, groups]
  std::vector<uint8_t> codes_;    // [rows, cols]
  Matrix values_;                 // [rows, cols] what the codes stand for
};

}  // namespace

Result<GptqFactor> FactorHessian(const Matrix& hessian) {
  static constexpr double kLeastDamping = 0.01;
  const Eigen::Index n = hessian.rows();
  const double mean = hessian.diagonal().cast<double>().sum() / static_cast<double>(std::max<Eigen::Index>(n, 1));
  if (!(mean > 0)) return FactorHessian(Matrix::Identity(n, n));
  GptqFactor out;
  for (double damping = kLeastDamping; damping <= 1.0; damping *= 10) {
    const double ridge = damping * mean;
    if (!InverseUpperFactor(hessian, ridge, &out.upper)) continue;
    out.hessian = hessian;
    out.hessian.diagonal().array() += static_cast<float>(ridge);
    out.weight.resize(n);
    for (Eigen::Index c = 0; c < n; ++c) out.weight[c] = 1.0f / (out.upper(c, c) * out.upper(c, c));
    return out;
  }
  return Status(ErrorCode::kInternal,
                StrFormat("a Hessian of %td columns is not positive definite even when fully damped", n));
}

Matrix ShrinkHessian(const Matrix& hessian, double tokens, const Matrix& pooled) {
  const auto n = static_cast<double>(hessian.rows());
  const double share = n / (n + std::max(tokens, 0.0));
  const double trace = hessian.diagonal().cast<double>().sum();
  const double pooled_trace = pooled.size() > 0 ? pooled.diagonal().cast<double>().sum() : 0;
  Matrix out = hessian * static_cast<float>(1 - share);
  if (pooled_trace > 0) {
    // An expert that saw nothing still gets the shape of its layer.
    const double target = trace > 0 ? trace : pooled_trace * 1e-6;
    out += pooled * static_cast<float>(share * target / pooled_trace);
  } else {
    out.diagonal().array() += static_cast<float>(share * (trace > 0 ? trace / n : 1.0));
  }
  return out;
}

void GptqRows(const Matrix& weights, const GptqFactor& factor, const StepPlan* steps, int sweeps, size_t row_begin,
              size_t row_end, QuantizedMatrix* out) {
  RowEncoder encoder(factor, steps, row_begin, row_end, out);
  encoder.Pass(weights);
  const bool discrete = out->codec.coded() || out->codec.sparsity != Sparsity::kNone;
  if (sweeps > 0 && discrete) encoder.Descend(weights, sweeps);
  encoder.Store();
}

}  // namespace moepack
