#include "base/progress.h"

#include <unistd.h>

#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace moepack {
namespace {

class Silent final : public Progress {
 public:
  void Begin(const std::string&, uint64_t, const std::string&) override {}
  void Advance(uint64_t) override {}
  void End() override {}
  void Note(const std::string&) override {}
};

using Clock = std::chrono::steady_clock;

class StderrReporter final : public Progress {
 public:
  explicit StderrReporter(bool quiet) : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) != 0) {}

  void Begin(const std::string& label, uint64_t total, const std::string& unit) override {
    label_ = label;
    unit_ = unit;
    total_ = total;
    done_ = 0;
    start_ = last_ = Clock::now();
  }

  void Advance(uint64_t units) override {
    done_ += units;
    const auto now = Clock::now();
    const double interval = terminal_ ? 0.1 : 10.0;
    if (quiet_ || std::chrono::duration<double>(now - last_).count() < interval) return;
    last_ = now;
    Draw(now, false);
  }

  void End() override {
    if (!quiet_) Draw(Clock::now(), true);
  }

  void Note(const std::string& line) override { std::fprintf(stderr, "%s%s\n", terminal_ ? "\r\033[K" : "", line.c_str()); }

 private:
  void Draw(Clock::time_point now, bool last) {
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const double rate = seconds > 0 ? static_cast<double>(done_) / seconds : 0;
    std::string line = label_ + ": " + std::to_string(done_);
    if (total_ != 0) line += "/" + std::to_string(total_);
    line += StrFormat(" %s, %.*f %s/s", unit_.c_str(), rate < 10 ? 2 : 0, rate, unit_.c_str());
    if (last) line += StrFormat(", %.1f s", seconds);
    if (!last && total_ > done_ && rate > 0) line += StrFormat(", %.0f s left", static_cast<double>(total_ - done_) / rate);
    std::fprintf(stderr, "%s%s%s", terminal_ ? "\r\033[K" : "", line.c_str(), terminal_ && !last ? "" : "\n");
  }

  const bool quiet_, terminal_;
  std::string label_, unit_;
  uint64_t total_ = 0, done_ = 0;
  Clock::time_point start_, last_;
};

}  // namespace

Progress& NoProgress() {
  static Silent silent;
  return silent;
}

Progress& StderrProgress(bool quiet) {
  static StderrReporter loud(false), hushed(true);
  return quiet ? hushed : loud;
}

std::string FormatBytes(uint64_t bytes) {
  static const char* const kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  return StrFormat(unit == 0 ? "%.0f %s" : "%.2f %s", value, kUnits[unit]);
}

Result<uint64_t> ParseSize(const std::string& text) {
  const Status bad(ErrorCode::kUsage,
                   "'" + text + "' is not a size; write bytes, or a number with KB, MB, GB, KiB, MiB or GiB");
  size_t end = 0;
  while (end < text.size() && (std::isdigit(static_cast<unsigned char>(text[end])) || text[end] == '.')) ++end;
  if (end == 0 || end > 20) return bad;
  char* stop = nullptr;
  const std::string number = text.substr(0, end);
  const double value = std::strtod(number.c_str(), &stop);
  if (stop != number.c_str() + number.size()) return bad;
  static const struct {
    const char* name;
    double factor;
  } kUnits[] = {{"", 1},
                {"B", 1},
                {"KB", 1e3},
                {"kB", 1e3},
                {"MB", 1e6},
                {"GB", 1e9},
                {"KiB", 1024.0},
                {"MiB", 1024.0 * 1024},
                {"TB", 1e12},
                {"TiB", 1.099511627776e12},
                {"GiB", 1024.0 * 1024 * 1024}};
  for (const auto& unit : kUnits) {
    if (text.substr(end) != unit.name) continue;
    const double bytes = value * unit.factor;
    if (!(bytes >= 0 && bytes < 9e18)) return bad;
    return static_cast<uint64_t>(bytes);
  }
  return bad;
}

}  // namespace moepack
