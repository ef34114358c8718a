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
          out[t] = Rotate(node.rotary, in(0)[t], t, n);
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
          for (size_t h = 0, heads = std::max<uint32_t>(node.concat.heads, 1); h < heads; ++h) {
            for (size_t i = 0; i < node.inputs.size(); ++i) {
              const std::vector<double>& x = in(i)[t];
              const bool shared = i + node.concat.shared >= node.inputs.size();
              const size_t part = shared ? x.size() : x.size() / heads, from = shared ? 0 : h * part;
              out[t].insert(out[t].end(), &x[from], &x[from] + part);
            }
          }
          break;
        case NodeKind::kConvolution:
          out[t] = Convolve(node.convolution, in(0), t);
          break;
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

  static std::vector<double> Rotate(const RotaryNode& node, const std::vector<double>& x, size_t position, size_t length) {
    std::vector<double> y = x;
    const bool longer = node.long_from > 0 && length > node.long_from;
    const std::vector<float>& inv_freq = longer ? node.long_inv_freq : node.inv_freq;
    const double magnitude = longer ? node.long_magnitude : node.magnitude;
    for (size_t h = 0; h < node.heads; ++h) {
      for (size_t i = 0; i < node.rotary_dim / 2; ++i) {
        const double angle = static_cast<double>(position) * inv_freq[i];
        const size_t first = h * node.head_dim + node.offset;
        const size_t a = first + (node.interleaved ? 2 * i : i);
        const size_t b = first + (node.interleaved ? 2 * i + 1 : i + node.rotary_dim / 2);
        y[a] = (x[a] * std::cos(angle) - x[b] * std::sin(angle)) * magnitude;
        y[b] = (x[b] * std::cos(angle) + x[a] * std::sin(angle)) * magnitude;
      }
    }
    return y;
  }

  std::vector<double> Convolve(const ConvolutionNode& node, const Rows& x, size_t t) {
    const std::vector<float>& weight = Dense(node.weight);
    std::vector<double> y(x[t].size(), 0.0);
    const size_t width = weight.size() / y.size();
    for (size_t c = 0; c < y.size(); ++c) {
      if (node.bias != kNone) y[c] = Dense(node.bias)[c];
      for (size_t back = 0; back < width && back <= t; ++back) y[c] += weight[(c + 1) * width - 1 - back] * x[t - back][c];
    }
    return y;
  }

  std::vector<double> Attend(const AttentionNode& node, const std::vector<double>& q, const Rows& k, const Rows& v,
                             size_t t) {
    std::vector<double> y(node.heads * node.value_width(), 0.0);
    for (size_t h = 0; h < node.heads; ++h) {
      const size_t kv_head = h / (node.heads / node.kv_heads), d = node.head_dim, dv = node.value_width();
      const size_t kv = kv_head * d;
      std::vector<double> scores;
      size_t first = node.window != 0 && t + 1 > node.window ? t + 1 - node.window : 0;
      if (node.chunk != 0) first = std::max(first, t - t % node.chunk);
      double factor = node.scale;
      if (node.position_floor != 0) {
        factor *= 1 + node.position_scale * std::log(1 + std::floor(static_cast<double>(t + 1) / node.position_floor));
      }
      for (size_t s = first; s <= t; ++s) {
        double dot = 0;
        for (size_t c = 0; c < d; ++c) dot += q[h * d + c] * k[s][kv + c];
        dot *= factor;
        scores.push_back(node.softcap > 0 ? node.softcap * std::tanh(dot / node.softcap) : dot);
      }
      const double largest = *std::max_element(scores.begin(), scores.end());
      double sum = node.sinks == kNone ? 0 : std::exp(Dense(node.sinks)[h] - largest);
      for (double& s : scores) sum += s = std::exp(s - largest);
      for (size_t s = first; s <= t; ++s) {
        for (size_t c = 0; c < dv; ++c) y[h * dv + c] += scores[s - first] / sum * v[s][kv_head * dv + c];
      }
    }
    return y;
  }

  // Scores of the experts in `over`, 0 for the others.
  static std::vector<double> Scores(const RoutingRecord& r, const std::vector<double>& logits,
                                    const std::vector<uint32_t>& over) {
    std::vector<double> scores(logits.size(), 0.0);
    double sum = 0;
    for (uint32_t e : over) sum += std::exp(logits[e]);
    for (uint32_t e : over) {
      scores[e] = r.score == ScoreFunction::kSigmoid ? 1 / (1 + std::exp(-logits[e])) : std::exp(logits[e]) / sum;
    }
    return scores;
  }

  static std::vector<uint32_t> Largest(const std::vector<double>& values, size_t count) {
    std::vector<uint32_t> order(values.size());
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return values[a] > values[b]; });
    order.resize(count);
    return order;
  }

  static void KeepGroups(const RoutingRecord& r, const std::vector<uint32_t>& original, std::vector<double>* selection) {
    std::map<uint32_t, std::vector<double>> groups;
    for (size_t e = 0; e < original.size(); ++e) groups[original[e] / r.group_size].push_back((*selection)[e]);
    std::vector<double> scores;
    for (auto& [group, members] : groups) {
      std::sort(members.rbegin(), members.rend());
      const bool two = r.group_rule == GroupRule::kTwoLargest && members.size() > 1;
      scores.push_back(members[0] + (two ? members[1] : 0));
    }
    const std::vector<uint32_t> kept = Largest(scores, std::min<size_t>(r.top_groups, scores.size()));
    for (size_t e = 0; e < original.size(); ++e) {
      const auto place = std::distance(groups.begin(), groups.find(original[e] / r.group_size));
      if (std::find(kept.begin(), kept.end(), place) == kept.end()) (*selection)[e] = -HUGE_VAL;
    }
  }

  static void SparseMixer(const RoutingRecord& r, std::vector<double> left, NaiveRouted* routed) {
    for (uint32_t i = 0; i < r.k; ++i) {
      const uint32_t best = Largest(left, 1)[0];
      double sum = 0;
      for (double l : left) {
        if (std::isfinite(l) && (left[best] - l) / std::max(std::abs(l), left[best]) <= 2.0 * r.mixer_eps)
          sum += std::exp(l - left[best]);
      }
      routed->ids.push_back(best);
      routed->gates.push_back(1 / sum);
      left[best] = -HUGE_VAL;
    }
  }

  NaiveRouted RouteToken(const MoeNode& node, const std::vector<double>& logits) {
    const RoutingRecord& r = node.routing;
    NaiveRouted routed;
    if (r.score == ScoreFunction::kSparseMixer) {
      SparseMixer(r, logits, &routed);
    } else {
      std::vector<uint32_t> all(logits.size());
      std::iota(all.begin(), all.end(), 0u);
      std::vector<double> selection = r.score_before_topk ? Scores(r, logits, all) : logits;
      const std::vector<double> before = selection;
      for (size_t e = 0; node.selection_bias != kNone && e < selection.size(); ++e)
        selection[e] += Dense(node.selection_bias)[e];
      if (r.group_size > 0) KeepGroups(r, program_.expert_tables[node.table].original, &selection);
      routed.ids = Largest(selection, r.k);
      const std::vector<double> scores = r.score_before_topk ? before : Scores(r, logits, routed.ids);
      for (uint32_t id : routed.ids) routed.gates.push_back(scores[id]);
    }
    const double sum = std::accumulate(routed.gates.begin(), routed.gates.end(), static_cast<double>(r.eps));
    for (double& gate : routed.gates) gate = gate / (r.renormalise ? sum : 1) * r.scale;
    return routed;
  }

  void AddRow(TensorId bias, uint32_t expert, std::vector<double>* values) {
    if (bias == kNone) return;
    const uint64_t cols = program_.tensors[bias].cols;
    for (size_t c = 0; c < values->size(); ++c) (*values)[c] += Dense(bias)[expert * cols + c];
  }

  std::vector<double> Hidden(const MoeNode& node, uint32_t e, const std::vector<double>& x) {
    const ActivationRecord& a = node.activation;
    std::vector<double> up = MatVec(Expert(node.table, e, ExpertMatrix::kUp), x);
    AddRow(node.up_bias, e, &up);
    if (!a.gated) {
      for (double& v : up) v = NaiveActivate(a.function, v);
      return up;
    }
    std::vector<double> gate = MatVec(Expert(node.table, e, ExpertMatrix::kGate), x);
    AddRow(node.gate_bias, e, &gate);
    for (size_t c = 0; c < up.size(); ++c) {
      const double limit = a.limit > 0 ? a.limit : HUGE_VAL, g = std::min(gate[c], limit);
      const double f = a.sigmoid_scale > 0 ? g / (1 + std::exp(-a.sigmoid_scale * g)) : NaiveActivate(a.function, g);
      up[c] = f * (std::clamp(up[c], -limit, limit) + a.up_offset);
    }
    return up;
  }

  std::vector<double> Moe(const MoeNode& node, const std::vector<double>& x, const std::vector<double>& logits,
                          NaiveRun* run) {
    NaiveRouted routed = RouteToken(node, logits);
    std::vector<double> y(x.size(), 0.0);
    for (size_t i = 0; i < routed.ids.size(); ++i) {
      std::vector<double> in = x;
      if (node.routing.weight_on_input) {
        for (double& v : in) v *= routed.gates[i];
        routed.gates[i] = 1;
      }
      routed.hidden.push_back(Hidden(node, routed.ids[i], in));
      routed.output.push_back(MatVec(Expert(node.table, routed.ids[i], ExpertMatrix::kDown), routed.hidden[i]));
      AddRow(node.down_bias, routed.ids[i], &routed.output[i]);
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
