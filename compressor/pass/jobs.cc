#include <algorithm>

#include "compressor/pass/gptq.h"

namespace moepack {
namespace {

constexpr size_t kRowsPerTask = 16;

struct Task {
  size_t job = 0, begin = 0, end = 0;
};

std::vector<Task> CutIntoTasks(std::span<const MatrixJob> jobs) {
  std::vector<Task> tasks;
  for (size_t j = 0; j < jobs.size(); ++j) {
    const size_t rows = static_cast<size_t>(jobs[j].weights->rows());
    for (size_t r = 0; r < rows; r += kRowsPerTask) tasks.push_back({j, r, std::min(r + kRowsPerTask, rows)});
  }
  return tasks;
}

// Weights that rows [begin, end) of a quantized matrix stand for.
Matrix DequantizeRows(const QuantizedMatrix& q, size_t begin, size_t end) {
  const size_t cols = q.shape.cols;
  Matrix out(end - begin, cols);
  const size_t groups = GroupsPerRow(q.codec, cols);
  const size_t width = q.codec.group_size == 0 ? cols : q.codec.group_size;
  for (size_t r = begin; r < end; ++r) {
    for (size_t c = 0; c < cols; ++c) {
      float& value = out(r - begin, c);
      if (!q.mask.empty() && q.mask[r * cols + c] == 0) {
        value = 0;
      } else if (q.codec.element != Element::kGroupInt) {
        value = q.values[r * cols + c];
      } else {
        const size_t g = r * groups + c / width;
        const GroupGrid grid{F16ToF32(q.scales[g]), q.codec.has_min ? F16ToF32(q.mins[g]) : 0.0f};
        value = GridValue(q.codec, grid, q.codes[r * cols + c]);
      }
    }
  }
  return out;
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

}  // namespace

void RunJobs(std::span<MatrixJob> jobs, int sweeps, ThreadPool& pool) {
  for (MatrixJob& job : jobs) {
    job.out =
        MakeQuantized(job.codec, {static_cast<uint64_t>(job.weights->rows()), static_cast<uint64_t>(job.weights->cols())});
    if (!job.mask.empty()) job.out.mask = job.mask;
  }
  const std::vector<Task> tasks = CutIntoTasks(jobs);
  std::vector<double> errors(tasks.size()), energies(tasks.size());
  pool.ParallelFor(tasks.size(), 1, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      const Task& task = tasks[i];
      MatrixJob& job = jobs[task.job];
      if (job.factor != nullptr) {
        GptqRows(*job.weights, *job.factor, sweeps, task.begin, task.end, &job.out);
      } else {
        QuantizeRowsNearest(*job.weights, job.importance, task.begin, task.end, &job.out);
      }
      const Matrix rows = job.weights->middleRows(task.begin, task.end - task.begin);
      energies[i] = QuadraticForm(job, task, rows);
      errors[i] = QuadraticForm(job, task, rows - DequantizeRows(job.out, task.begin, task.end));
    }
  });
  for (size_t i = 0; i < tasks.size(); ++i) {
    jobs[tasks[i].job].error += errors[i];
    jobs[tasks[i].job].energy += energies[i];
  }
}

}  // namespace moepack
