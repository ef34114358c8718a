// How often experts are found in memory when not all fit: routing traces replayed under a policy and a budget, beside what
// knowledge of the future would reach. The device's cache (runtime-min/expert_cache.h) follows the same clock and the same
// order of leaving, so that what wins here wins there.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/thread_pool.h"
#include "format/cache_policy.h"

namespace moepack {

struct CacheTrace {
  static constexpr uint32_t kNone = 0xffffffffu;
  struct Table {
    uint32_t k = 0;
    std::vector<uint32_t> chosen;  // [tokens, k], kNone for a choice that does not count
    std::vector<uint64_t> bytes;   // of each expert, at least 1
  };
  std::vector<Table> tables;                       // at least one, all with as many tokens
  std::vector<std::pair<uint32_t, uint32_t>> hot;  // (table, expert), most used first: loaded before the first token
  uint64_t tokens() const { return tables[0].chosen.size() / tables[0].k; }
  uint64_t all_bytes() const;
  // What the largest choice of one token needs: no budget is smaller.
  uint64_t minimum_bytes() const;
};

struct CacheOutcome {
  uint64_t lookups = 0, hits = 0;  // hit: in memory when the router chose it
  uint64_t bytes_loaded = 0;       // of the others
  double hit_rate() const { return lookups == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(lookups); }
};

// Decoding token by token, table by table: all experts of a choice are looked up, then loaded together, and none of them
// leaves before the next choice. budget_bytes is raised to minimum_bytes().
CacheOutcome SimulateCache(const CacheTrace& trace, const CachePolicy& policy, uint64_t budget_bytes);

// The same with Belady's MIN (1966): the expert whose next use is farthest leaves first, as many as it takes. That is the
// most hits that any policy can have where experts have one size; where sizes differ, finding the most is NP-hard and this
// is the usual yardstick, no bound.
CacheOutcome SimulateBelady(const CacheTrace& trace, uint64_t budget_bytes);

// Between the two: the choices of the tokens up to `tokens_ahead` after the one that runs are known, those of its own later
// tables too. Experts that they use leave last, the farthest first; the policy says which of the others goes.
CacheOutcome SimulateForesight(const CacheTrace& trace, const CachePolicy& policy, uint64_t budget_bytes,
                               uint64_t tokens_ahead);

// The policy with the most hits over budgets of a quarter and a half of all experts, from a fixed list; the first among
// equals. Long traces are cut to their first tokens, so that the choice takes seconds. Does not depend on the number of
// threads.
CachePolicy ChooseCachePolicy(const CacheTrace& trace, ThreadPool& pool);

}  // namespace moepack
