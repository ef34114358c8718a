#include "runtime-min/moepack_runtime_c.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <tuple>

#include "base/env.h"
#include "base/thread_pool.h"
#include "runtime-min/engine.h"
#include "runtime-min/generation.h"
#include "runtime-min/metric_list.h"
#include "runtime-min/recorder.h"
#include "runtime-min/sampler.h"
#include "tokenizer/tokenizer.h"
#include "verify/trust_json.h"

// The only file of the runtime that is built with exceptions: what the C++ library throws ends here.

struct moepack_runtime {
  // Destroyed from the last to the first: the engine uses the pool.
  std::unique_ptr<moepack::ThreadPool> pool;
  std::unique_ptr<moepack::Tokenizer> tokenizer;  // null when the bundle has none
  std::unique_ptr<moepack::runtime::Engine> engine;
  std::unique_ptr<moepack::runtime::Recorder> recorder;
  std::vector<moepack::runtime::Sampler> samplers;  // by sequence
  uint64_t key_epoch = 0, security_counter = 0;
  moepack::DigestBytes manifest_digest{};
  std::string error;
  std::atomic_flag busy;
  bool alone = false;   // no threads but the caller's
  bool broken = false;  // an exception left it half changed: not even its destructor may look at it
};

namespace {

using moepack::ErrorCode;
using moepack::Result;
using moepack::Status;
using moepack::StrFormat;
namespace runtime = moepack::runtime;

constexpr uint32_t kMaxThreads = 1024;
constexpr const char* kOutOfMemory = "out of memory";
constexpr const char* kBroken = "out of memory; the runtime can only be closed";

Status Usage(std::string message) { return Status(ErrorCode::kUsage, std::move(message)); }

// The code of what the C++ library threw. Allocates nothing. Where other threads may be at work in what was unwound there is
// no way on.
ErrorCode CodeOfException(bool alone) {
  if (!alone) std::terminate();
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return ErrorCode::kNoMemory;
  } catch (...) {
    return ErrorCode::kInternal;
  }
}

// Runs `body` as the only call on `handle` and keeps its error for moepack_runtime_last_error.
template <typename Body>
int Call(moepack_runtime* handle, const Body& body) {
  if (handle == nullptr || handle->busy.test_and_set(std::memory_order_acquire)) return static_cast<int>(ErrorCode::kUsage);
  ErrorCode code = ErrorCode::kNoMemory;
  try {
    if (!handle->broken) {
      Status status = body(*handle);
      code = status.code();
      handle->error = status.message();
    }
  } catch (...) {
    code = CodeOfException(handle->alone);
    handle->broken = true;
  }
  handle->busy.clear(std::memory_order_release);
  return static_cast<int>(code);
}

// True when a struct of the caller can be read.
template <typename T>
bool Knows(const T* record) {
  return record != nullptr && record->struct_bytes == sizeof(T);
}

Result<moepack::verify::TrustPolicy> ReadGivenTrust(const moepack_runtime_trust& trust) {
  if (trust.path != nullptr) return moepack::verify::ReadTrust(moepack::PosixEnv(), trust.path);
  if (trust.file != nullptr) return moepack::verify::ParseTrust({trust.file, trust.file_bytes}, "trust");
  moepack::verify::TrustPolicy policy;
  policy.product = trust.product;
  policy.threshold = trust.threshold;
  if (trust.release_keys == nullptr && trust.release_key_count != 0) return Usage("moepack_runtime_trust: no release_keys");
  for (uint32_t i = 0; i < trust.release_key_count; ++i) {
    std::copy_n(trust.release_keys + size_t{i} * MOEPACK_PUBLIC_KEY_BYTES, MOEPACK_PUBLIC_KEY_BYTES,
                policy.release_keys.emplace_back().begin());
  }
  return policy;
}

Result<moepack::verify::TrustPolicy> TrustOf(const moepack_runtime_trust* trust) {
  if (!Knows(trust) || trust->reserved != 0) {
    return Usage("moepack_runtime_trust: struct_bytes must be its size and reserved 0");
  }
  if ((trust->product != nullptr) + (trust->path != nullptr) + (trust->file != nullptr) != 1) {
    return Usage("moepack_runtime_trust: set exactly one of product, path and file");
  }
  MOEPACK_ASSIGN_OR_RETURN(moepack::verify::TrustPolicy policy, ReadGivenTrust(*trust));
  if (std::tie(trust->key_epoch, trust->minimum_security_counter) >
      std::tie(policy.key_epoch, policy.minimum_security_counter)) {
    policy.key_epoch = trust->key_epoch;
    policy.minimum_security_counter = trust->minimum_security_counter;
  }
  return policy;
}

