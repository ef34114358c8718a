// runtime-min: verified tokens on a device. The public header of the library; sampler.h and metrics.h belong to it.
//
// An engine takes a verified bundle and nothing else: every byte of a weight is checked against the signed manifest before
// it is used, expert by expert as they are needed. Libraries here never throw, print or abort on bad input.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/env.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "runtime-min/expert_cache.h"
#include "runtime-min/kernels/kernels.h"
#include "runtime-min/kv_cache.h"
#include "runtime-min/sequences.h"
#include "runtime-min/stand_ins.h"
#include "verify/verify.h"

namespace moepack::runtime {

class DenseWeights;
class Executor;
class SequenceState;
class UnitSource;
struct SavedSequenceModel;
struct TileToken;

inline constexpr uint64_t kAllExperts = UINT64_MAX, kAutoExperts = UINT64_MAX - 1;
inline constexpr uint32_t kDefaultPrefetch = 2, kMaxPrefetchLanes = 64;

struct EngineOptions {
  kernels::Isa isa = kernels::BestIsa();
  // Most bytes that resident experts may take. At least what the experts of one token need in every layer. kAutoExperts:
  // three quarters of what memory the system has left beside dense weights, or what that least is.
  uint64_t expert_ram_bytes = kAllExperts;
  // What they may take at first, where that is less: it grows when too many experts have to be loaded (ExpertCacheOptions).
  uint64_t expert_ram_start_bytes = UINT64_MAX;
  double grow_below = 0.9;                  // share of lookups that found their expert
  std::optional<CachePolicy> cache_policy;  // the bundle's when not given; kMalformed when not valid
  // MoE layers ahead for which experts are foretold and loaded, 0..kMaxPrefetchDepth. When not given: kDefaultPrefetch where
  // the budget cannot hold all experts and there is somebody to load them, a lane or a thread that waits
  // (ExpertCache::ThreadsMayWait); 0 elsewhere.
  std::optional<uint32_t> prefetch;
  // Threads beside the pool that load them, 0..kMaxPrefetchLanes. 0: those of the pool do while others of it load what is
  // needed. kUsage for some where prefetch is 0; where it is not given and all experts fit, they are not started.
  uint32_t prefetch_lanes = 0;
  // Longest sequence in tokens; 0: what the program allows without the frequencies of long sequences (RotaryNode).
  uint32_t context = 0;
  uint32_t expected_tokens = 0;  // of the sequence to come, where that is known: the context when that is 0
  uint32_t tile_tokens = 256;    // tokens computed at once in prefill, 1..4096; less takes less memory
  uint32_t logit_rows = 1;       // most tokens of one Run whose logits are wanted; at least one for each sequence
  uint32_t sequences = 1;        // most that are open at once, 1..tile_tokens
  // Most tokens of all sequences together whose state is kept, in whole blocks of kBlockPositions; 0: sequences * context.
  // Memory is taken as sequences grow; this is what it may come to.
  uint64_t state_tokens = 0;
  KvFormat kv = KvFormat::kF32;  // kI8 takes about a quarter of the memory; its logits differ a little
  // Of what goes into routers that the bundle keeps as integers: 15, as into every matrix of integers, or 8. kUsage for 8
  // where the bundle has no such router.
  uint32_t router_input_bits = 15;
  MissPolicy misses;  // lossy unless it is kLoad
  // Whether what the bundle allows may stand in for experts that cannot be read (Manifest::unavailable).
  bool bridge_unavailable = true;
  Notice notice;  // of the first time that a step of that bridges an expert
};

// What a run appends to one sequence.
struct SequenceTokens {
  SequenceId sequence = kFirstSequence;
  std::span<const int32_t> tokens;  // at least one
  uint32_t logit_rows = 1;          // of its last tokens
};

// Sequences of tokens through one model. Logits do not depend on threads, tile, expert budget, on how a sequence is cut into
// calls or on the other sequences of a call, bit for bit, unless misses are lossy or experts had to be bridged (stand_ins).
// One thread at a time.
//
// kFirstSequence is always open, and is what calls without a sequence mean. Sequences that were opened or forked are known
// by their id until they are released; a later one may get the same id. An id that is not open is kUsage.
class Engine {
 public:
  // Loads dense weights and the experts of the hot list that fit. `pool` must outlive the engine. kUsage for options that
  // cannot be (the message gives the minimum), kDigest and kMalformed for damaged bundles, kNoMemory.
  static Result<std::unique_ptr<Engine>> Create(std::unique_ptr<verify::VerifiedBundle> bundle, ThreadPool& pool,
                                                const EngineOptions& options);
  // The same from any source of units.
  static Result<std::unique_ptr<Engine>> Create(std::unique_ptr<UnitSource> source, ThreadPool& pool,
                                                const EngineOptions& options);
  ~Engine();

