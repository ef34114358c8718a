// Every weight tensor of a program as one flat list: what plans, error tables and recipes talk about.
#pragma once

#include <string>
#include <vector>

#include "format/codec/codec.h"
#include "format/manifest/model_folder.h"
#include "format/program.h"

namespace moepack {

// One tensor of a program: a dense tensor, or one matrix of one expert.
struct TensorRef {
  std::string name;  // TensorDecl::name or ExpertTensorName
  MatrixShape shape;
  UnitKey unit;       // dense units: {expert = false}
  int32_t block = 0;  // program block that stores it
  int32_t layer = -1;
  TensorRole role = TensorRole::kOther;  // dense tensors only
  TensorId dense = kNone;                // dense tensors only
  uint32_t table = 0, expert = 0;        // experts only; `expert` is the index in the (possibly shrunken) table
  ExpertMatrix matrix = ExpertMatrix::kGate;
  bool is_expert() const { return unit.expert; }
  uint64_t parameters() const { return shape.rows * shape.cols; }
};

// All tensors in the order in which a model folder stores them: by block; in a block the dense tensors by id, then the
// experts by table and index, each as gate, up, down. Tensors that no node uses are left out.
std::vector<TensorRef> ListTensors(const Program& program);

// Where a tensor's plain bytes lie in a unit's.
struct TensorBytes {
  const UnitTensor* info = nullptr;  // of the unit
  uint64_t offset = 0, bytes = 0;
};
// kBadInput when the unit is too short for its tensors.
Result<std::vector<TensorBytes>> BytesOfTensors(const FolderUnit& unit);

}  // namespace moepack
