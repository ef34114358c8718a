// What the attention and convolution nodes of a program remember of every sequence.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "format/program.h"
#include "runtime-min/convolution.h"
#include "runtime-min/kv_cache.h"
#include "runtime-min/sequences.h"

namespace moepack::runtime {

struct SequenceStateOptions {
  uint32_t sequences = 1;
  uint32_t context = 0;    // longest sequence
  uint64_t positions = 0;  // of all sequences together
  KvFormat kv = KvFormat::kF32;
};

// Not thread-safe, apart from what its parts say.
class SequenceState {
 public:
  // `program` (validated) must outlive it. kLimit, kNoMemory. No sequence is open at first.
  static Result<std::unique_ptr<SequenceState>> Create(const Program& program, const SequenceStateOptions& options);

  Result<SequenceId> Open() { return sequences_.Open(); }
  // A sequence that begins with the first `positions` of `from` (open). kUsage when `from` has fewer, or has more and the
  // model has convolutions: they remember the end of a sequence only. kLimit.
  Result<SequenceId> Fork(SequenceId from, uint32_t positions);
  void Empty(SequenceId id) { sequences_.Empty(id); }
  void Close(SequenceId id) { sequences_.Close(id); }
  // Room for `tokens` more positions of `id`, which may be written then. kLimit: as before.
  Status Extend(SequenceId id, uint32_t tokens);
  void Trim(SequenceId id) { sequences_.Trim(id); }
  // `id` has `tokens` positions more, whose state was written.
  void Advance(SequenceId id, uint32_t tokens);

  // Bytes of the state of a sequence of `positions` positions, as Write gives and Read takes it: by slot, of an attention
  // the blocks of the positions, of a convolution its last inputs by position. kLimit on overflow.
  Result<uint64_t> SavedBytes(uint32_t positions) const;
  Status Write(SequenceId id, const std::function<Status(ByteSpan)>& sink) const;
  // Into room that `id` (empty) has for `positions`, which it has not got yet. `source` fills what it is given.
  Status Read(SequenceId id, uint32_t positions, const std::function<Status(std::span<uint8_t>)>& source);

  const Sequences& sequences() const { return sequences_; }
  KvCache& keys_and_values(uint32_t slot) { return caches_[slot]; }
  ConvolutionState& inputs(uint32_t slot) { return inputs_[slot]; }
  uint64_t size_bytes() const;  // all of it in use
  uint64_t used_bytes() const;  // blocks that sequences hold, and convolutions

 private:
  explicit SequenceState(const Program& program) : program_(program) {}
  Status CreateSlots(const SequenceStateOptions& options);
  uint64_t block_bytes() const;
  uint64_t convolution_bytes() const;

  const Program& program_;
  Sequences sequences_;
  std::vector<KvCache> caches_;           // by state slot; empty for those of convolutions
  std::vector<ConvolutionState> inputs_;  // by state slot; empty for those of attention
};

}  // namespace moepack::runtime
