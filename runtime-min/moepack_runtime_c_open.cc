#include <algorithm>
#include <cstring>
#include <tuple>

#include "base/env.h"
#include "runtime-min/moepack_runtime_c_handle.h"
#include "verify/trust_json.h"

namespace {

using moepack::ErrorCode;
using moepack::Result;
using moepack::Status;
using moepack::runtime::Call;
using moepack::runtime::Knows;
using moepack::runtime::Usage;
namespace runtime = moepack::runtime;

constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kOptionBytesBeforeMisses = 64;  // sizeof(moepack_runtime_options) when cache_policy was its last field
static_assert(offsetof(moepack_runtime_options, on_miss) <= kOptionBytesBeforeMisses &&
              offsetof(moepack_runtime_options, miss_lower_above) > kOptionBytesBeforeMisses);
constexpr const char* kBroken = "an exception left the runtime half changed; it can only be closed";

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
  const bool has_keys = trust->threshold != 0 || trust->release_keys != nullptr || trust->release_key_count != 0;
  if ((has_keys && trust->product == nullptr) || (trust->file_bytes != 0 && trust->file == nullptr)) {
    return Usage("moepack_runtime_trust: threshold and release keys go with product, file_bytes with file");
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
  if (given.router_input_bits != 0) options.router_input_bits = given.router_input_bits;
  if (given.kv_bits == 8) options.kv = runtime::KvFormat::kI8;
  if (given.expert_ram_bytes == MOEPACK_AUTO_EXPERT_RAM) {
    options.expert_ram_bytes = runtime::kAutoExperts;
    options.expert_ram_start_bytes = 0;
  } else if (given.expert_ram_bytes != 0) {
    options.expert_ram_bytes = given.expert_ram_bytes;
  }
  if (given.expert_ram_start_bytes != 0) options.expert_ram_start_bytes = given.expert_ram_start_bytes;
  if (given.on_miss != MOEPACK_ON_MISS_LOAD) {
    options.misses.on_miss = given.on_miss == MOEPACK_ON_MISS_LOWER ? runtime::OnMiss::kLower : runtime::OnMiss::kSkip;
    if (given.miss_lower_above != 0 || given.miss_skip_above != 0) {
      options.misses.lower_above = given.miss_lower_above;
      options.misses.skip_above = given.miss_skip_above;
    }
    MOEPACK_RETURN_IF_ERROR(options.misses.Check());
  }
  if (given.cache_policy == nullptr) return options;
  MOEPACK_ASSIGN_OR_RETURN(options.cache_policy, moepack::ParseCachePolicy(given.cache_policy));
  return options;
}

// The caller's options, fields that its header did not have yet with their defaults.
Result<moepack_runtime_options> ReadOptions(const moepack_runtime_options* given) {
  moepack_runtime_options options = {};
  if (given == nullptr) return options;
  if (!Knows(given) && given->struct_bytes != kOptionBytesBeforeMisses) {
    return Usage("moepack_runtime_options: struct_bytes must be its size");
  }
  std::memcpy(&options, given, Knows(given) ? sizeof(options) : offsetof(moepack_runtime_options, on_miss));
  if (options.kv_bits != 0 && options.kv_bits != 8 && options.kv_bits != 32) return Usage("kv_bits: expected 32 or 8");
  const bool thresholds = options.miss_lower_above != 0 || options.miss_skip_above != 0;
  if (options.on_miss > MOEPACK_ON_MISS_SKIP || (options.on_miss == MOEPACK_ON_MISS_LOAD && thresholds)) {
    return Usage("on_miss: expected a MOEPACK_ON_MISS_ value, and thresholds with LOWER and SKIP only");
  }
  if (options.threads > kMaxThreads) return Usage("threads: expected at most 1024");
  return options;
}

// No threads but the caller's will work.
bool IsAlone(const moepack_runtime_options* options) {
  return options != nullptr && options->struct_bytes >= kOptionBytesBeforeMisses && options->threads == 1 &&
         options->prefetch == MOEPACK_NO_PREFETCH;
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
  MOEPACK_ASSIGN_OR_RETURN(const moepack_runtime_options given, ReadOptions(options));
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
    const ErrorCode code = runtime::CodeOfException(IsAlone(options));
    CopyMessage(code == ErrorCode::kNoMemory ? "out of memory" : "an exception of the C++ library", message, message_bytes);
    return static_cast<int>(code);
  }
}

void moepack_runtime_close(moepack_runtime* runtime) {
  if (runtime != nullptr && runtime->broken == ErrorCode::kOk) delete runtime;
}

const char* moepack_runtime_last_error(const moepack_runtime* runtime) {
  if (runtime == nullptr) return "runtime must be set";
  return runtime->broken == ErrorCode::kOk ? runtime->error.c_str() : kBroken;
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

}  // extern "C"
