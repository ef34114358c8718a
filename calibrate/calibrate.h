// What every expert of a model sees on calibration text: the statistics of model/profile.h, collected by the reference
// forward, one block's weights in memory at a time (and the final norm and head, for attribution).
//
// Sums are taken in double in token order, so the same texts give the same profile on any number of threads.
#pragma once

#include <string>
#include <vector>

#include "base/progress.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "forward/forward.h"
#include "model/model.h"
#include "model/profile.h"

namespace moepack {

struct CalibrationText {
  std::string domain;  // unique, not empty
  std::string text;    // UTF-8
};

// Rows of numbers for a model that takes them.
struct CalibrationRows {
  std::string domain;  // unique, not empty
  TokenBatch batch;    // rows, as wide as the program's input
  std::string sha256;  // of the file, hexadecimal
};

struct CalibrateOptions {
  uint64_t tokens = 0;                  // in all, taken evenly from the texts; rounded down to whole sequences
  uint64_t ctx = 256;                   // tokens of a sequence
  uint64_t min_tokens_per_expert = 64;  // below it a note names the expert
  // At most this many tokens, and an eighth of all, are used for attribution (at least kMinAttributionTokens, if there are
  // that many): each costs one product with the head per chosen expert and layer.
  uint64_t attribution_tokens = 1024;
};
inline constexpr uint64_t kMinAttributionTokens = 256;
// Window of the routing-locality numbers (2505.16056), and their largest cache in multiples of k.
inline constexpr uint32_t kLocalityWindow = 16;
inline constexpr uint32_t kLocalityMaxRho = 3;

// kUsage for options that make no sense, kBadInput for texts that are empty, double or too short, kTokenizer for a model
// without tokenizer. Things a person should know (experts with too few tokens, domains that got none) go to
// progress.Note.
Result<Profile> Calibrate(const Model& model, const std::vector<CalibrationText>& texts, const CalibrateOptions& options,
                          ThreadPool& pool, Progress& progress);

// The same on rows: all of them are used, each a sequence of its own. Rows have neither a next token nor a text around them,
// so there is no attribution and no locality (attribution 0, srp 0, sch empty).
Result<Profile> CalibrateRows(const Model& model, const std::vector<CalibrationRows>& tables,
                              const CalibrateOptions& options, ThreadPool& pool, Progress& progress);

// An expert that saw fewer tokens than it should.
struct ThinExpert {
  uint32_t table = 0, expert = 0;
  uint64_t tokens = 0;
};
// By table and expert.
std::vector<ThinExpert> FindThinExperts(const Profile& profile, uint64_t min_tokens);

// A self-contained HTML page: use of experts by layer and domain, saliency, locality, and what to watch. `program` is the
// one that was profiled. Deterministic.
std::string HtmlReport(const Program& program, const Profile& profile, const CalibrateOptions& options);

// The profile at `output` and, unless `report` is empty, the page at `report`: both or neither. After an error what stood
// under the names before stands there again. Other errors as WriteProfile's.
Status WriteCalibration(Env& env, const std::string& output, const std::string& report, const Program& program,
                        const Profile& profile, const CalibrateOptions& options);

}  // namespace moepack
