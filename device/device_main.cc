// moepack device: installs bundles on a device and keeps the way back open until they have shown that they work.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <ctime>
#include <optional>

#include "base/cli/cli.h"
#include "base/outputs.h"
#include "device/device.h"
#include "device/file_store.h"

namespace moepack {
namespace {

namespace po = boost::program_options;

// Holds the folder for one process that changes it, until the process ends or the object goes.
class FolderLock {
 public:
  FolderLock() = default;
  ~FolderLock() {
    if (fd_ >= 0) ::close(fd_);
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  // Does not wait. kAccess when another process holds the folder; kNotFound.
  Status Take(const std::string& root) {
    fd_ = ::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ < 0) return ErrnoStatus(root, "open");
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return Status::Ok();
    if (errno != EWOULDBLOCK) return ErrnoStatus(root, "lock");
    return Status(ErrorCode::kAccess, root + ": another 'moepack device' is changing it; try again when it has finished");
  }

 private:
  int fd_ = -1;
};

// A device opened with the file-based rollback store in its folder.
struct Opened {
  std::unique_ptr<verify::FileRollbackStore> store;
  std::unique_ptr<device::Device> device;
};

Result<Opened> OpenDevice(const std::string& root) {
  MOEPACK_ASSIGN_OR_RETURN(const verify::FileRollbackStore store, device::OpenFileStore(PosixEnv(), root));
  Opened out;
  out.store = std::make_unique<verify::FileRollbackStore>(store);
  MOEPACK_ASSIGN_OR_RETURN(out.device, device::Device::Open(PosixEnv(), root, *out.store));
  return out;
}

Status Provision(const cli::Command& command, const std::string& root, FolderLock& lock) {
  MOEPACK_RETURN_IF_ERROR(command.Require("trust"));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes file, ReadFile(PosixEnv(), command.Get<std::string>("trust"), kMaxTrustRecordBytes));
  MOEPACK_ASSIGN_OR_RETURN(const TrustAnchor anchor, verify::OpenAnchor(file));
  verify::FileRollbackStore::Key key{};
  if (::getrandom(key.data(), key.size(), 0) != static_cast<ssize_t>(key.size())) {
    return Status(ErrorCode::kAccess, "the system gives no random numbers");
  }
  const auto make_store = [&](const TrustAnchor& trusted) -> Status {
    MOEPACK_RETURN_IF_ERROR(lock.Take(root));  // after the folder was made
    return device::CreateFileStore(PosixEnv(), root, key, trusted);
  };
  MOEPACK_RETURN_IF_ERROR(device::Device::Provision(PosixEnv(), root, file, make_store));
  if (command.json()) cli::PrintJson({{"product", anchor.product}, {"root_version", anchor.root_version}});
  if (!command.json()) std::printf("%s: takes bundles of '%s'\n", root.c_str(), anchor.product.c_str());
  return Status::Ok();
}

// Nothing without --head.
Result<std::optional<device::Offer>> ReadOffer(const cli::Command& command) {
  if (!command.Has("head")) return std::optional<device::Offer>();
  for (const char* name : {"channel", "device-id"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  device::Offer offer;
  MOEPACK_ASSIGN_OR_RETURN(offer.head, ReadFile(PosixEnv(), command.Get<std::string>("head"), kMaxTrustRecordBytes));
  offer.view.channel = command.Get<std::string>("channel");
  offer.view.device_id = command.Get<std::string>("device-id");
  const std::time_t now = std::time(nullptr);
  if (now < 0) return Status(ErrorCode::kAccess, "the system's clock cannot be read");
  offer.view.now = static_cast<uint64_t>(now);
  return std::optional<device::Offer>(std::move(offer));
}

Status Install(const cli::Command& command, const std::string& root) {
  MOEPACK_RETURN_IF_ERROR(command.Require("BUNDLE"));
  MOEPACK_ASSIGN_OR_RETURN(const std::optional<device::Offer> offer, ReadOffer(command));
  MOEPACK_ASSIGN_OR_RETURN(const Opened opened, OpenDevice(root));
  MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(command.Get<std::string>("BUNDLE")));
  ThreadPool pool(command.threads());
  MOEPACK_ASSIGN_OR_RETURN(const device::InstallReport report,
                           opened.device->Install(std::move(file), offer, pool, command.progress()));
  const std::string manifest = ToHex(ByteSpan(report.manifest_digest));
  if (command.json()) {
    cli::PrintJson({{"manifest_sha256", manifest},
                    {"chunks", report.chunks},
                    {"chunks_written", report.chunks_written},
                    {"bytes_written", report.bytes_written}});
  } else {
    std::printf("%s: %s, %llu of %llu chunks written, %s\n", report.in_use_already ? "in use already" : "on trial",
                manifest.c_str(), static_cast<unsigned long long>(report.chunks_written),
                static_cast<unsigned long long>(report.chunks), FormatBytes(report.bytes_written).c_str());
  }
  return Status::Ok();
}

Status ShowStatus(const cli::Command& command, const std::string& root) {
  MOEPACK_ASSIGN_OR_RETURN(const Opened opened, OpenDevice(root));
  MOEPACK_ASSIGN_OR_RETURN(const auto active, opened.device->ReadActive());
  MOEPACK_ASSIGN_OR_RETURN(const verify::RollbackState state, opened.store->Read());
  nlohmann::json out = {{"product", opened.device->anchor().product},
                        {"root_version", opened.device->anchor().root_version},
                        {"key_epoch_floor", state.key_epoch},
                        {"security_counter_floor", state.security_counter},
                        {"head_version", state.head_version},
                        {"manifest_sha256", nullptr},
                        {"version", nullptr},
                        {"on_trial", false},
                        {"previous", nullptr}};
  if (active.has_value()) {
    MOEPACK_ASSIGN_OR_RETURN(const auto bundle, opened.device->OpenCurrent());
    out["manifest_sha256"] = ToHex(ByteSpan(active->current));
    out["version"] = bundle->manifest().version;
    out["on_trial"] = active->on_trial;
    if (active->previous.has_value()) out["previous"] = ToHex(ByteSpan(*active->previous));
  }
  if (command.json()) {
    cli::PrintJson(out);
  } else if (!active.has_value()) {
    std::printf("no bundle is installed\n");
  } else {
    std::printf("%s: version %s, %s\n", active->on_trial ? "on trial" : "confirmed",
                out["version"].get<std::string>().c_str(), out["manifest_sha256"].get<std::string>().c_str());
  }
  return Status::Ok();
}

Status Rotate(const cli::Command& command, const std::string& root) {
  MOEPACK_RETURN_IF_ERROR(command.Require("trust"));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes successor,
                           ReadFile(PosixEnv(), command.Get<std::string>("trust"), kMaxTrustRecordBytes));
  MOEPACK_ASSIGN_OR_RETURN(const Opened opened, OpenDevice(root));
  MOEPACK_RETURN_IF_ERROR(opened.device->Rotate(successor));
  const uint64_t version = opened.device->anchor().root_version;
  if (command.json()) cli::PrintJson({{"product", opened.device->anchor().product}, {"root_version", version}});
  if (!command.json())
    std::printf("%s: trust anchor of version %llu\n", root.c_str(), static_cast<unsigned long long>(version));
  return Status::Ok();
}

void PrintTrial(const cli::Command& command, const device::TrialReport& report,
                const std::optional<device::Active>& in_use) {
  const bool back = !report.verdict.ok();
  const bool tested = report.golden.agreed > 0;
  const char* outcome = !report.on_trial ? "nothing_on_trial" : back ? "rolled_back" : "confirmed";
  const std::string manifest = in_use.has_value() ? ToHex(ByteSpan(in_use->current)) : "";
  if (command.json()) {
    cli::PrintJson({{"outcome", outcome},
                    {"manifest_sha256", in_use.has_value() ? nlohmann::json(manifest) : nlohmann::json()},
                    {"reason", back ? nlohmann::json(report.verdict.message()) : nlohmann::json()},
                    {"steps_agreed", report.golden.agreed},
                    {"steps_differed", report.golden.differed},
                    {"largest_difference", tested ? nlohmann::json(report.golden.largest_difference) : nlohmann::json()}});
  } else if (!report.on_trial) {
    std::printf("nothing is on trial; in use: %s\n", manifest.c_str());
  } else if (back) {
    std::printf("rolled back; in use: %s\n", in_use.has_value() ? manifest.c_str() : "no bundle");
  } else if (!tested) {
    std::printf("confirmed without golden prompts: %s\n", manifest.c_str());
  } else {
    std::printf("confirmed: %s, %llu of %llu golden steps agree, logits within %g\n", manifest.c_str(),
                static_cast<unsigned long long>(report.golden.agreed),
                static_cast<unsigned long long>(report.golden.agreed + report.golden.differed),
                double{report.golden.largest_difference});
  }
}

// Prints what was decided, also when it ends with an error: a machine has to know which bundle is in use.
Status Trial(const cli::Command& command, const std::string& root) {
  device::TrialOptions options;
  options.untested = command.Has("untested");
  if (command.Has("expert-ram")) {
    MOEPACK_ASSIGN_OR_RETURN(options.expert_ram_bytes, ParseSize(command.Get<std::string>("expert-ram")));
  }
  ThreadPool pool(command.threads());
  MOEPACK_RETURN_IF_ERROR(pool.status());
  MOEPACK_ASSIGN_OR_RETURN(const Opened opened, OpenDevice(root));
  MOEPACK_ASSIGN_OR_RETURN(const device::TrialReport report, opened.device->Trial(options, pool, command.progress()));
  MOEPACK_ASSIGN_OR_RETURN(const std::optional<device::Active> in_use, opened.device->ReadActive());
  PrintTrial(command, report, in_use);
  return report.verdict.ok() ? Status::Ok() : report.verdict.With("the bundle on trial was rolled back");
}

Status VerifyCurrent(const cli::Command& command, const std::string& root) {
  MOEPACK_ASSIGN_OR_RETURN(const Opened opened, OpenDevice(root));
  MOEPACK_ASSIGN_OR_RETURN(const auto bundle, opened.device->OpenCurrent());
  ThreadPool pool(command.threads());
  MOEPACK_RETURN_IF_ERROR(bundle->VerifyAll(pool, command.progress()));
  if (command.json()) cli::PrintJson({{"verified", true}, {"manifest_sha256", ToHex(ByteSpan(bundle->manifest_digest()))}});
  if (!command.json()) std::printf("verified: %s\n", FormatBytes(bundle->manifest().file_bytes).c_str());
  return Status::Ok();
}

Status Collect(const cli::Command& command, const std::string& root) {
  MOEPACK_ASSIGN_OR_RETURN(const Opened opened, OpenDevice(root));
  MOEPACK_ASSIGN_OR_RETURN(const device::GcReport report, opened.device->CollectGarbage());
  if (command.json()) cli::PrintJson({{"files_removed", report.files_removed}});
  if (!command.json()) std::printf("%llu files removed\n", static_cast<unsigned long long>(report.files_removed));
  return Status::Ok();
}

Status Change(const cli::Command& command, const std::string& root, Status (device::Device::*change)()) {
  {
    MOEPACK_ASSIGN_OR_RETURN(const Opened opened, OpenDevice(root));
    MOEPACK_RETURN_IF_ERROR((opened.device.get()->*change)());
  }
  return ShowStatus(command, root);
}

Status Run(int argc, char** argv) {
  cli::Command command(
      {"moepack device",
       "Installs verified bundles in a content store: a bundle is on trial until it is confirmed, and a power cut\n"
       "leaves the old or the new one. Installing the bundle in use again repairs it. One command at a time changes ROOT.\n"
       "'trial' runs the golden prompts of the bundle on trial, then confirms it or rolls it back by itself.\n"
       "Verbs: provision, rotate, install, trial, status, verify, confirm, rollback, gc.",
       "VERB ROOT [BUNDLE] [--trust A.trust] [--head H.head --channel NAME --device-id ID] [--expert-ram SIZE] [--json]",
       {"moepack device provision /var/lib/moepack --trust wren.trust", "moepack device install /var/lib/moepack wren.moeb",
        "moepack device install /var/lib/moepack wren.moeb --head stable.head --channel stable --device-id 0042",
        "moepack device trial /var/lib/moepack --expert-ram 64MiB", "moepack device confirm /var/lib/moepack"}});
  command.Positional("VERB");
  command.Positional("ROOT");
  command.Positional("BUNDLE");
  command.options().add_options()("trust", po::value<std::string>(),
                                  "provision: trust anchor of a new device; rotate: its successor (moepack pack anchor)")(
      "head", po::value<std::string>(), "install only what this channel head offers (moepack pack head)")(
      "channel", po::value<std::string>(), "the channel that the device follows")(
      "device-id", po::value<std::string>(), "what tells this device from others: decides its place in a rollout")(
      "expert-ram", po::value<std::string>(), "trial: most memory for experts, as given to 'moepack run' (default: all)")(
      "untested", "trial: also confirm a bundle that has no golden prompts");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  for (const char* name : {"VERB", "ROOT"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  const std::string verb = command.Get<std::string>("VERB"), root = command.Get<std::string>("ROOT");
  FolderLock lock;
  if (verb == "provision") return Provision(command, root, lock);
  // Those that only read meet whole files, and must not stand in the way of the others.
  if (verb == "rotate" || verb == "install" || verb == "trial" || verb == "confirm" || verb == "rollback" || verb == "gc") {
    MOEPACK_RETURN_IF_ERROR(lock.Take(root));
  }
  if (verb == "rotate") return Rotate(command, root);
  if (verb == "install") return Install(command, root);
  if (verb == "trial") return Trial(command, root);
  if (verb == "status") return ShowStatus(command, root);
  if (verb == "confirm") return Change(command, root, &device::Device::Confirm);
  if (verb == "rollback") return Change(command, root, &device::Device::Rollback);
  if (verb == "gc") return Collect(command, root);
  if (verb == "verify") return VerifyCurrent(command, root);
  return Status(ErrorCode::kUsage,
                "'" + verb + "': expected provision, rotate, install, trial, status, verify, confirm, rollback or gc");
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack device", [&] { return moepack::Run(argc, argv); });
}
