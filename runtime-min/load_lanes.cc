#include "runtime-min/load_lanes.h"

#include <pthread.h>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

namespace moepack::runtime {
namespace {

enum class Stage : uint8_t { kFree, kQueued, kLoading, kDone };

struct Load {
  Stage stage = Stage::kFree;
  uint64_t order = 0;  // of submission
  uint32_t table = 0, physical = 0;
  uint8_t* place = nullptr;
  LaneResult result;
};

}  // namespace

struct LoadLanes::State {
  explicit State(UnitSource& s) : source(s) {}

  // Everything below is guarded by `mutex`, but for `done` and for what the lane of a load under way writes.
  UnitSource& source;
  std::mutex mutex;
  std::condition_variable queued, finished;
  std::vector<Load> loads;  // never grows once lanes run
  uint64_t submitted = 0;
  bool stop = false;
  std::atomic<uint32_t> done{0};  // loads that are kDone
  // Not std::thread: its constructor throws when the system has no thread left.
  std::vector<pthread_t> lanes;

  Load* Find(uint32_t id) {
    for (Load& load : loads) {
      if (load.stage != Stage::kFree && load.result.id == id) return &load;
    }
    return nullptr;
  }

  Load* FirstQueued() {
    Load* first = nullptr;
    for (Load& load : loads) {
      if (load.stage == Stage::kQueued && (first == nullptr || load.order < first->order)) first = &load;
    }
    return first;
  }

  LaneResult Take(Load* load) {
    load->stage = Stage::kFree;
    done.fetch_sub(1, std::memory_order_relaxed);
    return std::move(load->result);
  }

  void Work() {
    std::unique_lock lock(mutex);
    for (;;) {
      Load* load = nullptr;
      queued.wait(lock, [&] { return stop || (load = FirstQueued()) != nullptr; });
      if (stop) return;
      load->stage = Stage::kLoading;
      lock.unlock();
      load->result.status = LoadExpert(source, load->table, load->physical, load->place, &load->result.weights);
      lock.lock();
      load->stage = Stage::kDone;
      done.fetch_add(1, std::memory_order_release);
      finished.notify_all();
    }
  }
};

LoadLanes::LoadLanes(std::unique_ptr<State> state, uint32_t most_loads)
    : state_(std::move(state)), most_loads_(most_loads) {}

Result<std::unique_ptr<LoadLanes>> LoadLanes::Start(UnitSource& source, uint32_t lanes, uint32_t most_loads) {
  std::unique_ptr<LoadLanes> out(new LoadLanes(std::make_unique<State>(source), most_loads));
  State* state = out->state_.get();
  state->loads.resize(most_loads);
  for (uint32_t i = 0; i < lanes; ++i) {
    pthread_t lane;
    const auto enter = [](void* entered) -> void* {
      static_cast<State*>(entered)->Work();
      return nullptr;
    };
    const int error = ::pthread_create(&lane, nullptr, enter, state);
    if (error != 0) {
      return Status(ErrorCode::kNoMemory, StrFormat("cannot start thread %u of %u that load experts ahead: %s; give fewer "
                                                    "prefetch lanes, or do without",
                                                    i + 1, lanes, std::strerror(error)));
    }
    state->lanes.push_back(lane);
  }
  return out;
}

LoadLanes::~LoadLanes() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->queued.notify_all();
  for (const pthread_t lane : state_->lanes) ::pthread_join(lane, nullptr);
}

void LoadLanes::Submit(uint32_t id, uint32_t table, uint32_t physical, uint8_t* place) {
  {
    std::lock_guard lock(state_->mutex);
    for (Load& load : state_->loads) {
      if (load.stage != Stage::kFree) continue;
      load = {Stage::kQueued, state_->submitted++, table, physical, place, {.id = id, .weights = {}, .status = {}}};
      break;
    }
  }
  ++outstanding_;
  state_->queued.notify_one();
}

bool LoadLanes::Cancel(uint32_t id) {
  std::lock_guard lock(state_->mutex);
  Load* const load = state_->Find(id);
  if (load == nullptr || load->stage != Stage::kQueued) return false;
  load->stage = Stage::kFree;
  --outstanding_;
  return true;
}

std::optional<LaneResult> LoadLanes::TakeDone() {
  if (state_->done.load(std::memory_order_relaxed) == 0) return std::nullopt;
  std::lock_guard lock(state_->mutex);
  for (Load& load : state_->loads) {
    if (load.stage != Stage::kDone) continue;
    --outstanding_;
    return state_->Take(&load);
  }
  return std::nullopt;
}

LaneResult LoadLanes::Wait(uint32_t id) {
  std::unique_lock lock(state_->mutex);
  Load* const load = state_->Find(id);
  state_->finished.wait(lock, [&] { return load->stage == Stage::kDone; });
  --outstanding_;
  return state_->Take(load);
}

}  // namespace moepack::runtime
