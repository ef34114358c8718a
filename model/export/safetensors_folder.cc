#include "model/export/safetensors_folder.h"

#include <algorithm>
#include <bit>
#include <map>
#include <nlohmann/json.hpp>

#include "model/family/family.h"
#include "model/frontend/json_text.h"
#include "model/frontend/safetensors.h"
#include "model/frontend/tokenizer_files.h"

namespace moepack {
namespace {

constexpr uint64_t kMaxConfigBytes = 4ull << 20;
constexpr char kQuantization[] = "quantization_config";

// A weight of the program, and where in a stored matrix its values stand.
struct Part {
  TensorId tensor = kNone;
  uint32_t table = 0, expert = 0;
  ExpertMatrix matrix = ExpertMatrix::kGate;  // of table and expert when `tensor` is kNone
  const WeightRef* ref = nullptr;
  uint64_t rows = 0, cols = 0;
};

// A tensor of the checkpoint: stored matrices [rows, cols], one or a stack of them.
struct Stored {
  uint64_t rows = 0, cols = 0;
  bool stacked = false;
  std::vector<std::vector<Part>> parts;  // by entry of the stack
};

using StoredTensors = std::map<std::string, Stored>;

Status Add(const Part& part, StoredTensors* all) {
  const WeightRef& ref = *part.ref;
  if (ref.mxfp4) return Status(ErrorCode::kUnsupported, "tensor " + ref.name + ": MXFP4 without a quantization_config");
  uint64_t rows = ref.rows.Stored(part.rows), cols = ref.columns.Stored(part.cols);
  if (ref.transposed) std::swap(rows, cols);
  const auto [it, added] = all->try_emplace(ref.name);
  Stored& stored = it->second;
  const size_t entries = std::max<size_t>(ref.stack, 1);
  if (added) stored = {rows, cols, ref.stack > 0, std::vector<std::vector<Part>>(entries)};
  if (stored.rows != rows || stored.cols != cols || stored.parts.size() != entries) {
    return Status(ErrorCode::kInternal, "tensor " + ref.name + " has two shapes");
  }
  stored.parts[ref.index].push_back(part);
  return Status::Ok();
}

Result<StoredTensors> Gather(const CheckpointLayout& layout) {
  StoredTensors all;
  const Program& program = layout.program;
  for (TensorId id = 0; id < program.tensors.size(); ++id) {
    const TensorDecl& decl = program.tensors[id];
    MOEPACK_RETURN_IF_ERROR(Add({id, 0, 0, ExpertMatrix::kGate, &layout.tensors[id], decl.rows, decl.cols}, &all));
  }
  for (uint32_t t = 0; t < program.expert_tables.size(); ++t) {
    const ExpertTableDecl& table = program.expert_tables[t];
    for (uint32_t e = 0; e < table.experts(); ++e) {
      for (const ExpertMatrix m : {ExpertMatrix::kGate, ExpertMatrix::kUp, ExpertMatrix::kDown}) {
        if (m == ExpertMatrix::kGate && !table.gated) continue;
        const bool down = m == ExpertMatrix::kDown;
        MOEPACK_RETURN_IF_ERROR(
            Add({kNone, t, e, m, &layout.experts[t][e][static_cast<size_t>(m)], down ? table.hidden : table.intermediate[e],
                 down ? table.intermediate[e] : table.hidden},
                &all));
      }
    }
  }
  return all;
}

// As the checkpoint has it, or by what is usual: vectors with one dimension.
std::vector<uint64_t> ShapeOf(const std::string& name, const Stored& stored, const SafetensorsSet* set) {
  if (stored.stacked) return {stored.parts.size(), stored.rows, stored.cols};
  if (set != nullptr) {
    const auto found = set->tensors().find(name);
    if (found != set->tensors().end() && found->second.entry->elements() == stored.rows * stored.cols) {
      return found->second.entry->shape;
    }
  }
  return stored.rows == 1 ? std::vector<uint64_t>{stored.cols} : std::vector<uint64_t>{stored.rows, stored.cols};
}

// One stored matrix, of the weights that lie in it.
Result<std::vector<float>> Assemble(const Model& model, const std::string& name, const Stored& stored,
                                    const std::vector<Part>& parts) {
  std::vector<float> out(stored.rows * stored.cols);
  std::vector<bool> filled(out.size());
  for (const Part& part : parts) {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> values,
                             part.tensor != kNone ? model.tensors->Load(part.tensor)
                                                  : model.tensors->LoadExpert(part.table, part.expert, part.matrix));
    for (uint64_t r = 0; r < part.rows; ++r) {
      const uint64_t row = part.ref->rows.Place(r);
      for (uint64_t c = 0; c < part.cols; ++c) {
        const uint64_t column = part.ref->columns.Place(c);
        const uint64_t at = part.ref->transposed ? column * stored.cols + row : row * stored.cols + column;
        out[at] = values[r * part.cols + c];
        filled[at] = true;
      }
    }
  }
  if (std::find(filled.begin(), filled.end(), false) != filled.end()) {
    return Status(ErrorCode::kUnsupported, "tensor " + name + " holds values that are no part of the model");
  }
  return out;
}

Bytes Encode(const std::vector<float>& values, bool bf16) {
  ByteWriter out;
  for (const float value : values) {
    if (bf16) {
      out.U16(F32ToBf16(value));
    } else {
      out.U32(std::bit_cast<uint32_t>(value));
    }
  }
  return out.Release();
}

// Tensors of one file, in the order of their names.
struct Shard {
  std::vector<StoredTensors::const_iterator> tensors;
  uint64_t bytes = 0;
};

class FolderWriter {
 public:
  FolderWriter(Env& env, const Model& model, const SafetensorsExport& options, std::string folder, Progress& progress)
      : env_(env), model_(model), options_(options), folder_(std::move(folder)), progress_(progress) {}

