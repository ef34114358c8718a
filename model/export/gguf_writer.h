// The GGUF container: key-values, tensor table, aligned data. Not for use outside of model/export/gguf*.cc.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "model/export/gguf_element.h"

namespace moepack {

inline constexpr uint64_t kGgufAlignment = 32;

struct GgufTensorInfo {
  std::string name;
  std::vector<uint64_t> dims;  // fastest first: [cols, rows, experts]
  GgufElement element = GgufElement::kF32;
  uint64_t bytes() const {
    uint64_t n = 1;
    for (uint64_t d : dims) n *= d;
    return GgufBytes(element, n);
  }
};

// Bytes of padding after `size` bytes.
inline uint64_t GgufPadding(uint64_t size) { return (kGgufAlignment - size % kGgufAlignment) % kGgufAlignment; }

class GgufHeader {
 public:
  void Text(const std::string& key, const std::string& value);
  void U32(const std::string& key, uint32_t value);
  void F32(const std::string& key, float value);
  void Flag(const std::string& key, bool value);
  void Texts(const std::string& key, const std::vector<std::string>& values);
  void I32s(const std::string& key, const std::vector<int32_t>& values);

  // Magic to the last padding byte before the data; tensors' data follow in order, each padded to kGgufAlignment.
  Bytes Finish(const std::vector<GgufTensorInfo>& tensors) const;

 private:
  void Key(const std::string& key, uint32_t type);
  ByteWriter values_;
  uint64_t count_ = 0;
};

}  // namespace moepack