  // Appends 1..tile_tokens() tokens to the sequence and computes logits of the last `logit_rows` of them. kBadInput for a
  // token that the model does not have, kLimit when the context is full, errors of loading experts (kDigest: layer, expert
  // and offset). After an error the sequence is as before.
  Status Run(std::span<const int32_t> tokens, uint32_t logit_rows = 1, SequenceId id = kFirstSequence);
  // Appends tokens to several sequences at once, each named at most once, together 1..tile_tokens(): weights are read once
  // for all of them. logits() has the rows of the first, then of the second... Errors as of Run, and kLimit when the memory
  // of all sequences is full; after an error every sequence is as before.
  Status RunBatch(std::span<const SequenceTokens> batch);
  // For a model whose input is of floats: 1..tile_tokens() rows [count, input_width()], each on its own, and the logits of
  // all. kUsage for a model that takes tokens, as for Run of one that takes rows; errors of loading experts.
  Status RunRows(std::span<const float> rows);
  // At least one token, in tiles, and the logits of the last one. kBadInput and kLimit of the context as Run, before
  // anything is computed; after another error whole tiles may have been appended.
  Status Prefill(std::span<const int32_t> tokens, SequenceId id = kFirstSequence);
  // [logit_rows, vocab_size()] of the last Run; none when that failed. Valid until the next call.
  std::span<const float> logits() const;

  // A new sequence without tokens. kLimit when as many are open as were planned for.
  Result<SequenceId> OpenSequence();
  // A new sequence that begins with the first `tokens` tokens of `from`. Their state is shared and nothing is computed
  // again; each of the two takes memory for what it appends. kUsage when `from` has fewer, or has more and the model has
  // convolutions, which remember the end of a sequence only; kLimit as of OpenSequence.
  Result<SequenceId> ForkSequence(SequenceId from, uint32_t tokens);
  // Any but the first, which can be emptied by Reset.
  Status ReleaseSequence(SequenceId id);
  // Takes all tokens off the sequence. Experts stay resident.
  void Reset();
  Status ResetSequence(SequenceId id);

  // Saves a sequence as pieces of a stream (runtime-min/saved_sequence.h), with tokens that come next and are not in its
  // state, such as the one sampled last. Errors of `sink`; kUsage; kBadInput for a token that the model does not have.
  Status SaveSequence(SequenceId id, std::span<const int32_t> next, const std::function<Status(ByteSpan)>& sink) const;
  // Fills an empty sequence with a saved one and returns its next tokens. Tokens that are appended then get the logits that
  // they would have got, bit for bit, on the same kernels. The file may be hostile; errors as of ReadSequence, after which
  // the sequence is as before.
  Result<std::vector<int32_t>> RestoreSequence(SequenceId id, const RandomAccessFile& file);

  Status CheckOpen(SequenceId id) const;
  // Tokens of an open sequence; 0 of one that is not.
  uint32_t position(SequenceId id = kFirstSequence) const;
  uint32_t sequences() const { return options_.sequences; }
  uint32_t context() const { return options_.context; }
  uint32_t tile_tokens() const { return options_.tile_tokens; }
  kernels::Isa isa() const { return options_.isa; }
  uint64_t vocab_size() const;
  uint64_t input_width() const;                    // columns of a row; 0: the model takes tokens
  uint32_t prefetch() const { return prefetch_; }  // MoE layers ahead
  const ExpertCache& experts() const { return *cache_; }
  const StandInStats& stand_ins() const;
  void ResetStats();
  uint64_t dense_bytes() const;  // resident weights outside of experts
  // What sequences remember, KV caches and inputs of convolutions: at most, and of the tokens they have.
  uint64_t state_bytes() const;
  uint64_t used_state_bytes() const;
  // Resident bytes that decoding one token reads: every matrix once, of experts the top k at their mean size.
  uint64_t weight_bytes_per_token() const;

 private:
  Engine(std::unique_ptr<UnitSource> source, const EngineOptions& options);
  Status CreateState();
  SavedSequenceModel ModelOfState() const;
  Status CheckTakesTokens() const;
  Status CheckTokens(SequenceId id, std::span<const int32_t> tokens) const;
  Status CheckPart(const SequenceTokens& part) const;
  Status CheckBatch(std::span<const SequenceTokens> batch);
  void LayOut(std::span<const SequenceTokens> batch);
  Status ExtendAndRun(std::span<const SequenceTokens> batch);

  std::unique_ptr<UnitSource> source_;
  EngineOptions options_;
  std::unique_ptr<DenseWeights> weights_;
  std::unique_ptr<ExpertCache> cache_;
  std::unique_ptr<SequenceState> state_;
  std::unique_ptr<Executor> executor_;
  uint32_t prefetch_ = 0;
  uint64_t token_limit_ = 0;     // rows of the smallest embedding table
  std::vector<TileToken> tile_;  // of the run
  std::vector<bool> in_batch_;   // by sequence
};

}  // namespace moepack::runtime
