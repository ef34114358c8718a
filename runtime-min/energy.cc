#include "runtime-min/energy.h"

#include <charconv>
#include <cstdio>

#include "base/env.h"
#include "runtime-min/metrics.h"
#include "runtime-min/stdio_file.h"

namespace moepack::runtime {
namespace {

constexpr double kJoulesPerMicrojoule = 1e-6;
constexpr double kJoulesPerMicrowattHour = 3600e-6;
constexpr double kJoulesPerMicrowattMs = 1e-9;

// Above what a processor or its memory takes: a counter goes round in no less time than its range takes at this power.
constexpr double kMostMicrojoulesPerMs = 1e6;
constexpr double kSampleIntervalMs = 10'000;
constexpr const char* kDischarging = "Discharging";

// The first line of an attribute of sysfs, whose files say they are a page long whatever they hold; none when it cannot be
// read.
std::optional<std::string> ReadAttribute(const std::string& path) {
  const StdioFile file(std::fopen(path.c_str(), "re"));
  char line[128];
  if (file == nullptr || std::fgets(line, sizeof(line), file.get()) == nullptr) return std::nullopt;
  std::string text = line;
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::optional<uint64_t> ReadNumber(const std::string& path) {
  const std::optional<std::string> text = ReadAttribute(path);
  uint64_t number = 0;
  if (!text.has_value()) return std::nullopt;
  const char* const end = text->data() + text->size();
  const auto [at, error] = std::from_chars(text->data(), end, number);
  return error == std::errc() && at == end ? std::optional<uint64_t>(number) : std::nullopt;
}

std::vector<std::string> Names(const std::string& directory) {
  Result<std::vector<std::string>> names = PosixEnv().List(directory);
  return names.ok() ? std::move(*names) : std::vector<std::string>{};
}

// Zones that do not overlap: a package holds its cores, psys holds the packages, but DRAM is in no other zone.
bool CountsOnItsOwn(const std::string& zone) { return zone.rfind("package-", 0) == 0 || zone == "dram"; }

}  // namespace

EnergyMeter::EnergyMeter(const std::string& sysfs) : last_ms_(MonotonicMs()) {
  const std::string supplies = sysfs + "/class/power_supply";
  if (FindRapl(sysfs + "/class/powercap")) return;
  if (FindBattery(supplies, "energy_now", Source::kBatteryEnergy)) return;
  FindBattery(supplies, "power_now", Source::kBatteryPower);
}

bool EnergyMeter::FindRapl(const std::string& powercap) {
  for (const std::string& zone : Names(powercap)) {
    const std::string directory = JoinPath(powercap, zone);
    if (zone.rfind("intel-rapl:", 0) != 0 || !CountsOnItsOwn(ReadAttribute(directory + "/name").value_or(""))) continue;
    const std::string path = directory + "/energy_uj";
    const std::optional<uint64_t> now = ReadNumber(path), range = ReadNumber(directory + "/max_energy_range_uj");
    if (now && range && *now <= *range) counters_.push_back({path, "", *now, *range});
  }
  if (!counters_.empty()) source_ = Source::kRapl;
  return source_ != Source::kNone;
}

bool EnergyMeter::FindBattery(const std::string& supplies, const char* file, Source source) {
  for (const std::string& supply : Names(supplies)) {
    const std::string directory = JoinPath(supplies, supply);
    const std::string status = directory + "/status", path = JoinPath(directory, file);
    if (ReadAttribute(directory + "/type") != "Battery" || ReadAttribute(status) != kDischarging) continue;
    if (const std::optional<uint64_t> now = ReadNumber(path)) counters_.push_back({path, status, *now, 0});
  }
  if (!counters_.empty()) source_ = source;
  return source_ != Source::kNone;
}

void EnergyMeter::Add(const Counter& counter, uint64_t now, double elapsed_ms) {
  switch (source_) {
    case Source::kNone:
      return;
    case Source::kRapl:
      joules_ += static_cast<double>(now - counter.last + (now < counter.last ? counter.range : 0)) * kJoulesPerMicrojoule;
      return;
    case Source::kBatteryEnergy:  // what is left; more of it than before is no use of ours
      if (now < counter.last) joules_ += static_cast<double>(counter.last - now) * kJoulesPerMicrowattHour;
      return;
    case Source::kBatteryPower:
      joules_ += static_cast<double>(now) * elapsed_ms * kJoulesPerMicrowattMs;
      return;
  }
}

bool EnergyMeter::StillTells(const Counter& counter, uint64_t now, double elapsed_ms) const {
  if (source_ != Source::kRapl) return ReadAttribute(counter.status) == kDischarging;
  return now <= counter.range && elapsed_ms * kMostMicrojoulesPerMs <= static_cast<double>(counter.range);
}

void EnergyMeter::SampleInTime(double now_ms) {
  if (now_ms - last_ms_ > kSampleIntervalMs) Sample(now_ms);
}

void EnergyMeter::Sample(double now_ms) {
  const double elapsed_ms = now_ms - last_ms_;
  last_ms_ = now_ms;
  for (Counter& counter : counters_) {
    const std::optional<uint64_t> now = ReadNumber(counter.path);
    if (!now || !StillTells(counter, *now, elapsed_ms)) {
      source_ = Source::kNone;
      counters_.clear();
      return;
    }
    Add(counter, *now, elapsed_ms);
    counter.last = *now;
  }
}

std::optional<double> EnergyMeter::joules() const {
  return source_ == Source::kNone ? std::nullopt : std::optional<double>(joules_);
}

std::optional<std::string> EnergyMeter::source() const {
  switch (source_) {
    case Source::kRapl:
      return "rapl";
    case Source::kBatteryEnergy:
      return "battery_energy";
    case Source::kBatteryPower:
      return "battery_power";
    case Source::kNone:
      break;
  }
  return std::nullopt;
}

}  // namespace moepack::runtime
