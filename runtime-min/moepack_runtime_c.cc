#include <algorithm>
#include <cstring>

#include "base/env.h"
#include "runtime-min/generation.h"
#include "runtime-min/metric_list.h"
#include "runtime-min/moepack_runtime_c_handle.h"
#include "runtime-min/saved_sequence.h"

namespace {

using moepack::ErrorCode;
using moepack::Result;
using moepack::Status;
using moepack::StrFormat;
using moepack::runtime::Call;
using moepack::runtime::Knows;
using moepack::runtime::Usage;
namespace runtime = moepack::runtime;

static_assert(MOEPACK_ROLE_SYSTEM == static_cast<int>(moepack::ChatRole::kSystem) &&
              MOEPACK_ROLE_USER == static_cast<int>(moepack::ChatRole::kUser) &&
              MOEPACK_ROLE_ASSISTANT == static_cast<int>(moepack::ChatRole::kAssistant));
static_assert(MOEPACK_MOST_NEXT_TOKENS == runtime::kMaxNextTokens);

// Copies what fits whole; a zero byte follows where there is room.
Status CopyText(std::string_view text, char* out, size_t capacity, size_t* bytes) {
  if (bytes == nullptr || (out == nullptr && capacity != 0)) return Usage("text and its size must be set");
  *bytes = text.size();
  if (text.size() > capacity) return Status(ErrorCode::kLimit, StrFormat("the text has %zu bytes", text.size()));
  if (out == nullptr) return Status::Ok();
  std::memcpy(out, text.data(), text.size());
  if (text.size() < capacity) out[text.size()] = '\0';
  return Status::Ok();
}

Status RequireTokenizer(const moepack_runtime& r) {
  if (r.tokenizer != nullptr) return Status::Ok();
  return Status(ErrorCode::kTokenizer, "the bundle holds no tokenizer, so it takes token ids only");
}

// Copies what fits whole.
Status CopyTokens(std::span<const int32_t> all, const char* what, int32_t* tokens, size_t capacity, size_t* count) {
  *count = all.size();
  if (all.size() > capacity) return Status(ErrorCode::kLimit, StrFormat("%s has %zu tokens", what, all.size()));
  std::ranges::copy(all, tokens);
  return Status::Ok();
}

Result<std::vector<moepack::ChatMessage>> MessagesOf(std::span<const moepack_runtime_message> given) {
  std::vector<moepack::ChatMessage> messages;
  for (const moepack_runtime_message& message : given) {
    if (!Knows(&message)) return Usage("moepack_runtime_message: struct_bytes must be its size");
    if (message.role >= moepack::kChatRoles) return Usage("moepack_runtime_message: no such role");
    if (message.content == nullptr && message.content_bytes != 0) return Usage("moepack_runtime_message: no content");
    messages.push_back({static_cast<moepack::ChatRole>(message.role),
                        std::string(message.content != nullptr ? message.content : "", message.content_bytes)});
  }
  return messages;
}

Status RequireTokens(const int32_t* tokens, size_t count) {
  return tokens != nullptr && count > 0 ? Status::Ok() : Usage("expected at least one token");
}

Result<std::span<const float>> Row(const moepack_runtime& r, uint32_t row) {
  const std::span<const float> logits = r.engine->logits();
  const uint64_t width = r.engine->vocab_size(), rows = logits.size() / width;
  if (row < rows) return logits.subspan(row * width, width);
  return Usage(StrFormat("logits row %u: the last evaluation made %llu", row, static_cast<unsigned long long>(rows)));
}

Status Evaluate(moepack_runtime& r, uint32_t sequence, std::span<const int32_t> tokens) {
  const double start = runtime::MonotonicMs();
  MOEPACK_RETURN_IF_ERROR(r.engine->Prefill(tokens, sequence));
  const double ms = runtime::MonotonicMs() - start;
  if (tokens.size() == 1) {
    r.recorder->AddStep(ms);
  } else {
    r.recorder->AddPrefill(tokens.size(), ms);
  }
  return Status::Ok();
}

Status EvaluateBatch(moepack_runtime& r, std::span<const moepack_runtime_batch> given) {
  std::vector<runtime::SequenceTokens> batch;
  uint64_t tokens = 0;
  for (const moepack_runtime_batch& part : given) {
    if (!Knows(&part)) return Usage("moepack_runtime_batch: struct_bytes must be its size");
    MOEPACK_RETURN_IF_ERROR(RequireTokens(part.tokens, part.token_count));
    batch.push_back({part.sequence, {part.tokens, part.token_count}, 1});
    tokens += part.token_count;
  }
  const double start = runtime::MonotonicMs();
  MOEPACK_RETURN_IF_ERROR(r.engine->RunBatch(batch));
  const double ms = runtime::MonotonicMs() - start;
  if (tokens == batch.size()) {
    r.recorder->AddStep(ms, tokens);
  } else {
    r.recorder->AddPrefill(tokens, ms);
  }
  return Status::Ok();
}

Result<runtime::SamplerOptions> SamplingOf(const moepack_runtime_sampling* given) {
  runtime::SamplerOptions options;
  if (given == nullptr) return options;
  if (!Knows(given)) return Usage("moepack_runtime_sampling: struct_bytes must be its size");
  options.temperature = given->temperature;
  options.top_k = given->top_k;
  if (given->top_p != 0) options.top_p = given->top_p;
  options.seed = given->seed;
  MOEPACK_RETURN_IF_ERROR(runtime::ValidateSamplerOptions(options));
  return options;
}

int StoppedCode(runtime::StopReason reason) {
  switch (reason) {
    case runtime::StopReason::kLength:
      return MOEPACK_STOPPED_LENGTH;
    case runtime::StopReason::kEndOfText:
      return MOEPACK_STOPPED_END_OF_TEXT;
    case runtime::StopReason::kContext:
      return MOEPACK_STOPPED_CONTEXT;
    case runtime::StopReason::kCaller:
      break;
  }
  return MOEPACK_STOPPED_CALLER;
}

Status TakeSequence(moepack_runtime& r, const Result<runtime::SequenceId>& opened, uint32_t* sequence) {
  if (!opened.ok()) return opened.status();
  r.samplers[*opened] = runtime::Sampler({});
  *sequence = *opened;
  return Status::Ok();
}

Status SaveSequence(moepack_runtime& r, uint32_t sequence, std::span<const int32_t> next, const char* path) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, moepack::AtomicFile::Create(moepack::PosixEnv(), path));
  const auto append = [&](moepack::ByteSpan bytes) { return file->Append(bytes); };
  MOEPACK_RETURN_IF_ERROR(r.engine->SaveSequence(sequence, next, append));
  return file->Commit();
}

