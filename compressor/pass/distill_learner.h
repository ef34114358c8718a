// One tensor that learns: its encoded form, what gradient steps move, and the weights that both stand for.
#pragma once

#include "compressor/tensors.h"
#include "format/codec/codec.h"
#include "forward/forward.h"

namespace moepack {

// Sizes of a step. Float weights and scales move by shares of themselves, so that one rate fits every tensor and model.
struct StepSize {
  double weights = 0;                      // of a float tensor, in units of its root mean square
  double scales = 0;                       // of scales and minima, in units of the scale
  double codes = 0;                        // of codes, in units of a quantization step
  float mean_scale = 1, square_scale = 1;  // Adam's corrections of its moments
  void CorrectFor(uint64_t step);          // from 1
};

// Moments of Adam (1412.6980) and the move they give.
class Adam {
 public:
  void Resize(size_t count) {
    mean_.assign(count, 0.0f);
    square_.assign(count, 0.0f);
  }
  // The move of entry i in units of the step size, about -1 to 1; entries are updated once a step.
  float Move(size_t i, float gradient, const StepSize& size);

 private:
  std::vector<float> mean_, square_;
};

class Learner {
 public:
  // `weights` [rows, cols] get what `encoded` stands for, now and after every step.
  Learner(const TensorRef& tensor, QuantizedMatrix encoded, Matrix* weights);
  const TensorRef& tensor() const { return tensor_; }
  // gradient: of the loss by the weights.
  void Step(const Matrix& gradient, const StepSize& size);
  // The encoded form as it is now. Rounds weights and scales to what the codec stores; `weights` follow.
  const QuantizedMatrix& Encode();
  // Most bytes that learning a tensor takes, its gradient included.
  static uint64_t Bytes(const MatrixShape& shape);

 private:
  void StepFloat(const Matrix& gradient, const StepSize& size);
  void StepGroup(size_t row, size_t group, const Matrix& gradient, const StepSize& size);
  bool kept(size_t i) const { return encoded_.mask.empty() || encoded_.mask[i] != 0; }

  TensorRef tensor_;
  QuantizedMatrix encoded_;
  Matrix* weights_;
  float unit_ = 0;                           // float tensors: root mean square of what was kept
  std::vector<float> latent_;                // integer tensors: codes before rounding
  std::vector<float> scales_, mins_, base_;  // base: size of each scale when learning began
  Adam adam_, scale_adam_, min_adam_;
};

}  // namespace moepack
