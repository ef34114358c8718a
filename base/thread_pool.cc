#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace moepack {

int AvailableCores() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Workers spin briefly before they sleep: a decode step issues a loop every few tens of microseconds, and waking a
// sleeping thread costs as much.
struct ThreadPool::State {
  struct Job {
    BlockFunction function = nullptr;
    const void* context = nullptr;
    size_t count = 0, block = 1, blocks = 0;
  };

  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
  std::atomic<size_t> next{0};
  std::atomic<int> active{0};
  Job job;

  void RunBlocks() {
    for (size_t i = next.fetch_add(1, std::memory_order_relaxed); i < job.blocks;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      const size_t begin = i * job.block;
      job.function(job.context, begin, std::min(job.count, begin + job.block));
    }
  }

  void WaitFor(uint64_t seen) {
    static constexpr int kSpins = 4000;
    for (int i = 0; i < kSpins; ++i) {
      if (generation.load(std::memory_order_acquire) != seen || stop.load(std::memory_order_relaxed)) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen || stop.load(); });
  }

  void Work() {
    uint64_t seen = 0;
    for (;;) {
      WaitFor(seen);
      if (stop.load()) return;
      seen = generation.load(std::memory_order_acquire);
      RunBlocks();
      active.fetch_sub(1, std::memory_order_release);
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  const int total = threads > 0 ? threads : AvailableCores();
  for (int i = 1; i < total; ++i) state_->workers.emplace_back([state = state_.get()] { state->Work(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop.store(true);
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::Run(size_t count, size_t block, BlockFunction function, const void* context) {
  if (count == 0) return;
  block = std::max<size_t>(1, block);
  const size_t blocks = (count + block - 1) / block;
  State& s = *state_;
  if (s.workers.empty() || blocks == 1) {
    for (size_t begin = 0; begin < count; begin += block) function(context, begin, std::min(count, begin + block));
    return;
  }
  s.job = {function, context, count, block, blocks};
  s.next.store(0, std::memory_order_relaxed);
  s.active.store(static_cast<int>(s.workers.size()), std::memory_order_relaxed);
  {
    std::lock_guard lock(s.mutex);
    s.generation.fetch_add(1, std::memory_order_release);
  }
  s.wake.notify_all();
  s.RunBlocks();
  for (int spins = 0; s.active.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins > 4000) std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

}  // namespace moepack
