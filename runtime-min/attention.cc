#include "runtime-min/attention.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "runtime-min/lanes.h"
#include "runtime-min/vector_math.h"

namespace moepack::runtime {
namespace {

// One head of one token on its way over the keys.
struct Query {
  const float* q = nullptr;          // [head_dim]
  float* out = nullptr;              // [value width]: sums of values times weights so far
  uint32_t first = 0, position = 0;  // what it sees
  uint32_t begin = 0, end = 0;       // of that in the block at hand
  float scale = 0;
  float largest = 0, sum = 0;  // of the softmax so far
  float keep = 0;              // what the block at hand multiplies `out` with
};

using Scores = float[kBlockPositions];

// scores[r][j] += sum over d of q[r][first + d] * keys[d][j], d in [0, count), in the order of d.
template <size_t kQueries>
void AddScores(const Query* queries, uint32_t first, uint32_t count, KvCache::View keys, Scores* scores) {
  constexpr size_t kVectors = kQueries == 1 ? 4 : 2, kColumns = kVectors * kLanes;
  static_assert(kBlockPositions % kColumns == 0);
  for (size_t column = 0; column < kBlockPositions; column += kColumns) {
    Lanes sums[kQueries][kVectors];
    for (size_t r = 0; r < kQueries; ++r) {
      for (size_t i = 0; i < kVectors; ++i) sums[r][i] = LanesAt(scores[r] + column + i * kLanes).lanes;
    }
    const float* k = keys.data + column;
    for (uint32_t d = 0; d < count; ++d, k += keys.stride) {
      for (size_t r = 0; r < kQueries; ++r) {
        for (size_t i = 0; i < kVectors; ++i) sums[r][i] += queries[r].q[first + d] * LanesAt(k + i * kLanes).lanes;
      }
    }
    for (size_t r = 0; r < kQueries; ++r) {
      for (size_t i = 0; i < kVectors; ++i) StoreLanes(scores[r] + column + i * kLanes, sums[r][i]);
    }
  }
}

float Largest(const float* scores) {
  Lanes largest = LanesAt(scores).lanes;
  for (size_t i = kLanes; i < kBlockPositions; i += kLanes) {
    const Lanes v = LanesAt(scores + i).lanes;
    largest = v > largest ? v : largest;
  }
  return std::max(std::max(std::max(largest[0], largest[1]), std::max(largest[2], largest[3])),
                  std::max(std::max(largest[4], largest[5]), std::max(largest[6], largest[7])));
}

// p[j] -> e^(p[j] - largest) for positions [begin, end) of a block, 0 outside; returns their sum.
float Exponentials(float largest, uint32_t begin, uint32_t end, float* p) {
  MapLanes(p, kBlockPositions, p, [largest](Lanes* v) {
    *v -= largest;
    ExpLanes(v);
  });
  std::fill(p, p + begin, 0.0f);
  std::fill(p + end, p + kBlockPositions, 0.0f);
  Lanes sum = LanesAt(p).lanes;
  for (size_t i = kLanes; i < kBlockPositions; i += kLanes) sum += LanesAt(p + i).lanes;
  return SumLanes(sum);
}

// out[r][column + d] = out[r][column + d] * keep[r] + sum over j of p[r][j] * values[j][d], j in [begin, end) of the
// queries, which is the same for all of them, d in [0, kVectors * kLanes).
template <size_t kQueries, size_t kVectors>
void AccumulateVectors(const Query* queries, const Scores* p, KvCache::View values, uint32_t column) {
  Lanes sums[kQueries][kVectors];
  for (size_t r = 0; r < kQueries; ++r) {
    for (size_t i = 0; i < kVectors; ++i) sums[r][i] = LanesAt(queries[r].out + column + i * kLanes).lanes * queries[r].keep;
  }
  const float* v = values.data + queries[0].begin * values.stride;
  for (uint32_t j = queries[0].begin; j < queries[0].end; ++j, v += values.stride) {
    for (size_t r = 0; r < kQueries; ++r) {
      for (size_t i = 0; i < kVectors; ++i) sums[r][i] += p[r][j] * LanesAt(v + i * kLanes).lanes;
    }
  }
  for (size_t r = 0; r < kQueries; ++r) {
    for (size_t i = 0; i < kVectors; ++i) StoreLanes(queries[r].out + column + i * kLanes, sums[r][i]);
  }
}

// As above for columns [column, column + count).
template <size_t kQueries>
void Accumulate(const Query* queries, const Scores* p, KvCache::View values, uint32_t column, uint32_t count) {
  constexpr size_t kMost = kQueries == 1 ? 8 : 2;
  const uint32_t end = column + count;
  const auto skip = [&](uint32_t columns) {
    column += columns;
    values.data += columns;
  };
  for (; column + kMost * kLanes <= end; skip(kMost * kLanes))
    AccumulateVectors<kQueries, kMost>(queries, p, values, column);
  for (; column + kLanes <= end; skip(kLanes)) AccumulateVectors<kQueries, 1>(queries, p, values, column);
  for (; column < end; skip(1)) {
    for (size_t r = 0; r < kQueries; ++r) {
      float sum = queries[r].out[column] * queries[r].keep;
      for (uint32_t j = queries[r].begin; j < queries[r].end; ++j) sum += p[r][j] * values.data[j * values.stride];
      queries[r].out[column] = sum;
    }
  }
}

// What a query's scores are multiplied with.
float ScoreScale(const AttentionNode& node, uint32_t position) {
  if (node.position_scale == 0) return node.scale;
  const double steps = (uint64_t{position} + 1) / node.position_floor;
  return node.scale * static_cast<float>(1 + static_cast<double>(node.position_scale) * std::log1p(steps));
}

// First position that the query at `position` sees.
uint32_t FirstPosition(const AttentionNode& node, uint32_t position) {
  const uint32_t first = node.window > 0 && position >= node.window ? position - node.window + 1 : 0;
  return node.chunk > 0 ? std::max(first, position / node.chunk * node.chunk) : first;
}

// -infinity outside of what a query sees of the block.
void MaskScores(const AttentionNode& node, const Query& query, float* scores) {
  for (uint32_t j = 0; j < kBlockPositions; ++j) scores[j] *= query.scale;
  if (node.softcap > 0) {
    for (uint32_t j = query.begin; j < query.end; ++j) scores[j] = node.softcap * std::tanh(scores[j] / node.softcap);
  }
  std::fill(scores, scores + query.begin, -INFINITY);
  std::fill(scores + query.end, scores + kBlockPositions, -INFINITY);
}

// Scores become weights.
void AddToSoftmax(const AttentionNode& node, Query* query, float* scores) {
  MaskScores(node, *query, scores);
  const float largest = std::max(query->largest, Largest(scores));
  query->keep = query->largest == -INFINITY ? 0.0f : Exp(query->largest - largest);
  query->largest = largest;
  query->sum = query->sum * query->keep + Exponentials(largest, query->begin, query->end, scores);
}

constexpr size_t kTogether = 4;  // queries whose sums are held in registers at once

// The queries of a task that see something of one block.
class BlockStep {
 public:
  BlockStep(const AttentionNode& node, const KvCache& cache, uint32_t block, uint32_t kv_head, std::span<Query> queries)
      : node_(node), cache_(cache), block_(block), kv_head_(kv_head), queries_(queries) {}

