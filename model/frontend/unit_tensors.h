// Weights of a compressed model, a folder or a bundle, dequantized unit by unit with the codecs' oracles.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "format/manifest/model_folder.h"
#include "model/model.h"

namespace moepack {

// Where the units of a compressed model are. Methods are thread-safe; references live as long as the object.
class UnitReader {
 public:
  virtual ~UnitReader() = default;
  virtual const Program& program() const = 0;
  virtual const std::vector<ModelFolder::UnitInfo>& units() const = 0;
  // Variants of every logical expert, one list a Program::expert_tables.
  virtual const std::vector<std::vector<ExpertEntry>>& experts() const = 0;
  // Plain bytes of units()[index].
  virtual Result<Bytes> ReadUnit(size_t index) const = 0;
};

// The best variant of each expert. `label` begins messages. kBadInput when units and program do not fit together.
Result<std::shared_ptr<const TensorSource>> MakeUnitTensors(std::unique_ptr<const UnitReader> reader, std::string label);

}  // namespace moepack
