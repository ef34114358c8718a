#include "runtime-min/energy.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/env.h"
#include "runtime-min/metrics.h"

namespace moepack::runtime {
namespace {

// A tree with the files that sysfs would have.
class Energy : public ::testing::Test {
 protected:
  void SetUp() override { root_ = ::testing::TempDir() + "moepack-sysfs-" + std::to_string(::getpid()); }
  void TearDown() override { (void)PosixEnv().RemoveTree(root_); }

  void Set(const std::string& attribute, const std::string& value) {
    const std::string path = root_ + "/class/" + attribute;
    ASSERT_TRUE(PosixEnv().MakeDirectory(DirectoryOf(path)).ok());
    std::ofstream(path) << value << "\n";
  }
  void Zone(const std::string& zone, const std::string& name, uint64_t energy, uint64_t range) {
    Set("powercap/" + zone + "/name", name);
    Set("powercap/" + zone + "/max_energy_range_uj", std::to_string(range));
    Set("powercap/" + zone + "/energy_uj", std::to_string(energy));
  }
  void Battery(const std::string& supply, const std::string& status, const std::string& file, uint64_t value) {
    Set("power_supply/" + supply + "/type", "Battery");
    Set("power_supply/" + supply + "/status", status);
    Set("power_supply/" + supply + "/" + file, std::to_string(value));
  }

  std::string root_;
};

TEST_F(Energy, WithoutASourceThereIsNone) {
  EnergyMeter meter(root_);
  meter.Sample(MonotonicMs());
  EXPECT_FALSE(meter.joules().has_value());
  EXPECT_FALSE(meter.source().has_value());
}

TEST_F(Energy, SumsRaplPackagesAndDramOnce) {
  Zone("intel-rapl:0", "package-0", 1'000'000, 262'143'328'850);
  Zone("intel-rapl:0:0", "core", 500, 262'143'328'850);
  Zone("intel-rapl:0:1", "dram", 2'000'000, 65'712'999'613);
  Zone("intel-rapl:1", "package-1", 0, 262'143'328'850);
  Zone("intel-rapl:2", "psys", 700, 262'143'328'850);
  Battery("BAT0", "Discharging", "energy_now", 40'000'000);
  EnergyMeter meter(root_);
  EXPECT_EQ(meter.source(), "rapl");
  EXPECT_EQ(meter.joules(), 0);
  Set("powercap/intel-rapl:0/energy_uj", "3500000");
  Set("powercap/intel-rapl:0:0/energy_uj", "99000000");
  Set("powercap/intel-rapl:0:1/energy_uj", "2250000");
  Set("powercap/intel-rapl:1/energy_uj", "1000000");
  Set("powercap/intel-rapl:2/energy_uj", "99000000");
  meter.Sample(MonotonicMs());
  EXPECT_DOUBLE_EQ(*meter.joules(), 2.5 + 0.25 + 1);
  meter.Sample(MonotonicMs());
  EXPECT_DOUBLE_EQ(*meter.joules(), 3.75);
}

TEST_F(Energy, RaplWrapsAround) {
  Zone("intel-rapl:0", "package-0", 65'712'000'000, 65'713'000'000);
  EnergyMeter meter(root_);
  Set("powercap/intel-rapl:0/energy_uj", "500000");
  meter.Sample(MonotonicMs());
  EXPECT_DOUBLE_EQ(*meter.joules(), 1.5);
}

// How often it went round nobody knows.
TEST_F(Energy, RaplThatMayHaveWrappedUnseenEndsTheMeasurement) {
  Zone("intel-rapl:0", "package-0", 5'000'000, 262'143'328'850);
  Zone("intel-rapl:0:1", "dram", 5'000'000, 65'712'999'613);
  EnergyMeter meter(root_);
  const double start = MonotonicMs();
  meter.Sample(start + 60'000);
  EXPECT_TRUE(meter.joules().has_value()) << "a minute is fine";
  meter.Sample(start + 60'000 + 66'000);
  EXPECT_FALSE(meter.joules().has_value()) << "DRAM's counter is the shorter one";
}

TEST_F(Energy, SamplesInTimeAreNotTooMany) {
  Zone("intel-rapl:0", "package-0", 0, 262'143'328'850);
  EnergyMeter meter(root_);
  const double start = MonotonicMs();
  Set("powercap/intel-rapl:0/energy_uj", "3000000");
  meter.SampleInTime(start + 1000);
  EXPECT_EQ(meter.joules(), 0);
  meter.SampleInTime(start + 11'000);
  EXPECT_DOUBLE_EQ(*meter.joules(), 3);
}

TEST_F(Energy, ACounterThatGoesAwayEndsTheMeasurement) {
  Zone("intel-rapl:0", "package-0", 9'000'000, 10'000'000);
  for (const char* value : {"11000000", "-5", "nonsense", ""}) {
    Set("powercap/intel-rapl:0/energy_uj", "9000000");
    EnergyMeter meter(root_);
    EXPECT_TRUE(meter.joules().has_value());
    Set("powercap/intel-rapl:0/energy_uj", value);
    meter.Sample(MonotonicMs());
    EXPECT_FALSE(meter.joules().has_value()) << value;
    EXPECT_FALSE(meter.source().has_value()) << value;
  }
}

TEST_F(Energy, ABatteryTellsWhatItLost) {
  Set("power_supply/AC/type", "Mains");
  Battery("BAT0", "Discharging", "energy_now", 40'000'000);
  Battery("BAT1", "Full", "energy_now", 10'000'000);
  EnergyMeter meter(root_);
  EXPECT_EQ(meter.source(), "battery_energy");
  Set("power_supply/BAT0/energy_now", "39990000");  // 10 mWh less
  Set("power_supply/BAT1/energy_now", "9000000");
  meter.Sample(MonotonicMs());
  EXPECT_DOUBLE_EQ(*meter.joules(), 36);
}

TEST_F(Energy, PowerIsSummedOverTime) {
  Battery("BAT0", "Discharging", "power_now", 5'000'000);  // 5 W
  EnergyMeter meter(root_);
  const double start = MonotonicMs();
  meter.Sample(start);
  const double before = *meter.joules();
  EXPECT_EQ(meter.source(), "battery_power");
  meter.Sample(start + 2000);
  EXPECT_NEAR(*meter.joules() - before, 10, 1e-9);
}

TEST_F(Energy, ABatteryThatIsPluggedInEndsTheMeasurement) {
  for (const char* file : {"energy_now", "power_now"}) {
    Battery("BAT0", "Discharging", file, 5'000'000);
    EnergyMeter meter(root_);
    const double start = MonotonicMs();
    meter.Sample(start + 1000);
    EXPECT_TRUE(meter.joules().has_value());
    Set("power_supply/BAT0/status", "Charging");
    meter.Sample(start + 2000);
    EXPECT_FALSE(meter.joules().has_value()) << file << ": what goes into it is no use of ours";
    EXPECT_FALSE(meter.source().has_value());
    TearDown();
  }
}

TEST_F(Energy, AChargingBatteryTellsNothing) {
  Battery("BAT0", "Charging", "energy_now", 40'000'000);
  EXPECT_FALSE(EnergyMeter(root_).source().has_value());
}

}  // namespace
}  // namespace moepack::runtime