  Result<uint64_t> WriteWeights(const StoredTensors& all, const SafetensorsSet* set) {
    std::vector<Shard> shards(1);
    uint64_t total = 0;
    for (auto it = all.begin(); it != all.end(); ++it) {
      const uint64_t bytes = it->second.parts.size() * it->second.rows * it->second.cols * element_bytes();
      if (shards.back().bytes > 0 && shards.back().bytes + bytes > options_.shard_bytes) shards.emplace_back();
      shards.back().tensors.push_back(it);
      shards.back().bytes += bytes;
      total += bytes;
    }
    progress_.Begin("export", total, "bytes");
    uint64_t written = 0;
    nlohmann::json map = nlohmann::json::object();
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string name =
          shards.size() == 1 ? "model.safetensors" : StrFormat("model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
      for (const auto& tensor : shards[i].tensors) map[tensor->first] = name;
      MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, WriteShard(name, shards[i], set));
      written += bytes;
    }
    progress_.End();
    if (shards.size() == 1) return written;
    const nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
    MOEPACK_RETURN_IF_ERROR(Write("model.safetensors.index.json", AsBytes(index.dump(2) + "\n")));
    return written;
  }

  Status Write(const std::string& name, ByteSpan bytes) const {
    return WriteFileAtomically(env_, JoinPath(folder_, name), bytes);
  }

 private:
  uint64_t element_bytes() const { return options_.bf16 ? 2 : 4; }

  Result<uint64_t> WriteShard(const std::string& name, const Shard& shard, const SafetensorsSet* set) {
    std::vector<SafetensorsOutput> shapes;
    for (const auto& tensor : shard.tensors) {
      shapes.push_back(
          {tensor->first, options_.bf16 ? Dtype::kBf16 : Dtype::kF32, ShapeOf(tensor->first, tensor->second, set), {}});
    }
    MOEPACK_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(env_, JoinPath(folder_, name)));
    MOEPACK_ASSIGN_OR_RETURN(const Bytes head, SafetensorsHead(shapes, {{"format", "pt"}}));
    MOEPACK_RETURN_IF_ERROR(file->Append(head));
    for (const auto& tensor : shard.tensors) {
      for (const std::vector<Part>& parts : tensor->second.parts) {
        MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> values, Assemble(model_, tensor->first, tensor->second, parts));
        const Bytes bytes = Encode(values, options_.bf16);
        MOEPACK_RETURN_IF_ERROR(file->Append(bytes));
        progress_.Advance(bytes.size());
      }
    }
    MOEPACK_RETURN_IF_ERROR(file->Commit());
    return head.size() + shard.bytes;
  }

  Env& env_;
  const Model& model_;
  const SafetensorsExport& options_;
  const std::string folder_;
  Progress& progress_;
};

