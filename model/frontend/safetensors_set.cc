#include <set>

#include "model/frontend/json_text.h"
#include "model/frontend/safetensors.h"

namespace moepack {
namespace {

constexpr char kSingleName[] = "model.safetensors";
constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = 64ull << 20;
constexpr char kSuffix[] = ".safetensors";

// A shard name may not leave the folder.
Status CheckShardName(const std::string& name, const std::string& index_path) {
  const bool plain =
      name.find_first_of("/\\") == std::string::npos && name[0] != '.' && name.find('\0') == std::string::npos;
  if (plain && name.size() > sizeof(kSuffix) && name.ends_with(kSuffix)) return Status::Ok();
  return Status(ErrorCode::kUnsafePath,
                index_path + ": shard name '" + name + "' is not the plain name of a .safetensors file");
}

// Tensor name -> shard name.
Result<std::map<std::string, std::string>> ReadIndex(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const nlohmann::json index, ReadJsonFile(env, path, kMaxIndexBytes));
  const auto map = index.find("weight_map");
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty()) {
    return Status(ErrorCode::kBadInput, path + ": needs an object 'weight_map' that names each tensor's shard");
  }
  std::map<std::string, std::string> out;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) return Status(ErrorCode::kBadInput, path + ": weight_map['" + tensor + "'] is not a string");
    MOEPACK_RETURN_IF_ERROR(CheckShardName(shard.get<std::string>(), path));
    out.emplace(tensor, shard.get<std::string>());
  }
  return out;
}

}  // namespace

Status SafetensorsSet::AddFile(Env& env, const std::string& directory, const std::string& name,
                               const std::map<std::string, std::string>* weight_map) {
  auto opened = SafetensorsFile::Open(env, JoinPath(directory, name));
  if (!opened.ok() && opened.status().code() == ErrorCode::kNotFound && weight_map != nullptr) {
    return Status(ErrorCode::kNotFound,
                  JoinPath(directory, name) + ": this shard is missing, but " + kIndexName + " names it");
  }
  MOEPACK_ASSIGN_OR_RETURN(auto file, std::move(opened));
  for (const SafetensorsEntry& entry : file->entries()) {
    if (weight_map != nullptr) {
      const auto it = weight_map->find(entry.name);
      if (it == weight_map->end()) {
        return Status(ErrorCode::kBadInput, file->path() + ": tensor " + entry.name + " is not in " + kIndexName);
      }
      if (it->second != name) {
        return Status(ErrorCode::kBadInput, file->path() + ": tensor " + entry.name + " stands here too, but " + kIndexName +
                                                " places it in " + it->second);
      }
    }
    tensors_.emplace(entry.name, Location{file.get(), &entry});
  }
  file_names_.push_back(name);
  files_.push_back(std::move(file));
  return Status::Ok();
}

Result<std::unique_ptr<SafetensorsSet>> SafetensorsSet::Open(Env& env, const std::string& directory) {
  std::unique_ptr<SafetensorsSet> set(new SafetensorsSet());
  const std::string index_path = JoinPath(directory, kIndexName);
  MOEPACK_ASSIGN_OR_RETURN(const bool single, env.Exists(JoinPath(directory, kSingleName)));
  MOEPACK_ASSIGN_OR_RETURN(const bool sharded, env.Exists(index_path));
  if (single && sharded) {
    return Status(ErrorCode::kBadInput,
                  directory + ": has both " + kSingleName + " and " + kIndexName + "; remove the one that is stale");
  }
  if (single) {
    MOEPACK_RETURN_IF_ERROR(set->AddFile(env, directory, kSingleName, nullptr));
    return set;
  }
  if (!sharded) {
    return Status(ErrorCode::kNotFound, directory + ": has neither " + kSingleName + " nor " + kIndexName +
                                            " (weights must be in safetensors files)");
  }
  MOEPACK_ASSIGN_OR_RETURN(const auto weight_map, ReadIndex(env, index_path));
  set->file_names_.push_back(kIndexName);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : weight_map) shards.insert(shard);
  for (const std::string& shard : shards) MOEPACK_RETURN_IF_ERROR(set->AddFile(env, directory, shard, &weight_map));
  for (const auto& [tensor, shard] : weight_map) {
    if (set->tensors_.count(tensor) != 0) continue;
    return Status(ErrorCode::kMissingTensor,
                  JoinPath(directory, shard) + ": lacks tensor " + tensor + ", which " + kIndexName + " places there");
  }
  return set;
}

}  // namespace moepack
