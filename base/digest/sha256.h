// SHA-256 by libcrypto: the one digest of every artefact and bundle.
//
// Uses the low-level functions: they take the processor's SHA instructions without loading OpenSSL's providers, which
// would add megabytes to a static device program.
#pragma once

#include <array>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/env.h"
#include "base/status.h"

namespace moepack {

using Digest = std::array<uint8_t, 32>;

Digest Sha256(ByteSpan data);

// Digest of a stream of pieces. One thread at a time.
class Sha256Stream {
 public:
  Sha256Stream();
  ~Sha256Stream();
  Sha256Stream(const Sha256Stream&) = delete;
  Sha256Stream& operator=(const Sha256Stream&) = delete;
  void Update(ByteSpan data);
  Digest Finish();  // once

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Digest of a whole file, read in pieces of 1 MiB.
Result<Digest> Sha256File(Env& env, const std::string& path);

inline std::string ToHex(const Digest& digest) { return ToHex(ByteSpan(digest)); }

}  // namespace moepack
