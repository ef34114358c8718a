// moepack rebuild: makes a bundle again from the inputs that its provenance names, without a key, and compares.
#include <cstdio>
#include <filesystem>

#include "base/cli/cli.h"
#include "compressor/compressor.h"
#include "format/provenance/provenance.h"
#include "packager/commands/golden_prompts.h"
#include "packager/packager.h"
#include "packager/rebuild/compare.h"
#include "packager/rebuild/inputs.h"
#include "verify/envelope_reader.h"
#include "verify/trust_json.h"

namespace moepack {
namespace {

namespace po = boost::program_options;

// A folder of our own that goes when we do.
class Scratch {
 public:
  static Result<std::unique_ptr<Scratch>> Create() {
    std::error_code error;
    const std::filesystem::path parent = std::filesystem::temp_directory_path(error);
    if (error) return Status(ErrorCode::kAccess, "TMPDIR: " + error.message());
    MOEPACK_ASSIGN_OR_RETURN(const std::string path, TemporaryPath(JoinPath(parent.string(), "moepack-rebuild")));
    MOEPACK_RETURN_IF_ERROR(PosixEnv().MakeDirectory(path));
    return std::unique_ptr<Scratch>(new Scratch(path));
  }
  ~Scratch() { (void)PosixEnv().RemoveTree(path_); }
  std::string Path(const char* name) const { return JoinPath(path_, name); }

