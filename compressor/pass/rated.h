// Steps for codes that will be entropy coded. A uniform grid followed by an entropy coder is within 0.25 bit of the Gaussian
// rate-distortion bound, at any rate, when every weight's step costs the same loss: water-filling over the columns, whose
// loss weighs 1 / U_jj^2 (GptqFactor), and over the rows by how often they are used. The resident form stays plain integers
// with a scale a row: a column with a wider step uses every second, third ... code only.
#pragma once

#include <cstdint>
#include <vector>

#include "compressor/pass/gptq.h"
#include "compressor/rated_codec.h"

namespace moepack {

struct StepPlan {
  // What a bit is worth in units of a step's square. At the optimum of rate and distortion, ln 2 / 6 = 0.12; less was
  // measured to be best, since the error that GPTQ pushes on is then no longer noise without a mean.
  static constexpr float kPull = 0.08f;

  std::vector<uint8_t> multiples;  // [cols] codes of a column lie this far apart
  std::vector<float> scales;       // [rows] exactly representable in f16
  std::vector<float> spread;       // [rows] mean square of the weights
  int half = 128;                  // 2^(bits-1)

  // Code of a weight given what one more unit of squared error in its column is worth against a bit: `pull` shrinks it
  // towards codes that take fewer bits (exact for codes of Gaussian weights, whose length grows with their square).
  int Level(size_t row, size_t column, float w, float pull) const;
  float Step(size_t row, size_t column) const { return scales[row] * static_cast<float>(multiples[column]); }
};

// Steps proportional to `step`, the mean one. factor: null for columns alike. row_weights: [rows] or empty.
StepPlan PlanSteps(const Matrix& weights, const Codec& codec, const GptqFactor* factor,
                   const std::vector<float>& row_weights, double step);

// Bytes of a matrix as a bundle stores it: entropy coded, cut into chunks. `rows_of_whole`: how many rows the matrix has of
// which `matrix` is a sample (its own number otherwise); the result is for all of them.
uint64_t CodedBytes(const QuantizedMatrix& matrix, uint64_t rows_of_whole);

// Whether a whole matrix takes no more than its codec's rate allows; true for a codec without one.
Result<bool> KeepsRate(const RatedCodec& codec, const QuantizedMatrix& matrix);

}  // namespace moepack
