#include "verify/moepack_verify_c.h"

#include <algorithm>
#include <cstring>

#include "verify/verify.h"

struct moepack_bundle {
  std::unique_ptr<moepack::verify::VerifiedBundle> bundle;
};

namespace {

using moepack::ErrorCode;
using moepack::Status;

int Report(const Status& status, char* message, size_t message_bytes) {
  if (message != nullptr && message_bytes > 0) {
    const size_t length = std::min(status.message().size(), message_bytes - 1);
    std::memcpy(message, status.message().data(), length);
    message[length] = '\0';
  }
  return static_cast<int>(status.code());
}

Status ReadTrust(const moepack_trust* trust, moepack::verify::TrustPolicy* out) {
  if (trust == nullptr || trust->struct_bytes != sizeof(moepack_trust) || trust->reserved != 0) {
    return Status(ErrorCode::kUsage, "moepack_trust: struct_bytes must be its size and reserved 0");
  }
  if (trust->product == nullptr || (trust->release_keys == nullptr && trust->release_key_count != 0)) {
    return Status(ErrorCode::kUsage, "moepack_trust: product and release_keys must be set");
  }
  out->product = trust->product;
  out->threshold = trust->threshold;
  out->key_epoch = trust->key_epoch;
  out->minimum_security_counter = trust->minimum_security_counter;
  for (uint32_t i = 0; i < trust->release_key_count; ++i) {
    std::copy_n(trust->release_keys + size_t{i} * MOEPACK_PUBLIC_KEY_BYTES, MOEPACK_PUBLIC_KEY_BYTES,
                out->release_keys.emplace_back().begin());
  }
  return Status::Ok();
}

Status Open(const char* path, const moepack_trust* trust, moepack_bundle** bundle) {
  if (path == nullptr || bundle == nullptr)
    return Status(ErrorCode::kUsage, "moepack_bundle_open: path and bundle must be set");
  *bundle = nullptr;
  moepack::verify::TrustPolicy policy;
  MOEPACK_RETURN_IF_ERROR(ReadTrust(trust, &policy));
  MOEPACK_ASSIGN_OR_RETURN(auto file, moepack::PosixEnv().OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(auto opened, moepack::verify::VerifiedBundle::Open(std::move(file), policy));
  *bundle = new moepack_bundle{std::move(opened)};
  return Status::Ok();
}

Status NoBundle() { return Status(ErrorCode::kUsage, "bundle must be set"); }

}  // namespace

extern "C" {

uint32_t moepack_verify_abi_version(void) { return MOEPACK_VERIFY_ABI_VERSION; }

const char* moepack_verify_version(void) { return MOEPACK_VERSION; }

const char* moepack_error_name(int code) {
  return moepack::ErrorName(static_cast<ErrorCode>(code < 0 || code > UINT16_MAX ? UINT16_MAX : code));
}

int moepack_bundle_open(const char* path, const moepack_trust* trust, moepack_bundle** bundle, char* message,
                        size_t message_bytes) {
  return Report(Open(path, trust, bundle), message, message_bytes);
}

int moepack_bundle_get_info(const moepack_bundle* bundle, moepack_bundle_info* info, char* message, size_t message_bytes) {
  if (bundle == nullptr) return Report(NoBundle(), message, message_bytes);
  if (info == nullptr || info->struct_bytes != sizeof(moepack_bundle_info)) {
    return Report(Status(ErrorCode::kUsage, "moepack_bundle_info: struct_bytes must be its size"), message, message_bytes);
  }
  const moepack::Manifest& manifest = bundle->bundle->manifest();
  info->valid_signatures = bundle->bundle->valid_signatures();
  info->key_epoch = manifest.key_epoch;
  info->security_counter = manifest.security_counter;
  info->file_bytes = manifest.file_bytes;
  info->chunk_count = manifest.chunk_count;
  std::copy_n(bundle->bundle->manifest_digest().begin(), sizeof(info->manifest_digest), info->manifest_digest);
  return Report(Status::Ok(), message, message_bytes);
}

int moepack_bundle_verify(const moepack_bundle* bundle, int threads, char* message, size_t message_bytes) {
  static constexpr int kMaxThreads = 1024;
  if (bundle == nullptr) return Report(NoBundle(), message, message_bytes);
  if (threads < 0 || threads > kMaxThreads) {
    return Report(Status(ErrorCode::kUsage, "threads: expected 0 to 1024"), message, message_bytes);
  }
  moepack::ThreadPool pool(threads);
  if (!pool.status().ok()) return Report(pool.status(), message, message_bytes);
  return Report(bundle->bundle->VerifyAll(pool, moepack::NoProgress()), message, message_bytes);
}

int moepack_bundle_verify_expert(const moepack_bundle* bundle, uint32_t table, uint32_t expert, char* message,
                                 size_t message_bytes) {
  if (bundle == nullptr) return Report(NoBundle(), message, message_bytes);
  return Report(bundle->bundle->VerifyExpert(table, expert), message, message_bytes);
}

void moepack_bundle_close(moepack_bundle* bundle) { delete bundle; }

}  // extern "C"
