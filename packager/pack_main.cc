// moepack pack: a compressed folder into a signed bundle; pack keygen and pack sign.
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/cli/cli.h"
#include "format/manifest/unavailable.h"
#include "format/provenance/provenance.h"
#include "packager/commands/golden_prompts.h"
#include "packager/commands/signing_keys.h"
#include "packager/commands/trust_commands.h"
#include "packager/packager.h"
#include "verify/trust_json.h"

namespace moepack {
namespace {

namespace po = boost::program_options;

// What pack and keygen assume when --product is not given, so that their outputs fit each other.
constexpr char kDefaultProduct[] = "moepack";

po::typed_value<std::string>* Text() { return po::value<std::string>(); }

std::string HexKey(const SecretKey& key) { return ToHex(ByteSpan(key.public_key())); }

// A counter or epoch. The upper half of the range is refused: it is what a negative number would be read as, and a device
// that has accepted such a counter takes no other bundle.
Result<uint64_t> Floor(const cli::Command& command, const char* name) {
  const uint64_t value = command.Get<uint64_t>(name);
  if (value > INT64_MAX) return Status(ErrorCode::kUsage, StrFormat("--%s: expected 0 to 2^63 - 1", name));
  return value;
}

void PrintReport(const cli::Command& command, const std::string& output, const PackReport& report) {
  const uint64_t chunks = report.raw_chunks + report.zstd_chunks + report.rans_chunks;
  if (command.json()) {
    nlohmann::json json = {
        {"output", output},
        {"file_bytes", report.file_bytes},
        {"table_bytes", report.table_bytes},
        {"chunk_plain_bytes", report.chunk_plain_bytes},
        {"chunk_stored_bytes", report.chunk_stored_bytes},
        {"chunks", {{"raw", report.raw_chunks}, {"zstd", report.zstd_chunks}, {"rans", report.rans_chunks}}},
        {"signatures", report.signatures},
        {"golden_prompts", report.golden_prompts},
        {"golden_steps", report.golden_steps},
        {"manifest_sha256", ToHex(ByteSpan(report.manifest_digest))}};
    // Adding a signature does not look at chunks.
    if (chunks == 0) json["table_bytes"] = json["chunk_plain_bytes"] = json["chunk_stored_bytes"] = json["chunks"] = nullptr;
    if (chunks == 0) json["golden_prompts"] = json["golden_steps"] = nullptr;
    cli::PrintJson(json);
    return;
  }
  std::printf("%s: %s, %u signatures\n", output.c_str(), FormatBytes(report.file_bytes).c_str(), report.signatures);
  if (chunks == 0) return;
  std::printf("  %llu chunks (%llu rans, %llu zstd, %llu raw), %s plain, %s stored\n",
              static_cast<unsigned long long>(chunks), static_cast<unsigned long long>(report.rans_chunks),
              static_cast<unsigned long long>(report.zstd_chunks), static_cast<unsigned long long>(report.raw_chunks),
              FormatBytes(report.chunk_plain_bytes).c_str(), FormatBytes(report.chunk_stored_bytes).c_str());
  if (report.golden_prompts == 0) return;
  std::printf("  %llu golden prompts, %llu steps\n", static_cast<unsigned long long>(report.golden_prompts),
              static_cast<unsigned long long>(report.golden_steps));
}

// pack keygen

Status RefuseExisting(const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, PosixEnv().Exists(path));
  return exists ? Status(ErrorCode::kUsage, path + ": exists already; remove it, or use --force to replace it")
                : Status::Ok();
}

Result<verify::TrustPolicy> PolicyOf(const cli::Command& command, const SecretKey& key) {
  verify::TrustPolicy policy;
  policy.product = command.GetOr<std::string>("product", kDefaultProduct);
  policy.release_keys = {key.public_key()};
  MOEPACK_ASSIGN_OR_RETURN(policy.key_epoch, Floor(command, "epoch"));
  MOEPACK_ASSIGN_OR_RETURN(policy.minimum_security_counter, Floor(command, "counter"));
  if (const Status status = verify::ValidateTrustPolicy(policy); !status.ok())
    return Status(ErrorCode::kUsage, status.message());
  return policy;
}

// Both files or none, and what was there before stays when it is none. All bytes are on the disk before the first file gets
// its name.
Status SaveBoth(PrivateFile& key_file, bool replace, const std::string& trust, const verify::TrustPolicy& policy) {
  if (trust.empty()) return key_file.Commit(replace);
  MOEPACK_ASSIGN_OR_RETURN(const auto trust_file, AtomicFile::Create(PosixEnv(), trust));
  MOEPACK_RETURN_IF_ERROR(trust_file->Append(AsBytes(verify::WriteTrustJson(policy))));
  MOEPACK_RETURN_IF_ERROR(trust_file->Finish());
  MOEPACK_RETURN_IF_ERROR(key_file.Commit(replace));
  const Status status = trust_file->Commit();
  if (status.ok()) return status;
  const Status undone = key_file.Undo();
  return undone.ok() ? status : undone.With(status.message());
}

Status Keygen(const cli::Command& command) {
  MOEPACK_RETURN_IF_ERROR(command.Require("output"));
  const std::string output = command.Get<std::string>("output");
  const std::string trust = command.GetOr<std::string>("trust", "");
  const bool replace = command.Has("force");
  if (!replace) MOEPACK_RETURN_IF_ERROR(RefuseExisting(output));
  if (!replace && !trust.empty()) MOEPACK_RETURN_IF_ERROR(RefuseExisting(trust));
  if (trust == output) return Status(ErrorCode::kUsage, "--trust and --output name the same file");
  MOEPACK_ASSIGN_OR_RETURN(const Passphrase passphrase, commands::CommandPassphrase(command));
  MOEPACK_ASSIGN_OR_RETURN(const SecretKey key, SecretKey::Generate());
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, PolicyOf(command, key));
  MOEPACK_ASSIGN_OR_RETURN(const auto key_file, key.Write(output, passphrase));
  MOEPACK_RETURN_IF_ERROR(SaveBoth(*key_file, replace, trust, policy));
  if (command.json()) {
    cli::PrintJson({{"key", output},
                    {"public_key", HexKey(key)},
                    {"encrypted", !passphrase.empty()},
                    {"trust", trust.empty() ? nlohmann::json() : nlohmann::json(trust)}});
  } else {
    std::printf("%s: new %s key\npublic key %s\n", output.c_str(), passphrase.empty() ? "unencrypted" : "encrypted",
                HexKey(key).c_str());
  }
  return Status::Ok();
}

