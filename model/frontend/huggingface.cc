#include "model/frontend/huggingface.h"

#include <algorithm>
#include <set>

#include "base/digest/sha256.h"
#include "model/family/family.h"
#include "model/frontend/json_text.h"
#include "model/frontend/safetensors.h"
#include "model/frontend/tokenizer_files.h"
#include "model/frontend/weight_reader.h"

namespace moepack {
namespace {

using Location = SafetensorsSet::Location;

constexpr uint64_t kMaxConfigBytes = 4ull << 20;
constexpr char kConfigName[] = "config.json";

class HuggingFaceSource final : public TensorSource {
 public:
  HuggingFaceSource(std::unique_ptr<SafetensorsSet> set, const Fp8Blocks& fp8) : set_(std::move(set)), reader_(*set_, fp8) {}

  // Finds every tensor of the layout; every tensor of the checkpoint must be used.
  Status Bind(const CheckpointLayout& layout) {
    std::set<std::string> used;
    const Program& program = layout.program;
    for (size_t id = 0; id < program.tensors.size(); ++id) {
      const TensorDecl& decl = program.tensors[id];
      MOEPACK_ASSIGN_OR_RETURN(BoundWeight weight, reader_.Bind(layout.tensors[id], decl.rows, decl.cols, &used));
      dense_.push_back(std::move(weight));
    }
    for (size_t t = 0; t < program.expert_tables.size(); ++t) {
      const ExpertTableDecl& table = program.expert_tables[t];
      auto& experts = experts_.emplace_back(table.experts());
      for (uint32_t e = 0; e < table.experts(); ++e) {
        for (int m = 0; m < kExpertMatrices; ++m) {
          const bool down = static_cast<ExpertMatrix>(m) == ExpertMatrix::kDown;
          MOEPACK_ASSIGN_OR_RETURN(experts[e][m],
                                   reader_.Bind(layout.experts[t][e][m], down ? table.hidden : table.intermediate[e],
                                                down ? table.intermediate[e] : table.hidden, &used));
        }
      }
    }
    return CheckUnused(layout, used);
  }

  Result<std::vector<float>> Load(TensorId tensor) const override { return reader_.Load(dense_.at(tensor)); }
  Result<std::vector<float>> LoadExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return reader_.Load(Expert(table, expert, matrix));
  }
  Codec StoredCodec(TensorId tensor) const override { return WeightReader::StoredCodec(dense_.at(tensor)); }
  Codec StoredExpertCodec(uint32_t table, uint32_t expert, ExpertMatrix matrix) const override {
    return WeightReader::StoredCodec(Expert(table, expert, matrix));
  }

 private:
  const BoundWeight& Expert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const {
    return experts_.at(table).at(expert)[static_cast<size_t>(matrix)];
  }

  // A tied head may be stored again if it is the embedding; rotary frequencies are buffers of old exporters.
  Status CheckUnused(const CheckpointLayout& layout, const std::set<std::string>& used) const {
    for (const auto& [name, location] : set_->tensors()) {
      if (used.count(name) != 0 || name.ends_with(".rotary_emb.inv_freq")) continue;
      const auto begins = [&name = name](const std::string& prefix) { return name.starts_with(prefix); };
      if (std::any_of(layout.ignored.begin(), layout.ignored.end(), begins)) continue;
      const bool head = name == layout.head;
      if (head && SameBytes(location, set_->tensors().at(layout.embedding))) continue;
      const char* hint = head ? " (tie_word_embeddings is set, but it differs from the embedding)" : "";
      return Status(ErrorCode::kBadInput, location.file->path() + ": tensor " + name + " is not part of the model that " +
                                              kConfigName + " describes" + hint);
    }
    return Status::Ok();
  }

  static bool SameBytes(const Location& a, const Location& b) {
    const ByteSpan x = a.file->data(*a.entry), y = b.file->data(*b.entry);
    const bool same = a.entry->dtype == b.entry->dtype && std::equal(x.begin(), x.end(), y.begin(), y.end());
    a.file->Release(*a.entry);
    b.file->Release(*b.entry);
    return same;
  }

