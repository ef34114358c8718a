#include "compressor/compressor.h"

#include <set>
#include <tuple>

#include "base/digest/sha256.h"
#include "compressor/hot_list.h"
#include "compressor/pass/distill.h"
#include "compressor/plan/planner.h"
#include "compressor/replay.h"
#include "compressor/structure.h"
#include "compressor/variants.h"
#include "format/manifest/model_folder.h"
#include "format/manifest/program_wire.h"
#include "format/program_input.h"
#include "format/provenance/provenance.h"
#include "model/frontend/huggingface.h"
#include "model/frontend/tokenizer_files.h"
#include "model/plain_nodes.h"
#include "tokenizer/tokenizer.h"

namespace moepack {
namespace {

constexpr uint64_t kMaxPlanBytes = 256 << 20, kMaxTableBytes = uint64_t{1} << 30;

std::string TextDigest(std::string_view text) { return ToHex(Sha256(AsBytes(text))); }

class Compressor {
 public:
  Compressor(Env& env, const CompressRequest& request, ThreadPool& pool, Progress& progress)
      : env_(env), request_(request), recipe_(request.recipe), pool_(pool), progress_(progress) {}

  Result<CompressReport> Run() {
    MOEPACK_RETURN_IF_ERROR(Open());
    if (recipe_.distill && !request_.dry_run) MOEPACK_RETURN_IF_ERROR(CheckDistillation());
    if (recipe_.dense_fallback && !request_.dry_run && !profile_)
      return Status(ErrorCode::kUsage, "dense_fallback: is fitted to calibration text: add --profile");
    MOEPACK_RETURN_IF_ERROR(Choose());
    MOEPACK_RETURN_IF_ERROR(MakePlan());
    CompressReport report;
    report.plan = plan_;
    report.cache = hot_list_.cache;
    report.original_parameters = program_.original_parameters;
    MOEPACK_RETURN_IF_ERROR(CountFurther(&report));
    if (request_.dry_run) return report;
    MOEPACK_ASSIGN_OR_RETURN(const ReplayReport replay, Write());
    if (replay.kld >= 0) report.kld = replay.kld;
    if (!replay.domain_kld.empty()) report.domain_kld = JudgeDomains(replay);
    return report;
  }

 private:
  Status Open() {
    while (request_.output.size() > 1 && request_.output.back() == '/') request_.output.pop_back();
    if (!request_.dry_run) {
      MOEPACK_ASSIGN_OR_RETURN(const bool replaces, ModelFolderWriter::CheckOutput(env_, request_.output));
      if (replaces) progress_.Note("compress: the compressed model at " + request_.output + " is replaced");
    }
    if (request_.dry_run && !request_.error_table_path.empty()) {
      MOEPACK_ASSIGN_OR_RETURN(const bool exists, env_.Exists(request_.error_table_path));
      if (!exists) {
        return Status(ErrorCode::kUsage, "--error-table " + request_.error_table_path +
                                             ": not there, and --dry-run writes nothing; run once without --dry-run");
      }
    }
    MOEPACK_ASSIGN_OR_RETURN(model_,
                             OpenModel(env_, request_.model_path, {.digests = true, .accept_keys = request_.accept_keys}));
    if (model_.tensors == nullptr && !request_.dry_run) {
      return Status(ErrorCode::kBadInput,
                    request_.model_path + ": a configuration without weights can only be planned: add --dry-run");
    }
    MOEPACK_RETURN_IF_ERROR(CheckChatTemplate());
    for (const std::string& key : model_.accepted_keys)
      progress_.Note("compress: key '" + key + "' of config.json is taken as without effect, on your word (--accept-key)");
    if (model_.source == ModelSource::kConfigOnly) {
      MOEPACK_ASSIGN_OR_RETURN(config_element_, ConfigElement(env_, request_.model_path));
    }
    if (request_.profile_path.empty()) return Status::Ok();
    MOEPACK_ASSIGN_OR_RETURN(profile_, ReadProfile(env_, request_.profile_path));
    if (profile_->model_digest != ProgramDigest(model_.program)) {
      return Status(ErrorCode::kBadInput,
                    request_.profile_path + ": this profile was made from another model than " + request_.model_path);
    }
    if (Status fits = CheckProfileFits(*profile_, model_.program); !fits.ok()) return fits.With(request_.profile_path);
    if (model_.tensors != nullptr) {
      model_.tensors = CheckWeights(model_.program, model_.tensors, profile_->weights, request_.profile_path);
    }
    MOEPACK_ASSIGN_OR_RETURN(calibration_, MakeCalibration(*profile_, EnoughTokens(model_.program), recipe_.domains));
    return Status::Ok();
  }

