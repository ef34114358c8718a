#include "compressor/cache_simulation.h"

#include <algorithm>
#include <functional>

namespace moepack {
namespace {

// A cache over all experts of a trace, numbered through the tables. Order: Leaves says which of two goes first.
class SimulatedCache {
 public:
  SimulatedCache(const CacheTrace& trace, uint64_t budget_bytes) : trace_(trace) {
    for (const CacheTrace::Table& table : trace.tables) {
      begin_.push_back(static_cast<uint32_t>(bytes_.size()));
      bytes_.insert(bytes_.end(), table.bytes.begin(), table.bytes.end());
      table_of_.resize(bytes_.size(), static_cast<uint32_t>(begin_.size() - 1));
    }
    resident_.resize(bytes_.size());
    needed_.resize(bytes_.size());
    kept_.resize(bytes_.size());
    hot_rank_.resize(bytes_.size(), CacheTrace::kNone);
    budget_ = std::max(budget_bytes, trace.minimum_bytes());
    free_ = budget_;
    for (uint32_t rank = 0; rank < trace.hot.size(); ++rank) {
      hot_rank_[begin_[trace.hot[rank].first] + trace.hot[rank].second] = rank;
    }
  }

  uint32_t experts() const { return static_cast<uint32_t>(bytes_.size()); }
  uint32_t table_of(uint32_t e) const { return table_of_[e]; }
  uint32_t hot_rank(uint32_t e) const { return hot_rank_[e]; }

  void Preload(uint32_t kept_percent) {
    uint64_t kept = std::min(budget_ / 100 * kept_percent, budget_ - trace_.minimum_bytes());
    bool keeps = true;
    for (const auto& [table, expert] : trace_.hot) {
      const uint32_t e = begin_[table] + expert;
      if (bytes_[e] > free_) return;
      keeps = keeps && bytes_[e] <= kept;
      kept_[e] = keeps;
      if (keeps) kept -= bytes_[e];
      Add(e);
    }
  }

  // Routes token `t` in `table`: use(e) for each expert, then candidate(e) -> CacheCandidate for those that may leave.
  template <typename Use, typename Candidate>
  void Route(uint64_t t, uint32_t table, const Use& use, const Candidate& candidate) {
    const CacheTrace::Table& source = trace_.tables[table];
    wanted_.clear();
    for (uint64_t i = t * source.k; i < (t + 1) * source.k; ++i) {
      if (source.chosen[i] == CacheTrace::kNone) continue;
      const uint32_t e = begin_[table] + source.chosen[i];
      wanted_.push_back(e);
      needed_[e] = true;
      outcome_.hits += resident_[e];
      use(e);
    }
    outcome_.lookups += wanted_.size();
    for (const uint32_t e : wanted_) {
      if (resident_[e]) continue;
      outcome_.bytes_loaded += bytes_[e];
      MakeRoom(bytes_[e], candidate);
      Add(e);
    }
    for (const uint32_t e : wanted_) needed_[e] = false;
  }

  const CacheOutcome& outcome() const { return outcome_; }

 private:
  void Add(uint32_t e) {
    resident_[e] = true;
    present_.push_back(e);
    free_ -= bytes_[e];
  }

  template <typename Candidate>
  void MakeRoom(uint64_t bytes, const Candidate& candidate) {
    while (free_ < bytes) {
      size_t leaves = present_.size();
      CacheCandidate first;
      for (size_t i = 0; i < present_.size(); ++i) {
        if (needed_[present_[i]] || kept_[present_[i]]) continue;
        const CacheCandidate c = candidate(present_[i]);
        if (leaves < present_.size() && c.StaysLongerThan(first)) continue;
        leaves = i;
        first = c;
      }
      resident_[present_[leaves]] = false;
      free_ += bytes_[present_[leaves]];
      present_[leaves] = present_.back();
      present_.pop_back();
    }
  }

