// The loop that makes tokens one after the other, and their text as whole characters.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "runtime-min/engine.h"
#include "runtime-min/recorder.h"
#include "runtime-min/sampler.h"
#include "tokenizer/tokenizer.h"

namespace moepack::runtime {

// Cuts bytes that come in pieces (a token may end inside a character) where UTF-8 characters end. Bytes that are not UTF-8
// go through as they are; all pieces together are what was put in.
class WholeCharacters {
 public:
  // What can be given out now that `bytes` have come: everything but a character that has begun and may become whole.
  std::string Push(std::string_view bytes);
  // What is still held, at the end.
  std::string Rest() { return std::move(held_); }

 private:
  std::string held_;  // at most 3 bytes between calls
};

enum class StopReason : uint8_t { kLength, kEndOfText, kContext, kCaller };
const char* StopReasonName(StopReason reason);  // "length", "end_of_text", "context", "caller"; static storage

// A token as it is chosen, with the whole characters that end with it (a zero byte follows them); kRestOfText once at the
// end where bytes of a character were left that never became whole. false ends the generation, and no call follows.
inline constexpr int32_t kRestOfText = -1;
using TokenSink = std::function<bool(int32_t token, std::string_view text)>;

struct GenerationRequest {
  std::span<const int32_t> prompt;  // at least one token, appended to the sequence
  uint64_t max_tokens = 128;        // at least 1
  SequenceId sequence = kFirstSequence;
};

// Appends the prompt and chooses tokens until max_tokens, an end of text (which the sink does not get), a full context, or
// the sink's false. The last token that was chosen has not been run: begin the next prompt with it to go on. Without a
// tokenizer (null) texts are empty and no token ends a text. kUsage for an empty prompt or no tokens; errors of Engine::Run,
// after which tokens that the sink got are part of the sequence but for the last one.
Result<StopReason> Generate(Engine& engine, const Tokenizer* tokenizer, Sampler& sampler, const GenerationRequest& request,
                            const TokenSink& sink, Recorder& recorder);

}  // namespace moepack::runtime