  // A template that does not reduce is left out and said so, unless it is asked for.
  Status CheckChatTemplate() {
    MOEPACK_ASSIGN_OR_RETURN(const std::string note, ChatTemplateNote(env_, request_.model_path));
    if (!request_.require_chat_template) {
      if (!note.empty()) progress_.Note("compress: " + note);
      return Status::Ok();
    }
    bool there = false;
    if (!model_.tokenizer.empty()) {
      MOEPACK_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Parse(model_.tokenizer));
      there = tokenizer->chat_template() != nullptr;
    }
    if (there && note.empty()) return Status::Ok();
    const std::string why = note.empty() ? "the checkpoint has no chat template" : note;
    return Status(ErrorCode::kTokenizer, request_.model_path + ": --require-chat-template: " + why);
  }

  Status Choose() {
    MOEPACK_ASSIGN_OR_RETURN(structure_, ChooseStructure(recipe_, model_, profile_ ? &*profile_ : nullptr));
    MOEPACK_ASSIGN_OR_RETURN(program_, ApplyStructure(model_.program, structure_));
    if (model_.tensors != nullptr) source_ = CutSource(model_.program, structure_, model_.tensors);
    if (profile_) hot_list_ = MakeHotList(*profile_, program_, structure_, pool_);
    tensors_ = ListTensors(program_);
    MOEPACK_RETURN_IF_ERROR(CheckMatches(recipe_, ListTensors(model_.program)));
    for (const TensorRef& tensor : tensors_) {
      const Codec stored = source_ == nullptr   ? Codec{.element = config_element_}
                           : tensor.is_expert() ? source_->StoredExpertCodec(tensor.table, tensor.expert, tensor.matrix)
                                                : source_->StoredCodec(tensor.dense);
      MOEPACK_ASSIGN_OR_RETURN(Choice choice, ChoiceFor(recipe_, tensor, stored));
      choices_.push_back(std::move(choice));
    }
    return Status::Ok();
  }

  Status MakePlan() {
    const bool open = std::any_of(choices_.begin(), choices_.end(), [](const Choice& c) { return c.candidates.size() > 1; });
    const Budget& budget = recipe_.budget;
    if ((open || budget.max_kld) && (!calibration_ || model_.tensors == nullptr)) {
      return Status(ErrorCode::kUsage, "choosing between codecs needs the model's weights and --profile");
    }
    if (open && !budget.set()) {
      return Status(ErrorCode::kUsage,
                    "choosing between codecs needs a budget: --target-size, --target-bpw, --target-resident or --max-kld");
    }
    if (open) MOEPACK_RETURN_IF_ERROR(GetErrorTable());
    if (!request_.like_path.empty()) {
      MOEPACK_ASSIGN_OR_RETURN(const Bytes text, ReadFile(env_, request_.like_path, kMaxPlanBytes));
      MOEPACK_ASSIGN_OR_RETURN(like_, ParsePlanTensors(text, request_.like_path));
    }
    PlannerInput in{&program_, tensors_, choices_, errors_ ? &*errors_ : nullptr, {}, like_};
    in.extras.tokenizer_bytes = model_.tokenizer.size();
    MOEPACK_ASSIGN_OR_RETURN(in.extras.provenance_bytes, ProvenanceBytes());
    in.extras.hot_list = hot_list_;
    in.extras.second = recipe_.second_precision;
    in.extras.dense = recipe_.dense_fallback;
    if (recipe_.twins) {
      if (source_ == nullptr) return Status(ErrorCode::kUsage, "twins: choosing them needs the model's weights");
      MOEPACK_ASSIGN_OR_RETURN(twins_, TwinsOf(program_, *source_));
      in.extras.twins = twins_;
    }
    MOEPACK_ASSIGN_OR_RETURN(const Planner planner, Planner::Create(in));
    if (budget.max_kld) return SearchKld(planner, *budget.max_kld);
    auto plan = planner.ForLimits(Limits());
    if (plan.status().code() == ErrorCode::kGate && budget.set() && !budget.target_resident) {
      return Status(ErrorCode::kGate, plan.status().message() +
                                          " (without --target-resident the target of the file holds for the loaded weights "
                                          "too; --target-resident unlimited lifts that)");
    }
    MOEPACK_ASSIGN_OR_RETURN(plan_, std::move(plan));
    return Status::Ok();
  }

