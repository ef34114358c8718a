// Energy that the machine takes while something runs, where the machine tells: Intel's and AMD's RAPL counters through
// Linux' powercap, or else a battery that is discharging. It is the whole machine's (RAPL: processors and their memory), not
// one process's. Where neither can be read (RAPL is for root only on most systems) there is no energy, and no error.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace moepack::runtime {

// One thread at a time.
class EnergyMeter {
 public:
  // Finds a source and starts at 0 joules. `sysfs`: where sysfs is mounted. In this order: RAPL packages and their DRAM
  // (class/powercap/intel-rapl:*); batteries' energy_now; batteries' power_now, summed over the time between samples.
  explicit EnergyMeter(const std::string& sysfs = "/sys");

  // Adds what was taken since the last sample. `now_ms`: MonotonicMs(). The measurement ends where the source does not tell
  // any more: it cannot be read, a battery is no longer discharging, or a counter of RAPL may have wrapped around unseen.
  // That takes more than a minute, on most machines several.
  void Sample(double now_ms);
  // The same, unless the last sample is only a few seconds old.
  void SampleInTime(double now_ms);

  // Up to the last sample; none without a source.
  std::optional<double> joules() const;
  // "rapl", "battery_energy" or "battery_power".
  std::optional<std::string> source() const;

 private:
  enum class Source : uint8_t { kNone, kRapl, kBatteryEnergy, kBatteryPower };
  struct Counter {
    std::string path;
    std::string status;  // of a battery: the attribute that says whether it is discharging
    uint64_t last = 0;
    uint64_t range = 0;  // of RAPL: it goes from this to 0
  };
  bool FindRapl(const std::string& powercap);
  bool FindBattery(const std::string& supplies, const char* file, Source source);
  bool StillTells(const Counter& counter, uint64_t now, double elapsed_ms) const;
  void Add(const Counter& counter, uint64_t now, double elapsed_ms);

  Source source_ = Source::kNone;
  std::vector<Counter> counters_;
  double joules_ = 0;
  double last_ms_;
};

}  // namespace moepack::runtime
