// What one tensor learns, apart from its encoded form: distillation reads that from where it is stored, lets the learner
// change it, and never holds more of a model than what learns.
#pragma once

#include <array>
#include <span>
#include <utility>
#include <vector>

#include "format/codec/codec.h"
#include "forward/forward.h"

namespace moepack {

// Sizes of a step. Float weights and scales move by shares of themselves, so that one rate fits every tensor and model.
struct StepSize {
  double weights = 0;                      // of a float tensor, in units of its root mean square
  double scales = 0;                       // of scales and minima, in units of the scale
  double codes = 0;                        // of codes, in units of a quantization step
  float mean_scale = 1, square_scale = 1;  // Adam's corrections of its moments
};

// Step `step` (from 1) of `steps`: rises over the first twentieth, then falls to zero along a cosine.
StepSize StepSizeAt(uint64_t step, uint64_t steps, double rate, double code_rate);

// An order that depends on the epoch only.
template <typename T>
void ShuffleForEpoch(uint64_t epoch, std::vector<T>* items) {
  uint64_t state = 0x9E3779B97F4A7C15ull * (epoch + 1);
  for (size_t i = items->size(); i > 1; --i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    std::swap((*items)[i - 1], (*items)[(state >> 33) % i]);
  }
}

// Moments of Adam (1412.6980) and the move they give.
class Adam {
 public:
  void Resize(size_t count) {
    mean_.assign(count, 0.0f);
    square_.assign(count, 0.0f);
  }
  // The move of entry i in units of the step size, about -1 to 1; entries are updated once a step.
  float Move(size_t i, float gradient, const StepSize& size);
  std::array<std::span<float>, 2> state() { return {mean_, square_}; }

 private:
  std::vector<float> mean_, square_;
};

enum class Learns : uint8_t {
  kScales,  // scales and minima of integer tensors; float tensors whole
  kAll,     // also the rounding of every code (straight-through, after AutoRound 2309.05516)
};

class Learner {
 public:
  Learner(const QuantizedMatrix& encoded, Learns learns);
  // What was learnt so far, rounded to what the codec stores, into `encoded`: the tensor as it was at the beginning, or as
  // Apply left it. Masks and what `Learns` leaves out stay.
  void Apply(QuantizedMatrix* encoded) const;
  // gradient: of the loss by the weights that `encoded`, as Apply leaves it, stands for. Gradients pass through rounding.
  void Step(const Matrix& gradient, const QuantizedMatrix& encoded, const StepSize& size);
  // All that steps change, for who goes on later with a learner of the same tensor.
  std::vector<std::span<float>> State();
  // Most bytes that a learner takes.
  static uint64_t Bytes(const Codec& codec, const MatrixShape& shape, Learns learns);

 private:
  void StepFloat(const Matrix& gradient, const QuantizedMatrix& encoded, const StepSize& size);
  void StepGroup(size_t row, size_t group, const Matrix& gradient, const QuantizedMatrix& encoded, const StepSize& size);

  float unit_ = 0;                           // float tensors: root mean square of what was kept
  std::vector<float> latent_;                // float tensors: weights; integer ones: codes before rounding, empty if fixed
  std::vector<float> scales_, mins_, base_;  // base: size of each scale when learning began
  Adam adam_, scale_adam_, min_adam_;
};

}  // namespace moepack
