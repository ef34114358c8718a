// What `moepack inspect` shows of a tokenizer's chat template.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/bytes.h"

namespace moepack {

// An object with the pieces by place; null when the blob is empty, cannot be read or has no chat template.
nlohmann::json ChatJson(ByteSpan tokenizer_blob);
// A line for each place. Empty as ChatJson is null.
std::string ChatText(ByteSpan tokenizer_blob);

}  // namespace moepack