Result<runtime::EngineOptions> EngineOptionsOf(const moepack_runtime_options& given) {
  runtime::EngineOptions options;
  options.context = given.context;
  options.state_tokens = given.state_tokens;
  if (given.tile_tokens != 0) options.tile_tokens = given.tile_tokens;
  if (given.sequences != 0) options.sequences = given.sequences;
  if (given.prefetch != 0) options.prefetch = given.prefetch == MOEPACK_NO_PREFETCH ? 0 : given.prefetch;
  options.prefetch_lanes = given.prefetch_lanes;
  if (given.kv_bits == 8) options.kv = runtime::KvFormat::kI8;
  if (given.expert_ram_bytes == MOEPACK_AUTO_EXPERT_RAM) {
    options.expert_ram_bytes = runtime::kAutoExperts;
    options.expert_ram_start_bytes = 0;
  } else if (given.expert_ram_bytes != 0) {
    options.expert_ram_bytes = given.expert_ram_bytes;
  }
  if (given.expert_ram_start_bytes != 0) options.expert_ram_start_bytes = given.expert_ram_start_bytes;
  if (given.cache_policy == nullptr) return options;
  MOEPACK_ASSIGN_OR_RETURN(options.cache_policy, moepack::ParseCachePolicy(given.cache_policy));
  return options;
}

Status CheckOptions(const moepack_runtime_options* options) {
  if (options == nullptr) return Status::Ok();
  if (!Knows(options)) return Usage("moepack_runtime_options: struct_bytes must be its size");
  if (options->kv_bits != 0 && options->kv_bits != 8 && options->kv_bits != 32) {
    return Usage("kv_bits: expected 32 or 8");
  }
  return options->threads <= kMaxThreads ? Status::Ok() : Usage("threads: expected at most 1024");
}

// No threads but the caller's will work.
bool IsAlone(const moepack_runtime_options* options) {
  return Knows(options) && options->threads == 1 && options->prefetch == MOEPACK_NO_PREFETCH;
}

