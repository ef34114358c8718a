// What cache policies are worth on routing traces, beside Belady's MIN: one JSON object.
//
//   moepack-cache-sim CALIBRATION.mprof EVALUATION.mprof   policies chosen on the first, compared on the second
//   moepack-cache-sim synthetic [SHARE...]                 traces of OLMoE's shape with a local routing consistency of about
//   50 %; with shares of all experts in memory: the chosen policy at those alone
#include <algorithm>
#include <cmath>
#include <cstdlib>
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

// Experts of a table by popularity in a topic that changes now and then, disturbed from token to token by `noise`. Gumbel
// noise makes the choice of k a draw without replacement.
struct Synthetic {
  Profile profile;
  double srp = 0;
};
Synthetic MakeSynthetic(double noise, uint64_t tokens, uint64_t seed) {
  constexpr uint32_t kTables = 16, kExperts = 64, kChoices = 8;
  std::mt19937_64 rng(seed);
  const auto uniform = [&] { return (static_cast<double>(rng() >> 11) + 0.5) / 9007199254740992.0; };
  const auto gumbel = [&] { return -std::log(-std::log(uniform())); };
  Synthetic out;
  out.profile.sequence_start = {0};
  out.profile.domains = {"synthetic"};
  std::vector<double> topic(kTables * kExperts);
  out.profile.tables.resize(kTables);
  for (TableProfile& table : out.profile.tables) {
    table.experts = kExperts;
    table.k = kChoices;
    table.tokens.resize(kExperts);
  }
  for (uint64_t t = 0; t < tokens; ++t) {
    if (t % 96 == 0) {
      for (double& score : topic) score = gumbel();
    }
    for (uint32_t m = 0; m < kTables; ++m) {
      std::vector<std::pair<double, uint16_t>> scores;
      for (uint16_t e = 0; e < kExperts; ++e) scores.emplace_back(-(topic[m * kExperts + e] + noise * gumbel()), e);
      std::partial_sort(scores.begin(), scores.begin() + kChoices, scores.end());
      for (uint32_t i = 0; i < kChoices; ++i) {
        out.profile.tables[m].trace.push_back(scores[i].second);
        ++out.profile.tables[m].tokens[scores[i].second];
      }
    }
  }
  const TableProfile& first = out.profile.tables[0];
  out.srp = SegmentRoutingPerformance({first.trace, out.profile.sequence_start, first.experts, first.k}, 16);
  return out;
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

void Report(const Profile& chosen_on, const Profile& compared_on, double srp) {
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
  cli::PrintJson(json);
}

Status Run(int argc, char** argv) {
  if (argc >= 2 && std::string(argv[1]) == "synthetic") {
    const Synthetic chosen_on = MakeConsistent(2048, 11), compared_on = MakeConsistent(4096, 12);
    if (argc == 2) {
      Report(chosen_on.profile, compared_on.profile, compared_on.srp);
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
  Report(calibration, evaluation, srp);
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack-cache-sim", [&] { return moepack::Run(argc, argv); });
}
