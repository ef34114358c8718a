// What cache policies are worth on routing traces, beside Belady's MIN: one JSON object.
//
//   moepack-cache-sim CALIBRATION.mprof EVALUATION.mprof   policies chosen on the first, compared on the second
//   moepack-cache-sim synthetic [SHARE...]                 traces of OLMoE's shape with a local routing consistency of about
//   50 %; with shares of all experts in memory: the chosen policy at those alone
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>

#include "base/cli/cli.h"
#include "calibrate/locality.h"
#include "compressor/cache_simulation.h"
#include "model/profile.h"

namespace moepack {
namespace {

const std::vector<double> kShares = {0.125, 0.25, 0.5};

struct Named {
  const char* name;
  CachePolicy policy;
};

// Experts of all sizes from 1 to 1.5, as plans with several precisions make them, or all alike.
CacheTrace FromProfile(const Profile& profile, bool unequal) {
  CacheTrace trace;
  for (const TableProfile& table : profile.tables) {
    CacheTrace::Table out{table.k, {table.trace.begin(), table.trace.end()}, {}};
    for (uint32_t e = 0; e < table.experts; ++e) out.bytes.push_back(unequal ? 64 * (8 + e * 7 % 5) : 640);
    trace.tables.push_back(std::move(out));
  }
  return trace;
}

constexpr uint32_t kTables = 16, kExperts = 64, kChoices = 8;
constexpr uint64_t kTopicTokens = 96;

// Random numbers of the synthetic traces. Gumbel noise makes the choice of k a draw without replacement.
class Draws {
 public:
  explicit Draws(uint64_t seed) : rng_(seed) {}
  double Gumbel() { return -std::log(-std::log((static_cast<double>(rng_() >> 11) + 0.5) / 9007199254740992.0)); }
  // The experts of a table that a token chooses in a topic, most popular first.
  std::vector<uint16_t> Choose(const double* topic, double noise) {
    std::vector<std::pair<double, uint16_t>> scores;
    for (uint16_t e = 0; e < kExperts; ++e) scores.emplace_back(-(topic[e] + noise * Gumbel()), e);
    std::partial_sort(scores.begin(), scores.begin() + kChoices, scores.end());
    std::vector<uint16_t> out;
    for (uint32_t i = 0; i < kChoices; ++i) out.push_back(scores[i].second);
    return out;
  }

