// A model in memory: its program and where its weights are. Nothing after this knows ONNX or safetensors.
//
// Weights stay on disk (memory-mapped) until loaded; a Model of any size costs little memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/status.h"
#include "format/codec/codec.h"
#include "format/program.h"

namespace moepack {

// Hands out weights as float32, row-major. Thread-safe. Every Load checks that all values are finite (kNotFinite with
// tensor name and index). Storage of the caller; mapped pages are released again.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual Result<std::vector<float>> Load(TensorId tensor) const = 0;
  virtual Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const = 0;
  // How the weight is stored where it comes from.
  virtual Codec StoredCodec(TensorId tensor) const = 0;
  virtual Codec StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const = 0;
  // The codes of a weight that StoredCodec says is of integers, where the source keeps them (compressed models do);
  // kUnsupported elsewhere.
  virtual Result<QuantizedMatrix> LoadCodes(TensorId) const { return NoCodes(); }
  virtual Result<QuantizedMatrix> LoadExpertCodes(uint32_t, uint32_t, ExpertMatrix) const { return NoCodes(); }

 private:
  static Status NoCodes() { return Status(ErrorCode::kUnsupported, "a checkpoint has no codes of compressed weights"); }
};

enum class ModelSource : uint8_t { kHuggingFace, kOnnx, kCompressed, kConfigOnly };

struct Model {
  ModelSource source = ModelSource::kHuggingFace;
  std::string family;  // model_type, "onnx", or of the model a folder was made from; for people only
  Program program;     // validated
  std::shared_ptr<const TensorSource> tensors;                     // null for kConfigOnly
  Bytes tokenizer;                                                 // compiled tokenizer blob, empty when the model has none
  std::vector<std::string> accepted_keys;                          // OpenOptions::accept_keys, sorted, each once
  std::vector<std::pair<std::string, std::string>> input_digests;  // file name (no folder) -> SHA-256 hex of what was read
};

struct OpenOptions {
  // Hash every input file for provenance (reads all weights once).
  bool digests = false;
  // Keys of config.json that are neither honoured nor known to be inert, and are to be taken as inert. Of an object inside:
  // "text_config.key". kUsage for one that would not be refused.
  std::vector<std::string> accept_keys;
};

// A Hugging Face folder (config.json + safetensors), an .onnx file or a folder whose genai_config.json names one, a
// compressed model folder, or a config.json alone.
// kNotFound, kUnknownFamily, kUnknownKey, kMissingTensor, kShape, kUnsupported, kBadInput ...: each names file and field.
Result<Model> OpenModel(Env& env, const std::string& path, const OpenOptions& options = {});

}  // namespace moepack