Status RunKeygen(int argc, char** argv) {
  cli::Command command({"moepack pack keygen",
                        "Makes an Ed25519 signing key (PKCS#8 PEM, mode 0600) and, on request, the trust file for devices.",
                        "-o K.pem [--trust T.json --product NAME] [--passphrase-file F] [--force]",
                        {"moepack pack keygen -o key.pem --trust trust.json --product wren",
                         "MOEPACK_PASSPHRASE=secret moepack pack keygen -o key.pem"}});
  command.options().add_options()("output,o", Text(), "where the secret key goes")(
      "trust", Text(), "where the trust file goes")("product", Text(),
                                                    "product that the trust file accepts (default: moepack)")(
      "counter", po::value<uint64_t>()->default_value(1), "minimum security counter in the trust file")(
      "epoch", po::value<uint64_t>()->default_value(1), "key epoch in the trust file")("force", "replace existing files");
  commands::AddPassphraseOption(&command);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  return command.help_shown() ? Status::Ok() : Keygen(command);
}

// pack sign

Status Sign(const cli::Command& command) {
  for (const char* name : {"BUNDLE", "key", "output"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  MOEPACK_ASSIGN_OR_RETURN(const Passphrase passphrase, commands::CommandPassphrase(command));
  MOEPACK_ASSIGN_OR_RETURN(const SecretKey key, SecretKey::Load(PosixEnv(), command.Get<std::string>("key"), passphrase));
  const std::string bundle = command.Get<std::string>("BUNDLE");
  const std::string output = command.Get<std::string>("output");
  if (command.Has("trust")) {
    MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy,
                             verify::ReadTrust(PosixEnv(), command.Get<std::string>("trust")));
    MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(bundle));
    MOEPACK_RETURN_IF_ERROR(verify::VerifiedBundle::Open(std::move(file), policy).status());
  }
  ThreadPool pool(command.threads());
  MOEPACK_RETURN_IF_ERROR(pool.status());
  MOEPACK_ASSIGN_OR_RETURN(const PackReport report, AddSignature(PosixEnv(), bundle, key, output, pool, command.progress()));
  PrintReport(command, output, report);
  return Status::Ok();
}

Status RunSign(int argc, char** argv) {
  cli::Command command({"moepack pack sign",
                        "Adds a signature to a bundle; everything that was signed stays byte for byte.",
                        "BUNDLE --key K.pem -o OUT [--trust T.json] [--passphrase-file F]",
                        {"moepack pack sign wren.moeb --key second.pem --trust trust.json -o wren-2.moeb"}});
  command.Positional("BUNDLE");
  command.options().add_options()("key", Text(), "secret key (PEM)")("output,o", Text(), "where the bundle goes")(
      "trust", Text(), "sign only what this trust file accepts");
  commands::AddPassphraseOption(&command);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  return command.help_shown() ? Status::Ok() : Sign(command);
}

// pack

