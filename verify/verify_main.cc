// moepack verify: checks a bundle, or one expert of it, against a trust file.
#include <cstdio>
#include <cstdlib>

#include "base/cli/cli.h"
#include "verify/trust_json.h"
#include "verify/verify.h"

namespace moepack {
namespace {

namespace po = boost::program_options;

struct ExpertName {
  uint32_t table = 0, expert = 0;
};

bool ParseIndex(std::string_view text, uint32_t* out) {
  if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string_view::npos) return false;
  *out = static_cast<uint32_t>(std::strtoul(std::string(text).c_str(), nullptr, 10));
  return true;
}

// "TABLE:EXPERT"
Result<ExpertName> ParseExpert(const std::string& text) {
  const size_t colon = text.find(':');
  ExpertName name;
  if (colon == std::string::npos || !ParseIndex(std::string_view(text).substr(0, colon), &name.table) ||
      !ParseIndex(std::string_view(text).substr(colon + 1), &name.expert)) {
    return Status(ErrorCode::kUsage, "--expert " + text + ": expected TABLE:EXPERT, for example 0:3");
  }
  return name;
}

nlohmann::json Describe(const verify::VerifiedBundle& bundle, const verify::TrustPolicy& policy) {
  const Manifest& manifest = bundle.manifest();
  return {{"verified", true},
          {"product", manifest.product},
          {"version", manifest.version},
          {"key_epoch", manifest.key_epoch},
          {"security_counter", manifest.security_counter},
          {"signatures", bundle.valid_signatures()},
          {"threshold", policy.threshold},
          {"manifest_sha256", ToHex(ByteSpan(bundle.manifest_digest()))},
          {"file_bytes", manifest.file_bytes},
          {"chunks", manifest.chunk_count}};
}

Status Verify(const cli::Command& command) {
  MOEPACK_RETURN_IF_ERROR(command.Require("BUNDLE"));
  MOEPACK_RETURN_IF_ERROR(command.Require("trust"));
  const bool one_expert = command.Has("expert");
  ExpertName expert;
  if (one_expert) {
    MOEPACK_ASSIGN_OR_RETURN(expert, ParseExpert(command.Get<std::string>("expert")));
  }
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy,
                           verify::ReadTrust(PosixEnv(), command.Get<std::string>("trust")));
  MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(command.Get<std::string>("BUNDLE")));
  MOEPACK_ASSIGN_OR_RETURN(const auto bundle, verify::VerifiedBundle::Open(std::move(file), policy));
  if (one_expert) {
    MOEPACK_RETURN_IF_ERROR(bundle->VerifyExpert(expert.table, expert.expert));
  } else {
    ThreadPool pool(command.threads());
    MOEPACK_RETURN_IF_ERROR(pool.status());
    MOEPACK_RETURN_IF_ERROR(bundle->VerifyAll(pool, command.progress()));
  }
  if (command.json()) {
    nlohmann::json out = Describe(*bundle, policy);
    out["scope"] = one_expert ? "expert" : "bundle";
    out["expert"] = nullptr;
    if (one_expert) out["expert"] = StrFormat("%u:%u", expert.table, expert.expert);
    cli::PrintJson(out);
    return Status::Ok();
  }
  const Manifest& manifest = bundle->manifest();
  const std::string scope = one_expert ? StrFormat("expert %u:%u of ", expert.table, expert.expert) : "";
  std::printf("verified: %s%s %s, security counter %llu, %u of %u required signatures, %s\n", scope.c_str(),
              manifest.product.c_str(), manifest.version.c_str(), static_cast<unsigned long long>(manifest.security_counter),
              bundle->valid_signatures(), policy.threshold, FormatBytes(manifest.file_bytes).c_str());
  return Status::Ok();
}

Status Run(int argc, char** argv) {
  cli::Command command({"moepack verify",
                        "Checks signatures, policy and every byte of a bundle against a trust file, in constant memory.",
                        "BUNDLE --trust T.json [--expert TABLE:EXPERT] [--json]",
                        {"moepack verify out/wren.moeb --trust out/trust.json",
                         "moepack verify out/wren.moeb --trust out/trust.json --expert 0:3 --json"}});
  command.Positional("BUNDLE");
  command.options().add_options()("trust", po::value<std::string>(), "trust file (T.json) or trust anchor")(
      "expert", po::value<std::string>(), "check this expert only, as TABLE:EXPERT");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  return command.help_shown() ? Status::Ok() : Verify(command);
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack verify", [&] { return moepack::Run(argc, argv); });
}
