#include "runtime-min/expert_load.h"

#include "runtime-min/stand_ins.h"
#include "runtime-min/tensor_packer.h"

namespace moepack::runtime {
namespace {

Status PackExpert(const Unit& unit, const PlainUnit& plain, uint8_t* place, ExpertWeights* weights) {
  uint64_t offset = 0;
  for (const UnitTensor& tensor : unit.tensors) {
    ResidentTensor& resident = (*weights)[tensor.tensor];
    MOEPACK_ASSIGN_OR_RETURN(resident, TensorPacker::PackAt(tensor, plain, &offset, place));
    place += (resident.size_bytes() + kExpertAlignment - 1) / kExpertAlignment * kExpertAlignment;
  }
  return Status::Ok();
}

}  // namespace

Status LoadExpert(UnitSource& source, uint32_t table, uint32_t physical, uint8_t* place, ExpertWeights* weights) {
  MOEPACK_ASSIGN_OR_RETURN(const PlainUnit plain, source.ReadExpert(table, physical));
  return PackExpert(source.experts()[table].units[physical], plain, place, weights);
}

void ExpertLoads::Add(uint32_t table, uint32_t physical, uint8_t* place, ExpertWeights* weights) {
  if (count_ == loads_.size()) loads_.push_back(std::make_unique<Load>());
  Load& load = *loads_[count_++];
  load.table = table;
  load.physical = physical;
  load.place = place;
  load.weights = weights;
  load.begun = false;
}

void ExpertLoads::Run(UnitSource& source, ThreadPool& pool) {
  tasks_.clear();
  for (size_t i = 0; i < count_; ++i) {
    Load& load = *loads_[i];
    const size_t chunks = source.experts()[load.table].units[load.physical].chunks.size();
    load.left.store(chunks, std::memory_order_relaxed);
    for (size_t c = 0; c < chunks; ++c) tasks_.push_back({&load, c});
  }
  pool.ParallelFor(tasks_.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) RunTask(source, tasks_[i]);
  });
}

void ExpertLoads::RunTask(UnitSource& source, const Task& task) {
  Load& load = *task.load;
  if (Begin(source, &load).ok()) {
    load.chunks[task.chunk] = source.ReadExpertChunk(load.table, load.physical, task.chunk, &load.parts);
  }
  if (load.left.fetch_sub(1, std::memory_order_acq_rel) == 1) load.status = Finish(source, &load);
}

// Whoever comes first takes the memory, and not before.
Status ExpertLoads::Begin(UnitSource& source, Load* load) {
  std::lock_guard lock(load->mutex);
  if (load->begun) return load->beginning;
  load->begun = true;
  const Unit& unit = source.experts()[load->table].units[load->physical];
  load->chunks.assign(unit.chunks.size(), Status());
  load->beginning = load->parts.Begin(unit);
  return load->beginning;
}

Status ExpertLoads::Finish(UnitSource& source, Load* load) {
  MOEPACK_RETURN_IF_ERROR(load->beginning);
  const Status* failure = nullptr;
  for (const Status& chunk : load->chunks) {
    if (!chunk.ok() && (failure == nullptr || (IsUnavailable(*failure) && !IsUnavailable(chunk)))) failure = &chunk;
  }
  if (failure != nullptr) return *failure;
  MOEPACK_ASSIGN_OR_RETURN(const PlainUnit plain, source.JoinExpert(load->table, load->physical, &load->parts));
  return PackExpert(source.experts()[load->table].units[load->physical], plain, load->place, load->weights);
}

}  // namespace moepack::runtime
