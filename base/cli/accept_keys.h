// --accept-key of the commands that read a checkpoint.
#pragma once

#include <string>
#include <vector>

#include "base/cli/cli.h"

namespace moepack::cli {

inline void AddAcceptKeyOption(Command* command) {
  command->options().add_options()(
      "accept-key", boost::program_options::value<std::vector<std::string>>()->composing(),
      "key of config.json that would be refused as unknown, taken as without effect on your word (again for another key)");
}

// The keys, in the order given; kUsage for one that cannot be recorded.
inline Result<std::vector<std::string>> AcceptKeys(const Command& command) {
  const auto keys = command.GetOr<std::vector<std::string>>("accept-key", {});
  for (const std::string& key : keys) {
    if (key.empty() || key.find(',') != std::string::npos)
      return Status(ErrorCode::kUsage, "--accept-key '" + key + "': expected one key; give the option again for another");
  }
  return keys;
}

}  // namespace moepack::cli