Status RestoreSequence(moepack_runtime& r, uint32_t sequence, const char* path, std::span<int32_t> next, size_t* count) {
  *count = 0;
  MOEPACK_ASSIGN_OR_RETURN(const auto file, moepack::PosixEnv().OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<int32_t> saved, r.engine->RestoreSequence(sequence, *file));
  *count = saved.size();
  if (saved.size() > next.size()) {
    MOEPACK_RETURN_IF_ERROR(r.engine->ResetSequence(sequence));
    return Status(ErrorCode::kLimit, StrFormat("%zu tokens come next", saved.size()));
  }
  std::ranges::copy(saved, next.begin());
  return Status::Ok();
}

}  // namespace

extern "C" {

int moepack_runtime_tokenize(moepack_runtime* runtime, const char* text, size_t text_bytes, int add_beginning,
                             int32_t* tokens, size_t capacity, size_t* count) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    MOEPACK_RETURN_IF_ERROR(RequireTokenizer(r));
    if (count == nullptr || (tokens == nullptr && capacity != 0) || (text == nullptr && text_bytes != 0)) {
      return Usage("text, tokens and count must be set");
    }
    std::vector<int32_t> all;
    if (add_beginning != 0) all.assign(r.tokenizer->beginning().begin(), r.tokenizer->beginning().end());
    const std::vector<int32_t> encoded = r.tokenizer->Encode({text != nullptr ? text : "", text_bytes});
    all.insert(all.end(), encoded.begin(), encoded.end());
    return CopyTokens(all, "the text", tokens, capacity, count);
  });
}

