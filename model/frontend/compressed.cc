#include "model/frontend/compressed.h"

#include "base/digest/sha256.h"
#include "format/manifest/model_folder.h"
#include "model/frontend/json_text.h"
#include "model/frontend/unit_tensors.h"

namespace moepack {
namespace {

class FolderUnits final : public UnitReader {
 public:
  explicit FolderUnits(std::unique_ptr<ModelFolder> folder) : folder_(std::move(folder)) {}
  const Program& program() const override { return folder_->program(); }
  const std::vector<ModelFolder::UnitInfo>& units() const override { return folder_->units(); }
  const std::vector<std::vector<ExpertEntry>>& experts() const override { return folder_->experts(); }
  Result<Bytes> ReadUnit(size_t index) const override { return folder_->ReadUnit(index); }

 private:
  std::unique_ptr<ModelFolder> folder_;
};

// The family of the checkpoint that a folder was made from, for people; "compressed" when its provenance does not say.
std::string FamilyOfProvenance(ByteSpan text) {
  const Result<nlohmann::json> json = ParseJson(text, "provenance.json");
  if (!json.ok() || !json->is_object()) return "compressed";
  const auto family = json->find("family");
  return family != json->end() && family->is_string() ? family->get<std::string>() : "compressed";
}

}  // namespace

Result<Model> OpenCompressed(Env& env, const std::string& directory, const OpenOptions& options) {
  MOEPACK_ASSIGN_OR_RETURN(auto folder, ModelFolder::Open(env, directory));
  Model model;
  model.source = ModelSource::kCompressed;
  model.program = folder->program();
  const Result<Bytes> provenance = folder->ReadNamedFile("provenance.json");
  model.family = FamilyOfProvenance(provenance.ok() ? ByteSpan(*provenance) : ByteSpan());
  model.tokenizer.assign(folder->tokenizer_blob().begin(), folder->tokenizer_blob().end());
  MOEPACK_ASSIGN_OR_RETURN(model.tensors, MakeUnitTensors(std::make_unique<FolderUnits>(std::move(folder)), directory));
  if (options.digests) {
    // `complete` holds the digests of all other files.
    MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(env, JoinPath(directory, "complete")));
    model.input_digests.emplace_back("complete", ToHex(digest));
  }
  return model;
}

}  // namespace moepack
