// Progress of long work, reported by libraries and drawn by commands. Libraries never print.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace moepack {

// Receives progress. Methods may be called from any thread, but from one at a time.
class Progress {
 public:
  virtual ~Progress() = default;
  // A new piece of work with `total` units begins (total 0: not known).
  virtual void Begin(const std::string& label, uint64_t total, const std::string& unit) = 0;
  virtual void Advance(uint64_t units) = 0;
  virtual void End() = 0;
  // A line a person should see (a warning: too few tokens for an expert, say).
  virtual void Note(const std::string& line) = 0;
};

// Swallows everything. Lives as long as the process.
Progress& NoProgress();

// Draws to standard error: on a terminal one line with a rate and the time left, elsewhere a line every ten seconds and
// one at the end of each piece of work. `quiet` keeps notes only. Lives as long as the process.
Progress& StderrProgress(bool quiet);

// "1.5 GiB", "820 B": a size for people.
std::string FormatBytes(uint64_t bytes);
// "8MiB", "250MB", "1.5GiB", "4096": bytes, as people write them. kUsage on anything else.
Result<uint64_t> ParseSize(const std::string& text);

}  // namespace moepack