int moepack_runtime_tokenize_chat(moepack_runtime* runtime, const moepack_runtime_message* messages, size_t message_count,
                                  int32_t* tokens, size_t capacity, size_t* count) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    MOEPACK_RETURN_IF_ERROR(RequireTokenizer(r));
    if (count == nullptr || (tokens == nullptr && capacity != 0) || messages == nullptr || message_count == 0) {
      return Usage("messages, tokens and count must be set");
    }
    MOEPACK_ASSIGN_OR_RETURN(const auto conversation, MessagesOf({messages, message_count}));
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<int32_t> all, r.tokenizer->EncodeChat(conversation));
    return CopyTokens(all, "the conversation", tokens, capacity, count);
  });
}

int moepack_runtime_detokenize(moepack_runtime* runtime, const int32_t* tokens, size_t count, char* text, size_t capacity,
                               size_t* text_bytes) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    MOEPACK_RETURN_IF_ERROR(RequireTokenizer(r));
    if (tokens == nullptr && count != 0) return Usage("tokens must be set");
    return CopyText(r.tokenizer->Decode({tokens, count}), text, capacity, text_bytes);
  });
}

int moepack_runtime_is_end_of_text(moepack_runtime* runtime, int32_t token, int* ends) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    MOEPACK_RETURN_IF_ERROR(RequireTokenizer(r));
    if (ends == nullptr) return Usage("ends must be set");
    *ends = r.tokenizer->IsEndOfText(token) ? 1 : 0;
    return Status::Ok();
  });
}

int moepack_runtime_evaluate(moepack_runtime* runtime, uint32_t sequence, const int32_t* tokens, size_t count) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    MOEPACK_RETURN_IF_ERROR(RequireTokens(tokens, count));
    return Evaluate(r, sequence, {tokens, count});
  });
}

int moepack_runtime_evaluate_batch(moepack_runtime* runtime, const moepack_runtime_batch* batch, size_t batch_count) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    if (batch == nullptr || batch_count == 0) return Usage("batch: expected at least one entry");
    return EvaluateBatch(r, {batch, batch_count});
  });
}

int moepack_runtime_logits(moepack_runtime* runtime, uint32_t row, const float** logits) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    if (logits == nullptr) return Usage("logits must be set");
    MOEPACK_ASSIGN_OR_RETURN(const std::span<const float> values, Row(r, row));
    *logits = values.data();
    return Status::Ok();
  });
}

int moepack_runtime_set_sampling(moepack_runtime* runtime, uint32_t sequence, const moepack_runtime_sampling* sampling) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    MOEPACK_RETURN_IF_ERROR(r.engine->CheckOpen(sequence));
    MOEPACK_ASSIGN_OR_RETURN(const runtime::SamplerOptions options, SamplingOf(sampling));
    r.samplers[sequence] = runtime::Sampler(options);
    return Status::Ok();
  });
}

int moepack_runtime_sample(moepack_runtime* runtime, uint32_t sequence, uint32_t row, int32_t* token) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    MOEPACK_RETURN_IF_ERROR(r.engine->CheckOpen(sequence));
    if (token == nullptr) return Usage("token must be set");
    MOEPACK_ASSIGN_OR_RETURN(const std::span<const float> logits, Row(r, row));
    *token = r.samplers[sequence].Sample(logits);
    return Status::Ok();
  });
}

