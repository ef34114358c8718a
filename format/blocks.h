// A program's tensors and tables by block, each in one pass over the nodes: what a walk over all blocks takes. For validated
// programs (format/program.h: TensorsOfBlock, BlockOfTable).
#pragma once

#include <vector>

#include "format/program.h"

namespace moepack {

// TensorsOfBlock of every block.
std::vector<std::vector<TensorId>> TensorsByBlock(const Program& program);
// BlockOfTable of every table.
std::vector<int32_t> BlocksOfTables(const Program& program);

}  // namespace moepack
