// Writes the nodes of one decoder; split by part so that each reads like the formula it stands for. Internal to
// BuildDecoder.
#pragma once

#include <string>
#include <vector>

#include "model/family/decoder.h"

namespace moepack {

class DecoderWriter {
 public:
  explicit DecoderWriter(const DecoderSpec& spec) : spec_(spec) {}
  CheckpointLayout Build();

 private:
  ValueId Layer(ValueId x, int32_t layer);
  ValueId Norm(ValueId x, const std::string& name, const std::string& prefix, const std::string& module);
  // `name` in the program, `module` in the checkpoint, both below the layer.
  ValueId Linear(ValueId x, const std::string& name, const std::string& module, uint64_t rows, TensorRole role,
                 bool bias = false);
  ValueId LinearAt(ValueId x, const std::string& name, WeightRef weight, uint64_t rows, TensorRole role);
  ValueId Scale(ValueId x, float factor) { return factor == 1 ? x : builder_.AddUnary(ElementOp::kScale, x, factor); }

  // decoder_mixer.cc
  ValueId Attention(ValueId x, int32_t layer);
  ValueId LatentAttention(ValueId x, int32_t layer);
  ValueId LatentQueries(ValueId x);
  ValueId Convolution(ValueId x);
  ValueId Projection(ValueId x, const std::string& name, uint32_t heads, bool query_or_key);
  ValueId Rotate(ValueId x, uint32_t heads, bool rotated);
  AttentionNode AttentionOf(int32_t layer);
  bool Rotated(int32_t layer) const { return spec_.unrotated.empty() || !spec_.unrotated[static_cast<size_t>(layer)]; }

  ValueId GatedMlp(ValueId x, const std::string& name, const std::string& module,
                   const std::array<std::string, kExpertMatrices>& matrices, uint64_t width, TensorRole role);
  ValueId SharedExpert(ValueId x);
  ValueId Moe(ValueId x);
  ExpertRefs Expert(uint32_t e) const;
  void AddExpertBiases(MoeNode* moe);

  const DecoderSpec& spec_;
  ProgramBuilder builder_;
  std::string program_, checkpoint_;  // prefixes of the layer being written
};

}  // namespace moepack
