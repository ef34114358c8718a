// JSON text from outside -> a document, with the checks that nlohmann's parser leaves out: duplicate keys and depth.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/bytes.h"
#include "base/env.h"
#include "base/status.h"

namespace moepack {

// Deepest nesting accepted.
inline constexpr int kMaxJsonDepth = 64;

// kBadInput with "`label`: " and the place of the error; an object that names a key twice is refused with that key.
Result<nlohmann::json> ParseJson(ByteSpan text, const std::string& label);

// ReadFile and ParseJson.
Result<nlohmann::json> ReadJsonFile(Env& env, const std::string& path, uint64_t max_bytes);

// What a parser exception says, without nlohmann's exception number.
std::string JsonErrorText(const nlohmann::json::exception& error);

}  // namespace moepack
