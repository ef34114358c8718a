// The external data file of an exported ONNX graph: what it holds, where, and its writing. Internal to the exporter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/status.h"
#include "model/model.h"

namespace moepack {

enum class OnnxBlobKind : uint8_t {
  kTensor,            // a tensor as it is
  kTensorTransposed,  // [cols, rows]
  kTensorPlusOne,     // 1 + weight
  kTensorPair,        // two tensors of one shape, their columns in turn: [rows, 2 * cols]
  kGateUp,            // all experts, rows of gate and up in turn: [experts, 2 * width, hidden]
  kGate,              // all experts [experts, width, hidden]
  kUp,
  kDown,  // [experts, hidden, width]
  kCos,   // rotary cache [positions, rotary_dim / 2]
  kSin,
};

// One float32 tensor. Experts narrower than the widest are padded with zeros, which changes no result.
struct OnnxBlob {
  OnnxBlobKind kind = OnnxBlobKind::kTensor;
  std::string name;
  std::vector<uint64_t> shape;
  TensorId tensor = kNone;             // kTensor...
  uint32_t table = 0;                  // kGateUp, kGate, kUp, kDown
  const RotaryNode* rotary = nullptr;  // kCos, kSin; not owned
  TensorId second = kNone;             // kTensorPair
};

struct OnnxExtent {
  uint64_t offset = 0, length = 0;
};

// Where each blob lies: in order, page-aligned so that a reader may map it. kLimit on overflow.
Result<std::vector<OnnxExtent>> PlaceOnnxBlobs(const std::vector<OnnxBlob>& blobs);

// Appends the blobs to `file` as placed.
Status WriteOnnxBlobs(const Model& model, const std::vector<OnnxBlob>& blobs, const std::vector<OnnxExtent>& extents,
                      AtomicFile* file);

}  // namespace moepack
