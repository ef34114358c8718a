// For tests: small programs that use every node kind, engines over them, and the same weights for a plain evaluation.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "forward/testing/naive_forward.h"
#include "forward/testing/toy_model.h"
#include "runtime-min/engine.h"
#include "runtime-min/testing/fake_source.h"

namespace moepack::testing {

inline constexpr uint32_t kToyVocabulary = 97;

// Two layers: experts of unequal width, per-head norms, partial and interleaved rotary, a window, a softcap, a gated shared
// expert, slices and concatenation.
inline Program ToyLanguageModel() {
  ToyProgram p;
  ValueId h = p.Embedding(kToyVocabulary, 48);
  for (int layer = 0; layer < 2; ++layer) {
    ++p.block;
    const ValueId x = p.Rms(h);
    const ValueId q = p.Norm(p.Linear(x, 48, true), {.group = 12, .eps = 1e-6f, .one_plus_weight = true});
    const ValueId k = p.Linear(x, 24, layer == 0), v = p.Linear(x, 24);
    const RotaryNode rotary{.heads = 4, .head_dim = 12, .rotary_dim = 8, .interleaved = layer == 1, .magnitude = 1.1f};
    RotaryNode key_rotary = rotary;
    key_rotary.heads = 2;
    const AttentionNode attention{.heads = 4,
                                  .kv_heads = 2,
                                  .head_dim = 12,
                                  .scale = 0.29f,
                                  .window = layer == 0 ? 0u : 40u,
                                  .softcap = layer == 0 ? 0.0f : 20.0f};
    const ValueId a = p.Attention(p.Rotary(q, rotary), p.Rotary(k, key_rotary), v, attention);
    h = p.Element2(ElementOp::kAdd, h, p.Linear(a, 48));
    const ValueId y = p.Norm(h, {.kind = NormKind::kLayer, .group = 48, .eps = 1e-5f}, true, true);
    const bool gated = layer == 0;
    const RoutingRecord routing{.score = gated ? ScoreFunction::kSoftmax : ScoreFunction::kSigmoid,
                                .score_before_topk = gated,
                                .k = 3,
                                .renormalise = !gated,
                                .eps = 1e-20f,
                                .scale = 1.3f};
    const ValueId routed =
        p.Moe(y, routing, {gated ? Activation::kSilu : Activation::kGelu, gated}, {40, 33, 24, 40, 17, 40, 32});
    const ValueId gate = p.Element(ElementOp::kSilu, p.Linear(y, 20)), up = p.Linear(y, 20);
    const ValueId shared = p.Linear(p.Element2(ElementOp::kMul, gate, up), 48);
    const ValueId weight = p.Element(ElementOp::kSigmoid, p.Linear(y, 1));
    h = p.Element2(ElementOp::kAdd, h, p.Element2(ElementOp::kAdd, routed, p.Element2(ElementOp::kMul, shared, weight)));
  }
  ++p.block;
  const ValueId swapped = p.Concat({p.Slice(h, 20, 28), p.Slice(h, 0, 20)});
  p.program.output =
      p.Element(ElementOp::kClamp, p.Element(ElementOp::kScale, p.Linear(p.Rms(swapped), kToyVocabulary), 0.9f), 50);
  p.program.max_positions = 256;
  return std::move(p.program);
}

// Toy weights as `codec` stores them, for NaiveForward.
class RoundedSource final : public TensorSource {
 public:
  RoundedSource(const Program& program, const Codec& codec) : program_(program), toy_(program), codec_(codec) {}
  Result<std::vector<float>> Load(TensorId id) const override {
    const MatrixShape shape{program_.tensors[id].rows, program_.tensors[id].cols};
    return Round(shape.rows == 1 ? Codec{} : codec_, shape, toy_.Load(id).value());
  }
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t e, ExpertMatrix m) const override {
    const ExpertTableDecl& d = program_.expert_tables[table];
    MatrixShape shape{d.intermediate[e], d.hidden};
    if (m == ExpertMatrix::kDown) std::swap(shape.rows, shape.cols);
    return Round(codec_, shape, toy_.LoadExpert(table, e, m).value());
  }
  Codec StoredCodec(TensorId) const override { return codec_; }
  Codec StoredExpertCodec(uint32_t, uint32_t, ExpertMatrix) const override { return codec_; }

 private:
  static std::vector<float> Round(const Codec& codec, const MatrixShape& shape, const std::vector<float>& values) {
    std::vector<float> out(values.size());
    Dequantize(RoundToCodec(codec, shape, values), out);
    return out;
  }
  const Program& program_;
  ToySource toy_;
  Codec codec_;
};

inline std::unique_ptr<FakeSource> ToyUnits(const Program& program, const std::string& codec) {
  const ToySource toy(program);
  return std::make_unique<FakeSource>(program, ParseCodec(codec).value(),
                                      [&toy](bool expert, uint32_t id, uint32_t index, ExpertMatrix matrix) {
                                        return expert ? toy.LoadExpert(id, index, matrix).value() : toy.Load(id).value();
                                      });
}

inline std::vector<int32_t> ToyTokens(size_t n) {
  std::vector<int32_t> tokens(n);
  for (size_t i = 0; i < n; ++i) tokens[i] = static_cast<int32_t>((i * i * 7 + i * 13 + 5) % kToyVocabulary);
  return tokens;
}

// Logits of every token, run in calls of `piece` tokens.
inline std::vector<float> AllLogits(runtime::Engine& engine, const std::vector<int32_t>& tokens, size_t piece) {
  std::vector<float> all;
  engine.Reset();
  for (size_t at = 0; at < tokens.size(); at += piece) {
    const std::span<const int32_t> part = std::span(tokens).subspan(at, std::min(piece, tokens.size() - at));
    if (!engine.Run(part, static_cast<uint32_t>(part.size())).ok()) return {};
    all.insert(all.end(), engine.logits().begin(), engine.logits().end());
  }
  return all;
}

}  // namespace moepack::testing
