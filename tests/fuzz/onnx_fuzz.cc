// An ONNX graph: what is accepted gives a valid Program whose tensors load or are refused.
#include "model/model.h"
#include "tests/fuzz/memory_env.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  moepack::fuzz::MemoryEnv env;
  env.files["m/m.onnx"] = moepack::Bytes(data, data + size);
  env.files["m/m.onnx.data"] = moepack::Bytes(1 << 16);
  const auto model = moepack::OpenModel(env, "m/m.onnx");
  if (!model.ok()) return 0;
  if (!moepack::ValidateProgram(model->program).ok()) __builtin_trap();
  for (moepack::TensorId id = 0; id < model->program.tensors.size(); ++id) (void)model->tensors->Load(id);
  const auto& tables = model->program.expert_tables;
  for (uint32_t table = 0; table < tables.size(); ++table) {
    for (uint32_t expert = 0; expert < tables[table].intermediate.size(); ++expert) {
      for (const auto matrix : {moepack::ExpertMatrix::kGate, moepack::ExpertMatrix::kUp, moepack::ExpertMatrix::kDown})
        (void)model->tensors->LoadExpert(table, expert, matrix);
    }
  }
  return 0;
}
