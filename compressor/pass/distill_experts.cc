#include "compressor/pass/distill_experts.h"

#include <algorithm>
#include <numeric>

#include "compressor/pass/distill_nodes.h"

namespace moepack {
namespace {

constexpr size_t kRowsAStep = 128;
// A step towards known outputs is less noisy than one along the KLD's gradient, which the recipe's rate is for.
constexpr double kRateOfExperts = 10;
// Fewer rows than this teach noise.
constexpr size_t kLeastRows = 64;

constexpr std::array kMatrices = {ExpertMatrix::kGate, ExpertMatrix::kUp, ExpertMatrix::kDown};

class ExpertTrainer {
 public:
  ExpertTrainer(const ExpertDistillation& in, uint32_t expert, ExpertEncoding* encoding)
      : in_(in), expert_(expert), encoding_(encoding) {}

  Result<ErrorChange> Run() {
    SplitRows();
    const bool learns =
        std::any_of(encoding_->learns.begin(), encoding_->learns.end(), [](const auto& l) { return l.has_value(); });
    if (!learns || rows_.size() < kLeastRows) return ErrorChange{};
    MOEPACK_RETURN_IF_ERROR(Load());
    const std::vector<ExpertInputs::Row>& judge = held_.empty() ? rows_ : held_;
    ErrorChange change;
    change.before = Error(judge);
    const std::array<QuantizedMatrix, 3> before = encoding_->matrices;
    Train();
    change.after = Error(judge);
    if (change.after < change.before) return change;
    encoding_->matrices = before;
    return ErrorChange{change.before, change.before};
  }

 private:
  bool gated() const { return in_.seen->node->activation.gated; }

  void SplitRows() {
    const Calibration& c = *in_.calibration;
    for (const ExpertInputs::Row& row : in_.seen->rows[expert_]) {
      const auto& starts = c.batch.sequence_start;
      const uint64_t sequence = std::upper_bound(starts.begin(), starts.end(), row.token) - starts.begin() - 1;
      if (std::binary_search(c.held_back.begin(), c.held_back.end(), sequence)) {
        held_.push_back(row);
      } else if (c.weights[row.token] > 0) {
        rows_.push_back(row);
      }
    }
  }

  Status Load() {
    for (size_t m = 0; m < 3; ++m) {
      if (m == 0 && !gated()) continue;
      MOEPACK_ASSIGN_OR_RETURN(full_[m], in_.full(expert_, kMatrices[m]));
      const MatrixShape& shape = encoding_->matrices[m].shape;
      weights_[m].resize(static_cast<Eigen::Index>(shape.rows), static_cast<Eigen::Index>(shape.cols));
      if (encoding_->learns[m]) {
        learners_[m].emplace(encoding_->matrices[m], *encoding_->learns[m]);
        gradients_[m].resizeLike(weights_[m]);
      }
      Decode(m);
    }
    return Status::Ok();
  }

  void Decode(size_t m) {
    if (learners_[m]) learners_[m]->Apply(&encoding_->matrices[m]);
    Dequantize(encoding_->matrices[m], {weights_[m].data(), static_cast<size_t>(weights_[m].size())});
  }

  static ExpertMatrices Of(const std::array<Matrix, 3>& m, bool gated) { return {gated ? &m[0] : nullptr, m[1], m[2]}; }

  Matrix Inputs(std::span<const ExpertInputs::Row> rows) const {
    Matrix x(static_cast<Eigen::Index>(rows.size()), in_.seen->input.cols());
    for (size_t i = 0; i < rows.size(); ++i)
      x.row(static_cast<Eigen::Index>(i)) = in_.seen->input.row(static_cast<Eigen::Index>(rows[i].token));
    return x;
  }

  // Of an output, what it lacks to the full model's, times the routing weight.
  Matrix Lack(std::span<const ExpertInputs::Row> rows, const Matrix& x, const Matrix& out) const {
    Matrix lack = out - RunPlainExpert(in_.seen->node->activation.function, Of(full_, gated()), x, nullptr);
    for (size_t i = 0; i < rows.size(); ++i) lack.row(static_cast<Eigen::Index>(i)) *= rows[i].gate;
    return lack;
  }

