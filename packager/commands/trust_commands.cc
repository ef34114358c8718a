#include "packager/commands/trust_commands.h"

#include <algorithm>
#include <cstdio>

#include "base/cli/cli.h"
#include "packager/certificate.h"
#include "packager/commands/signing_keys.h"
#include "packager/trust_writer.h"
#include "verify/envelope_reader.h"
#include "verify/trust_anchor.h"
#include "verify/trust_json.h"

namespace moepack::commands {
namespace {

namespace po = boost::program_options;

using Texts = std::vector<std::string>;

TrustRole MakeRole(KeyRole role, uint32_t threshold, std::vector<PublicKey> keys) {
  std::sort(keys.begin(), keys.end());
  return {role, threshold == 0 ? static_cast<uint32_t>(keys.size()) : threshold, std::move(keys)};
}

Result<std::vector<PublicKey>> ParseKeys(const Texts& texts) {
  std::vector<PublicKey> keys;
  for (const std::string& text : texts) {
    if (FromHex(text, keys.emplace_back())) continue;
    return Status(ErrorCode::kUsage, "--channel-key " + text + ": expected the 64 hexadecimal digits of a public key");
  }
  return keys;
}

Result<TrustAnchor> AnchorOf(const cli::Command& command, const std::vector<SecretKey>& roots) {
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy,
                           verify::ReadTrustJson(PosixEnv(), command.Get<std::string>("TRUST")));
  TrustAnchor anchor;
  anchor.product = policy.product;
  anchor.key_epoch = policy.key_epoch;
  anchor.minimum_security_counter = policy.minimum_security_counter;
  anchor.roles.push_back(MakeRole(KeyRole::kRelease, policy.threshold, policy.release_keys));
  std::vector<PublicKey> root_keys;
  for (const SecretKey& key : roots) root_keys.push_back(key.public_key());
  anchor.roles.push_back(MakeRole(KeyRole::kRoot, command.GetOr<uint32_t>("root-threshold", 0), std::move(root_keys)));
  MOEPACK_ASSIGN_OR_RETURN(std::vector<PublicKey> channel, ParseKeys(command.GetOr<Texts>("channel-key", {})));
  if (!channel.empty()) {
    anchor.roles.push_back(MakeRole(KeyRole::kChannel, command.GetOr<uint32_t>("channel-threshold", 1), std::move(channel)));
  }
  return anchor;
}

void Report(const cli::Command& command, const std::string& output, nlohmann::json fields, const std::string& line) {
  if (command.json()) {
    fields["output"] = output;
    cli::PrintJson(fields);
  } else {
    std::printf("%s: %s\n", output.c_str(), line.c_str());
  }
}

Status WriteAnchor(const cli::Command& command) {
  for (const char* name : {"TRUST", "root", "output"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<SecretKey> roots, LoadKeys(command, "root"));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<SecretKey> old_roots, LoadKeys(command, "previous-root"));
  MOEPACK_ASSIGN_OR_RETURN(TrustAnchor anchor, AnchorOf(command, roots));
  TrustAnchor previous;
  const bool rotation = command.Has("previous");
  if (rotation) {
    MOEPACK_ASSIGN_OR_RETURN(const Bytes bytes,
                             ReadFile(PosixEnv(), command.Get<std::string>("previous"), kMaxTrustRecordBytes));
    MOEPACK_ASSIGN_OR_RETURN(previous, verify::OpenAnchor(bytes));
    anchor.root_version = previous.root_version + 1;
  }
  std::vector<const SecretKey*> signers = SignersOf(roots);
  for (const SecretKey& key : old_roots) {
    const auto same = [&](const SecretKey& root) { return root.public_key() == key.public_key(); };
    if (std::none_of(roots.begin(), roots.end(), same)) signers.push_back(&key);
  }
  MOEPACK_ASSIGN_OR_RETURN(const Bytes file, SignAnchor(anchor, signers));
  if (rotation) MOEPACK_RETURN_IF_ERROR(verify::RotateAnchor(previous, file).status());
  const std::string output = command.Get<std::string>("output");
  MOEPACK_RETURN_IF_ERROR(WriteFileAtomically(PosixEnv(), output, file));
  Report(command, output, {{"root_version", anchor.root_version}, {"signatures", signers.size()}},
         StrFormat("trust anchor of '%s', version %llu, %zu signatures", anchor.product.c_str(),
                   static_cast<unsigned long long>(anchor.root_version), signers.size()));
  return Status::Ok();
}

constexpr uint64_t kMaxCertificateBytes = 1 << 20;

Status CheckAnchorCertificate(const cli::Command& command) {
  for (const char* name : {"ANCHOR", "cms", "ca"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  const std::string path = command.Get<std::string>("ANCHOR");
  MOEPACK_ASSIGN_OR_RETURN(const Bytes record, ReadFile(PosixEnv(), path, kMaxTrustRecordBytes));
  auto anchor = verify::OpenAnchor(record);
  if (!anchor.ok()) return anchor.status().With(path);
  MOEPACK_ASSIGN_OR_RETURN(const Bytes cms, ReadFile(PosixEnv(), command.Get<std::string>("cms"), kMaxCertificateBytes));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes ca, ReadFile(PosixEnv(), command.Get<std::string>("ca"), kMaxCertificateBytes));
  auto certifier = CheckCertified(record, cms, ca);
  if (!certifier.ok()) return certifier.status().With(path);
  if (command.json()) {
    cli::PrintJson({{"certified", true},
                    {"product", anchor->product},
                    {"root_version", anchor->root_version},
                    {"subject", certifier->subject},
                    {"issuer", certifier->issuer},
                    {"not_after", certifier->not_after}});
    return Status::Ok();
  }
  std::printf("certified: trust anchor of '%s', version %llu, by %s (issuer %s, valid until %s)\n", anchor->product.c_str(),
              static_cast<unsigned long long>(anchor->root_version), certifier->subject.c_str(), certifier->issuer.c_str(),
              certifier->not_after.c_str());
  return Status::Ok();
}

Status WriteHead(const cli::Command& command) {
  for (const char* name : {"BUNDLE", "key", "channel", "head-version", "expires", "output"}) {
    MOEPACK_RETURN_IF_ERROR(command.Require(name));
  }
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<SecretKey> keys, LoadKeys(command, "key"));
  MOEPACK_ASSIGN_OR_RETURN(auto file, PosixEnv().OpenRead(command.Get<std::string>("BUNDLE")));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  MOEPACK_ASSIGN_OR_RETURN(const verify::SignedManifest signed_manifest, verify::ReadSignedManifest(*file, size));
  MOEPACK_ASSIGN_OR_RETURN(const verify::TrustPolicy policy, verify::TrustItsSigners(signed_manifest));
  MOEPACK_ASSIGN_OR_RETURN(const auto bundle, verify::VerifiedBundle::Open(std::move(file), policy));
  ChannelHead head;
  head.product = bundle->manifest().product;
  head.channel = command.Get<std::string>("channel");
  head.head_version = command.Get<uint64_t>("head-version");
  head.expires = command.Get<uint64_t>("expires");
  head.key_epoch = bundle->manifest().key_epoch;
  head.security_counter = bundle->manifest().security_counter;
  head.manifest_digest = bundle->manifest_digest();
  head.file_bytes = size;
  head.rollout_permille = command.Get<uint32_t>("rollout-permille");
  MOEPACK_ASSIGN_OR_RETURN(const Bytes record, SignHead(head, SignersOf(keys)));
  const std::string output = command.Get<std::string>("output");
  MOEPACK_RETURN_IF_ERROR(WriteFileAtomically(PosixEnv(), output, record));
  Report(command, output, {{"manifest_sha256", ToHex(ByteSpan(head.manifest_digest))}, {"head_version", head.head_version}},
         StrFormat("head %llu of channel '%s'", static_cast<unsigned long long>(head.head_version), head.channel.c_str()));
  return Status::Ok();
}

auto Many() { return po::value<Texts>()->composing(); }

}  // namespace

