// A fixed set of worker threads for data-parallel loops.
//
// Results must not depend on the number of threads: ParallelFor hands out fixed blocks, every block writes only its own
// outputs, and a reduction is done by the caller over per-block partial results in block order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/status.h"

namespace moepack {

class ThreadPool {
 public:
  // `threads` workers including the calling thread; 0 means one for each core this process may use.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Workers that run: those asked for, or fewer when status() is an error.
  int threads() const;

  // kNoMemory when the system did not start all workers. The pool works with those it has, but a program ends here: what
  // was asked for cannot be had.
  const Status& status() const;

  // Calls body(begin, end) for [0, count) cut into blocks of `block` items (the last may be shorter), and returns when
  // all are done. Blocks are claimed dynamically; their borders depend on count and block only. One ParallelFor at a
  // time a pool: body must not call it again. Callable from one thread at a time. body must not throw.
  template <typename Body>
  void ParallelFor(size_t count, size_t block, const Body& body) {
    Run(
        count, block,
        [](const void* context, size_t begin, size_t end) { (*static_cast<const Body*>(context))(begin, end); }, &body);
  }

 private:
  using BlockFunction = void (*)(const void* context, size_t begin, size_t end);
  void Run(size_t count, size_t block, BlockFunction function, const void* context);
  struct State;
  std::unique_ptr<State> state_;
};

// Cores this process may run on (affinity mask), at least 1.
int AvailableCores();

}  // namespace moepack
