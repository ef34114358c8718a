#include "packager/commands/signing_keys.h"

#include <string>

namespace moepack::commands {

void AddPassphraseOption(cli::Command* command) {
  command->options().add_options()("passphrase-file", boost::program_options::value<std::string>(),
                                   "file whose first line is the keys' passphrase (default: MOEPACK_PASSPHRASE, if set)");
}

Result<Passphrase> CommandPassphrase(const cli::Command& command) {
  return ReadPassphrase(PosixEnv(), command.GetOr<std::string>("passphrase-file", ""));
}

Result<std::vector<SecretKey>> LoadKeys(const cli::Command& command, const char* option) {
  std::vector<SecretKey> keys;
  MOEPACK_ASSIGN_OR_RETURN(const Passphrase passphrase, CommandPassphrase(command));
  for (const std::string& path : command.GetOr<std::vector<std::string>>(option, {})) {
    MOEPACK_ASSIGN_OR_RETURN(SecretKey key, SecretKey::Load(PosixEnv(), path, passphrase));
    keys.push_back(std::move(key));
  }
  return keys;
}

std::vector<const SecretKey*> SignersOf(const std::vector<SecretKey>& keys) {
  std::vector<const SecretKey*> out;
  for (const SecretKey& key : keys) out.push_back(&key);
  return out;
}

}  // namespace moepack::commands
