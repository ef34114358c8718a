// Which expert leaves first when a device has no room for all: the record of a bundle's hot list, and the formula that the
// runtime keeps experts by and the compressor simulates. What a model computes never depends on it.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace moepack {

// Closed enum. kLru: the one not used for longest. kLfu: the one with the fewest uses, older uses counting less. kHobbit:
// the lowest weighted sum of recency, frequency and nearness of its layer (HOBBIT, 2411.01433, section 3.4; its third count,
// of uses in high precision, is the second where an expert has one precision).
enum class CachePolicyKind : uint8_t { kLru = 0, kLfu = 1, kHobbit = 2 };

inline constexpr uint32_t kMaxCacheHalfLife = 65536, kMaxPinnedPercent = 50;

struct CachePolicy {
  CachePolicyKind kind = CachePolicyKind::kLru;
  // Tokens after which a use counts half; 0: uses never age, and recency and frequency are HOBBIT's shares of all tokens so
  // far. 0 for kLru.
  uint32_t half_life = 0;
  // Percent, together 100 for kHobbit; 0 for the others.
  uint32_t recency = 0, frequency = 0, nearness = 0;
  // Of the budget, held by the first experts of the hot list, which never leave.
  uint32_t pinned_percent = 0;
  bool operator==(const CachePolicy&) const = default;
};

// kMalformed with the value that is not as stated above. The kind is one of the enum.
Status CheckCachePolicy(const CachePolicy& policy);
const char* CachePolicyName(CachePolicyKind kind);  // "lru", "lfu", "hobbit"
// "lru", "lfu half-life 64", "hobbit recency 10 frequency 80 nearness 10 half-life 64 pinned 25".
std::string DescribeCachePolicy(const CachePolicy& policy);
// The same read back. "lfu" alone: half-life 64; "hobbit" alone: the example's weights and half-life, nothing pinned. kUsage
// for unknown words and for values that do not fit.
Result<CachePolicy> ParseCachePolicy(const std::string& text);

// How an expert was used.
struct ExpertUse {
  double uses = 0;    // as of step `last`, aged
  uint64_t last = 0;  // 0: never used
};

// A resident expert that may leave.
struct CacheCandidate {
  double score = 0;       // CacheClock::Score
  uint64_t last = 0;      // ExpertUse::last
  uint32_t hot_rank = 0;  // place in the hot list; the largest number for none
  uint32_t index = 0;
  // Among equal scores the earlier last use leaves, then the less hot one.
  bool StaysLongerThan(const CacheCandidate& other) const {
    if (score != other.score) return score > other.score;
    if (last != other.last) return last > other.last;
    return hot_rank != other.hot_rank ? hot_rank < other.hot_rank : index < other.index;
  }
};

// Time in steps: one token in one expert table, so that a token takes as many steps as there are tables, also where the
// tokens of a tile pass a table together. Scores compare experts at one moment.
class CacheClock {
 public:
  // tables: of the program, at least 1.
  CacheClock(const CachePolicy& policy, uint32_t tables);
  // `tokens` tokens are routed in `table`.
  void Advance(uint32_t table, uint64_t tokens);
  // `tokens` of them use an expert.
  void Use(uint64_t tokens, ExpertUse* use) const;
  // What an expert of `table` is worth keeping: the lowest score leaves first.
  double Score(const ExpertUse& use, uint32_t table) const;

 private:
  double Aged(uint64_t since) const;  // what a use of step `since` counts now, 0..1

  CachePolicy policy_;
  uint32_t tables_ = 1, table_ = 0;
  uint64_t step_ = 0;
  double step_decay_ = 0;  // log2 of what a use keeps from step to step
  double per_token_ = 0;   // turns aged uses into uses a token: 0..1 for an expert used by every token
};

}  // namespace moepack
