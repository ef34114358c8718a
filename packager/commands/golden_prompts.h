// Golden prompts of `moepack pack`: runs the bundle that is being packed and records what it answers.
#pragma once

#include "base/cli/cli.h"
#include "base/thread_pool.h"
#include "packager/packager.h"

namespace moepack::commands {

// --golden, --golden-ids, --golden-steps.
void AddGoldenOptions(cli::Command* command);

// What PackOptions::record_golden is: empty without --golden and --golden-ids. It records with the scalar kernels, so that
// the same folder gives the same bytes on every processor, and refuses prompts on which other kernels of this one differ.
// `pool` must outlive it. kUsage for the options, errors of reading the file.
Result<RecordGoldenFunction> GoldenRecorder(const cli::Command& command, ThreadPool& pool);

// For a bundle that is made again: asks the prompts of `recorded` (with prompts) for as many steps, and keeps its tolerance.
// Both must outlive it.
RecordGoldenFunction GoldenAgain(const GoldenPrompts& recorded, ThreadPool& pool);

}  // namespace moepack::commands