  void ComputeScores() {
    std::fill(&scores_[0][0], scores_[queries_.size()], 0.0f);
    for (uint32_t first = 0, count = 0; first < node_.head_dim; first += count) {
      count = std::min(node_.head_dim - first, cache_.strip());
      const KvCache::View keys = cache_.Keys(block_, kv_head_, first, count, scratch_);
      size_t r = 0;
      for (; r + kTogether <= queries_.size(); r += kTogether) {
        AddScores<kTogether>(&queries_[r], first, count, keys, scores_ + r);
      }
      for (; r < queries_.size(); ++r) AddScores<1>(&queries_[r], first, count, keys, scores_ + r);
    }
  }

  void ComputeWeights() {
    for (size_t r = 0; r < queries_.size(); ++r) AddToSoftmax(node_, &queries_[r], scores_[r]);
  }

  // What queries see ends later or at the same place from one to the next, and begins so too.
  void AddValues() {
    for (uint32_t first = 0, count = 0; first < node_.value_width(); first += count) {
      count = std::min(node_.value_width() - first, cache_.strip());
      const KvCache::View values = cache_.Values(block_, kv_head_, first, count, queries_.back().end, scratch_);
      for (size_t r = 0; r < queries_.size();) {
        const bool together = r + kTogether <= queries_.size() && queries_[r].begin == queries_[r + kTogether - 1].begin &&
                              queries_[r].end == queries_[r + kTogether - 1].end;
        if (together) {
          Accumulate<kTogether>(&queries_[r], scores_ + r, values, first, count);
        } else {
          Accumulate<1>(&queries_[r], scores_ + r, values, first, count);
        }
        r += together ? kTogether : 1;
      }
    }
  }

