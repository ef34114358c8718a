// For tests: a program run in the plainest way, in double, one sequence and one value at a time, written from
// format/program.h alone. What forward/ and calibrate/ compute is compared with it.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include "format/program.h"
#include "model/model.h"

namespace moepack::testing {

using Rows = std::vector<std::vector<double>>;  // [tokens][width]

// What a MoE node did at one token.
struct NaiveRouted {
  std::vector<uint32_t> ids;  // largest weight first
  std::vector<double> gates;
  std::vector<std::vector<double>> hidden, output;  // by slot: input of down, f(x)
};

struct NaiveRun {
  std::map<ValueId, Rows> values;                       // every value of the program
  std::map<uint32_t, std::vector<NaiveRouted>> routed;  // by expert table, by token
};

inline double NaiveActivate(Activation f, double x) {
  switch (f) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kIdentity:
      return x;
  }
  return 0;
}

class NaiveForward {
 public:
  NaiveForward(const Program& program, const TensorSource& source) : program_(program), source_(source) {}

  // Runs one sequence from its tokens; `given` replaces what nodes would compute (to change a value and go on from there).
  NaiveRun Run(const std::vector<int32_t>& tokens, const std::map<ValueId, Rows>& given = {}) {
    NaiveRun run;
    for (const Node& node : program_.nodes) {
      const auto replaced = given.find(node.output);
      run.values[node.output] = replaced != given.end() ? replaced->second : Compute(node, tokens, &run);
    }
    return run;
  }

 private:
  const std::vector<float>& Dense(TensorId id) {
    auto [it, fresh] = dense_.try_emplace(id);
    if (fresh) it->second = source_.Load(id).value();
    return it->second;
  }

  const std::vector<float>& Expert(uint32_t table, uint32_t e, ExpertMatrix m) {
    auto [it, fresh] = experts_.try_emplace({table, e, m});
    if (fresh) it->second = source_.LoadExpert(table, e, m).value();
    return it->second;
  }

  static std::vector<double> MatVec(const std::vector<float>& w, const std::vector<double>& x) {
    std::vector<double> y(w.size() / x.size(), 0.0);
    for (size_t r = 0; r < y.size(); ++r) {
      for (size_t c = 0; c < x.size(); ++c) y[r] += static_cast<double>(w[r * x.size() + c]) * x[c];
    }
    return y;
  }

  Rows Compute(const Node& node, const std::vector<int32_t>& tokens, NaiveRun* run) {
    const size_t n = tokens.size();
    const auto in = [&](size_t i) -> const Rows& { return run->values.at(node.inputs[i]); };
    Rows out(n, std::vector<double>(program_.values[node.output].width, 0.0));
    for (size_t t = 0; t < n; ++t) {
      switch (node.kind) {
        case NodeKind::kEmbedding: {
          const auto& table = Dense(node.embedding.table);
          for (size_t c = 0; c < out[t].size(); ++c) out[t][c] = table[tokens[t] * out[t].size() + c];
          break;
        }
        case NodeKind::kLinear: {
          out[t] = MatVec(Dense(node.linear.weight), in(0)[t]);
          if (node.linear.bias == kNone) break;
          const auto& bias = Dense(node.linear.bias);
          for (size_t c = 0; c < out[t].size(); ++c) out[t][c] += bias[c];
          break;
        }
        case NodeKind::kNorm:
          out[t] = Norm(node.norm, in(0)[t]);
          break;
        case NodeKind::kRotary:
          out[t] = Rotate(node.rotary, in(0)[t], t);
          break;
        case NodeKind::kAttention:
          out[t] = Attend(node.attention, in(0)[t], in(1), in(2), t);
          break;
        case NodeKind::kMoe:
          out[t] = Moe(node.moe, in(0)[t], in(1)[t], run);
          break;
        case NodeKind::kElementwise:
          for (size_t c = 0; c < out[t].size(); ++c) {
            const bool two = node.inputs.size() > 1;
            out[t][c] = Element(node.elementwise, in(0)[t][c], two ? in(1)[t][in(1)[t].size() == 1 ? 0 : c] : 0);
          }
          break;
        case NodeKind::kSlice:
          for (size_t c = 0; c < out[t].size(); ++c) out[t][c] = in(0)[t][node.slice.begin + c];
          break;
        case NodeKind::kConcat:
          out[t].clear();
          for (size_t i = 0; i < node.inputs.size(); ++i) out[t].insert(out[t].end(), in(i)[t].begin(), in(i)[t].end());
          break;
        case NodeKind::kConvolution:
          break;  // forward_test.cc checks convolutions against their formula
      }
    }
    return out;
  }

  std::vector<double> Norm(const NormNode& node, const std::vector<double>& x) {
    std::vector<double> y(x.size());
    for (size_t g = 0; g < x.size(); g += node.group) {
      double mean = 0, variance = 0;
      if (node.kind == NormKind::kLayer) mean = std::accumulate(&x[g], &x[g] + node.group, 0.0) / node.group;
      for (size_t c = 0; c < node.group; ++c) variance += (x[g + c] - mean) * (x[g + c] - mean) / node.group;
      for (size_t c = 0; c < node.group; ++c) {
        y[g + c] = (x[g + c] - mean) / std::sqrt(variance + node.eps);
        if (node.weight != kNone) y[g + c] *= Dense(node.weight)[c] + (node.one_plus_weight ? 1 : 0);
        if (node.bias != kNone) y[g + c] += Dense(node.bias)[c];
      }
    }
    return y;
  }

