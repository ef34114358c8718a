#define OPENSSL_API_COMPAT 0x10101000L
#include "base/digest/sha256.h"

#include <openssl/sha.h>

#include <algorithm>

namespace moepack {

Digest Sha256(ByteSpan data) {
  Sha256Stream stream;
  stream.Update(data);
  return stream.Finish();
}

struct Sha256Stream::State {
  SHA256_CTX context;
};

Sha256Stream::Sha256Stream() : state_(std::make_unique<State>()) { SHA256_Init(&state_->context); }
Sha256Stream::~Sha256Stream() = default;
void Sha256Stream::Update(ByteSpan data) { SHA256_Update(&state_->context, data.data(), data.size()); }

Digest Sha256Stream::Finish() {
  Digest out;
  SHA256_Final(out.data(), &state_->context);
  return out;
}

Result<Digest> Sha256File(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(auto file, env.OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  static constexpr uint64_t kPiece = 1 << 20;
  Bytes buffer(std::min(size, kPiece));
  Sha256Stream stream;
  for (uint64_t offset = 0; offset < size; offset += kPiece) {
    const std::span<uint8_t> piece = std::span(buffer).first(std::min(kPiece, size - offset));
    MOEPACK_RETURN_IF_ERROR(file->Read(offset, piece));
    stream.Update(piece);
  }
  return stream.Finish();
}

}  // namespace moepack
