// A sequence in bytes: its state, to go on later as if nothing had happened.
//
// Little endian: a head of kHeadBytes (magic, version, precision of keys and values, digest of the bundle's manifest,
// positions, rotary nodes that turn by the frequencies of long sequences, next tokens, bytes of state), the next tokens (u32
// each), the state by slot (of an attention its blocks of positions as KvCache lays them out, with zeros past the last
// position; of a convolution its last inputs by position), and the SHA-256 of all that. The digest tells damage, not who
// wrote the file: a file made by someone else can make the model say anything, and nothing worse.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/env.h"
#include "base/status.h"
#include "format/manifest/manifest.h"
#include "runtime-min/kv_cache.h"
#include "runtime-min/sequence_state.h"

namespace moepack::runtime {

inline constexpr uint32_t kMaxNextTokens = 64;

// What a saved sequence must agree with: other state would be read wrongly, or computed by other rules.
struct SavedSequenceModel {
  DigestBytes manifest{};
  KvFormat kv = KvFormat::kF32;
  uint32_t long_rotaries = 0;  // rotary nodes that turn by the frequencies of long sequences
  uint32_t context = 0;
  uint64_t token_limit = 0;  // ids are below it
};

// Takes the next piece of a stream. Its error ends the writing.
using ByteSink = std::function<Status(ByteSpan)>;

// Sequence `id` (open) with `next` (at most kMaxNextTokens: kUsage; of the model: kBadInput), tokens that come next and are
// not in its state. `sink` gets nothing that cannot be restored.
Status WriteSequence(const SequenceState& state, SequenceId id, const SavedSequenceModel& model,
                     std::span<const int32_t> next, const ByteSink& sink);

// Fills sequence `id` (open; kUsage unless it is empty) and returns the next tokens. Every message names the file. kBadInput
// when it is not a saved sequence, or of another bundle; kVersion; kUsage when it was saved with other options, which the
// message names; kLimit when it is longer than the context or memory is full; kTruncated for a file that is shorter or
// longer than it says; kDigest when it is damaged. After an error the sequence is as before.
Result<std::vector<int32_t>> ReadSequence(SequenceState& state, SequenceId id, const SavedSequenceModel& model,
                                          const RandomAccessFile& file);

}  // namespace moepack::runtime
