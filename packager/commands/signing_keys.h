// Secret keys as every command that signs takes them: PEM files named by an option that may repeat, and one passphrase.
#pragma once

#include <vector>

#include "base/cli/cli.h"
#include "packager/sign/secret_key.h"

namespace moepack::commands {

void AddPassphraseOption(cli::Command* command);

// Of --passphrase-file, else of the environment; empty without either.
Result<Passphrase> CommandPassphrase(const cli::Command& command);

// The keys that `option` names; none when it is absent.
Result<std::vector<SecretKey>> LoadKeys(const cli::Command& command, const char* option);

// Their addresses, as signing functions take them. `keys` must outlive the result.
std::vector<const SecretKey*> SignersOf(const std::vector<SecretKey>& keys);

}  // namespace moepack::commands
