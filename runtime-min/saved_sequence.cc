#include "runtime-min/saved_sequence.h"

#include <algorithm>
#include <bit>

#include "base/checked.h"
#include "base/digest/sha256.h"

namespace moepack::runtime {
namespace {

static_assert(std::endian::native == std::endian::little, "state is written as it lies in memory");

constexpr std::array<uint8_t, 8> kMagic = {'M', 'O', 'E', 'S', 'E', 'Q', 'S', '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint64_t kHeadBytes = 8 + 4 + 4 + 32 + 4 + 4 + 4 + 4 + 8, kDigestBytes = 32;

struct Head {
  uint32_t kv = 0;
  DigestBytes manifest{};
  uint32_t positions = 0, long_rotaries = 0, next_tokens = 0;
  uint64_t state_bytes = 0;
};

Bytes SerializeHead(const Head& head) {
  ByteWriter writer;
  writer.Append(kMagic);
  writer.U32(kVersion);
  writer.U32(head.kv);
  writer.Append(head.manifest);
  writer.U32(head.positions);
  writer.U32(head.long_rotaries);
  writer.U32(head.next_tokens);
  writer.U32(0);
  writer.U64(head.state_bytes);
  return writer.Release();
}

// A file read from its start to its end, with the digest of what was read.
class DigestedFile {
 public:
  explicit DigestedFile(const RandomAccessFile& file) : file_(file) {}
  Status Read(std::span<uint8_t> out) {
    MOEPACK_RETURN_IF_ERROR(file_.Read(offset_, out));
    offset_ += out.size();
    digest_.Update(out);
    return Status::Ok();
  }
  // The digest at the end of the file is that of all before it.
  Status CheckDigest() {
    std::array<uint8_t, kDigestBytes> stored{};
    MOEPACK_RETURN_IF_ERROR(file_.Read(offset_, stored));
    if (digest_.Finish() == stored) return Status::Ok();
    return Status(ErrorCode::kDigest,
                  "the saved sequence is damaged: its SHA-256 does not match; compute the sequence again");
  }

 private:
  const RandomAccessFile& file_;
  uint64_t offset_ = 0;
  Sha256Stream digest_;
};

// Magic and version first: all else is only known of this format.
Result<Head> ParseHead(ByteSpan bytes) {
  ByteReader reader(bytes);
  const ByteSpan magic = reader.Take(kMagic.size());
  if (!reader.ok() || !std::equal(magic.begin(), magic.end(), kMagic.begin())) {
    return Status(ErrorCode::kBadInput, "not a saved sequence");
  }
  const uint32_t version = reader.U32();
  if (reader.ok() && version != kVersion) {
    return Status(ErrorCode::kVersion, StrFormat("version %u of saved sequences; this build reads %u", version, kVersion));
  }
  Head head;
  head.kv = reader.U32();
  const ByteSpan manifest = reader.Take(head.manifest.size());
  std::copy(manifest.begin(), manifest.end(), head.manifest.begin());
  head.positions = reader.U32();
  head.long_rotaries = reader.U32();
  head.next_tokens = reader.U32();
  const uint32_t reserved = reader.U32();
  head.state_bytes = reader.U64();
  if (!reader.ok()) return Status(ErrorCode::kTruncated, "the saved sequence ends within its head");
  if (reserved != 0) return Status(ErrorCode::kBadInput, StrFormat("offset 60: %u, expected 0", reserved));
  return head;
}

uint32_t BitsOf(KvFormat format) { return format == KvFormat::kF32 ? 32 : 8; }

Status CheckHead(const Head& head, const SavedSequenceModel& model) {
  if (head.manifest != model.manifest) {
    return Status(ErrorCode::kBadInput, "saved with the bundle of manifest " + ToHex(head.manifest) + ", this one is " +
                                            ToHex(model.manifest) + ": a sequence goes on with its own bundle only");
  }
  if (head.kv > static_cast<uint32_t>(KvFormat::kI8)) {
    return Status(ErrorCode::kBadInput, StrFormat("offset 12: precision %u of keys and values, expected 0 or 1", head.kv));
  }
  if (head.kv != static_cast<uint32_t>(model.kv)) {
    return Status(ErrorCode::kUsage, StrFormat("saved with keys and values of %u bits, not %u",
                                               BitsOf(static_cast<KvFormat>(head.kv)), BitsOf(model.kv)));
  }
  if (head.positions > model.context) {
    return Status(ErrorCode::kLimit,
                  StrFormat("the saved sequence has %u tokens, the context holds %u", head.positions, model.context));
  }
  if (head.long_rotaries != model.long_rotaries) {
    return Status(ErrorCode::kUsage,
                  "saved with a context that turns by other frequencies (LongRoPE): it needs one as long");
  }
  if (head.next_tokens > kMaxNextTokens) {
    return Status(ErrorCode::kLimit, StrFormat("offset 56: %u next tokens, at most %u", head.next_tokens, kMaxNextTokens));
  }
  return Status::Ok();
}

// What the head says makes up the whole file.
Status CheckSizes(const Head& head, uint64_t expected_state_bytes, uint64_t file_bytes) {
  if (head.state_bytes != expected_state_bytes) {
    return Status(ErrorCode::kBadInput, StrFormat("offset 64: %llu bytes of state, expected %llu for %u tokens",
                                                  static_cast<unsigned long long>(head.state_bytes),
                                                  static_cast<unsigned long long>(expected_state_bytes), head.positions));
  }
  const CheckedU64 expected = CheckedU64(kHeadBytes + kDigestBytes) +
                              CheckedU64(head.next_tokens) * CheckedU64(sizeof(uint32_t)) + CheckedU64(expected_state_bytes);
  if (expected.valid() && expected.value() == file_bytes) return Status::Ok();
  return Status(ErrorCode::kTruncated, StrFormat("%llu bytes, expected %llu: the file is cut short or not only a sequence",
                                                 static_cast<unsigned long long>(file_bytes),
                                                 static_cast<unsigned long long>(expected.valid() ? expected.value() : 0)));
}

Status CheckNextToken(int64_t token, uint64_t token_limit) {
  if (token >= 0 && static_cast<uint64_t>(token) < token_limit) return Status::Ok();
  return Status(ErrorCode::kBadInput,
                StrFormat("next token %lld: the model has tokens 0 to %llu", static_cast<long long>(token),
                          static_cast<unsigned long long>(token_limit - 1)));
}

Result<std::vector<int32_t>> ParseNextTokens(ByteSpan bytes, uint64_t token_limit) {
  ByteReader reader(bytes);
  std::vector<int32_t> tokens;
  while (reader.remaining() > 0) {
    const uint32_t token = reader.U32();
    MOEPACK_RETURN_IF_ERROR(CheckNextToken(token, token_limit));
    tokens.push_back(static_cast<int32_t>(token));
  }
  return tokens;
}

Result<std::vector<int32_t>> Read(SequenceState& state, SequenceId id, const SavedSequenceModel& model,
                                  const RandomAccessFile& file) {
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t file_bytes, file.Size());
  DigestedFile input(file);
  Bytes bytes(std::min(file_bytes, kHeadBytes));
  MOEPACK_RETURN_IF_ERROR(input.Read(bytes));
  MOEPACK_ASSIGN_OR_RETURN(const Head head, ParseHead(bytes));
  MOEPACK_RETURN_IF_ERROR(CheckHead(head, model));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t state_bytes, state.SavedBytes(head.positions));
  MOEPACK_RETURN_IF_ERROR(CheckSizes(head, state_bytes, file_bytes));
  bytes.resize(head.next_tokens * sizeof(uint32_t));
  MOEPACK_RETURN_IF_ERROR(input.Read(bytes));
  MOEPACK_RETURN_IF_ERROR(state.Extend(id, head.positions));
  MOEPACK_RETURN_IF_ERROR(state.Read(id, head.positions, [&input](std::span<uint8_t> out) { return input.Read(out); }));
  MOEPACK_RETURN_IF_ERROR(input.CheckDigest());
  MOEPACK_ASSIGN_OR_RETURN(std::vector<int32_t> next, ParseNextTokens(bytes, model.token_limit));
  state.Advance(id, head.positions);
  return next;
}

}  // namespace

