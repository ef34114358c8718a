#include "packager/rebuild/inputs.h"

#include <map>

#include "base/digest/sha256.h"
#include "model/model.h"

namespace moepack {
namespace {

// One file that was an input once, or was not.
Status CheckFile(Env& env, const char* option, const std::string& path, const std::string& recorded) {
  if (path.empty() && recorded.empty()) return Status::Ok();
  if (path.empty()) {
    return Status(ErrorCode::kUsage,
                  StrFormat("needs --%s: the bundle was made with the one whose SHA-256 is %s", option, recorded.c_str()));
  }
  if (recorded.empty()) return Status(ErrorCode::kUsage, StrFormat("--%s: the bundle was made without one", option));
  MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(env, path));
  if (ToHex(digest) == recorded) return Status::Ok();
  return Status(ErrorCode::kDigest, path + ": SHA-256 " + ToHex(digest) + ", the bundle was made with " + recorded);
}

Status CheckModel(Env& env, const BuildRecord& record, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const Model model,
                           OpenModel(env, path, {.digests = true, .accept_keys = KeysOf(record.accepted_keys)}));
  const std::map<std::string, std::string> given(model.input_digests.begin(), model.input_digests.end());
  std::map<std::string, std::string> expected;
  for (const NamedDigest& file : record.inputs) expected[file.name] = file.sha256;
  for (const auto& [name, digest] : expected) {
    const auto found = given.find(name);
    if (found == given.end())
      return Status(ErrorCode::kDigest, path + ": has no " + name + ", which the bundle was made from");
    if (found->second != digest) {
      return Status(ErrorCode::kDigest,
                    path + ": " + name + ": SHA-256 " + found->second + ", the bundle was made from " + digest);
    }
  }
  for (const auto& [name, digest] : given) {
    if (!expected.contains(name))
      return Status(ErrorCode::kDigest, path + ": " + name + ": the bundle was made without such a file");
  }
  return Status::Ok();
}

}  // namespace

Status CheckInputs(Env& env, const BuildRecord& record, const RebuildInputs& inputs) {
  MOEPACK_RETURN_IF_ERROR(CheckFile(env, "profile", inputs.profile, record.profile));
  MOEPACK_RETURN_IF_ERROR(CheckFile(env, "like", inputs.like, record.like));
  return CheckModel(env, record, inputs.model);
}

}  // namespace moepack
