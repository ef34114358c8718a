#include <algorithm>
#include <cmath>
#include <memory>

#include "compressor/pass/gptq.h"
#include "compressor/pass/rated.h"

namespace moepack {
namespace {

constexpr size_t kRowsPerTask = 16;

struct Task {
  size_t job = 0, begin = 0, end = 0;
};

std::vector<Task> CutIntoTasks(std::span<const MatrixJob> jobs, const std::vector<size_t>& chosen) {
  std::vector<Task> tasks;
  for (size_t j : chosen) {
    const size_t rows = static_cast<size_t>(jobs[j].weights->rows());
    for (size_t r = 0; r < rows; r += kRowsPerTask) tasks.push_back({j, r, std::min(r + kRowsPerTask, rows)});
  }
  return tasks;
}

// Sum over the task's rows of x H x^T, each times its row weight.
double QuadraticForm(const MatrixJob& job, const Task& task, const Matrix& rows) {
  Matrix product(rows.rows(), rows.cols());
  if (job.hessian != nullptr) {
    product.noalias() = rows * *job.hessian;
  } else if (!job.importance.empty()) {
    const Eigen::Map<const Eigen::RowVectorXf> importance(job.importance.data(), rows.cols());
    product = rows.array().rowwise() * importance.array();
  } else {
    product = rows;
  }
  double sum = 0;
  for (Eigen::Index r = 0; r < rows.rows(); ++r) {
    const double form = product.row(r).cast<double>().dot(rows.row(r).cast<double>());
    sum += job.row_weights.empty() ? form : form * static_cast<double>(job.row_weights[task.begin + r]);
  }
  return sum;
}

// Rows without a Hessian on the grid of a step plan.
void RoundRows(const MatrixJob& job, const StepPlan& steps, size_t begin, size_t end, QuantizedMatrix* out) {
  const size_t cols = out->shape.cols;
  for (size_t r = begin; r < end; ++r) {
    for (size_t c = 0; c < cols; ++c) {
      out->codes[r * cols + c] = static_cast<uint8_t>(steps.Level(r, c, (*job.weights)(r, c), StepPlan::kPull));
    }
    out->scales[r] = F32ToF16(steps.scales[r]);
  }
}

// The search for the step at which a matrix's codes take the bytes it may have.
class StepSearch {
 public:
  explicit StepSearch(const MatrixJob& job) : job_(job) {
    const auto weights = static_cast<double>(job.weights->size());
    whole_ = weights * RowsRatio();
    target_ = kAim * 8 * static_cast<double>(job.stored_bytes) / whole_;
    const double spread = std::sqrt(static_cast<double>(job.weights->squaredNorm()) / std::max(weights, 1.0));
    // Entropy of a Gaussian's codes: log2(spread / step) + log2(2 pi e) / 2.
    log_step_ = std::log2(std::max(spread, 1e-30)) + 2.05 - target_;
    Plan();
  }

  const StepPlan& steps() const { return steps_; }
  bool fits() const { return bytes_ <= job_.stored_bytes; }
  bool close() const { return std::abs(bits() - target_) < kClose * target_; }
  void Measure() {
    bytes_ = CodedBytes(job_.out, job_.rows_of_whole != 0 ? job_.rows_of_whole : job_.out.shape.rows);
    points_.push_back({log_step_, bits()});
  }
  // The next step to try; it only grows when the codes must still get shorter.
  void Move(bool must_shrink) {
    double slope = -0.8;
    if (points_.size() > 1) {
      const auto& [x1, y1] = points_[points_.size() - 2];
      const auto& [x2, y2] = points_.back();
      if (x1 != x2) slope = std::clamp((y2 - y1) / (x2 - x1), -1.1, -0.3);
    }
    double move = (target_ - bits()) / slope;
    if (must_shrink) move = std::max(move, kLeastMove * static_cast<double>(points_.size()));
    log_step_ += std::clamp(move, -2.0, 2.0);
    Plan();
  }

 private:
  // Just below the limit, and how near is near enough.
  static constexpr double kAim = 0.996, kClose = 0.004, kLeastMove = 0.004;

  double RowsRatio() const {
    return job_.rows_of_whole == 0 ? 1.0
                                   : static_cast<double>(job_.rows_of_whole) / static_cast<double>(job_.weights->rows());
  }
  double bits() const { return 8 * static_cast<double>(bytes_) / whole_; }
  void Plan() { steps_ = PlanSteps(*job_.weights, job_.codec, job_.factor, job_.row_weights, std::exp2(log_step_)); }

