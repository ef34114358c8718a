#include "compressor/pass/distill_state.h"

#include <cstring>

#include "base/digest/sha256.h"

namespace moepack {
namespace {

// Magic, steps, the learners' floats by name in this machine's byte order, SHA-256 of all that.
constexpr uint64_t kMagic = 0x314e4941525450ffull;
struct Head {
  uint64_t magic = kMagic, steps = 0;
};

template <typename F>
Status ForEachSpan(std::map<std::string, Learner>* learners, const F& visit) {
  for (auto& [name, learner] : *learners) {
    for (const std::span<float> values : learner.State()) {
      MOEPACK_RETURN_IF_ERROR(visit({reinterpret_cast<uint8_t*>(values.data()), values.size_bytes()}));
    }
  }
  return Status::Ok();
}

Status Unusable(ErrorCode code, const std::string& path, const char* what) {
  return Status(code, path + ": " + what + "; remove it and training begins again");
}

}  // namespace

Status WriteTraining(Env& env, const std::string& path, uint64_t steps, std::map<std::string, Learner>* learners) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(env, path));
  Sha256Stream digest;
  const auto append = [&](ByteSpan bytes) {
    digest.Update(bytes);
    return file->Append(bytes);
  };
  const Head head{kMagic, steps};
  MOEPACK_RETURN_IF_ERROR(append({reinterpret_cast<const uint8_t*>(&head), sizeof(head)}));
  MOEPACK_RETURN_IF_ERROR(ForEachSpan(learners, [&](std::span<uint8_t> values) { return append(values); }));
  MOEPACK_RETURN_IF_ERROR(file->Append(digest.Finish()));
  return file->Commit();
}

Result<uint64_t> ReadTraining(Env& env, const std::string& path, std::map<std::string, Learner>* learners) {
  MOEPACK_ASSIGN_OR_RETURN(const bool exists, env.Exists(path));
  if (!exists) return uint64_t{0};
  MOEPACK_ASSIGN_OR_RETURN(const auto file, env.OpenRead(path));
  MOEPACK_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  Head head;
  Digest stored{};
  uint64_t expected = sizeof(head) + sizeof(stored);
  MOEPACK_RETURN_IF_ERROR(ForEachSpan(learners, [&](std::span<uint8_t> values) {
    expected += values.size();
    return Status::Ok();
  }));
  if (size != expected) return Unusable(ErrorCode::kMalformed, path, "is not of this training");
  Sha256Stream digest;
  uint64_t at = 0;
  const auto read = [&](std::span<uint8_t> out) {
    MOEPACK_RETURN_IF_ERROR(file->Read(at, out));
    at += out.size();
    digest.Update(out);
    return Status::Ok();
  };
  MOEPACK_RETURN_IF_ERROR(read({reinterpret_cast<uint8_t*>(&head), sizeof(head)}));
  if (head.magic != kMagic) return Unusable(ErrorCode::kMalformed, path, "is not the state of a training");
  MOEPACK_RETURN_IF_ERROR(ForEachSpan(learners, read));
  MOEPACK_RETURN_IF_ERROR(file->Read(at, stored));
  if (stored != digest.Finish()) return Unusable(ErrorCode::kDigest, path, "is damaged");
  return head.steps;
}

}  // namespace moepack
