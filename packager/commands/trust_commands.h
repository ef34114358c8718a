// moepack pack anchor, moepack pack certified and moepack pack head.
#pragma once

#include "base/status.h"

namespace moepack::commands {

Status RunAnchor(int argc, char** argv);
Status RunCertified(int argc, char** argv);
Status RunHead(int argc, char** argv);

}  // namespace moepack::commands