 private:
  explicit Scratch(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// What compress has to say about its inputs was said when the bundle was made.
class WithoutNotes final : public Progress {
 public:
  explicit WithoutNotes(Progress& to) : to_(to) {}
  void Begin(const std::string& label, uint64_t total, const std::string& unit) override { to_.Begin(label, total, unit); }
  void Advance(uint64_t units) override { to_.Advance(units); }
  void End() override { to_.End(); }
  void Note(const std::string& /*line*/) override {}

 private:
  Progress& to_;
};

// As inspect does: without a trust record the digests hold, but nobody has vouched for the keys.
Result<std::unique_ptr<verify::VerifiedBundle>> OpenBundle(const cli::Command& command, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(path));
  if (command.Has("trust")) {
    MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy,
                             verify::ReadTrust(PosixEnv(), command.Get<std::string>("trust")));
    return verify::VerifiedBundle::Open(std::move(file), policy);
  }
  command.progress().Note("rebuild: who signed " + path + " is not checked; give --trust T.json for that");
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  MOEPACK_ASSIGN_OR_RETURN(const verify::SignedManifest head, verify::ReadSignedManifest(*file, size));
  const Result<verify::TrustPolicy> policy = verify::TrustItsSigners(head);
  if (!policy.ok()) return policy.status().With(path);
  return verify::VerifiedBundle::Open(std::move(file), *policy);
}

PackOptions OptionsOf(const PackParameters& recorded) {
  PackOptions out;
  out.product = recorded.product;
  out.version = recorded.version;
  out.key_epoch = recorded.key_epoch;
  out.security_counter = recorded.security_counter;
  out.zstd_level = recorded.zstd_level;
  out.unavailable = recorded.unavailable;
  out.tool_version = MOEPACK_VERSION;
  out.source_date_epoch = recorded.source_date_epoch;
  return out;
}

Result<UnsignedBundle> MakeAgain(const RecordedBuild& build, const GoldenPrompts& golden, const RebuildInputs& inputs,
                                 const std::string& folder, const Scratch& scratch, ThreadPool& pool, Progress& progress) {
  CompressRequest request;
  MOEPACK_ASSIGN_OR_RETURN(request.recipe, ParseRecipe(build.record.recipe, "the recorded recipe"));
  request.accept_keys = KeysOf(build.record.accepted_keys);
  request.model_path = inputs.model;
  request.profile_path = inputs.profile;
  request.like_path = inputs.like;
  request.output = folder;
  request.tool_version = MOEPACK_VERSION;
  MOEPACK_RETURN_IF_ERROR(Compress(PosixEnv(), request, pool, progress).status());
  PackOptions options = OptionsOf(build.pack);
  if (!golden.prompts.empty()) options.record_golden = commands::GoldenAgain(golden, pool);
  return PackUnsigned(PosixEnv(), folder, options, scratch.Path("chunks"), pool, progress);
}

Status Differ(const std::string& path, const std::vector<std::string>& differences) {
  static constexpr size_t kMostNamed = 20;
  std::string message = path + ": made again from the recorded inputs it differs: ";
  for (size_t i = 0; i < std::min(differences.size(), kMostNamed); ++i) message += (i > 0 ? "; " : "") + differences[i];
  if (differences.size() > kMostNamed) message += StrFormat("; and %zu more", differences.size() - kMostNamed);
  return Status(ErrorCode::kDigest, message);
}

Status Rebuild(const cli::Command& command) {
  for (const char* name : {"BUNDLE", "model"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  const std::string path = command.Get<std::string>("BUNDLE");
  MOEPACK_ASSIGN_OR_RETURN(const auto bundle, OpenBundle(command, path));
  const Result<RecordedBuild> build = ParseProvenance(bundle->provenance_blob());
  if (!build.ok()) return build.status().With(path);
  const RebuildInputs inputs = {command.Get<std::string>("model"), command.GetOr<std::string>("profile", ""),
                                command.GetOr<std::string>("like", "")};
  MOEPACK_RETURN_IF_ERROR(CheckInputs(PosixEnv(), build->record, inputs));
  MOEPACK_ASSIGN_OR_RETURN(const auto scratch, Scratch::Create());
  ThreadPool pool(command.threads());
  MOEPACK_RETURN_IF_ERROR(pool.status());
  const std::string folder = command.GetOr<std::string>("output", scratch->Path("model"));
  WithoutNotes progress(command.progress());
  MOEPACK_ASSIGN_OR_RETURN(const UnsignedBundle rebuilt,
                           MakeAgain(*build, bundle->golden(), inputs, folder, *scratch, pool, progress));
  const std::vector<std::string> differences = Differences(*bundle, rebuilt);
  if (!differences.empty()) return Differ(path, differences);
  const std::string digest = ToHex(ByteSpan(bundle->manifest_digest()));
  const uint64_t chunks = bundle->manifest().chunk_count;
  if (command.json()) {
    cli::PrintJson({{"same", true}, {"verified", command.Has("trust")}, {"manifest_sha256", digest}, {"chunks", chunks}});
  } else {
    std::printf("%s: made again from the recorded inputs it is the same, all %llu chunks, manifest %s\n", path.c_str(),
                static_cast<unsigned long long>(chunks), digest.c_str());
  }
  return Status::Ok();
}

Status Run(int argc, char** argv) {
  cli::Command command(
      {"moepack rebuild",
       "Makes a bundle again from the inputs that its provenance names, without a key, and compares every digest.\n"
       "Recipe, budget and options are taken from the bundle; inputs other than the recorded ones are refused.",
       "BUNDLE --model MODEL [--profile P.mprof] [--like PLAN] [--trust T.json] [-o DIR]",
       {"moepack rebuild wren.moeb --trust trust.json --model examples/wren/model --profile wren.mprof"}});
  command.Positional("BUNDLE");
  auto add = command.options().add_options();
  add("model", po::value<std::string>(), "the checkpoint");
  add("profile", po::value<std::string>(), "the profile; needed when the bundle was made with one");
  add("like", po::value<std::string>(), "the plan.json of --like; needed when the bundle was made with one");
  add("trust", po::value<std::string>(), "trust file (T.json) or anchor: whose bundle this must be");
  add("output,o", po::value<std::string>(), "keep the compressed folder here (default: a temporary one in TMPDIR)");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  return command.help_shown() ? Status::Ok() : Rebuild(command);
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack rebuild", [&] { return moepack::Run(argc, argv); });
}