 private:
  std::mt19937_64 rng_;
};

// Experts of a table by popularity in a topic that changes now and then, disturbed from token to token by `noise`.
struct Synthetic {
  Profile profile;
  double srp = 0, noise = 0;
  std::vector<std::vector<double>> topics;  // [tables * experts]
};
Synthetic MakeSynthetic(double noise, uint64_t tokens, uint64_t seed) {
  Draws draws(seed);
  Synthetic out;
  out.noise = noise;
  out.profile.sequence_start = {0};
  out.profile.domains = {"synthetic"};
  out.profile.tables.resize(kTables);
  for (TableProfile& table : out.profile.tables) {
    table.experts = kExperts;
    table.k = kChoices;
    table.tokens.resize(kExperts);
  }
  for (uint64_t t = 0; t < tokens; ++t) {
    if (t % kTopicTokens == 0) {
      for (double& score : out.topics.emplace_back(kTables * kExperts)) score = draws.Gumbel();
    }
    for (uint32_t m = 0; m < kTables; ++m) {
      for (const uint16_t e : draws.Choose(&out.topics.back()[m * kExperts], noise)) {
        out.profile.tables[m].trace.push_back(e);
        ++out.profile.tables[m].tokens[e];
      }
    }
  }
  const TableProfile& first = out.profile.tables[0];
  out.srp = SegmentRoutingPerformance({first.trace, out.profile.sequence_start, first.experts, first.k}, 16);
  return out;
}

// What no policy exceeds on average that loads experts when they are chosen and does not see the choices to come, even if
// it knows the topic. Given that, tokens choose independently of each other, and what a token finds was all in memory
// before its first layer: at best the experts with the highest probabilities.
double MostWithoutForesight(const Synthetic& synthetic, double share) {
  constexpr int kSamples = 2000;
  Draws draws(99);
  double sum = 0;
  for (const std::vector<double>& topic : synthetic.topics) {
    std::vector<double> probability(topic.size());
    for (uint32_t m = 0; m < kTables; ++m) {
      for (int i = 0; i < kSamples; ++i) {
        for (const uint16_t e : draws.Choose(&topic[m * kExperts], synthetic.noise))
          probability[m * kExperts + e] += 1.0 / kSamples;
      }
    }
    std::sort(probability.begin(), probability.end(), std::greater<>());
    const auto room = static_cast<size_t>(share * static_cast<double>(probability.size()));
    for (size_t e = 0; e < room; ++e) sum += probability[e];
  }
  return sum / static_cast<double>(synthetic.topics.size() * kTables * kChoices);
}

// The noise that brings the consistency to 50 percent, by bisection.
Synthetic MakeConsistent(uint64_t tokens, uint64_t seed) {
  double low = 0.05, high = 3;
  for (int i = 0; i < 12; ++i) {
    const double middle = (low + high) / 2;
    (MakeSynthetic(middle, 2048, 1).srp > 50 ? low : high) = middle;
  }
  return MakeSynthetic((low + high) / 2, tokens, seed);
}

nlohmann::json Compare(CacheTrace trace, const std::vector<Named>& policies, const std::vector<double>& shares) {
  nlohmann::json rows = nlohmann::json::array();
  for (const double share : shares) {
    const uint64_t budget = static_cast<uint64_t>(share * static_cast<double>(trace.all_bytes()));
    const CacheOutcome belady = SimulateBelady(trace, budget);
    for (const Named& named : policies) {
      const CacheOutcome outcome = SimulateCache(trace, named.policy, budget);
      rows.push_back({{"share", share},
                      {"name", named.name},
                      {"policy", DescribeCachePolicy(named.policy)},
                      {"hit_rate", outcome.hit_rate()},
                      {"belady", belady.hit_rate()},
                      {"of_belady", outcome.hit_rate() / belady.hit_rate()}});
    }
  }
  return rows;
}

// What the policy would reach at a quarter of the experts if the choices of so many further tokens were known.
nlohmann::json Foresight(const CacheTrace& trace, const CachePolicy& policy) {
  const uint64_t budget = trace.all_bytes() / 4;
  const double without = SimulateCache(trace, policy, budget).hit_rate(), belady = SimulateBelady(trace, budget).hit_rate();
  nlohmann::json rows = {{{"known", "nothing"}, {"hit_rate", without}, {"of_belady", without / belady}}};
  for (const uint64_t tokens : {0, 1, 2, 4, 8, 16, 32}) {
    const double hits = SimulateForesight(trace, policy, budget, tokens).hit_rate();
    rows.push_back({{"known", tokens}, {"hit_rate", hits}, {"of_belady", hits / belady}});
  }
  return rows;
}

nlohmann::json MakeReport(const Profile& chosen_on, const Profile& compared_on, double srp) {
  ThreadPool pool(0);
  nlohmann::json json = {{"srp", srp}, {"tokens", compared_on.tables[0].trace.size() / compared_on.tables[0].k}};
  for (const bool unequal : {false, true}) {
    const CachePolicy chosen = ChooseCachePolicy(FromProfile(chosen_on, unequal), pool);
    const std::vector<Named> policies = {{"LRU", {}},
                                         {"LFU", {CachePolicyKind::kLfu, 0}},
                                         {"LFU, uses age", {CachePolicyKind::kLfu, 64}},
                                         {"HOBBIT", {CachePolicyKind::kHobbit, 0, 60, 10, 30}},
                                         {"chosen", chosen}};
    json[unequal ? "unequal" : "equal"] = Compare(FromProfile(compared_on, unequal), policies, kShares);
    if (!unequal) json["foresight"] = Foresight(FromProfile(compared_on, false), chosen);
  }
  return json;
}

nlohmann::json ReportSynthetic(const Synthetic& chosen_on, const Synthetic& compared_on) {
  nlohmann::json json = MakeReport(chosen_on.profile, compared_on.profile, compared_on.srp);
  nlohmann::json most = nlohmann::json::array();
  for (const nlohmann::json& row : json["equal"]) {
    if (row["name"] != "chosen") continue;
    const double share = row["share"], belady = row["belady"], hits = MostWithoutForesight(compared_on, share);
    most.push_back({{"share", share},
                    {"name", "most without foresight"},
                    {"policy", nullptr},
                    {"hit_rate", hits},
                    {"belady", belady},
                    {"of_belady", hits / belady}});
  }
  for (nlohmann::json& row : most) json["equal"].push_back(std::move(row));
  return json;
}

Status Run(int argc, char** argv) {
  if (argc >= 2 && std::string(argv[1]) == "synthetic") {
    const Synthetic chosen_on = MakeConsistent(2048, 11), compared_on = MakeConsistent(4096, 12);
    if (argc == 2) {
      cli::PrintJson(ReportSynthetic(chosen_on, compared_on));
      return Status::Ok();
    }
    ThreadPool pool(0);
    std::vector<double> shares;
    for (int i = 2; i < argc; ++i) shares.push_back(std::atof(argv[i]));
    const CachePolicy chosen = ChooseCachePolicy(FromProfile(chosen_on.profile, false), pool);
    cli::PrintJson({{"srp", compared_on.srp},
                    {"equal", Compare(FromProfile(compared_on.profile, false), {{"chosen", chosen}}, shares)}});
    return Status::Ok();
  }
  if (argc != 3) return Status(ErrorCode::kUsage, "expected CALIBRATION.mprof EVALUATION.mprof, or synthetic [SHARE...]");
  MOEPACK_ASSIGN_OR_RETURN(const Profile calibration, ReadProfile(PosixEnv(), argv[1]));
  MOEPACK_ASSIGN_OR_RETURN(const Profile evaluation, ReadProfile(PosixEnv(), argv[2]));
  double srp = 0;
  for (const TableProfile& table : evaluation.tables) srp += table.srp / static_cast<double>(evaluation.tables.size());
  cli::PrintJson(MakeReport(calibration, evaluation, srp));
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack-cache-sim", [&] { return moepack::Run(argc, argv); });
}