  const MatrixJob& job_;
  StepPlan steps_;
  double whole_ = 0, target_ = 0, log_step_ = 0;
  uint64_t bytes_ = 0;
  std::vector<std::pair<double, double>> points_;
};

// Runs of all jobs together: rows of every matrix are spread over the threads.
class Runner {
 public:
  Runner(std::span<MatrixJob> jobs, int sweeps, ThreadPool& pool) : jobs_(jobs), sweeps_(sweeps), pool_(pool) {
    for (const MatrixJob& job : jobs) {
      searches_.push_back(job.stored_bytes > 0 ? std::make_unique<StepSearch>(job) : nullptr);
    }
  }

  void Run() {
    std::vector<size_t> all, rated;
    for (size_t j = 0; j < jobs_.size(); ++j) {
      all.push_back(j);
      if (searches_[j] != nullptr) rated.push_back(j);
    }
    // The pass alone tells the length of the codes well enough to find the step.
    std::vector<size_t> open = rated;
    for (int round = 0; round < kSearchRounds && !open.empty(); ++round) {
      Encode(open, 0);
      Measure(open);
      std::erase_if(open, [&](size_t j) { return searches_[j]->close(); });
      for (size_t j : open) searches_[j]->Move(false);
    }
    Encode(all, sweeps_);
    Measure(rated);
    for (int round = 0; round < kShrinkRounds; ++round) {
      std::erase_if(rated, [&](size_t j) { return searches_[j]->fits(); });
      if (rated.empty()) break;
      for (size_t j : rated) searches_[j]->Move(true);
      Encode(rated, sweeps_);
      Measure(rated);
    }
    SumErrors(all);
  }

 private:
  static constexpr int kSearchRounds = 3, kShrinkRounds = 12;

  void Measure(const std::vector<size_t>& chosen) {
    pool_.ParallelFor(chosen.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) searches_[chosen[i]]->Measure();
    });
  }

  void Encode(const std::vector<size_t>& chosen, int sweeps) {
    const std::vector<Task> tasks = CutIntoTasks(jobs_, chosen);
    pool_.ParallelFor(tasks.size(), 1, [&](size_t first, size_t last) {
      for (size_t i = first; i < last; ++i) {
        const auto& [j, begin, end] = tasks[i];
        MatrixJob& job = jobs_[j];
        const StepPlan* steps = searches_[j] != nullptr ? &searches_[j]->steps() : nullptr;
        if (job.factor != nullptr) {
          GptqRows(*job.weights, *job.factor, steps, sweeps, begin, end, &job.out);
        } else if (steps != nullptr) {
          RoundRows(job, *steps, begin, end, &job.out);
        } else {
          QuantizeRowsNearest(*job.weights, job.importance, begin, end, &job.out);
        }
      }
    });
  }

  void SumErrors(const std::vector<size_t>& all) {
    const std::vector<Task> tasks = CutIntoTasks(jobs_, all);
    std::vector<double> errors(tasks.size()), energies(tasks.size());
    pool_.ParallelFor(tasks.size(), 1, [&](size_t first, size_t last) {
      for (size_t i = first; i < last; ++i) {
        const Task& task = tasks[i];
        const MatrixJob& job = jobs_[task.job];
        const Matrix rows = job.weights->middleRows(task.begin, task.end - task.begin);
        Matrix encoded(rows.rows(), rows.cols());
        DequantizeRows(job.out, task.begin, task.end, {encoded.data(), static_cast<size_t>(encoded.size())});
        energies[i] = QuadraticForm(job, task, rows);
        errors[i] = QuadraticForm(job, task, rows - encoded);
      }
    });
    for (size_t i = 0; i < tasks.size(); ++i) {
      jobs_[tasks[i].job].error += errors[i];
      jobs_[tasks[i].job].energy += energies[i];
    }
  }

  const std::span<MatrixJob> jobs_;
  const int sweeps_;
  ThreadPool& pool_;
  std::vector<std::unique_ptr<StepSearch>> searches_;
};

}  // namespace

void RunJobs(std::span<MatrixJob> jobs, int sweeps, ThreadPool& pool) {
  for (MatrixJob& job : jobs) {
    job.out =
        MakeQuantized(job.codec, {static_cast<uint64_t>(job.weights->rows()), static_cast<uint64_t>(job.weights->cols())});
    if (!job.mask.empty()) job.out.mask = job.mask;
  }
  Runner(jobs, sweeps, pool).Run();
}

}  // namespace moepack
