// What tests of compressor/ share: a profile of a small checkpoint, without running calibration.
#pragma once

#include "model/model.h"
#include "model/profile.h"

namespace moepack {

// What calibration would have kept of the model's weights; zeros for a model without.
inline WeightDigests DigestWeights(const Model& model) {
  WeightDigests none{std::vector<Digest>(CountWeightDigests(model.program))};
  if (model.tensors == nullptr) return none;
  const DigestingSource source(model.program, *model.tensors);
  for (TensorId id = 0; id < model.program.tensors.size(); ++id) (void)source.Load(id);
  for (uint32_t t = 0; t < model.program.expert_tables.size(); ++t) {
    for (uint32_t e = 0; e < model.program.expert_tables[t].experts(); ++e) {
      for (const ExpertMatrix m : {ExpertMatrix::kGate, ExpertMatrix::kUp, ExpertMatrix::kDown})
        (void)source.LoadExpert(t, e, m);
    }
  }
  return source.Finish().value();
}

// Pseudo-random tokens in two domains, and statistics of the right shapes in which expert e of every table has saliency
// and use growing with (e * 5) % experts, and channel j of every expert grows with j.
inline Profile MakeTestProfile(const Model& model, uint64_t sequences, uint64_t length) {
  Profile p;
  p.model_digest = ProgramDigest(model.program);
  p.domains = {"novel", "python"};
  p.inputs = {{"novel", std::string(64, 'b')}};
  const auto vocabulary = static_cast<uint32_t>(model.program.values[model.program.output].width);
  uint32_t state = 12345;
  for (uint64_t s = 0; s < sequences; ++s) {
    p.sequence_start.push_back(p.tokens.size());
    p.sequence_domain.push_back(s % 2);
    for (uint64_t t = 0; t < length; ++t) {
      state = state * 1664525u + 1013904223u;
      p.tokens.push_back(static_cast<int32_t>((state >> 8) % vocabulary));
    }
  }
  for (const ExpertTableDecl& decl : model.program.expert_tables) {
    TableProfile t;
    t.experts = decl.experts();
    for (const Node& node : model.program.nodes) {
      if (node.kind == NodeKind::kMoe) t.k = node.moe.routing.k;
    }
    for (uint32_t e = 0; e < t.experts; ++e) {
      const uint32_t rank = (e * 5) % t.experts;
      t.reap.push_back(1 + rank);
      t.output_norm.push_back(1);
      t.in_sq.emplace_back(decl.hidden, 1.0f);
      std::vector<float> channels(decl.intermediate[e]);
      for (size_t j = 0; j < channels.size(); ++j) channels[j] = 1.0f + 1000.0f * static_cast<float>(j);
      t.down_sq.push_back(channels);
    }
    t.in_gate_sq = t.output_mean = t.in_sq;
    t.down_gate_sq = t.down_sq;
    for (uint32_t d = 0; d < 2; ++d) {
      for (uint32_t e = 0; e < t.experts; ++e) t.tokens.push_back((e * 5) % t.experts);
    }
    t.gate_sum.assign(t.tokens.size(), 0.5);
    t.gate_sq_sum.assign(t.tokens.size(), 0.25);
    t.coactivation.assign(size_t{t.experts} * t.experts, 0);
    p.tables.push_back(std::move(t));
  }
  p.dense_in_sq.resize(model.program.tensors.size());
  p.weights = DigestWeights(model);
  return p;
}

}  // namespace moepack
