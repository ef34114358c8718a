// The profile's tokens as compress uses them: enough of them to learn from, some sequences held back to judge by.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "compressor/tensors.h"
#include "forward/forward.h"
#include "model/profile.h"

namespace moepack {

struct Calibration {
  TokenBatch batch;                 // sequences of the profile, in its order
  std::vector<float> weights;       // one a token: weight of its domain; 0 in held-back sequences
  std::vector<uint64_t> held_back;  // indices of sequences that no statistic uses, increasing
  std::vector<uint32_t> domain;     // one a sequence: index into the profile's domains
};

// Tokens after which second moments hardly change: sixteen for each input dimension of the widest expert or dense matrix,
// at each expert when routing is even.
uint64_t EnoughTokens(const Program& program);

// Holds back every eighth sequence (none when there are fewer than eight), and takes sequences spread evenly over what is
// left, up to `max_tokens`; of those held back, up to kMaxHeldBackTokens. kRecipe when `domain_weights` names a domain the
// profile does not have.
inline constexpr uint64_t kMaxHeldBackTokens = 8192;
Result<Calibration> MakeCalibration(const Profile& profile, uint64_t max_tokens,
                                    const std::map<std::string, double>& domain_weights);

// How much an error in each row of a table over the vocabulary matters: [rows], empty for other tensors. Of an embedding,
// how often the token was read; of a head, how often it was the one to predict, since the KLD weighs an error of a logit by
// its probability. Every token counts once on top, so that those the calibration text lacks are not worthless.
std::vector<float> RowWeights(const TensorRef& tensor, const TokenBatch& batch, std::span<const float> token_weights);

// Some of `sequences`, spread evenly: as large a share of them as `max_tokens` is of their tokens, but at least one.
std::vector<uint64_t> SpreadEvenly(const TokenBatch& batch, const std::vector<uint64_t>& sequences, uint64_t max_tokens);

// The chosen sequences alone, and a stream restricted to their rows.
TokenBatch SelectSequences(const TokenBatch& batch, const std::vector<uint64_t>& sequences);
Stream SelectRows(const Stream& stream, const TokenBatch& batch, const std::vector<uint64_t>& sequences);

// The sequences held back, or such a share of each domain's, one at least, that their logits (of the scored rows) take
// about kMaxJudgedLogitBytes.
inline constexpr uint64_t kMaxJudgedLogitBytes = uint64_t{1} << 29;
std::vector<uint64_t> JudgedSequences(const Calibration& calibration, uint64_t vocabulary);

// A model before its last block.
struct LastBlock {
  Forward* forward = nullptr;
  const BlockWeights* weights = nullptr;
  const Stream* stream = nullptr;
};
// Logits of the scored rows of a batch, a matrix for each of its parts (CutIntoParts).
Result<std::vector<Matrix>> ScoredLogits(const LastBlock& model, const TokenBatch& batch);

// KLD of a model's next-token distributions from those of `base`, summed over the scored rows of each sequence.
struct KldSum {
  double sum = 0;
  uint64_t rows = 0;
  void Add(const KldSum& other) { sum += other.sum, rows += other.rows; }
  double mean() const { return rows > 0 ? sum / static_cast<double>(rows) : 0; }
};
Result<std::vector<KldSum>> SequenceKlds(const std::vector<Matrix>& base, const LastBlock& other, const TokenBatch& batch,
                                         ThreadPool& pool);

// Logits of the chosen sequences, one after another; `part` is SelectSequences of them.
Result<Matrix> LastBlockLogits(const LastBlock& model, const TokenBatch& batch, const TokenBatch& part,
                               const std::vector<uint64_t>& sequences);

// Consecutive ones of `sequences` of at most kTokensAtOnce tokens together, but at least one: what goes through a model at a
// time, so that logits of all tokens are never held.
inline constexpr uint64_t kTokensAtOnce = 1024;
std::vector<std::vector<uint64_t>> CutIntoParts(const TokenBatch& batch, const std::vector<uint64_t>& sequences);

// Whether the distribution after this token of a sequence of `length` counts: the second half, but not the last token. A
// sequence of one is a row of numbers, which gives a distribution of its own.
inline bool Scored(uint64_t position, uint64_t length) {
  return length == 1 || (position >= length / 2 && position + 1 < length);
}

// KLD(softmax(base) || softmax(other)) of every row. Same shapes.
std::vector<double> RowKlds(const Matrix& base, const Matrix& other, ThreadPool& pool);

}  // namespace moepack