// The element type where a configuration says it, also in the one inside; weights are not quantized any more.
void SetElement(const char* type, nlohmann::json* config) {
  config->erase(kQuantization);
  bool said = false;
  for (const char* key : {"torch_dtype", "dtype"}) {
    if (!config->contains(key)) continue;
    (*config)[key] = type;
    said = true;
  }
  if (!said) (*config)["torch_dtype"] = type;
}

Status WriteFolder(Env& env, const Model& model, const SafetensorsExport& options, const std::string& folder,
                   const nlohmann::json& config, const StoredTensors& all, Progress& progress, uint64_t* bytes) {
  const auto set = SafetensorsSet::Open(env, options.checkpoint);
  if (!set.ok() && set.status().code() != ErrorCode::kNotFound) return set.status();
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<TokenizerFile> tokenizer, ReadTokenizerFiles(env, options.checkpoint));
  MOEPACK_RETURN_IF_ERROR(env.MakeDirectory(folder));
  FolderWriter writer(env, model, options, folder, progress);
  MOEPACK_ASSIGN_OR_RETURN(*bytes, writer.WriteWeights(all, set.ok() ? set->get() : nullptr));
  for (const TokenizerFile& file : tokenizer) MOEPACK_RETURN_IF_ERROR(writer.Write(file.name, file.bytes));
  MOEPACK_RETURN_IF_ERROR(writer.Write("config.json", AsBytes(config.dump(2) + "\n")));
  return env.SyncDirectory(folder);
}

}  // namespace

Result<uint64_t> ExportSafetensors(Env& env, const Model& model, const SafetensorsExport& options, const std::string& out,
                                   Progress& progress) {
  MOEPACK_ASSIGN_OR_RETURN(const bool there, env.Exists(out));
  if (there) return Status(ErrorCode::kUsage, out + ": exists already; name a folder that does not");
  const std::string path = JoinPath(options.checkpoint, "config.json");
  MOEPACK_ASSIGN_OR_RETURN(nlohmann::json config, ReadJsonFile(env, path, kMaxConfigBytes));
  if (!config.is_object()) return Status(ErrorCode::kBadInput, path + ": expected an object");
  const char* type = options.bf16 ? "bfloat16" : "float32";
  SetElement(type, &config);
  const auto inner = config.find("text_config");
  if (inner != config.end() && inner->is_object()) SetElement(type, &*inner);
  std::string family;
  MOEPACK_ASSIGN_OR_RETURN(const CheckpointLayout layout, BuildFromConfig(config, path, options.accept_keys, &family));
  if (!(layout.program == model.program)) {
    return Status(ErrorCode::kUnsupported,
                  path +
                      ": describes another program than the model has: it was made from another checkpoint, or experts were "
                      "removed or channels cut, which a checkpoint of this family cannot say");
  }
  MOEPACK_ASSIGN_OR_RETURN(const StoredTensors all, Gather(layout));
  MOEPACK_ASSIGN_OR_RETURN(const std::string folder, TemporaryPath(out));
  uint64_t bytes = 0;
  Status status = WriteFolder(env, model, options, folder, config, all, progress, &bytes);
  if (status.ok()) status = env.Rename(folder, out);
  if (!status.ok()) {
    (void)env.RemoveTree(folder);
    return status;
  }
  MOEPACK_RETURN_IF_ERROR(env.SyncDirectory(DirectoryOf(out)));
  return bytes;
}

}  // namespace moepack
