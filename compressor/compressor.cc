#include "compressor/compressor.h"

#include <nlohmann/json.hpp>

#include "base/digest/sha256.h"
#include "compressor/replay.h"
#include "compressor/structure.h"
#include "format/manifest/model_folder.h"
#include "format/manifest/program_wire.h"

namespace moepack {
namespace {

std::string TextDigest(std::string_view text) { return ToHex(Sha256(AsBytes(text))); }

class Compressor {
 public:
  Compressor(Env& env, const CompressRequest& request, ThreadPool& pool, Progress& progress)
      : env_(env), request_(request), recipe_(request.recipe), pool_(pool), progress_(progress) {}

  Result<CompressReport> Run() {
    MOEPACK_RETURN_IF_ERROR(Open());
    MOEPACK_RETURN_IF_ERROR(Choose());
    MOEPACK_RETURN_IF_ERROR(MakePlan());
    CompressReport report;
    report.plan = plan_;
    report.original_parameters = program_.original_parameters;
    if (request_.dry_run) return report;
    MOEPACK_ASSIGN_OR_RETURN(const double kld, Write());
    if (kld >= 0) report.kld = kld;
    return report;
  }

 private:
  Status Open() {
    if (!request_.dry_run) MOEPACK_RETURN_IF_ERROR(CheckOutput());
    MOEPACK_ASSIGN_OR_RETURN(model_, OpenModel(env_, request_.model_path, {.digests = !request_.dry_run}));
    if (model_.tensors == nullptr && !request_.dry_run) {
      return Status(ErrorCode::kBadInput, request_.model_path + ": a configuration without weights can only be planned: add --dry-run");
    }
    if (request_.profile_path.empty()) return Status::Ok();
    MOEPACK_ASSIGN_OR_RETURN(profile_, ReadProfile(env_, request_.profile_path));
    if (profile_->model_digest != ProgramDigest(model_.program)) {
      return Status(ErrorCode::kBadInput, request_.profile_path + ": this profile was made from another model than " + request_.model_path);
    }
    MOEPACK_ASSIGN_OR_RETURN(calibration_, MakeCalibration(*profile_, recipe_.domains));
    return Status::Ok();
  }

  // Nothing but an earlier model folder may stand where the output goes.
  Status CheckOutput() {
    MOEPACK_ASSIGN_OR_RETURN(const bool exists, env_.Exists(request_.output));
    if (!exists) return Status::Ok();
    MOEPACK_ASSIGN_OR_RETURN(const bool model_folder, env_.Exists(JoinPath(request_.output, "complete")));
    if (model_folder) return Status::Ok();
    return Status(ErrorCode::kBadInput, request_.output + ": already there and not a compressed model; choose another -o or remove it");
  }

  Status Choose() {
    MOEPACK_ASSIGN_OR_RETURN(structure_, ChooseStructure(recipe_, model_, profile_ ? &*profile_ : nullptr));
    MOEPACK_ASSIGN_OR_RETURN(program_, ApplyStructure(model_.program, structure_));
    if (model_.tensors != nullptr) source_ = CutSource(model_.program, structure_, model_.tensors);
    tensors_ = ListTensors(program_);
    for (const TensorRef& tensor : tensors_) {
      const Codec stored = source_ == nullptr ? Codec{.element = Element::kBf16}
                           : tensor.is_expert() ? source_->StoredExpertCodec(tensor.table, tensor.expert, tensor.matrix)
                                                : source_->StoredCodec(tensor.dense);
      MOEPACK_ASSIGN_OR_RETURN(Choice choice, ChoiceFor(recipe_, tensor, stored));
      choices_.push_back(std::move(choice));
    }
    return Status::Ok();
  }

  Status MakePlan() {
    plan_.measured_by = "none";
    for (size_t i = 0; i < tensors_.size(); ++i) plan_.tensors.push_back({tensors_[i].name, choices_[i].candidates.front(), 0, 0});
    return FillSizes(tensors_, &plan_);
  }

