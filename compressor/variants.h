// Variants of experts: a second, lower precision of their own; a twin, the expert that is most like them; and a dense
// stand-in (compressor/pass/dense_fallback.h) for all of a width. A device that cannot or does not want to load an expert
// may use them (format/SPEC.md, section 5).
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "compressor/rated_codec.h"
#include "compressor/tensors.h"
#include "format/manifest/manifest.h"
#include "model/model.h"

namespace moepack {

// By table and expert.
using ExpertIndex = std::vector<std::vector<std::optional<uint32_t>>>;

// What a unit of an expert takes.
struct ExpertBytes {
  uint64_t plain = 0, stored = 0;
};

// The second unit of each expert: its place behind the first units of the table, none where `second` would not take fewer
// bytes in the bundle than codecs[i] of tensors[i] do (as ListTensors gives them). Without `second` all none.
Result<ExpertIndex> SecondUnits(const Program& program, std::span<const TensorRef> tensors,
                                std::span<const RatedCodec> codecs, const std::optional<RatedCodec>& second);
// What an expert takes in one codec.
Result<ExpertBytes> BytesOfExpert(std::span<const TensorRef> matrices, std::span<const RatedCodec> codecs);

// The expert of the same table and width whose router row has the largest cosine with an expert's, of equals the lower; none
// where there is no other of its width. Routers that like the same inputs send them to experts that learnt alike. kRecipe
// when a table's logits do not come from a linear node.
Result<ExpertIndex> TwinsOf(const Program& program, const TensorSource& source);

// The unit of the dense stand-in for each expert, behind the second units of the table: one for each width, in the order of
// its first expert; none where no other expert has the width, which it would only repeat.
ExpertIndex DenseUnits(const Program& program, const ExpertIndex& seconds);

// What the experts of a table have beside their own first unit.
struct FurtherUnits {
  ExpertIndex seconds, twins, dense;  // or empty
};
// Units of the experts of table t: expert e's, then its second one, its twin's first, the dense stand-in.
std::vector<ExpertEntry> EntriesOf(const Program& program, uint32_t table, const FurtherUnits& further);

}  // namespace moepack
