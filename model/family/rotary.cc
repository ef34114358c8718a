#include "model/family/rotary.h"

#include <algorithm>
#include <cmath>

namespace moepack {
namespace {

constexpr double kPi = 3.14159265358979323846;

// What every kind of scaling starts from (RoFormer, 2104.09864): base^(-2i/dim).
struct Base {
  double theta = 1;
  uint32_t dim = 0, max_positions = 0;
  double Frequency(size_t i) const { return std::pow(theta, -2.0 * static_cast<double>(i) / dim); }
  template <typename F>
  std::vector<float> Map(const F& f) const {
    std::vector<float> out(dim / 2);
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(f(i, Frequency(i)));
    return out;
  }
};

// 0.1 m ln(factor) + 1 (YaRN, section 3.4).
double Mscale(double factor, double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; }

// YaRN (2309.00071, section 3.2): dimensions that turn more than beta_fast times over the original context keep their
// frequency, those that turn less than beta_slow times are interpolated, with a ramp between.
void ReadYarn(ConfigReader& scaling, const Base& base, RotarySpec* spec) {
  const double factor = scaling.Positive("factor");
  const double fast = scaling.OptionalPositive("beta_fast").value_or(32),
               slow = scaling.OptionalPositive("beta_slow").value_or(1);
  const uint64_t original = scaling.CountOr("original_max_position_embeddings", base.max_positions, 1, kMaxPositions);
  const auto attention_factor = scaling.OptionalPositive("attention_factor");
  const double mscale = scaling.NumberOr("mscale", 0), all_dim = scaling.NumberOr("mscale_all_dim", 0);
  const bool truncate = scaling.FlagOr("truncate", true);
  const auto turns_at = [&](double turns) {
    return base.dim * std::log(static_cast<double>(original) / (turns * 2 * kPi)) / (2 * std::log(base.theta));
  };
  double low = turns_at(fast), high = turns_at(slow);
  if (truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(base.dim) - 1);
  if (low == high) high += 0.001;
  spec->inv_freq = base.Map([&](size_t i, double f) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    return f / factor * ramp + f * (1 - ramp);
  });
  const bool both = mscale != 0 && all_dim != 0;
  const double usual = both ? Mscale(factor, mscale) / Mscale(factor, all_dim) : Mscale(factor, 1);
  spec->magnitude = static_cast<float>(attention_factor.value_or(usual));
  if (all_dim != 0) spec->score_factor = static_cast<float>(Mscale(factor, all_dim) * Mscale(factor, all_dim));
}

// LongRoPE (2402.13753): a factor a frequency, one list for sequences up to the original context and one for longer ones.
void ReadLongRope(ConfigReader& config, ConfigReader& scaling, const Base& base, RotarySpec* spec) {
  const uint64_t top = config.CountOr("original_max_position_embeddings", 0, 1, kMaxPositions);
  const uint64_t original =
      scaling.CountOr("original_max_position_embeddings", top == 0 ? base.max_positions : top, 1, kMaxPositions);
  const double given = scaling.OptionalPositive("factor").value_or(1);
  const double ratio =
      original == base.max_positions ? given : static_cast<double>(base.max_positions) / static_cast<double>(original);
  const double usual =
      ratio <= 1 || original < 2 ? 1.0 : std::sqrt(1 + std::log(ratio) / std::log(static_cast<double>(original)));
  const double magnitude = scaling.OptionalPositive("attention_factor").value_or(usual);
  const std::vector<double> shorter = scaling.Numbers("short_factor"), longer = scaling.Numbers("long_factor");
  for (const auto& [key, list] : {std::pair("short_factor", &shorter), std::pair("long_factor", &longer)}) {
    const bool positive = std::all_of(list->begin(), list->end(), [](double v) { return v > 0; });
    if (list->size() == base.dim / 2 && positive) continue;
    scaling.Fail(ErrorCode::kBadInput, key, StrFormat("needs %u numbers above zero", base.dim / 2));
    return;
  }
  spec->inv_freq = base.Map([&](size_t i, double f) { return f / shorter[i]; });
  spec->long_inv_freq = base.Map([&](size_t i, double f) { return f / longer[i]; });
  spec->long_from = static_cast<uint32_t>(original);
  spec->magnitude = static_cast<float>(scaling.OptionalPositive("short_mscale").value_or(magnitude));
  spec->long_magnitude = static_cast<float>(scaling.OptionalPositive("long_mscale").value_or(magnitude));
}

// Llama 3.1: wavelengths above original / low_freq_factor are divided by factor, those below original / high_freq_factor
// stay, with a linear mix between.
void ReadLlama3(ConfigReader& scaling, const Base& base, RotarySpec* spec) {
  const double factor = scaling.Positive("factor");
  const double low = scaling.Positive("low_freq_factor"), high = scaling.Positive("high_freq_factor");
  const double original = static_cast<double>(scaling.Count("original_max_position_embeddings", 1, kMaxPositions));
  if (!(high > low)) scaling.Fail(ErrorCode::kBadInput, "high_freq_factor", "must be above low_freq_factor");
  spec->inv_freq = base.Map([&](size_t, double f) {
    const double wavelength = 2 * kPi / f;
    if (wavelength < original / high) return f;
    if (wavelength > original / low) return f / factor;
    const double smooth = (original / wavelength - low) / (high - low);
    return (1 - smooth) * f / factor + smooth * f;
  });
}

void ReadScaling(ConfigReader& config, ConfigReader& scaling, const Base& base, RotarySpec* spec) {
  const std::string older = scaling.TextOr("type", "default");
  const std::string kind = scaling.TextOr("rope_type", older);
  if (kind == "linear") {
    const double factor = scaling.Positive("factor");
    spec->inv_freq = base.Map([&](size_t, double f) { return f / factor; });
  } else if (kind == "dynamic") {
    // The base grows with sequences beyond max_position_embeddings, and a program takes none of these.
    (void)scaling.Positive("factor");
    (void)scaling.CountOr("original_max_position_embeddings", base.max_positions, 1, kMaxPositions);
  } else if (kind == "yarn") {
    ReadYarn(scaling, base, spec);
  } else if (kind == "longrope" || kind == "su") {
    ReadLongRope(config, scaling, base, spec);
  } else if (kind == "llama3") {
    ReadLlama3(scaling, base, spec);
  } else {
    scaling.Support(kind == "default", "rope_type",
                    "'" + kind + "' is not supported (default, linear, dynamic, yarn, longrope and llama3 are)");
  }
}

}  // namespace