  static std::vector<double> Rotate(const RotaryNode& node, const std::vector<double>& x, size_t position) {
    std::vector<double> y = x;
    for (size_t h = 0; h < node.heads; ++h) {
      for (size_t i = 0; i < node.rotary_dim / 2; ++i) {
        const double angle = static_cast<double>(position) * node.inv_freq[i];
        const size_t a = h * node.head_dim + (node.interleaved ? 2 * i : i);
        const size_t b = h * node.head_dim + (node.interleaved ? 2 * i + 1 : i + node.rotary_dim / 2);
        y[a] = (x[a] * std::cos(angle) - x[b] * std::sin(angle)) * node.magnitude;
        y[b] = (x[b] * std::cos(angle) + x[a] * std::sin(angle)) * node.magnitude;
      }
    }
    return y;
  }

  static std::vector<double> Attend(const AttentionNode& node, const std::vector<double>& q, const Rows& k, const Rows& v,
                                    size_t t) {
    std::vector<double> y(q.size(), 0.0);
    for (size_t h = 0; h < node.heads; ++h) {
      const size_t kv = h / (node.heads / node.kv_heads) * node.head_dim, d = node.head_dim;
      std::vector<double> scores;
      const size_t first = node.window != 0 && t + 1 > node.window ? t + 1 - node.window : 0;
      for (size_t s = first; s <= t; ++s) {
        double dot = 0;
        for (size_t c = 0; c < d; ++c) dot += q[h * d + c] * k[s][kv + c];
        dot *= node.scale;
        scores.push_back(node.softcap > 0 ? node.softcap * std::tanh(dot / node.softcap) : dot);
      }
      const double largest = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (double& s : scores) sum += s = std::exp(s - largest);
      for (size_t s = first; s <= t; ++s) {
        for (size_t c = 0; c < d; ++c) y[h * d + c] += scores[s - first] / sum * v[s][kv + c];
      }
    }
    return y;
  }

  std::vector<double> Moe(const MoeNode& node, const std::vector<double>& x, const std::vector<double>& logits,
                          NaiveRun* run) {
    const RoutingRecord& r = node.routing;
    std::vector<uint32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
    NaiveRouted routed;
    routed.ids.assign(order.begin(), order.begin() + r.k);
    double sum = 0, chosen = 0;
    for (size_t i = 0; i < (r.score_before_topk ? order.size() : r.k); ++i) sum += std::exp(logits[order[i]]);
    for (uint32_t id : routed.ids) {
      routed.gates.push_back(r.score == ScoreFunction::kSoftmax ? std::exp(logits[id]) / sum
                                                                : 1 / (1 + std::exp(-logits[id])));
      chosen += routed.gates.back();
    }
    std::vector<double> y(x.size(), 0.0);
    for (size_t i = 0; i < r.k; ++i) {
      routed.gates[i] = routed.gates[i] / (r.renormalise ? chosen + r.eps : 1) * r.scale;
      std::vector<double> h = MatVec(Expert(node.table, routed.ids[i], ExpertMatrix::kUp), x);
      std::vector<double> g = node.activation.gated ? MatVec(Expert(node.table, routed.ids[i], ExpertMatrix::kGate), x) : h;
      for (size_t c = 0; c < h.size(); ++c) {
        h[c] = NaiveActivate(node.activation.function, g[c]) * (node.activation.gated ? h[c] : 1);
      }
      routed.hidden.push_back(h);
      routed.output.push_back(MatVec(Expert(node.table, routed.ids[i], ExpertMatrix::kDown), h));
      for (size_t c = 0; c < y.size(); ++c) y[c] += routed.gates[i] * routed.output[i][c];
    }
    run->routed[node.table].push_back(std::move(routed));
    return y;
  }

  static double Element(const ElementwiseNode& node, double a, double b) {
    switch (node.op) {
      case ElementOp::kAdd:
        return a + b;
      case ElementOp::kMul:
        return a * b;
      case ElementOp::kScale:
        return a * node.alpha;
      case ElementOp::kSigmoid:
        return 1 / (1 + std::exp(-a));
      case ElementOp::kSilu:
        return NaiveActivate(Activation::kSilu, a);
      case ElementOp::kGelu:
        return NaiveActivate(Activation::kGelu, a);
      case ElementOp::kGeluTanh:
        return NaiveActivate(Activation::kGeluTanh, a);
      case ElementOp::kRelu:
        return std::max(a, 0.0);
      case ElementOp::kClamp:
        return std::clamp<double>(a, -node.alpha, node.alpha);
    }
    return 0;
  }

  const Program& program_;
  const TensorSource& source_;
  std::map<TensorId, std::vector<float>> dense_;
  std::map<std::tuple<uint32_t, uint32_t, ExpertMatrix>, std::vector<float>> experts_;
};

}  // namespace moepack::testing
