// compressor: a checkpoint and what calibration saw of it -> a compressed model folder (format/manifest/model_folder.h).
#pragma once

#include <map>
#include <optional>
#include <string>

#include "base/env.h"
#include "base/progress.h"
#include "base/thread_pool.h"
#include "compressor/plan/plan.h"
#include "compressor/recipe.h"
#include "format/cache_policy.h"
#include "model/model.h"
#include "model/profile.h"

namespace moepack {

struct CompressRequest {
  std::string model_path;
  std::string profile_path;              // empty: no profile; weights are rounded to nearest and every rule names one codec
  std::vector<std::string> accept_keys;  // as OpenOptions; recorded
  Recipe recipe;                         // with its budget
  std::string output;                    // folder to write
  std::string like_path;                 // plan.json whose choices are kept where the gain is small; empty: none
  std::string error_table_path;          // error table to reuse, or to write when the file is not there; empty: neither
  bool resume = false;                   // continue an interrupted run of the same request
  double distill_save_seconds = 60;      // a kill loses as much training and one step
  bool dry_run = false;                // plan only, nothing is written (a missing error table is kUsage) and `output` is not
                                       // looked at; works from a config.json, then every tensor needs a single codec
  bool require_chat_template = false;  // kTokenizer when the checkpoint's is not there or not whole in the tokenizer
  std::string tool_version;            // for provenance
};

struct CompressReport {
  Plan plan;
  uint64_t original_parameters = 0;
  uint64_t second_experts = 0, second_bytes = 0;  // with a second precision, and its bytes before pages are filled
  uint64_t dense_units = 0, dense_bytes = 0;      // dense stand-ins, and the same of theirs
  CachePolicy cache;                              // which expert a device gives up first
  std::optional<double> kld;                      // mean on held-back calibration tokens, when the model was run
  // The same of each domain of the profile, nothing for one without held-back text.
  std::map<std::string, std::optional<double>> domain_kld;
};

// Errors: kUsage (budget without a profile), kRecipe, kGate (target cannot be met; the message has the smallest size that
// can), kBadInput (profile of another model, output is something else), kNoSpace, kAccess, and those of OpenModel and
// ReadProfile. A failed call leaves no folder under `output`; OUTPUT.partial stays for `resume`.
Result<CompressReport> Compress(Env& env, const CompressRequest& request, ThreadPool& pool, Progress& progress);

}  // namespace moepack