  std::unique_ptr<SafetensorsSet> set_;
  WeightReader reader_;
  std::vector<BoundWeight> dense_;
  std::vector<std::vector<std::array<BoundWeight, kExpertMatrices>>> experts_;
};

Result<CheckpointLayout> ReadConfig(Env& env, const std::string& path, const OpenOptions& options, Model* model) {
  MOEPACK_ASSIGN_OR_RETURN(const nlohmann::json config, ReadJsonFile(env, path, kMaxConfigBytes));
  const std::set<std::string> accepted(options.accept_keys.begin(), options.accept_keys.end());
  model->accepted_keys.assign(accepted.begin(), accepted.end());
  return BuildFromConfig(config, path, options.accept_keys, &model->family);
}

Status AddDigests(Env& env, const std::string& directory, std::vector<std::string> inputs, Model* model) {
  std::sort(inputs.begin(), inputs.end());
  for (const std::string& name : inputs) {
    MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(env, JoinPath(directory, name)));
    model->input_digests.emplace_back(name, ToHex(digest));
  }
  return Status::Ok();
}

}  // namespace

Result<Model> OpenHuggingFace(Env& env, const std::string& directory, const OpenOptions& options) {
  Model model;
  model.source = ModelSource::kHuggingFace;
  MOEPACK_ASSIGN_OR_RETURN(CheckpointLayout layout, ReadConfig(env, JoinPath(directory, kConfigName), options, &model));
  MOEPACK_ASSIGN_OR_RETURN(auto set, SafetensorsSet::Open(env, directory));
  std::vector<std::string> inputs = set->file_names();
  inputs.push_back(kConfigName);
  auto source = std::make_shared<HuggingFaceSource>(std::move(set), layout.fp8);
  if (Status status = source->Bind(layout); !status.ok()) {
    return status.code() == ErrorCode::kMissingTensor ? status.With(directory) : status;
  }
  const uint64_t vocab = layout.program.values[layout.program.output].width;
  MOEPACK_ASSIGN_OR_RETURN(model.tokenizer, CompileTokenizerOf(env, directory, vocab, &inputs));
  if (options.digests) MOEPACK_RETURN_IF_ERROR(AddDigests(env, directory, std::move(inputs), &model));
  model.program = std::move(layout.program);
  model.tensors = std::move(source);
  return model;
}

Result<Model> OpenConfigOnly(Env& env, const std::string& path, const OpenOptions& options) {
  Model model;
  model.source = ModelSource::kConfigOnly;
  MOEPACK_ASSIGN_OR_RETURN(CheckpointLayout layout, ReadConfig(env, path, options, &model));
  std::vector<std::string> inputs = {BaseName(path)};
  // A tokenizer beside it counts into the size of a bundle.
  const uint64_t vocab = layout.program.values[layout.program.output].width;
  MOEPACK_ASSIGN_OR_RETURN(model.tokenizer, CompileTokenizerOf(env, DirectoryOf(path), vocab, &inputs));
  if (options.digests) MOEPACK_RETURN_IF_ERROR(AddDigests(env, DirectoryOf(path), std::move(inputs), &model));
  model.program = std::move(layout.program);
  return model;
}

Result<Element> ConfigElement(Env& env, const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const nlohmann::json config, ReadJsonFile(env, path, kMaxConfigBytes));
  for (const char* key : {"torch_dtype", "dtype"}) {
    const auto found = config.find(key);
    if (found == config.end()) continue;
    if (*found == "float32") return Element::kF32;
    if (*found == "float16") return Element::kF16;
  }
  return Element::kBf16;
}

Result<std::vector<std::string>> HuggingFaceWeightFiles(Env& env, const std::string& directory) {
  MOEPACK_ASSIGN_OR_RETURN(const auto set, SafetensorsSet::Open(env, directory));
  return set->file_names();
}

}  // namespace moepack