 private:
  const AttentionNode& node_;
  const KvCache& cache_;
  uint32_t block_, kv_head_;
  std::span<Query> queries_;
  Scores scores_[AttentionTask::kMaxQueries];
  alignas(64) float scratch_[KvCache::kScratchFloats];
};

// Sorted by position.
std::span<Query> MakeQueries(const AttentionNode& node, const AttentionTask& task, std::span<Query> queries) {
  size_t count = 0;
  for (uint32_t t = 0; t < task.tokens; ++t) {
    const uint32_t position = task.position + t, first = FirstPosition(node, position);
    const float scale = ScoreScale(node, position);
    for (uint32_t head = task.first_head; head < task.first_head + task.heads; ++head) {
      Query& query = queries[count++];
      const uint64_t row = uint64_t{t} * node.heads + head;
      query = {.q = task.q + row * node.head_dim, .out = task.out + row * node.value_width(), .first = first};
      query.position = position;
      query.scale = scale;
      query.largest = task.sinks == nullptr ? -INFINITY : task.sinks[head];
      query.sum = task.sinks == nullptr ? 0.0f : 1.0f;
      std::fill(query.out, query.out + node.value_width(), 0.0f);
    }
  }
  return queries.first(count);
}

// Those that see something of the block that begins at position `base`, and what they see of it.
std::span<Query> QueriesOfBlock(std::span<Query> queries, uint32_t base) {
  while (!queries.empty() && queries.front().position < base) queries = queries.subspan(1);
  while (!queries.empty() && queries.back().first >= base + kBlockPositions) queries = queries.first(queries.size() - 1);
  for (Query& query : queries) {
    query.begin = std::max(query.first, base) - base;
    query.end = std::min(query.position - base + 1, kBlockPositions);
  }
  return queries;
}

}  // namespace

void Attend(const AttentionNode& node, const KvCache& cache, const AttentionTask& task) {
  Query storage[AttentionTask::kMaxQueries];
  const std::span<Query> queries = MakeQueries(node, task, storage);
  const uint32_t kv_head = task.first_head / (node.heads / node.kv_heads);
  for (uint32_t i = queries.front().first / kBlockPositions; i <= queries.back().position / kBlockPositions; ++i) {
    BlockStep step(node, cache, task.blocks[i], kv_head, QueriesOfBlock(queries, i * kBlockPositions));
    step.ComputeScores();
    step.ComputeWeights();
    step.AddValues();
  }
  for (const Query& query : queries) {
    const float inverse = 1.0f / query.sum;
    for (uint32_t d = 0; d < node.value_width(); ++d) query.out[d] *= inverse;
  }
}

}  // namespace moepack::runtime
