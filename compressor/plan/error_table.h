// The measured error table: what each tensor loses under each codec it may get, and what one unit of that loss does to the
// model's predictions. Made once a profile, reused for any budget.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/progress.h"
#include "compressor/calibration.h"
#include "compressor/recipe.h"
#include "model/model.h"

namespace moepack {

struct TensorErrors {
  std::string name;
  std::string group;  // tensors that share a sensitivity
  // Codec name -> the share of the output energy of its kind that is lost when the tensor is encoded as Replay
  // would: mean over tokens of ||dW x||^2, gate-weighted for experts, over that of ||W x||^2 of all of the kind.
  std::map<std::string, double> errors;
};

struct ErrorTable {
  std::string made_from;                      // digest of program, profile, candidates and options
  std::string measured_by;                    // "probes", or "energy" when probes are off or would cost too much
  std::vector<TensorErrors> tensors;          // tensors with more than one candidate, in ListTensors order
  std::map<std::string, double> sensitivity;  // by group: mean KLD for losing all of the energy, extrapolated
};

// Deterministic JSON text, one line a tensor; and back. kBadInput names what is wrong.
std::string SerializeErrorTable(const ErrorTable& table);
Result<ErrorTable> ParseErrorTable(ByteSpan json, const std::string& file_name);

struct ErrorTableInput {
  const Program* program = nullptr;
  const TensorSource* source = nullptr;
  const Recipe* recipe = nullptr;
  const Calibration* calibration = nullptr;
  std::vector<TensorRef> tensors;  // ListTensors of the program
  std::vector<Choice> choices;     // one a tensor
};

// Measures by one pass of the full model over the calibration tokens, one block in memory. Sensitivities: each group is
// rounded to 4 bits alone and the mean KLD of the logits it causes is divided by its error (probes, from the group's block
// to the end). A group is one kind of matrix in one layer, or all matrices of one role in one layer where that many probes
// would take too long; where these would too, every sensitivity is 1, which counts relative output errors alike.
Result<ErrorTable> MeasureErrors(const ErrorTableInput& input, ThreadPool& pool, Progress& progress);

}  // namespace moepack