  SizeLimits Limits() const {
    const Budget& budget = recipe_.budget;
    SizeLimits limits;
    if (budget.target_bytes) limits.stored_bytes = *budget.target_bytes;
    if (budget.target_bpw)
      limits.stored_bytes =
          static_cast<uint64_t>(*budget.target_bpw * static_cast<double>(program_.original_parameters) / 8);
    // Codes held to a rate make small files of weights that are large once loaded, so the file's target holds for both.
    limits.resident_bytes = budget.target_resident.value_or(limits.stored_bytes);
    return limits;
  }

  // Predictions rank plans well but are not the KLD itself: encode, measure, correct the prediction by what was measured,
  // until the smallest plan that holds is bracketed.
  Status SearchKld(const Planner& planner, double most) {
    if (calibration_->held_back.empty()) {
      return Status(ErrorCode::kUsage,
                    "--max-kld is checked on calibration text that was held back; calibrate on at least eight sequences");
    }
    static constexpr int kTrials = 5;
    double aim = most;
    std::optional<Plan> held;
    double best_kld = 0;
    for (int trial = 0; trial < kTrials; ++trial) {
      MOEPACK_ASSIGN_OR_RETURN(plan_, planner.ForKld(aim));
      if (held && plan_.bundle_bytes >= held->bundle_bytes) break;
      if (request_.dry_run) return Status::Ok();
      MOEPACK_ASSIGN_OR_RETURN(const ReplayReport report, Replay(ReplayOf(nullptr), pool_, progress_));
      progress_.Note(StrFormat("%llu bytes: mean KLD %.6f on held-back text",
                               static_cast<unsigned long long>(plan_.bundle_bytes), report.kld));
      best_kld = report.kld;
      const bool largest = plan_.predicted_kld > aim;
      if (report.kld <= most) held = plan_;
      if (largest && !held) break;
      // A prediction that was right within a few percent cannot be improved on.
      static constexpr double kCloseEnough = 0.97;
      if (report.kld <= most && report.kld >= kCloseEnough * most) break;
      const double ratio = report.kld > 0 ? most / report.kld : 2;
      aim = plan_.predicted_kld * (report.kld <= most ? ratio : ratio * kCloseEnough);
    }
    if (!held) {
      return Status(ErrorCode::kGate,
                    StrFormat("a mean KLD of %g cannot be reached: %llu bytes, the most this recipe allows, give %.6g", most,
                              static_cast<unsigned long long>(plan_.bundle_bytes), best_kld));
    }
    plan_ = *held;
    return Status::Ok();
  }

  // The table that was asked for if it fits this request, otherwise a new one.
  Status GetErrorTable() {
    std::string made_from = ToHex(Sha256(SerializeProgram(program_))) + recipe_.Canonical();
    for (const auto& [name, digest] : model_.input_digests) made_from += name + digest;
    MOEPACK_ASSIGN_OR_RETURN(const Digest profile, Sha256File(env_, request_.profile_path));
    for (const Choice& choice : choices_) {
      for (const RatedCodec& codec : choice.candidates) made_from += codec.Name() + " ";
    }
    made_from = TextDigest(made_from + ToHex(profile));
    const std::string& path = request_.error_table_path;
    if (!path.empty()) {
      MOEPACK_ASSIGN_OR_RETURN(const bool exists, env_.Exists(path));
      if (exists) {
        MOEPACK_ASSIGN_OR_RETURN(const Bytes text, ReadFile(env_, path, kMaxTableBytes));
        MOEPACK_ASSIGN_OR_RETURN(errors_, ParseErrorTable(text, path));
        if (errors_->made_from == made_from) return Status::Ok();
        return Status(ErrorCode::kBadInput,
                      path + ": made from another model, profile or recipe; remove it to measure anew");
      }
    }
    ErrorTableInput in{&program_, source_.get(), &recipe_, &*calibration_, tensors_, choices_};
    MOEPACK_ASSIGN_OR_RETURN(errors_, MeasureErrors(in, pool_, progress_));
    errors_->made_from = made_from;
    return path.empty() ? Status::Ok() : WriteFileAtomically(env_, path, AsBytes(SerializeErrorTable(*errors_)));
  }