RotaryNode RotarySpec::Node(uint32_t heads, uint32_t head_dim, uint32_t offset) const {
  RotaryNode node;
  node.heads = heads;
  node.head_dim = head_dim;
  node.rotary_dim = static_cast<uint32_t>(2 * inv_freq.size());
  node.interleaved = interleaved;
  node.magnitude = magnitude;
  node.inv_freq = inv_freq;
  node.offset = offset;
  node.long_from = long_from;
  node.long_magnitude = long_magnitude;
  node.long_inv_freq = long_inv_freq;
  return node;
}

RotarySpec ReadRotary(ConfigReader& config, uint32_t rotary_dim, uint32_t max_positions, const char* dim_key) {
  RotarySpec spec;
  config.Support(rotary_dim >= 2 && rotary_dim % 2 == 0 && rotary_dim / 2 <= kMaxInvFreq, dim_key,
                 "the rotated part of a head must be even");
  Base base{1, config.status().ok() ? rotary_dim : 2, max_positions};
  const auto read = [&](ConfigReader& scaling) {
    ReadScaling(config, scaling, base, &spec);
    if (spec.inv_freq.empty()) spec.inv_freq = base.Map([](size_t, double f) { return f; });
    config.Adopt(scaling.Finish({}));
  };
  if (auto parameters = config.Object("rope_parameters")) {
    base.theta = parameters->Positive("rope_theta");
    read(*parameters);
    config.Support(!config.Has("rope_theta") && !config.Has("rope_scaling"), "rope_parameters",
                   "stands beside rope_theta or rope_scaling");
    return spec;
  }
  base.theta = config.Positive("rope_theta");
  if (auto scaling = config.Object("rope_scaling")) read(*scaling);
  if (spec.inv_freq.empty()) spec.inv_freq = base.Map([](size_t, double f) { return f; });
  return spec;
}

}  // namespace moepack