Status RunAnchor(int argc, char** argv) {
  cli::Command command({"moepack pack anchor",
                        "Writes a trust file as the signed record that devices keep, or the successor of one.",
                        "T.json --root ROOT.pem... -o A.trust [--previous OLD.trust --previous-root OLD.pem...]",
                        {"moepack pack anchor trust.json --root root1.pem --root root2.pem -o wren.trust",
                         "moepack pack anchor trust2.json --root new.pem --previous wren.trust --previous-root root1.pem "
                         "--previous-root root2.pem -o wren2.trust"}});
  command.Positional("TRUST");
  command.options().add_options()("root", Many(), "secret key (PEM) of a root: it signs; may repeat")(
      "root-threshold", po::value<uint32_t>(), "root keys that the next rotation needs (default: all)")(
      "channel-key", Many(), "public key of a channel, hexadecimal; may repeat")(
      "channel-threshold", po::value<uint32_t>(), "channel keys that a head needs (default 1)")(
      "previous", po::value<std::string>(), "the anchor that this one follows")(
      "previous-root", Many(), "secret key (PEM) of a root of the previous anchor; may repeat")(
      "output,o", po::value<std::string>(), "where the record goes");
  AddPassphraseOption(&command);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  return command.help_shown() ? Status::Ok() : WriteAnchor(command);
}

Status RunCertified(int argc, char** argv) {
  cli::Command command(
      {"moepack pack certified",
       "Checks who vouches for a trust anchor, before devices are provisioned with it: a detached CMS signature "
       "whose X.509 certificate is for code signing and chains to an authority. Make one with openssl cms -sign "
       "-binary -outform DER -in A.trust -signer CERT.pem -inkey KEY.pem -out A.p7s.",
       "A.trust --cms A.p7s --ca CA.pem [--json]",
       {"moepack pack certified wren.trust --cms wren.p7s --ca company-root.pem"}});
  command.Positional("ANCHOR");
  command.options().add_options()("cms", po::value<std::string>(), "CMS signature (DER) over the anchor's bytes")(
      "ca", po::value<std::string>(), "certificates (PEM) of the authorities");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  return command.help_shown() ? Status::Ok() : CheckAnchorCertificate(command);
}

Status RunHead(int argc, char** argv) {
  cli::Command command({"moepack pack head",
                        "Writes the signed record that offers a bundle on a channel.",
                        "BUNDLE --key CHANNEL.pem... --channel NAME --head-version N --expires SECONDS -o H.head",
                        {"moepack pack head wren.moeb --key channel.pem --channel stable --head-version 12 "
                         "--expires 1893456000 --rollout-permille 100 -o stable.head"}});
  command.Positional("BUNDLE");
  command.options().add_options()("key", Many(), "secret channel key (PEM); may repeat")(
      "channel", po::value<std::string>(), "name of the channel")("head-version", po::value<uint64_t>(),
                                                                  "number of the head: higher than the last one's")(
      "expires", po::value<uint64_t>(), "seconds since 1970-01-01 UTC after which nobody installs by it")(
      "rollout-permille", po::value<uint32_t>()->default_value(kFullRollout), "devices of a thousand that may install")(
      "output,o", po::value<std::string>(), "where the record goes");
  AddPassphraseOption(&command);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  return command.help_shown() ? Status::Ok() : WriteHead(command);
}

}  // namespace moepack::commands