  // KLD by domain; says which domains the bundle does not serve as well as the others.
  std::map<std::string, std::optional<double>> JudgeDomains(const ReplayReport& replay) {
    static constexpr double kMuchWorse = 2;
    std::map<std::string, std::optional<double>> out;
    for (uint32_t d = 0; d < profile_->domains.size(); ++d) {
      const auto found = replay.domain_kld.find(d);
      const std::string& name = profile_->domains[d];
      out[name] = found == replay.domain_kld.end() ? std::nullopt : std::optional<double>(found->second);
      if (!out[name]) {
        progress_.Note("domain '" + name +
                       "': none of its text was held back, so how well it is kept is not known; calibrate on "
                       "more of it");
      } else if (*out[name] > kMuchWorse * replay.kld) {
        progress_.Note(
            StrFormat("domain '%s' is not covered as the others are: mean KLD %.6f on its held-back text, %.6f on all; "
                      "calibrate on more of it, or give it weight in the recipe's domains",
                      name.c_str(), *out[name], replay.kld));
      }
    }
    return out;
  }

  Result<ReplayReport> Write() {
    MOEPACK_ASSIGN_OR_RETURN(const auto writer, ModelFolderWriter::Create(env_, request_.output, request_.resume));
    Result<ReplayReport> report = WriteWith(writer.get());
    // A kill leaves the finished blocks for --resume; an error leaves nothing, unless the user works with --resume.
    if (!report.ok() && !request_.resume) (void)env_.RemoveTree(request_.output + ".partial");
    if (report.ok() ? LearnsFromLogits() && OwnsEncoded() : encoded_began_ && !request_.resume)
      (void)env_.RemoveTree(EncodedPath() + ".partial");
    return report;
  }

  Result<ReplayReport> WriteWith(ModelFolderWriter* writer) {
    const std::string plan_text = SerializePlan(plan_);
    MOEPACK_ASSIGN_OR_RETURN(const BuildRecord record, Provenance(plan_text));
    const std::string provenance = SerializeBuildRecord(record);
    if (request_.resume) MOEPACK_RETURN_IF_ERROR(CheckResumed(*writer, provenance));
    MOEPACK_RETURN_IF_ERROR(writer->WriteFile("provenance.json", AsBytes(provenance)));
    MOEPACK_RETURN_IF_ERROR(writer->WriteFile("plan.json", AsBytes(plan_text)));
    if (!model_.tokenizer.empty()) MOEPACK_RETURN_IF_ERROR(writer->WriteFile("tokenizer.bin", model_.tokenizer));
    MOEPACK_RETURN_IF_ERROR(writer->WriteFile("hot.pb", SerializeHotList(hot_list_)));
    MOEPACK_ASSIGN_OR_RETURN(const auto experts, MakeExperts());
    writer->SetExperts(experts);
    MOEPACK_ASSIGN_OR_RETURN(ReplayReport report, LearnsFromLogits() ? EncodeAndDistill(writer, provenance)
                                                                     : Replay(ReplayOf(writer), pool_, progress_));
    MOEPACK_RETURN_IF_ERROR(writer->WriteFile("errors.json", AsBytes(SerializeErrors(plan_, report, DomainNames()))));
    if (recipe_.budget.max_kld && report.kld > *recipe_.budget.max_kld) {
      return Status(ErrorCode::kGate,
                    StrFormat("mean KLD %.6g on held-back text exceeds %g", report.kld, *recipe_.budget.max_kld));
    }
    MOEPACK_RETURN_IF_ERROR(writer->Finish(program_));
    return report;
  }