Status Open(const char* path, const moepack_runtime_trust* trust, const moepack_runtime_options& options,
            moepack_runtime* handle) {
  MOEPACK_ASSIGN_OR_RETURN(const moepack::verify::TrustPolicy policy, TrustOf(trust));
  MOEPACK_ASSIGN_OR_RETURN(const runtime::EngineOptions engine_options, EngineOptionsOf(options));
  MOEPACK_ASSIGN_OR_RETURN(auto file, moepack::PosixEnv().OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(auto bundle, moepack::verify::VerifiedBundle::Open(std::move(file), policy));
  handle->key_epoch = bundle->manifest().key_epoch;
  handle->security_counter = bundle->manifest().security_counter;
  handle->manifest_digest = bundle->manifest_digest();
  if (!bundle->tokenizer_blob().empty()) {
    MOEPACK_ASSIGN_OR_RETURN(handle->tokenizer, moepack::Tokenizer::Parse(bundle->tokenizer_blob()));
  }
  handle->pool = std::make_unique<moepack::ThreadPool>(static_cast<int>(options.threads));
  MOEPACK_RETURN_IF_ERROR(handle->pool->status());
  MOEPACK_ASSIGN_OR_RETURN(handle->engine, runtime::Engine::Create(std::move(bundle), *handle->pool, engine_options));
  handle->recorder = std::make_unique<runtime::Recorder>();
  handle->samplers.assign(handle->engine->sequences(), runtime::Sampler({}));
  return Status::Ok();
}

// An exception leaves the handle as it is, for good: what was unwound may have left it half changed.
Result<moepack_runtime*> OpenHandle(const char* path, const moepack_runtime_trust* trust,
                                    const moepack_runtime_options* options) {
  if (path == nullptr) return Usage("moepack_runtime_open: bundle_path must be set");
  MOEPACK_RETURN_IF_ERROR(CheckOptions(options));
  const moepack_runtime_options given = options != nullptr ? *options : moepack_runtime_options{};
  moepack_runtime* const handle = new moepack_runtime;
  handle->alone = IsAlone(options);
  if (Status status = Open(path, trust, given, handle); !status.ok()) {
    delete handle;
    return status;
  }
  return handle;
}

void CopyMessage(std::string_view text, char* message, size_t message_bytes) {
  if (message == nullptr || message_bytes == 0) return;
  const size_t length = std::min(text.size(), message_bytes - 1);
  std::memcpy(message, text.data(), length);
  message[length] = '\0';
}

// Copies what fits whole; a zero byte follows where there is room.
Status CopyText(std::string_view text, char* out, size_t capacity, size_t* bytes) {
  if (bytes == nullptr || (out == nullptr && capacity != 0)) return Usage("text and its size must be set");
  *bytes = text.size();
  if (text.size() > capacity) return Status(ErrorCode::kLimit, StrFormat("the text has %zu bytes", text.size()));
  if (!text.empty()) std::memcpy(out, text.data(), text.size());
  if (text.size() < capacity) out[text.size()] = '\0';
  return Status::Ok();
}

Status RequireTokenizer(const moepack_runtime& r) {
  if (r.tokenizer != nullptr) return Status::Ok();
  return Status(ErrorCode::kTokenizer, "the bundle holds no tokenizer, so it takes token ids only");
}

Status RequireTokens(const int32_t* tokens, size_t count) {
  return tokens != nullptr && count > 0 ? Status::Ok() : Usage("expected at least one token");
}

// A sequence that never was opened has no sampler.
Status RequireSequence(const moepack_runtime& r, uint32_t sequence) {
  if (sequence < r.samplers.size()) return Status::Ok();
  return Usage(StrFormat("sequence %u: at most %zu can be open", sequence, r.samplers.size()));
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

uint32_t moepack_runtime_abi_version(void) { return MOEPACK_RUNTIME_ABI_VERSION; }

const char* moepack_runtime_version(void) { return MOEPACK_VERSION; }

const char* moepack_runtime_error_name(int code) {
  return moepack::ErrorName(static_cast<ErrorCode>(code < 0 || code > UINT16_MAX ? UINT16_MAX : code));
}

int moepack_runtime_open(const char* bundle_path, const moepack_runtime_trust* trust, const moepack_runtime_options* options,
                         moepack_runtime** runtime, char* message, size_t message_bytes) {
  if (runtime == nullptr) return static_cast<int>(ErrorCode::kUsage);
  *runtime = nullptr;
  try {
    const auto opened = OpenHandle(bundle_path, trust, options);
    CopyMessage(opened.status().message(), message, message_bytes);
    if (opened.ok()) *runtime = *opened;
    return static_cast<int>(opened.status().code());
  } catch (...) {
    const ErrorCode code = CodeOfException(IsAlone(options));
    CopyMessage(kOutOfMemory, message, message_bytes);
    return static_cast<int>(code);
  }
}

void moepack_runtime_close(moepack_runtime* runtime) {
  if (runtime != nullptr && !runtime->broken) delete runtime;
}

const char* moepack_runtime_last_error(const moepack_runtime* runtime) {
  if (runtime == nullptr) return "runtime must be set";
  return runtime->broken ? kBroken : runtime->error.c_str();
}

int moepack_runtime_get_info(moepack_runtime* runtime, moepack_runtime_info* info) {
  return Call(runtime, [&](moepack_runtime& r) {
    if (!Knows(info)) return Usage("moepack_runtime_info: struct_bytes must be its size");
    info->has_tokenizer = r.tokenizer != nullptr;
    info->vocabulary = r.engine->vocab_size();
    info->context = r.engine->context();
    info->tile_tokens = r.engine->tile_tokens();
    info->sequences = r.engine->sequences();
    info->threads = static_cast<uint32_t>(r.pool->threads());
    info->dense_bytes = r.engine->dense_bytes();
    info->expert_bytes = r.engine->experts().used_bytes();
    info->state_bytes = r.engine->state_bytes();
    info->key_epoch = r.key_epoch;
    info->security_counter = r.security_counter;
    std::copy_n(r.manifest_digest.begin(), sizeof(info->manifest_digest), info->manifest_digest);
    return Status::Ok();
  });
}

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
    *count = all.size();
    if (all.size() > capacity) return Status(ErrorCode::kLimit, StrFormat("the text has %zu tokens", all.size()));
    std::copy(all.begin(), all.end(), tokens);
    return Status::Ok();
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
    MOEPACK_RETURN_IF_ERROR(RequireSequence(r, sequence));
    MOEPACK_ASSIGN_OR_RETURN(const runtime::SamplerOptions options, SamplingOf(sampling));
    r.samplers[sequence] = runtime::Sampler(options);
    return Status::Ok();
  });
}

int moepack_runtime_sample(moepack_runtime* runtime, uint32_t sequence, uint32_t row, int32_t* token) {
  return Call(runtime, [&](moepack_runtime& r) -> Status {
    MOEPACK_RETURN_IF_ERROR(RequireSequence(r, sequence));
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
    MOEPACK_RETURN_IF_ERROR(RequireSequence(r, sequence));
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
    MOEPACK_RETURN_IF_ERROR(RequireSequence(r, sequence));
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