int moepack_runtime_generate(moepack_runtime* runtime, uint32_t sequence, const int32_t* prompt, size_t count,
                             uint64_t max_tokens, moepack_runtime_on_token on_token, void* user, int* stopped) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    MOEPACK_RETURN_IF_ERROR(RequireTokens(prompt, count));
    MOEPACK_RETURN_IF_ERROR(r.engine->CheckOpen(sequence));
    if (on_token == nullptr) return Usage("on_token must be set");
    const auto sink = [&](int32_t token, std::string_view text) {
      return on_token(user, token, text.data() != nullptr ? text.data() : "", text.size()) == 0;
    };
    MOEPACK_ASSIGN_OR_RETURN(const runtime::StopReason reason,
                             runtime::Generate(*r.engine, r.tokenizer.get(), r.samplers[sequence],
                                               {{prompt, count}, max_tokens, sequence}, sink, *r.recorder));
    if (stopped != nullptr) *stopped = StoppedCode(reason);
    return Status::Ok();
  });
}

int moepack_runtime_position(moepack_runtime* runtime, uint32_t sequence, uint32_t* tokens) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    MOEPACK_RETURN_IF_ERROR(r.engine->CheckOpen(sequence));
    if (tokens == nullptr) return Usage("tokens must be set");
    *tokens = r.engine->position(sequence);
    return Status::Ok();
  });
}

int moepack_runtime_reset(moepack_runtime* runtime, uint32_t sequence) {
  return Call(runtime, [&](moepack_runtime& r) { return r.engine->ResetSequence(sequence); });
}

int moepack_runtime_open_sequence(moepack_runtime* runtime, uint32_t* sequence) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    if (sequence == nullptr) return Usage("sequence must be set");
    return TakeSequence(r, r.engine->OpenSequence(), sequence);
  });
}

int moepack_runtime_fork_sequence(moepack_runtime* runtime, uint32_t from, uint32_t tokens, uint32_t* sequence) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    if (sequence == nullptr) return Usage("sequence must be set");
    return TakeSequence(r, r.engine->ForkSequence(from, tokens), sequence);
  });
}

int moepack_runtime_release_sequence(moepack_runtime* runtime, uint32_t sequence) {
  return Call(runtime, [&](moepack_runtime& r) { return r.engine->ReleaseSequence(sequence); });
}

int moepack_runtime_save_sequence(moepack_runtime* runtime, uint32_t sequence, const int32_t* next, size_t count,
                                  const char* path) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    if (path == nullptr || (next == nullptr && count != 0)) return Usage("path and next must be set");
    return SaveSequence(r, sequence, {next, count}, path);
  });
}

int moepack_runtime_restore_sequence(moepack_runtime* runtime, uint32_t sequence, const char* path, int32_t* next,
                                     size_t capacity, size_t* count) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    if (path == nullptr || count == nullptr || (next == nullptr && capacity != 0)) {
      return Usage("path, next and count must be set");
    }
    return RestoreSequence(r, sequence, path, {next, capacity}, count);
  });
}

int moepack_runtime_metrics(moepack_runtime* runtime, int format, char* text, size_t capacity, size_t* text_bytes) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    if (format != MOEPACK_METRICS_JSON && format != MOEPACK_METRICS_PROMETHEUS) return Usage("format: no such format");
    runtime::RunMetrics metrics;
    r.recorder->Fill(*r.engine, &metrics);
    const std::string all =
        format == MOEPACK_METRICS_JSON ? runtime::MetricsJsonLine(metrics) : runtime::MetricsPrometheusText(metrics);
    return CopyText(all, text, capacity, text_bytes);
  });
}

int moepack_runtime_reset_metrics(moepack_runtime* runtime) {
  return Call(runtime, [](moepack_runtime& r) {
    r.recorder = std::make_unique<runtime::Recorder>();
    r.engine->ResetStats();
    return Status::Ok();
  });
}

}  // extern "C"