  // Blocks are encoded into a folder of their own and learn from there, so that a kill at any time can be resumed.
  Result<ReplayReport> EncodeAndDistill(ModelFolderWriter* writer, const std::string& provenance) {
    bool distilled = true;
    for (int32_t b = 0; b < program_.blocks(); ++b) distilled = distilled && writer->HasBlock(b);
    if (!distilled) {
      MOEPACK_ASSIGN_OR_RETURN(const auto encoded, ModelFolderWriter::Create(env_, EncodedPath(), request_.resume));
      encoded_began_ = true;
      if (request_.resume) MOEPACK_RETURN_IF_ERROR(CheckResumed(*encoded, provenance));
      MOEPACK_RETURN_IF_ERROR(encoded->WriteFile("provenance.json", AsBytes(provenance)));
      MOEPACK_ASSIGN_OR_RETURN(const ReplayReport report, Replay(ReplayOf(encoded.get()), pool_, progress_));
      // Errors first, as Replay does.
      MOEPACK_RETURN_IF_ERROR(writer->WriteFile("errors.json", AsBytes(SerializeErrors(plan_, report, DomainNames()))));
      // Gradient steps go on learning from tokens that second moments no longer need.
      MOEPACK_ASSIGN_OR_RETURN(const Calibration all, MakeCalibration(*profile_, profile_->tokens.size(), recipe_.domains));
      MOEPACK_RETURN_IF_ERROR(Distill(DistillOf(all, *encoded, writer), pool_, progress_));
    }
    return Replay(ReplayOf(writer), pool_, progress_);
  }

  bool LearnsFromLogits() const { return recipe_.distill && recipe_.distill->logits != DistillLogits::kNone; }

  // Before anything is encoded.
  Status CheckDistillation() const {
    if (request_.profile_path.empty()) return Status(ErrorCode::kUsage, "distill: needs calibration text: add --profile");
    if (InputWidth(model_.program) > 0)
      return Status(ErrorCode::kUnsupported,
                    "distill: a model that takes rows of numbers does not learn here; leave distill out");
    const std::vector<float>& weights = calibration_->weights;
    if (std::none_of(weights.begin(), weights.end(), [](float w) { return w > 0; }))
      return Status(ErrorCode::kRecipe, "domains: no calibration token has a weight above 0");
    for (const Node& node : model_.program.nodes) {
      if (const char* what = BeyondPlain(node)) {
        return Status(
            ErrorCode::kUnsupported,
            StrFormat("distill: block %d has %s, which has no gradient here; leave distill out", node.block, what));
      }
    }
    return Status::Ok();
  }

  std::string EncodedPath() const { return request_.output + ".encoded"; }

  // Whether what stands there now, if anything, is this run's or one's that this run resumed after its last block.
  bool OwnsEncoded() const { return encoded_began_ || ModelFolderWriter::CheckOutput(env_, EncodedPath()).ok(); }

  DistillInput DistillOf(const Calibration& calibration, const ModelFolderWriter& encoded, ModelFolderWriter* writer) const {
    DistillInput in;
    in.original = &model_.program;
    in.original_source = model_.tensors.get();
    in.program = &program_;
    in.recipe = &recipe_;
    in.plan = &plan_;
    in.calibration = &calibration;
    in.encoded = &encoded;
    in.writer = writer;
    in.env = &env_;
    in.save_seconds = request_.distill_save_seconds;
    return in;
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
    return Status(
        ErrorCode::kUsage,
        request_.output + ".partial was begun with another model, profile, recipe or budget; run without --resume");
  }

  std::vector<std::string> DomainNames() const { return profile_ ? profile_->domains : std::vector<std::string>(); }

