// Weights of an imported ONNX graph: which constant each tensor of the program is, and how it lies there. Internal to the
// ONNX front-end.
#pragma once

#include <memory>
#include <vector>

#include "model/frontend/onnx_file.h"
#include "model/model.h"

namespace moepack {

struct OnnxWeight {
  const OnnxTensor* tensor = nullptr;
  uint64_t rows = 0, cols = 0;  // of the program's tensor
  bool transposed = false;      // stored [cols, rows]
};

// How gate and up lie in the inputs of a MoE node.
enum class Fc1Layout : uint8_t {
  kUpOnly,        // fc1 is up
  kSeparate,      // fc1 is gate, fc3 is up
  kInterleaved,   // fc1 rows: gate 0, up 0, gate 1, up 1 ...
  kConcatenated,  // fc1 rows: all of gate, all of up
};

struct OnnxExperts {
  const OnnxTensor *fc1 = nullptr, *fc2 = nullptr, *fc3 = nullptr;
  Fc1Layout layout = Fc1Layout::kUpOnly;
  uint64_t experts = 0, hidden = 0, intermediate = 0;
};

class OnnxTensorSource final : public TensorSource {
 public:
  // `tensors` by TensorId, `experts` by expert table; shapes were checked against the constants.
  OnnxTensorSource(std::shared_ptr<const OnnxFile> file, std::vector<OnnxWeight> tensors, std::vector<OnnxExperts> experts)
      : file_(std::move(file)), tensors_(std::move(tensors)), experts_(std::move(experts)) {}

  Result<std::vector<float>> Load(TensorId tensor) const override;
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override;
  Codec StoredCodec(TensorId tensor) const override;
  Codec StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override;

 private:
  // `rows` rows of `cols` values, `step` rows apart, from row `first` of the tensor seen as [.., cols].
  Result<std::vector<float>> ReadRows(const OnnxTensor& tensor, uint64_t first, uint64_t step, uint64_t rows,
                                      uint64_t cols) const;

  std::shared_ptr<const OnnxFile> file_;
  std::vector<OnnxWeight> tensors_;
  std::vector<OnnxExperts> experts_;
};

}  // namespace moepack
