#include "runtime-min/routing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>
#include <vector>

namespace moepack::runtime {
namespace {

constexpr uint32_t kExperts = 8;

std::vector<RoutingRecord> Records() {
  std::vector<RoutingRecord> records(5);
  records[1] = {.score = ScoreFunction::kSoftmax, .score_before_topk = true, .renormalise = true};
  records[2] = {.score = ScoreFunction::kSigmoid, .score_before_topk = true, .group_size = 4, .top_groups = 1};
  records[3] = {.score = ScoreFunction::kSparseMixer, .score_before_topk = true, .mixer_eps = 0.01f};
  records[4] = {.score = ScoreFunction::kSigmoid, .score_before_topk = false, .renormalise = true};
  return records;
}

std::vector<uint32_t> Ids(RoutingRecord routing, uint32_t k, const std::vector<float>& logits) {
  routing.k = k;
  std::vector<uint32_t> original(kExperts), ids(k, kNone);
  std::iota(original.begin(), original.end(), 0u);
  std::vector<float> scores = logits, weights(k);
  scores.resize(2 * kExperts);
  Route(routing, {nullptr, original}, scores, ids, weights);
  return ids;
}

// State of sequences comes from files that may hold anything, and what follows takes a token's experts to be different.
TEST(Routing, EveryExpertIsChosenAtMostOnceWhateverTheLogits) {
  const float odd[] = {NAN, -INFINITY, INFINITY, 1.5f};
  for (const RoutingRecord& routing : Records()) {
    for (uint32_t pattern = 0; pattern < 1 << 16; pattern += 7) {
      std::vector<float> logits;
      for (uint32_t e = 0; e < kExperts; ++e) logits.push_back(odd[pattern >> (2 * e) & 3]);
      for (const uint32_t k : {1u, 2u, 4u}) {
        const std::vector<uint32_t> ids = Ids(routing, k, logits);
        const std::set<uint32_t> different(ids.begin(), ids.end());
        ASSERT_EQ(different.size(), k) << static_cast<int>(routing.score) << ", pattern " << pattern;
        ASSERT_LT(*different.rbegin(), kExperts);
      }
    }
  }
}

TEST(Routing, LargestFirstAndTiesToTheLowerIndex) {
  const std::vector<float> logits = {0.5f, 2, -1, 2, 3, 0.25f, 2, 1};
  for (const RoutingRecord& routing : Records()) {
    if (routing.group_size > 0) continue;
    EXPECT_EQ(Ids(routing, 4, logits), (std::vector<uint32_t>{4, 1, 3, 6})) << static_cast<int>(routing.score);
  }
}

}  // namespace
}  // namespace moepack::runtime