  Result<BuildRecord> Provenance(const std::string& plan_text) const {
    BuildRecord out;
    out.tool_version = request_.tool_version;
    out.family = model_.family;
    out.recipe = recipe_.CanonicalWithBudget();
    out.accepted_keys = KeyList(model_.accepted_keys);
    for (const auto& [name, digest] : model_.input_digests) out.inputs.push_back({name, digest});
    // A plan only, which counts the bytes of the entry that weights will have.
    if (model_.source == ModelSource::kConfigOnly) out.inputs.push_back({"model.safetensors", TextDigest("")});
    if (profile_) {
      MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(env_, request_.profile_path));
      out.profile = ToHex(digest);
      for (const auto& [domain, text] : profile_->inputs) out.calibration.push_back({domain, text});
    }
    if (!request_.like_path.empty()) {
      MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(env_, request_.like_path));
      out.like = ToHex(digest);
    }
    out.plan = TextDigest(plan_text);
    return out;
  }

  // Most bytes that pack will write about how the bundle was made.
  Result<uint64_t> ProvenanceBytes() const {
    MOEPACK_ASSIGN_OR_RETURN(const BuildRecord record, Provenance(""));
    BuildResult result;
    for (const std::string& name : SubjectNames(program_, !model_.tokenizer.empty())) result.subjects.push_back({name, ""});
    result.original_parameters = program_.original_parameters;
    result.parameters = CountParameters(program_);
    std::set<std::string> codecs;
    for (const Choice& choice : choices_) {
      for (const RatedCodec& codec : choice.candidates) codecs.insert(codec.codec.Name());
    }
    if (recipe_.second_precision) codecs.insert(recipe_.second_precision->codec.Name());
    if (recipe_.dense_fallback) codecs.insert(recipe_.dense_fallback->codec.Name());
    result.codecs.assign(codecs.begin(), codecs.end());
    if (calibration_ && !calibration_->held_back.empty()) {
      result.kld = 0;
      for (const uint64_t sequence : calibration_->held_back)
        result.domain_kld[profile_->domains[calibration_->domain[sequence]]] = 0;
    }
    return MostProvenanceBytes(record, result);
  }

  Result<ExpertIndex> Seconds() const {
    std::vector<RatedCodec> codecs;
    for (const PlanTensor& tensor : plan_.tensors) codecs.push_back(tensor.codec);
    return SecondUnits(program_, tensors_, codecs, recipe_.second_precision);
  }

  Result<FurtherUnits> Further() const {
    FurtherUnits out{{}, twins_, {}};
    MOEPACK_ASSIGN_OR_RETURN(out.seconds, Seconds());
    if (recipe_.dense_fallback) out.dense = DenseUnits(program_, out.seconds);
    return out;
  }

  Status CountFurther(CompressReport* report) const {
    MOEPACK_ASSIGN_OR_RETURN(const FurtherUnits further, Further());
    for (const auto& table : further.seconds) {
      for (const std::optional<uint32_t>& second : table) report->second_experts += second.has_value();
    }
    std::set<std::tuple<uint32_t, uint32_t, ExpertMatrix>> counted;  // of dense units
    for (const TensorRef& tensor : tensors_) {
      if (!tensor.is_expert()) continue;
      if (further.seconds[tensor.table][tensor.expert]) {
        MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, StoredBytes(*recipe_.second_precision, tensor.shape));
        report->second_bytes += bytes;
      }
      if (further.dense.empty() || !further.dense[tensor.table][tensor.expert]) continue;
      if (!counted.insert({tensor.table, *further.dense[tensor.table][tensor.expert], tensor.matrix}).second) continue;
      MOEPACK_ASSIGN_OR_RETURN(const uint64_t bytes, StoredBytes(*recipe_.dense_fallback, tensor.shape));
      report->dense_bytes += bytes;
      report->dense_units += tensor.matrix == ExpertMatrix::kUp;
    }
    return Status::Ok();
  }

  Result<std::vector<std::vector<ExpertEntry>>> MakeExperts() const {
    MOEPACK_ASSIGN_OR_RETURN(const FurtherUnits further, Further());
    std::vector<std::vector<ExpertEntry>> out;
    for (uint32_t t = 0; t < program_.expert_tables.size(); ++t) out.push_back(EntriesOf(program_, t, further));
    return out;
  }

  Env& env_;
  CompressRequest request_;
  Recipe recipe_;
  ThreadPool& pool_;
  Progress& progress_;
  Model model_;
  Element config_element_ = Element::kBf16;  // of weights that are not there
  std::optional<Profile> profile_;
  std::optional<Calibration> calibration_;
  Structure structure_;
  Program program_;
  HotList hot_list_;
  ExpertIndex twins_;  // empty: none are named
  std::shared_ptr<const TensorSource> source_;
  std::vector<TensorRef> tensors_;
  std::vector<Choice> choices_;
  std::optional<ErrorTable> errors_;
  std::vector<PlanTensor> like_;
  bool encoded_began_ = false;  // the folder at EncodedPath is this run's
  Plan plan_;
};

}  // namespace

Result<CompressReport> Compress(Env& env, const CompressRequest& request, ThreadPool& pool, Progress& progress) {
  return Compressor(env, request, pool, progress).Run();
}

}  // namespace moepack