  const CacheTrace& trace_;
  std::vector<uint32_t> begin_, table_of_, hot_rank_;
  std::vector<uint64_t> bytes_;
  std::vector<char> resident_, needed_, kept_;
  std::vector<uint32_t> present_, wanted_;
  uint64_t budget_ = 0, free_ = 0;
  CacheOutcome outcome_;
};

// What is tried: the paper's plain policies, uses that age over about 16 to 256 tokens, and HOBBIT's weights around what
// routing traces of several models like best.
std::vector<CachePolicy> Candidates() {
  std::vector<CachePolicy> all = {{}};
  for (const uint32_t half_life : {0u, 16u, 64u, 256u}) all.push_back({CachePolicyKind::kLfu, half_life});
  constexpr uint32_t kWeights[][3] = {{80, 0, 20}, {60, 10, 30}, {10, 80, 10}, {0, 80, 20}, {30, 60, 10}, {50, 40, 10}};
  for (const uint32_t half_life : {0u, 16u, 32u, 64u, 128u, 256u}) {
    for (const auto& w : kWeights) all.push_back({CachePolicyKind::kHobbit, half_life, w[0], w[1], w[2]});
  }
  return all;
}

// Steps at which each expert is used, the last first. A step is a table of a token.
using StepsAhead = std::vector<std::vector<uint64_t>>;

StepsAhead StepsOf(const CacheTrace& trace, uint32_t experts) {
  StepsAhead ahead(experts);
  const size_t tables = trace.tables.size();
  for (uint64_t t = trace.tokens(); t-- > 0;) {
    uint32_t begin = experts;
    for (size_t table = tables; table-- > 0;) {
      const CacheTrace::Table& source = trace.tables[table];
      begin -= static_cast<uint32_t>(source.bytes.size());
      for (uint64_t i = t * source.k; i < (t + 1) * source.k; ++i) {
        if (source.chosen[i] != CacheTrace::kNone) ahead[begin + source.chosen[i]].push_back(t * tables + table);
      }
    }
  }
  return ahead;
}

CacheTrace Shortened(const CacheTrace& trace) {
  constexpr uint64_t kMostWork = 100'000'000, kFewestTokens = 512;
  uint64_t lookups = 0, experts = 0;
  for (const CacheTrace::Table& table : trace.tables) {
    lookups += table.k;
    experts += table.bytes.size();
  }
  const uint64_t tokens =
      std::min(trace.tokens(), std::max(kFewestTokens, kMostWork / std::max<uint64_t>(1, lookups * experts)));
  CacheTrace out = trace;
  for (CacheTrace::Table& table : out.tables) table.chosen.resize(tokens * table.k);
  return out;
}

}  // namespace

uint64_t CacheTrace::all_bytes() const {
  uint64_t sum = 0;
  for (const Table& table : tables) {
    for (const uint64_t bytes : table.bytes) sum += bytes;
  }
  return sum;
}

uint64_t CacheTrace::minimum_bytes() const {
  uint64_t most = 0;
  for (const Table& table : tables) {
    std::vector<uint64_t> bytes = table.bytes;
    std::sort(bytes.begin(), bytes.end(), std::greater<>());
    uint64_t sum = 0;
    for (size_t i = 0; i < std::min<size_t>(table.k, bytes.size()); ++i) sum += bytes[i];
    most = std::max(most, sum);
  }
  return most;
}

CacheOutcome SimulateCache(const CacheTrace& trace, const CachePolicy& policy, uint64_t budget_bytes) {
  SimulatedCache cache(trace, budget_bytes);
  CacheClock clock(policy, static_cast<uint32_t>(trace.tables.size()));
  std::vector<ExpertUse> uses(cache.experts());
  cache.Preload(policy.pinned_percent);
  for (uint64_t t = 0; t < trace.tokens(); ++t) {
    for (uint32_t table = 0; table < trace.tables.size(); ++table) {
      clock.Advance(table, 1);
      cache.Route(
          t, table, [&](uint32_t e) { clock.Use(1, &uses[e]); },
          [&](uint32_t e) {
            return CacheCandidate{clock.Score(uses[e], cache.table_of(e)), uses[e].last, cache.hot_rank(e), e};
          });
    }
  }
  return cache.outcome();
}

CacheOutcome SimulateBelady(const CacheTrace& trace, uint64_t budget_bytes) {
  SimulatedCache cache(trace, budget_bytes);
  const size_t tables = trace.tables.size();
  StepsAhead ahead = StepsOf(trace, cache.experts());
  cache.Preload(0);
  for (uint64_t t = 0; t < trace.tokens(); ++t) {
    for (uint32_t table = 0; table < tables; ++table) {
      cache.Route(
          t, table, [&](uint32_t e) { ahead[e].pop_back(); },
          [&](uint32_t e) {
            const double next = ahead[e].empty() ? 1e300 : static_cast<double>(ahead[e].back());
            return CacheCandidate{-next, 0, cache.hot_rank(e), e};
          });
    }
  }
  return cache.outcome();
}

CacheOutcome SimulateForesight(const CacheTrace& trace, const CachePolicy& policy, uint64_t budget_bytes,
                               uint64_t tokens_ahead) {
  SimulatedCache cache(trace, budget_bytes);
  CacheClock clock(policy, static_cast<uint32_t>(trace.tables.size()));
  std::vector<ExpertUse> uses(cache.experts());
  StepsAhead ahead = StepsOf(trace, cache.experts());
  cache.Preload(policy.pinned_percent);
  for (uint64_t t = 0; t < trace.tokens(); ++t) {
    const uint64_t known_before = (t + 1 + tokens_ahead) * trace.tables.size();
    for (uint32_t table = 0; table < trace.tables.size(); ++table) {
      clock.Advance(table, 1);
      const auto use = [&](uint32_t e) {
        ahead[e].pop_back();
        clock.Use(1, &uses[e]);
      };
      cache.Route(t, table, use, [&](uint32_t e) {
        const bool known = !ahead[e].empty() && ahead[e].back() < known_before;
        // Above every score of a policy.
        const double score = known ? 1e15 - static_cast<double>(ahead[e].back()) : clock.Score(uses[e], cache.table_of(e));
        return CacheCandidate{score, uses[e].last, cache.hot_rank(e), e};
      });
    }
  }
  return cache.outcome();
}

CachePolicy ChooseCachePolicy(const CacheTrace& trace, ThreadPool& pool) {
  const CacheTrace cut = Shortened(trace);
  const uint64_t all = cut.all_bytes();
  const auto hits = [&](const std::vector<CachePolicy>& policies) {
    std::vector<uint64_t> sums(policies.size());
    pool.ParallelFor(policies.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        for (const uint64_t budget : {all / 4, all / 2}) sums[i] += SimulateCache(cut, policies[i], budget).hits;
      }
    });
    return sums;
  };
  std::vector<CachePolicy> policies = Candidates();
  std::vector<uint64_t> sums = hits(policies);
  const CachePolicy best = policies[static_cast<size_t>(std::max_element(sums.begin(), sums.end()) - sums.begin())];
  // Whether it gains from holding the hottest for good.
  policies.assign(3, best);
  policies[1].pinned_percent = 20;
  policies[2].pinned_percent = 40;
  sums = hits(policies);
  return policies[static_cast<size_t>(std::max_element(sums.begin(), sums.end()) - sums.begin())];
}

}  // namespace moepack
