// Float storage for the executor: 64-byte aligned, zeroed, allocated once. A size that cannot be had is an error, not an
// abort.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "base/checked.h"
#include "base/status.h"

namespace moepack::runtime {

class FloatBuffer {
 public:
  FloatBuffer() = default;
  // kNoMemory when `count` floats cannot be allocated. Pages are not touched before they are used.
  static Result<FloatBuffer> Create(uint64_t count) {
    constexpr uint64_t kAlignment = 64;
    FloatBuffer buffer;
    const CheckedU64 bytes = CheckedU64(count) * CheckedU64(sizeof(float)) + CheckedU64(kAlignment);
    void* memory = bytes.valid() ? std::calloc(bytes.value(), 1) : nullptr;
    if (memory == nullptr) {
      return Status(ErrorCode::kNoMemory, StrFormat("cannot allocate %llu floats", static_cast<unsigned long long>(count)));
    }
    buffer.memory_.reset(memory);
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
    buffer.data_ = reinterpret_cast<float*>((address + kAlignment - 1) & ~(kAlignment - 1));
    buffer.size_ = count;
    return buffer;
  }
  float* data() { return data_; }
  const float* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  float* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace moepack::runtime
