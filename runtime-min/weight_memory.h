// Memory of resident weights: few large regions that the system may back with huge pages. A token reads hundreds of
// megabytes once, so that looking up pages of 4 KiB costs a fifth of the time of decoding.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "base/status.h"

namespace moepack::runtime {

class WeightMemory {
 public:
  WeightMemory() = default;
  // Everything allocated must have been released.
  ~WeightMemory();
  WeightMemory(const WeightMemory&) = delete;
  WeightMemory& operator=(const WeightMemory&) = delete;

  // `bytes` bytes at a multiple of 64, not initialised. kNoMemory. Any thread.
  Result<uint8_t*> Allocate(uint64_t bytes);
  // What Allocate gave. Any thread. The memory is kept for later allocations. Allocates nothing: destructors call it.
  void Release(uint8_t* p);

 private:
  struct Region {
    void* begin = nullptr;
    uint64_t bytes = 0;
  };
  Status AddRegion(uint64_t bytes);
  uint8_t* Take(uint64_t bytes);

  std::mutex mutex_;
  std::vector<Region> regions_;
  std::map<uint8_t*, uint64_t> free_;  // gaps, none beside another: address to bytes
  std::map<uint8_t*, uint64_t> used_;
};

}  // namespace moepack::runtime
