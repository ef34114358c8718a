// What is behind a moepack_runtime, for the files of the C interface alone. They are the only ones of the runtime that are
// built with exceptions: what the C++ library throws ends in Call and in moepack_runtime_open.
#pragma once

#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "runtime-min/engine.h"
#include "runtime-min/moepack_runtime_c.h"
#include "runtime-min/recorder.h"
#include "runtime-min/sampler.h"
#include "tokenizer/tokenizer.h"

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
  bool alone = false;  // no threads but the caller's
  // Not kOk: an exception of this code left it half changed, and not even its destructor may look at it.
  moepack::ErrorCode broken = moepack::ErrorCode::kOk;
};

namespace moepack::runtime {

inline Status Usage(std::string message) { return Status(ErrorCode::kUsage, std::move(message)); }

// The code of what the C++ library threw. Allocates nothing. Where other threads may be at work in what was unwound there is
// no way on.
inline ErrorCode CodeOfException(bool alone) {
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
  ErrorCode code = handle->broken;
  try {
    if (code == ErrorCode::kOk) {
      Status status = body(*handle);
      code = status.code();
      handle->error = status.message();
    }
  } catch (...) {
    code = handle->broken = CodeOfException(handle->alone);
  }
  handle->busy.clear(std::memory_order_release);
  return static_cast<int>(code);
}

// True when a struct of the caller can be read.
template <typename T>
bool Knows(const T* record) {
  return record != nullptr && record->struct_bytes == sizeof(T);
}

}  // namespace moepack::runtime
