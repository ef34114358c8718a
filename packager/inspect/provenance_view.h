// What `moepack inspect` shows of a bundle's provenance, and how it takes it out.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/bytes.h"
#include "base/env.h"
#include "base/status.h"

namespace moepack {

// {"statement": ..., "bom": ...}; null when the blob is empty or does not hold two JSON objects.
nlohmann::json ProvenanceJson(ByteSpan blob);
// A few lines for people: who made it, from what, how well. Empty when the blob says nothing that can be read.
std::string ProvenanceText(ByteSpan blob);
// Writes the documents, byte for byte as they were signed, to the paths that are not empty: all of them or none.
// kBadInput when the blob holds none.
Status ExtractProvenance(Env& env, ByteSpan blob, const std::string& statement_path, const std::string& bom_path);

}  // namespace moepack
