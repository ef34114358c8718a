#include "runtime-min/generation.h"

#include <algorithm>

namespace moepack::runtime {
namespace {

constexpr size_t kMaxCharacterBytes = 4;

bool IsContinuation(unsigned char byte) { return (byte & 0xc0) == 0x80; }

// Bytes of the character that begins with `lead`; 1 for bytes that begin none.
size_t CharacterBytes(unsigned char lead) {
  if (lead >= 0xc2 && lead <= 0xdf) return 2;
  if (lead >= 0xe0 && lead <= 0xef) return 3;
  return lead >= 0xf0 && lead <= 0xf4 ? 4 : 1;
}

// Bytes at the end of `text` that begin a character without ending it.
size_t UnfinishedBytes(std::string_view text) {
  for (size_t n = 1; n < kMaxCharacterBytes && n <= text.size(); ++n) {
    const auto byte = static_cast<unsigned char>(text[text.size() - n]);
    if (!IsContinuation(byte)) return CharacterBytes(byte) > n ? n : 0;
  }
  return 0;
}

// What one call of Generate knows.
struct Loop {
  Engine& engine;
  const Tokenizer* tokenizer;
  const TokenSink& sink;
  SequenceId sequence;
  uint64_t left;  // tokens that may still be given out
  WholeCharacters characters;

  // Gives a token out: a reason when it was the last one.
  std::optional<StopReason> Take(int32_t token) {
    if (tokenizer != nullptr && tokenizer->IsEndOfText(token)) return StopReason::kEndOfText;
    const std::string text = tokenizer != nullptr ? characters.Push(tokenizer->Decode({&token, 1})) : "";
    --left;
    if (!sink(token, text)) return StopReason::kCaller;
    if (engine.position(sequence) == engine.context()) return StopReason::kContext;
    if (left == 0) return StopReason::kLength;
    return std::nullopt;
  }
};

}  // namespace

std::string WholeCharacters::Push(std::string_view bytes) {
  held_ += bytes;
  const size_t whole = held_.size() - UnfinishedBytes(held_);
  std::string out = held_.substr(0, whole);
  held_.erase(0, whole);
  return out;
}

const char* StopReasonName(StopReason reason) {
  switch (reason) {
    case StopReason::kLength:
      return "length";
    case StopReason::kEndOfText:
      return "end_of_text";
    case StopReason::kContext:
      return "context";
    case StopReason::kCaller:
      break;
  }
  return "caller";
}

Result<StopReason> Generate(Engine& engine, const Tokenizer* tokenizer, Sampler& sampler, const GenerationRequest& request,
                            const TokenSink& sink, Recorder& recorder) {
  if (request.prompt.empty() || request.max_tokens == 0) {
    return Status(ErrorCode::kUsage, "generation: expected a prompt of at least one token, and at least one to generate");
  }
  Loop loop{engine, tokenizer, sink, request.sequence, request.max_tokens, {}};
  const double start = MonotonicMs();
  MOEPACK_RETURN_IF_ERROR(engine.Prefill(request.prompt, request.sequence));
  recorder.AddPrefill(request.prompt.size(), MonotonicMs() - start);
  int32_t token = sampler.Sample(engine.logits());
  recorder.SetFirstToken(MonotonicMs() - start);
  std::optional<StopReason> stopped;
  while (!(stopped = loop.Take(token))) {
    const double before = MonotonicMs();
    MOEPACK_RETURN_IF_ERROR(engine.Run({&token, 1}, 1, request.sequence));
    token = sampler.Sample(engine.logits());
    recorder.AddStep(MonotonicMs() - before);
  }
  const std::string rest = loop.characters.Rest();
  if (!rest.empty() && stopped != StopReason::kCaller) (void)sink(kRestOfText, rest);
  return *stopped;
}

}  // namespace moepack::runtime