  double Error(const std::vector<ExpertInputs::Row>& rows) const {
    double sum = 0;
    for (size_t begin = 0; begin < rows.size(); begin += kRowsAStep) {
      const auto part = std::span(rows).subspan(begin, std::min(kRowsAStep, rows.size() - begin));
      const Matrix x = Inputs(part);
      sum += Lack(part, x, RunPlainExpert(in_.seen->node->activation.function, Of(weights_, gated()), x, nullptr))
                 .cast<double>()
                 .squaredNorm();
    }
    return sum;
  }

  void Train() {
    const DistillRecipe& recipe = *in_.recipe;
    const uint64_t steps = recipe.epochs * ((rows_.size() + kRowsAStep - 1) / kRowsAStep);
    uint64_t step = 0;
    for (uint32_t epoch = 0; epoch < recipe.epochs; ++epoch) {
      std::vector<ExpertInputs::Row> rows = rows_;
      ShuffleForEpoch(epoch, &rows);
      for (size_t begin = 0; begin < rows.size(); begin += kRowsAStep) {
        Step(std::span(rows).subspan(begin, std::min(kRowsAStep, rows.size() - begin)),
             StepSizeAt(++step, steps, std::min(1.0, kRateOfExperts * recipe.rate), recipe.code_rate));
      }
    }
  }

  void Step(std::span<const ExpertInputs::Row> rows, const StepSize& size) {
    const Activation function = in_.seen->node->activation.function;
    const Matrix x = Inputs(rows);
    Matrix down_input;
    const Matrix out = RunPlainExpert(function, Of(weights_, gated()), x, &down_input);
    Matrix d_out = Lack(rows, x, out);
    for (size_t i = 0; i < rows.size(); ++i)
      d_out.row(static_cast<Eigen::Index>(i)) *= rows[i].gate * in_.calibration->weights[rows[i].token];
    ExpertGradient gradient;
    Matrix** targets[] = {&gradient.gate, &gradient.up, &gradient.down};
    for (size_t m = 0; m < 3; ++m) {
      if (!learners_[m]) continue;
      gradients_[m].setZero();
      *targets[m] = &gradients_[m];
    }
    ExpertBackward(function, Of(weights_, gated()), x, down_input, d_out, gradient, nullptr);
    for (size_t m = 0; m < 3; ++m) {
      if (!learners_[m]) continue;
      learners_[m]->Step(gradients_[m], encoding_->matrices[m], size);
      Decode(m);
    }
  }

  const ExpertDistillation& in_;
  const uint32_t expert_;
  ExpertEncoding* encoding_;
  std::vector<ExpertInputs::Row> rows_, held_;
  std::array<Matrix, 3> full_, weights_, gradients_;
  std::array<std::optional<Learner>, 3> learners_;
};

}  // namespace

void ExpertInputs::OnMoe(const MoeCapture& capture) {
  const MoeNode& node = capture.node->moe;
  Table& table = tables_[node.table];
  if (table.node == nullptr) {
    table.node = &node;
    table.input.resize(static_cast<Eigen::Index>(tokens_), capture.input->cols());
    table.rows.resize(program_.expert_tables[node.table].experts());
  }
  table.input.middleRows(static_cast<Eigen::Index>(capture.first_token), capture.input->rows()) = *capture.input;
  for (const ExpertCapture& expert : capture.experts) {
    for (size_t i = 0; i < expert.rows.size(); ++i)
      table.rows[expert.expert].push_back({static_cast<uint32_t>(capture.first_token + expert.rows[i]), expert.gates[i]});
  }
}

Result<ErrorChange> DistillExperts(const ExpertDistillation& input, std::span<ExpertEncoding> experts, ThreadPool& pool) {
  std::vector<Result<ErrorChange>> changes(experts.size(), ErrorChange{});
  pool.ParallelFor(experts.size(), 1, [&](size_t begin, size_t end) {
    for (size_t e = begin; e < end; ++e) changes[e] = ExpertTrainer(input, static_cast<uint32_t>(e), &experts[e]).Run();
  });
  ErrorChange sum;
  for (const Result<ErrorChange>& change : changes) {
    if (!change.ok()) return change.status();
    sum.before += change->before;
    sum.after += change->after;
  }
  return sum;
}

}  // namespace moepack
