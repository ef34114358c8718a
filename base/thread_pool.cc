#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
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
//
// A worker joins a loop while it is open; the caller closes the loop when no block is left and waits for those that joined
// only. A worker that the system did not run in time so costs nothing, which matters where other processes use the cores.
//
// Every thread begins with a run of neighbouring blocks of its own, so that it reads memory in order, and helps with the
// others' when that is done.
struct ThreadPool::State {
  struct Job {
    BlockFunction function = nullptr;
    const void* context = nullptr;
    size_t count = 0, block = 1, blocks = 0;
  };
  // One word, so that joining and closing exclude each other: workers inside, whether the loop is open, its number.
  static constexpr uint64_t kInside = 0xffff, kOpen = 1 << 16, kNumber = ~uint64_t{0} << 17, kNextNumber = 1 << 17;

  // Not std::thread: its constructor throws when the system has no thread left, and base has no exceptions.
  std::vector<pthread_t> workers;
  Status status;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> gate{0};
  std::atomic<bool> stop{false};
  std::atomic<size_t> entered{0};  // workers that have begun, to number them
  // One a thread, on a cache line of its own.
  struct alignas(64) Share {
    std::atomic<size_t> next{0};
    size_t end = 0;  // changed by the caller only, while nobody is inside, as is `job`
  };
  std::unique_ptr<Share[]> shares;
  size_t threads = 1;
  Job job;

  void RunShare(Share* share) {
    for (size_t i = share->next.fetch_add(1, std::memory_order_relaxed); i < share->end;
         i = share->next.fetch_add(1, std::memory_order_relaxed)) {
      const size_t begin = i * job.block;
      job.function(job.context, begin, std::min(job.count, begin + job.block));
    }
  }
  void RunBlocks(size_t self) {
    for (size_t i = 0; i < threads; ++i) RunShare(&shares[(self + i) % threads]);
  }
  void SetShares() {
    for (size_t i = 0; i < threads; ++i) {
      shares[i].next.store(job.blocks * i / threads, std::memory_order_relaxed);
      shares[i].end = job.blocks * (i + 1) / threads;
    }
  }

  // The gate of a loop other than `seen`.
  uint64_t WaitForOther(uint64_t seen) {
    static constexpr int kSpins = 4000;
    const auto ready = [&] { return (gate.load(std::memory_order_acquire) & kNumber) != seen || stop.load(); };
    for (int i = 0; i < kSpins && !ready(); ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    if (!ready()) {
      std::unique_lock lock(mutex);
      wake.wait(lock, ready);
    }
    return gate.load(std::memory_order_acquire);
  }

  void Work(size_t self) {
    uint64_t seen = 0;
    for (;;) {
      uint64_t now = WaitForOther(seen);
      if (stop.load()) return;
      while ((now & kOpen) != 0 && !gate.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
      }
      seen = now & kNumber;
      if ((now & kOpen) == 0) continue;
      RunBlocks(self);
      gate.fetch_sub(1, std::memory_order_release);
    }
  }

  // 0 or an errno value.
  int Start() {
    pthread_t worker;
    const auto enter = [](void* state) -> void* {
      State* pool = static_cast<State*>(state);
      pool->Work(pool->entered.fetch_add(1, std::memory_order_relaxed) + 1);
      return nullptr;
    };
    const int error = ::pthread_create(&worker, nullptr, enter, this);
    if (error == 0) workers.push_back(worker);
    return error;
  }

  void Open() {
    std::lock_guard lock(mutex);
    gate.store((gate.load(std::memory_order_relaxed) & kNumber) + kNextNumber + kOpen, std::memory_order_release);
  }

  void CloseAndWait() {
    gate.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spins = 0; (gate.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
      if (spins > 4000) std::this_thread::yield();
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  const int total = threads > 0 ? threads : AvailableCores();
  state_->threads = static_cast<size_t>(total);
  state_->shares = std::make_unique<State::Share[]>(state_->threads);
  state_->workers.reserve(static_cast<size_t>(total));
  for (int i = 1; i < total; ++i) {
    const int error = state_->Start();
    if (error == 0) continue;
    state_->status = Status(ErrorCode::kNoMemory, StrFormat("cannot start thread %d of %d: %s; give fewer --threads", i + 1,
                                                            total, std::strerror(error)));
    break;
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop.store(true);
  }
  state_->wake.notify_all();
  for (const pthread_t worker : state_->workers) ::pthread_join(worker, nullptr);
}

const Status& ThreadPool::status() const { return state_->status; }

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
  s.SetShares();
  s.Open();
  s.wake.notify_all();
  s.RunBlocks(0);
  s.CloseAndWait();
}

}  // namespace moepack
