// The plan: which codec every tensor gets, and what that costs. A pure function of model shapes, profile, error table,
// recipe and budget; plan.json is its reviewable form, one line a tensor.
#pragma once

#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "compressor/rated_codec.h"
#include "compressor/tensors.h"

namespace moepack {

struct PlanTensor {
  std::string name;
  RatedCodec codec;
  uint64_t bytes = 0;  // in the bundle at most
  double kld = 0;      // predicted share of the mean KLD; 0 when nothing was measured
};

struct Plan {
  std::vector<PlanTensor> tensors;               // as ListTensors of the compressed program
  uint64_t target_bytes = 0;                     // of the bundle file; 0: no such limit
  uint64_t target_resident_bytes = 0;            // of the resident bytes; 0: no such limit
  uint64_t bundle_bytes = 0;                     // the bundle has at most these (exactly these when no chunk compresses)
  uint64_t plain_bytes = 0, resident_bytes = 0;  // sums over tensors
  double predicted_kld = 0;
  double gap = 0;           // predicted_kld is within this share of the best possible plan's
  std::string measured_by;  // "none", "energy" or "probes": what the predictions rest on
};

// Deterministic JSON text.
std::string SerializePlan(const Plan& plan);
// Codec of each tensor of an earlier plan.json. kBadInput names what is wrong.
Result<std::vector<PlanTensor>> ParsePlanTensors(ByteSpan json, const std::string& file_name);

// Fills bytes, plain_bytes and resident_bytes from codecs and shapes.
Status FillSizes(std::span<const TensorRef> tensors, Plan* plan);

}  // namespace moepack