// The one time that goes into a bundle, if any (reproducible-builds.org/specs/source-date-epoch).
Result<std::optional<uint64_t>> SourceDateEpoch() {
  const char* text = std::getenv("SOURCE_DATE_EPOCH");
  if (text == nullptr || *text == '\0') return std::optional<uint64_t>();
  uint64_t seconds = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, seconds);
  if (error != std::errc() || stop != end || seconds > kMaxSourceDate)
    return Status(ErrorCode::kUsage, StrFormat("SOURCE_DATE_EPOCH '%s': expected seconds since 1970", text));
  return std::optional<uint64_t>(seconds);
}

Status PackFolder(const cli::Command& command) {
  for (const char* name : {"DIR", "key", "output"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<SecretKey> keys, commands::LoadKeys(command, "key"));
  PackOptions options;
  options.product = command.GetOr<std::string>("product", kDefaultProduct);
  options.version = command.Get<std::string>("version");
  MOEPACK_ASSIGN_OR_RETURN(options.security_counter, Floor(command, "counter"));
  MOEPACK_ASSIGN_OR_RETURN(options.key_epoch, Floor(command, "epoch"));
  options.zstd_level = command.Get<int>("zstd-level");
  if (command.Has("unavailable")) {
    auto steps = ParseUnavailable(command.Get<std::string>("unavailable"));
    if (!steps.ok()) return steps.status().With("--unavailable");
    options.unavailable = std::move(*steps);
  }
  options.tool_version = MOEPACK_VERSION;
  MOEPACK_ASSIGN_OR_RETURN(options.source_date_epoch, SourceDateEpoch());
  const std::string output = command.Get<std::string>("output");
  ThreadPool pool(command.threads());
  MOEPACK_RETURN_IF_ERROR(pool.status());
  MOEPACK_ASSIGN_OR_RETURN(options.record_golden, commands::GoldenRecorder(command, pool));
  MOEPACK_ASSIGN_OR_RETURN(const PackReport report, Pack(PosixEnv(), command.Get<std::string>("DIR"), options,
                                                         commands::SignersOf(keys), output, pool, command.progress()));
  PrintReport(command, output, report);
  return Status::Ok();
}

Status RunPack(int argc, char** argv) {
  cli::Command command(
      {"moepack pack",
       "Packs a compressed folder into one signed bundle, checked before it gets its name.\n"
       "'moepack pack keygen' makes a key, 'moepack pack sign' adds a signature, 'moepack pack anchor' and\n"
       "'moepack pack head' write the signed records of SPEC.md, section 13; 'moepack pack certified' checks who vouches\n"
       "for an anchor.",
       "DIR --key K.pem... -o B.moeb [--product NAME] [--version V] [--counter N] [--epoch N] [--golden FILE]",
       {"moepack pack keygen -o key.pem --trust trust.json --product wren",
        "moepack pack out/wren-4bit --key key.pem --product wren --version 1.2 --counter 7 -o wren.moeb",
        "moepack pack out/wren-4bit --key key.pem --product wren --golden examples/wren/golden.txt -o wren.moeb"}});
  command.Positional("DIR");
  command.options().add_options()("key", po::value<std::vector<std::string>>()->composing(), "secret key (PEM); may repeat")(
      "output,o", Text(), "where the bundle goes")("product", Text(), "product name in the manifest (default: moepack)")(
      "version", Text()->default_value("0"), "version for people")("counter", po::value<uint64_t>()->default_value(1),
                                                                   "security counter: raise it to lock out older bundles")(
      "epoch", po::value<uint64_t>()->default_value(1), "key epoch")(
      "zstd-level", po::value<int>()->default_value(PackOptions().zstd_level),
      "effort of the chunk coder, 1 to 22; 0 stores chunks as they are")(
      "unavailable", Text(),
      "what a device may do, in this order, when an expert cannot be read: some of retry, lower, twin, "
      "renormalise, dense with commas and no spaces between them (default: fail)");
  commands::AddGoldenOptions(&command);
  commands::AddPassphraseOption(&command);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  return command.help_shown() ? Status::Ok() : PackFolder(command);
}

Status Run(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "keygen") == 0) return RunKeygen(argc - 1, argv + 1);
  if (argc > 1 && std::strcmp(argv[1], "sign") == 0) return RunSign(argc - 1, argv + 1);
  if (argc > 1 && std::strcmp(argv[1], "anchor") == 0) return commands::RunAnchor(argc - 1, argv + 1);
  if (argc > 1 && std::strcmp(argv[1], "certified") == 0) return commands::RunCertified(argc - 1, argv + 1);
  if (argc > 1 && std::strcmp(argv[1], "head") == 0) return commands::RunHead(argc - 1, argv + 1);
  return RunPack(argc, argv);
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack pack", [&] { return moepack::Run(argc, argv); });
}