  Result<double> Write() {
    MOEPACK_ASSIGN_OR_RETURN(const auto writer, ModelFolderWriter::Create(env_, request_.output, request_.resume));
    const std::string plan_text = SerializePlan(plan_);
    MOEPACK_ASSIGN_OR_RETURN(const std::string provenance, Provenance(plan_text));
    if (request_.resume) MOEPACK_RETURN_IF_ERROR(CheckResumed(*writer, provenance));
    MOEPACK_RETURN_IF_ERROR(writer->WriteFile("provenance.json", AsBytes(provenance)));
    MOEPACK_RETURN_IF_ERROR(writer->WriteFile("plan.json", AsBytes(plan_text)));
    if (!model_.tokenizer.empty()) MOEPACK_RETURN_IF_ERROR(writer->WriteFile("tokenizer.bin", model_.tokenizer));
    MOEPACK_RETURN_IF_ERROR(writer->WriteFile("hot.pb", SerializeHotList(MakeHotList())));
    MOEPACK_RETURN_IF_ERROR(writer->SetExperts(MakeExperts()));
    MOEPACK_ASSIGN_OR_RETURN(const ReplayReport report, Replay(ReplayOf(writer.get()), pool_, progress_));
    MOEPACK_RETURN_IF_ERROR(writer->WriteFile("errors.json", AsBytes(SerializeErrors(plan_, report.relative_errors))));
    MOEPACK_RETURN_IF_ERROR(writer->Finish(program_));
    return report.kld;
  }

  ReplayInput ReplayOf(ModelFolderWriter* writer) const {
    ReplayInput in;
    in.original = &model_.program;
    in.original_source = model_.tensors.get();
    in.program = &program_;
    in.source = source_.get();
    in.plan = &plan_;
    in.recipe = &recipe_;
    in.calibration = calibration_ ? &*calibration_ : nullptr;
    in.writer = writer;
    return in;
  }

  // Blocks of another request must not end up in this folder.
  Status CheckResumed(const ModelFolderWriter& writer, const std::string& provenance) const {
    MOEPACK_ASSIGN_OR_RETURN(const Bytes earlier, writer.ReadFileIfPresent("provenance.json"));
    if (earlier.empty() || AsText(earlier) == provenance) return Status::Ok();
    return Status(ErrorCode::kUsage, request_.output + ".partial was begun with another model, profile, recipe or budget; run without --resume");
  }

  Result<std::string> Provenance(const std::string& plan_text) const {
    nlohmann::json root;
    root["version"] = 1;
    root["tool"] = "moepack " + request_.tool_version;
    root["family"] = model_.family;
    root["program"] = ToHex(Sha256(SerializeProgram(program_)));
    for (const auto& [name, digest] : model_.input_digests) root["inputs"][name] = digest;
    if (profile_) {
      MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(env_, request_.profile_path));
      root["profile"] = ToHex(digest);
      for (const auto& [domain, text] : profile_->inputs) root["calibration"][domain] = text;
    }
    root["recipe"] = recipe_.Canonical();
    root["plan"] = TextDigest(plan_text);
    return root.dump(1) + "\n";
  }

  HotList MakeHotList() const {
    struct Entry {
      uint64_t tokens;
      uint32_t table, expert;
    };
    std::vector<Entry> entries;
    for (uint32_t t = 0; profile_ && t < program_.expert_tables.size(); ++t) {
      const TableProfile& seen = profile_->tables[t];
      for (uint32_t e = 0; e < program_.expert_tables[t].experts(); ++e) {
        uint64_t tokens = 0;
        for (size_t d = 0; d < profile_->domains.size(); ++d) tokens += seen.tokens[d * seen.experts + structure_.tables[t].experts[e]];
        if (tokens > 0) entries.push_back({tokens, t, e});
      }
    }
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.tokens > b.tokens; });
    HotList out;
    for (const Entry& e : entries) out.experts.emplace_back(e.table, e.expert);
    return out;
  }

  std::vector<std::vector<ExpertEntry>> MakeExperts() const {
    std::vector<std::vector<ExpertEntry>> out;
    for (const ExpertTableDecl& table : program_.expert_tables) {
      out.emplace_back();
      for (uint32_t e = 0; e < table.experts(); ++e) out.back().push_back({{{e}}});
    }
    return out;
  }

  Env& env_;
  const CompressRequest& request_;
  Recipe recipe_;
  ThreadPool& pool_;
  Progress& progress_;
  Model model_;
  std::optional<Profile> profile_;
  std::optional<Calibration> calibration_;
  Structure structure_;
  Program program_;
  std::shared_ptr<const TensorSource> source_;
  std::vector<TensorRef> tensors_;
  std::vector<Choice> choices_;
  Plan plan_;
};

}  // namespace

Result<CompressReport> Compress(Env& env, const CompressRequest& request, ThreadPool& pool, Progress& progress) {
  return Compressor(env, request, pool, progress).Run();
}

}  // namespace moepack
