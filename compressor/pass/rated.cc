#include "compressor/pass/rated.h"

#include <algorithm>
#include <cmath>

#include "format/codec/rans.h"
#include "format/manifest/manifest.h"

namespace moepack {
namespace {

// What columns may be apart: ratios of steps are met within a factor of 1.2, which costs 2 % of distortion.
constexpr uint8_t kMultiples[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
// Steps of the finest column in units of the scale: enough for the next ones to come near their ratio.
constexpr double kFinest = 2.0;
// Rows are told apart by at most this ratio of steps.
constexpr double kRowRange = 8.0;

uint8_t NearestMultiple(double wanted) {
  uint8_t best = kMultiples[0];
  for (uint8_t m : kMultiples) {
    if (std::abs(std::log(wanted / m)) < std::abs(std::log(wanted / best))) best = m;
  }
  return best;
}

// Columns' steps over their geometric mean.
std::vector<double> ColumnSteps(const GptqFactor* factor, size_t cols) {
  std::vector<double> out(cols, 1.0);
  if (factor == nullptr) return out;
  double mean_log = 0;
  for (size_t c = 0; c < cols; ++c) {
    out[c] = 1.0 / std::sqrt(static_cast<double>(factor->weight[c]));
    mean_log += std::log(out[c]) / static_cast<double>(cols);
  }
  for (double& step : out) step /= std::exp(mean_log);
  return out;
}

// Rows' steps; powers of sqrt(2), so that few scales differ and they take no bytes to speak of.
double RowStep(const std::vector<float>& row_weights, double mean_log, size_t row) {
  if (row_weights.empty()) return 1.0;
  const double log = -0.5 * (std::log(static_cast<double>(row_weights[row])) - mean_log);
  static const double kHalfOctave = 0.5 * std::log(2.0), kMost = std::log(kRowRange);
  return std::exp(std::rint(std::clamp(log, -kMost, kMost) / kHalfOctave) * kHalfOctave);
}

}  // namespace

StepPlan PlanSteps(const Matrix& weights, const Codec& codec, const GptqFactor* factor,
                   const std::vector<float>& row_weights, double step) {
  const auto rows = static_cast<size_t>(weights.rows()), cols = static_cast<size_t>(weights.cols());
  StepPlan plan;
  plan.half = 1 << (codec.bits - 1);
  const std::vector<double> columns = ColumnSteps(factor, cols);
  double mean_log = 0;
  for (float w : row_weights) mean_log += std::log(static_cast<double>(w)) / static_cast<double>(rows);
  // The unit must let the largest weights be reached, of rows that matter alike all of them.
  double unit = step * *std::min_element(columns.begin(), columns.end()) / (factor == nullptr ? 1.0 : kFinest);
  std::vector<double> row_steps(rows), tops(rows);
  double largest = 0, usual = 0;
  for (size_t r = 0; r < rows; ++r) {
    row_steps[r] = RowStep(row_weights, mean_log, r);
    tops[r] = std::max<double>(weights.row(r).cwiseAbs().maxCoeff() / static_cast<float>(plan.half - 1), 1e-30);
    largest = std::max(largest, tops[r] / row_steps[r]);
    usual += std::log(tops[r] / row_steps[r]) / static_cast<double>(rows);
    plan.spread.push_back(std::max(weights.row(r).squaredNorm() / static_cast<float>(cols), 1e-30f));
  }
  const bool alike = std::all_of(row_steps.begin(), row_steps.end(), [&](double s) { return s == row_steps[0]; });
  unit = std::clamp(std::max(unit, alike ? largest : std::exp(usual)), 6e-8, 65504.0);
  for (size_t c = 0; c < cols; ++c) plan.multiples.push_back(NearestMultiple(step * columns[c] / unit));
  for (size_t r = 0; r < rows; ++r) {
    // A row whose largest weight would be out of reach gets a wider step, again by half octaves.
    const double wanted = std::max({row_steps[r], tops[r] / unit, 1e-6 / unit});
    const double scale = unit * (alike ? 1.0 : std::exp2(0.5 * std::ceil(2 * std::log2(wanted) - 1e-9)));
    plan.scales.push_back(RoundToElement(Element::kF16, static_cast<float>(std::min(scale, 65504.0))));
  }
  return plan;
}

int StepPlan::Level(size_t row, size_t column, float w, float pull) const {
  const float step = Step(row, column);
  const float square = step * step;
  // Length of a code of a Gaussian: log2(e) / 2 * (q step)^2 / variance, rounding noise included.
  static constexpr float kHalfLogE = 0.7213475f;
  const float length = kHalfLogE * square / (spread[row] + square / 12.0f);
  const float level = std::rint(w / (step * (1.0f + pull * length)));
  const auto most = static_cast<float>((half - 1) / multiples[column]);
  return static_cast<int>(std::clamp(level, -most, most)) * multiples[column] + half;
}

uint64_t CodedBytes(const QuantizedMatrix& matrix, uint64_t rows_of_whole) {
  auto plain = ToPlain(matrix);
  if (!plain.ok()) return UINT64_MAX;
  if (rows_of_whole > matrix.shape.rows) {
    // A sample stands for the whole by repetition, as far as a chunk reaches.
    QuantizedMatrix tiled = matrix;
    const uint64_t copies = std::max<uint64_t>(
        1, std::min(rows_of_whole / matrix.shape.rows, kMaxChunkPlainBytes / std::max<uint64_t>(1, plain->size())));
    for (uint64_t i = 1; i < copies; ++i) {
      tiled.codes.insert(tiled.codes.end(), matrix.codes.begin(), matrix.codes.end());
      tiled.scales.insert(tiled.scales.end(), matrix.scales.begin(), matrix.scales.end());
    }
    tiled.shape.rows *= copies;
    return CodedBytes(tiled, tiled.shape.rows) * rows_of_whole / tiled.shape.rows;
  }
  std::vector<RansRun> runs;
  if (!AppendRansRuns(matrix.codec, matrix.shape, &runs).ok()) return UINT64_MAX;
  uint64_t bytes = 0;
  for (uint64_t at = 0; at < plain->size(); at += kMaxChunkPlainBytes) {
    const uint64_t end = std::min<uint64_t>(at + kMaxChunkPlainBytes, plain->size());
    bytes += EncodeRans(ByteSpan(*plain).subspan(at, end - at), CutRansRuns(runs, at, end)).size();
  }
  return bytes;
}

Result<bool> KeepsRate(const RatedCodec& codec, const QuantizedMatrix& matrix) {
  if (codec.rate == 0) return true;
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t most, StoredBytes(codec, matrix.shape));
  return CodedBytes(matrix, matrix.shape.rows) <= most;
}

}  // namespace moepack
