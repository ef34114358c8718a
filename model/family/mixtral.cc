// Mixtral (2401.04088): GQA without biases, an optional sliding window on every layer, softmax over all experts, top k,
// renormalised.
#include "model/family/decoder.h"
#include "model/family/family.h"

namespace moepack {
namespace {

constexpr const char* kInert[] = {"router_jitter_noise"};  // training only

CheckpointLayout Build(ConfigReader& config) {
  DecoderSpec spec = ReadDecoder(config);
  spec.window.assign(spec.layers, static_cast<uint32_t>(config.CountOr("sliding_window", 0, 1, kMaxPositions)));
  spec.moe.module = "block_sparse_moe";
  spec.moe.matrices = {"w1", "w3", "w2"};
  ReadMoe(config, "num_local_experts", "intermediate_size", true, &spec);
  return config.status().ok() ? BuildDecoder(spec) : CheckpointLayout();
}

}  // namespace

const Family& MixtralFamily() {
  static constexpr Family kFamily = {"mixtral", &Build, kInert};
  return kFamily;
}

}  // namespace moepack