Status WriteSequence(const SequenceState& state, SequenceId id, const SavedSequenceModel& model,
                     std::span<const int32_t> next, const ByteSink& sink) {
  if (next.size() > kMaxNextTokens) {
    return Status(ErrorCode::kUsage,
                  StrFormat("%zu next tokens beside a saved sequence: at most %u", next.size(), kMaxNextTokens));
  }
  for (const int32_t token : next) MOEPACK_RETURN_IF_ERROR(CheckNextToken(token, model.token_limit));
  Sha256Stream digest;
  const ByteSink both = [&](ByteSpan piece) {
    digest.Update(piece);
    return sink(piece);
  };
  Head head{.kv = static_cast<uint32_t>(model.kv), .manifest = model.manifest, .positions = state.sequences().position(id)};
  head.long_rotaries = model.long_rotaries;
  head.next_tokens = static_cast<uint32_t>(next.size());
  MOEPACK_ASSIGN_OR_RETURN(head.state_bytes, state.SavedBytes(head.positions));
  MOEPACK_RETURN_IF_ERROR(both(SerializeHead(head)));
  ByteWriter tokens;
  for (const int32_t token : next) tokens.U32(static_cast<uint32_t>(token));
  MOEPACK_RETURN_IF_ERROR(both(tokens.bytes()));
  MOEPACK_RETURN_IF_ERROR(state.Write(id, both));
  return sink(digest.Finish());
}

Result<std::vector<int32_t>> ReadSequence(SequenceState& state, SequenceId id, const SavedSequenceModel& model,
                                          const RandomAccessFile& file) {
  if (state.sequences().position(id) != 0) {
    return Status(ErrorCode::kUsage, StrFormat("sequence %u is not empty: a saved one cannot be put there", id));
  }
  Result<std::vector<int32_t>> next = Read(state, id, model, file);
  if (next.ok()) return next;
  state.Trim(id);
  return next.status().With(file.path());
}

}  // namespace moepack::runtime
