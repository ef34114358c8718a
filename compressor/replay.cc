#include "compressor/replay.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "compressor/pass/dense_fallback.h"
#include "compressor/pass/distill_experts.h"
#include "compressor/pass/moments_jobs.h"
#include "compressor/pass/rated.h"
#include "compressor/variants.h"

namespace moepack {
namespace {

// How many matrices lie between the block's inputs and each tensor: q 0, o 1, gate and up 2, down 3 in a usual decoder
// layer. Two depths make a stage: attention is encoded first, and feed-forward matrices see inputs that it has rounded.
// A stage for each depth costs two more runs of the block and changes the result by less than calibration noise.
class Stages {
 public:
  Stages(const Program& program, int32_t block) : depth_(program.values.size(), 0) {
    for (const Node& node : program.nodes) {
      if (node.block != block) continue;
      int depth = 0;
      for (ValueId id : node.inputs) depth = std::max(depth, depth_[id]);
      if (node.kind == NodeKind::kLinear) {
        dense_.emplace(node.linear.weight, depth);
        ++depth;
      } else if (node.kind == NodeKind::kMoe) {
        tables_.emplace(node.moe.table, depth);
        depth += 2;
      }
      depth_[node.output] = depth;
    }
  }
  int Of(const TensorRef& tensor) const {
    static constexpr int kDepthsAStage = 2;
    if (tensor.is_expert())
      return (tables_.at(tensor.table) + (tensor.matrix == ExpertMatrix::kDown ? 1 : 0)) / kDepthsAStage;
    const auto found = dense_.find(tensor.dense);
    return found == dense_.end() ? 0 : found->second / kDepthsAStage;
  }

 private:
  std::vector<int> depth_;
  std::map<TensorId, int> dense_;
  std::map<uint32_t, int> tables_;
};

class Replayer {
 public:
  Replayer(const ReplayInput& in, ThreadPool& pool, Progress& progress)
      : in_(in),
        pool_(pool),
        progress_(progress),
        tensors_(ListTensors(*in.program)),
        forward_(*in.program, pool),
        full_forward_(*in.original, pool) {
    report_.relative_errors.assign(tensors_.size(), 0);
    if (in.calibration != nullptr && !in.calibration->held_back.empty()) {
      judged_ = JudgedSequences(*in.calibration, in.program->values[in.program->output].width);
      held_back_ = SelectSequences(in.calibration->batch, judged_);
      full_stream_ = InputStream(*in.original, held_back_);
    }
    if (in.calibration != nullptr) stream_ = InputStream(*in.program, in.calibration->batch);
  }

  Result<ReplayReport> Run() {
    MOEPACK_RETURN_IF_ERROR(ReadEarlierErrors());
    MOEPACK_RETURN_IF_ERROR(ChooseFurther());
    progress_.Begin("compress", tensors_.size(), "tensors");
    for (int32_t block = 0; block < in_.program->blocks(); ++block) {
      MOEPACK_RETURN_IF_ERROR(RunBlock(block));
      progress_.Advance(static_cast<uint64_t>(
          std::count_if(tensors_.begin(), tensors_.end(), [&](const auto& t) { return t.block == block; })));
    }
    progress_.End();
    return std::move(report_);
  }

 private:
  bool last(int32_t block) const { return block + 1 == in_.program->blocks(); }
  const RatedCodec& codec(size_t index) const { return in_.plan->tensors[index].codec; }

  std::vector<size_t> TensorsOf(int32_t block) const {
    std::vector<size_t> out;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (tensors_[i].block == block) out.push_back(i);
    }
    return out;
  }

  // A trial that writes nothing needs none.
  Status ChooseFurther() {
    std::vector<RatedCodec> codecs;
    for (const PlanTensor& tensor : in_.plan->tensors) codecs.push_back(tensor.codec);
    const std::optional<RatedCodec> second = in_.writer == nullptr ? std::nullopt : in_.recipe->second_precision;
    MOEPACK_ASSIGN_OR_RETURN(seconds_, SecondUnits(*in_.program, tensors_, codecs, second));
    dense_ = DenseUnits(*in_.program, seconds_);
    return Status::Ok();
  }
  // The unit of the tensor in the second precision, if it has one.
  std::optional<UnitKey> SecondUnitOf(size_t index) const {
    const TensorRef& ref = tensors_[index];
    if (!ref.is_expert() || !seconds_[ref.table][ref.expert]) return std::nullopt;
    return UnitKey{true, ref.table, *seconds_[ref.table][ref.expert]};
  }

  Status RunBlock(int32_t block) {
    if (in_.calibration == nullptr && in_.writer != nullptr && in_.writer->HasBlock(block)) return Status::Ok();
    std::optional<BlockWeights> full;
    MOEPACK_RETURN_IF_ERROR(RunFull(block, &full));
    const bool reuse = full.has_value() && in_.source == in_.original_source;
    if (!reuse) full.reset();  // two blocks are never held at once
    auto weights =
        reuse ? Result<BlockWeights>(std::move(*full)) : BlockWeights::Load(*in_.program, *in_.source, block, pool_);
    if (!weights.ok()) return weights.status();
    for (const auto& [id, value] : shared_) {
      if (weights->all_dense().contains(id)) weights->dense(id) = value;
    }
    const std::vector<size_t> tensors = TensorsOf(block);
    if (in_.writer != nullptr && in_.writer->HasBlock(block)) {
      MOEPACK_RETURN_IF_ERROR(RestoreBlock(block, &*weights));
    } else {
      MOEPACK_RETURN_IF_ERROR(EncodeBlock(block, tensors, &*weights));
    }
    KeepShared(block, *weights);
    if (in_.calibration == nullptr) return Status::Ok();
    if (!last(block)) return forward_.RunBlock(block, *weights, in_.calibration->batch, &stream_);
    return Judge(*weights);
  }

  // The full model over the held-back sequences, beside the compressed one.
  Status RunFull(int32_t block, std::optional<BlockWeights>* weights) {
    if (held_back_.size() == 0) return Status::Ok();
    auto loaded = BlockWeights::Load(*in_.original, *in_.original_source, block, pool_);
    if (!loaded.ok()) return loaded.status();
    *weights = std::move(*loaded);
    if (!last(block)) return full_forward_.RunBlock(block, **weights, held_back_, &full_stream_);
    MOEPACK_ASSIGN_OR_RETURN(full_logits_, ScoredLogits({&full_forward_, &**weights, &full_stream_}, held_back_));
    return Status::Ok();
  }

  Status Judge(const BlockWeights& weights) {
    if (judged_.empty()) return Status::Ok();
    const Stream stream = SelectRows(stream_, in_.calibration->batch, judged_);
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<KldSum> klds,
                             SequenceKlds(full_logits_, {&forward_, &weights, &stream}, held_back_, pool_));
    KldSum all;
    std::map<uint32_t, KldSum> of_domain;
    for (size_t s = 0; s < klds.size(); ++s) {
      all.Add(klds[s]);
      of_domain[in_.calibration->domain[judged_[s]]].Add(klds[s]);
    }
    report_.kld = all.mean();
    for (const auto& [domain, sum] : of_domain) report_.domain_kld[domain] = sum.mean();
    return Status::Ok();
  }

  // A tied embedding is stored with its first block and read by a later one.
  void KeepShared(int32_t block, const BlockWeights& weights) {
    for (const Node& node : in_.program->nodes) {
      if (node.block <= block || node.kind != NodeKind::kLinear) continue;
      const TensorId id = node.linear.weight;
      if (weights.all_dense().contains(id) && !shared_.contains(id)) shared_[id] = weights.dense(id);
    }
  }

  Status RestoreBlock(int32_t block, BlockWeights* weights) {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<FolderUnit> units, in_.writer->ReadBlock(block));
    for (const FolderUnit& unit : units) {
      if (unit.key.expert && unit.key.physical >= in_.program->expert_tables[unit.key.table].experts()) continue;
      MOEPACK_ASSIGN_OR_RETURN(const std::vector<TensorBytes> tensors, BytesOfTensors(unit));
      for (const TensorBytes& tensor : tensors) {
        const uint32_t id = tensor.info->tensor;
        Matrix& target = unit.key.expert ? weights->expert(unit.key.table, unit.key.physical, static_cast<ExpertMatrix>(id))
                                         : weights->dense(id);
        MOEPACK_RETURN_IF_ERROR(DecodePlain(tensor.info->codec, tensor.info->shape,
                                            ByteSpan(unit.plain).subspan(tensor.offset, tensor.bytes),
                                            {target.data(), static_cast<size_t>(target.size())}));
      }
    }
    return Status::Ok();
  }

  bool NeedsMoments(size_t index) const {
    const auto needs = [](const Codec& c) { return c.sparsity != Sparsity::kNone || c.coded(); };
    if (in_.calibration == nullptr) return false;
    return needs(codec(index)) || (SecondUnitOf(index) && needs(*in_.recipe->second_precision));
  }

  Status EncodeBlock(int32_t block, const std::vector<size_t>& tensors, BlockWeights* weights) {
    std::map<UnitKey, FolderUnit> units;
    std::map<size_t, Bytes> plain, second;
    for (const std::vector<size_t>& turn : CutIntoTurns(block, tensors)) {
      MOEPACK_RETURN_IF_ERROR(EncodeTurn(block, turn, weights, &plain, &second));
    }
    if (in_.recipe->distill && in_.calibration != nullptr) {
      MOEPACK_RETURN_IF_ERROR(DistillBlock(block, tensors, weights, &plain));
    }
    const auto add = [&](const UnitKey& key, size_t i, const Codec& codec, std::map<size_t, Bytes>* from) {
      const TensorRef& ref = tensors_[i];
      FolderUnit& unit = units[key];
      unit.key = key;
      unit.tensors.push_back({ref.is_expert() ? static_cast<uint32_t>(ref.matrix) : ref.dense, codec, ref.shape});
      unit.plain.insert(unit.plain.end(), (*from)[i].begin(), (*from)[i].end());
      from->erase(i);
    };
    for (size_t i : tensors) {
      add(tensors_[i].unit, i, codec(i), &plain);
      if (const auto key = SecondUnitOf(i)) add(*key, i, *in_.recipe->second_precision, &second);
    }
    if (in_.writer == nullptr) return Status::Ok();
    if (in_.recipe->dense_fallback) MOEPACK_RETURN_IF_ERROR(AddDenseUnits(block, *weights, &units));
    std::vector<FolderUnit> ordered;
    ordered.reserve(units.size());
    for (auto& [key, unit] : units) ordered.push_back(std::move(unit));
    // Errors first: a run that is killed between the two writes computes them again, the other way round they were lost.
    MOEPACK_RETURN_IF_ERROR(in_.writer->WriteFile("errors.json", AsBytes(SerializeErrors(*in_.plan, report_, {}))));
    return in_.writer->WriteBlock(block, ordered);
  }

  // Tensors that are encoded from one run of the block: by stage, and so that their moments fit the memory bound.
  std::vector<std::vector<size_t>> CutIntoTurns(int32_t block, const std::vector<size_t>& tensors) const {
    const Stages stages(*in_.program, block);
    std::map<int, std::vector<size_t>> by_stage;
    for (size_t i : tensors) by_stage[in_.calibration == nullptr ? 0 : stages.Of(tensors_[i])].push_back(i);
    std::vector<std::vector<size_t>> turns;
    for (const auto& [stage, members] : by_stage) {
      std::vector<TensorRef> refs;
      for (size_t i : members) refs.push_back(tensors_[i]);
      for (const std::vector<size_t>& run : HessianCollector::CutByMoments(*in_.program, refs, kMaxMomentBytes)) {
        turns.emplace_back();
        for (size_t r : run) turns.back().push_back(members[r]);
      }
    }
    return turns;
  }

  // Both precisions of an expert are encoded from the same weights and moments; the first goes on into the model.
  Status EncodeTurn(int32_t block, const std::vector<size_t>& turn, BlockWeights* weights, std::map<size_t, Bytes>* plain,
                    std::map<size_t, Bytes>* second) {
    std::vector<TensorRef> wanted;
    for (size_t i : turn) {
      if (NeedsMoments(i)) wanted.push_back(tensors_[i]);
    }
    HessianCollector moments(*in_.program, wanted,
                             in_.calibration ? std::span<const float>(in_.calibration->weights) : std::span<const float>(),
                             pool_);
    if (moments.wants_linear() || moments.wants_moe()) MOEPACK_RETURN_IF_ERROR(Collect(block, *weights, &moments));
    MOEPACK_ASSIGN_OR_RETURN(const MomentFactors factors, FactorMoments(wanted, in_.recipe->gptq, &moments, pool_));
    std::vector<size_t> encoded = turn;  // second precisions behind the first ones
    for (size_t i : turn) {
      if (SecondUnitOf(i)) encoded.push_back(i);
    }
    std::vector<MatrixJob> jobs(encoded.size());
    for (size_t j = 0; j < encoded.size(); ++j) {
      const TensorRef& tensor = tensors_[encoded[j]];
      const RatedCodec& target = j < turn.size() ? codec(encoded[j]) : *in_.recipe->second_precision;
      MOEPACK_RETURN_IF_ERROR(
          PrepareJob(tensor, target, *in_.recipe, WeightsOf(tensor, *weights), &moments, factors, pool_, &jobs[j]));
      if (in_.calibration != nullptr)
        jobs[j].row_weights = RowWeights(tensor, in_.calibration->batch, in_.calibration->weights);
    }
    RunJobs(jobs, kSweeps, pool_);
    std::vector<Result<Bytes>> bytes(encoded.size(), Bytes());
    pool_.ParallelFor(encoded.size(), 1, [&](size_t begin, size_t end) {
      for (size_t j = begin; j < end; ++j) {
        bytes[j] = ToPlain(jobs[j].out);
        if (in_.calibration != nullptr && j < turn.size()) {
          Matrix& target = WeightsOf(tensors_[turn[j]], *weights);
          Dequantize(jobs[j].out, {target.data(), static_cast<size_t>(target.size())});
        }
        jobs[j].out = {};
      }
    });
    for (size_t j = turn.size(); j < encoded.size(); ++j) {
      MOEPACK_ASSIGN_OR_RETURN((*second)[encoded[j]], std::move(bytes[j]));
    }
    for (size_t j = 0; j < turn.size(); ++j) {
      report_.relative_errors[turn[j]] = jobs[j].energy > 0 ? std::sqrt(std::max(0.0, jobs[j].error) / jobs[j].energy) : 0;
      MOEPACK_ASSIGN_OR_RETURN((*plain)[turn[j]], std::move(bytes[j]));
    }
    return Status::Ok();
  }

  Status Collect(int32_t block, const BlockWeights& weights, Observer* observer) {
    return forward_.Observe(block, weights, in_.calibration->batch, stream_, observer);
  }

  // What the block's experts learn, on the inputs that the encoded block gives them.
  Status DistillBlock(int32_t block, const std::vector<size_t>& tensors, BlockWeights* weights,
                      std::map<size_t, Bytes>* plain) {
    if (std::none_of(tensors.begin(), tensors.end(), [&](size_t i) { return ExpertLearns(i).has_value(); }))
      return Status::Ok();
    ExpertInputs inputs(*in_.program, in_.calibration->batch.size());
    MOEPACK_RETURN_IF_ERROR(Collect(block, *weights, &inputs));
    for (const auto& [table, seen] : inputs.tables()) {
      std::vector<ExpertEncoding> experts(in_.program->expert_tables[table].experts());
      const auto of_table = [&, t = table](size_t i) { return tensors_[i].is_expert() && tensors_[i].table == t; };
      for (size_t i : tensors) {
        if (!of_table(i)) continue;
        const auto m = static_cast<size_t>(tensors_[i].matrix);
        MOEPACK_ASSIGN_OR_RETURN(experts[tensors_[i].expert].matrices[m],
                                 FromPlain(codec(i).codec, tensors_[i].shape, plain->at(i)));
        experts[tensors_[i].expert].learns[m] = ExpertLearns(i);
      }
      ExpertDistillation distillation{&seen, in_.calibration, &*in_.recipe->distill, {}};
      distillation.full = [&, t = table](uint32_t expert, ExpertMatrix matrix) { return FullExpert(t, expert, matrix); };
      MOEPACK_ASSIGN_OR_RETURN(const ErrorChange change, DistillExperts(distillation, experts, pool_));
      progress_.Note(StrFormat("block %d: experts' output error %.4g, before %.4g", block, change.after, change.before));
      for (size_t i : tensors) {
        if (!of_table(i)) continue;
        const QuantizedMatrix& learnt = experts[tensors_[i].expert].matrices[static_cast<size_t>(tensors_[i].matrix)];
        MOEPACK_ASSIGN_OR_RETURN(const bool fits, KeepsRate(codec(i), learnt));
        if (!fits) continue;
        MOEPACK_ASSIGN_OR_RETURN((*plain)[i], ToPlain(learnt));
        Matrix& target = WeightsOf(tensors_[i], *weights);
        Dequantize(learnt, {target.data(), static_cast<size_t>(target.size())});
      }
    }
    return Status::Ok();
  }

  // A stand-in for the experts of each width, fitted to what the encoded ones give.
  Status AddDenseUnits(int32_t block, const BlockWeights& weights, std::map<UnitKey, FolderUnit>* units) {
    for (const Node& node : in_.program->nodes) {
      if (node.block != block || node.kind != NodeKind::kMoe) continue;
      const uint32_t table = node.moe.table;
      std::map<uint32_t, std::vector<uint32_t>> experts_of;  // by unit
      for (uint32_t e = 0; e < dense_[table].size(); ++e) {
        if (dense_[table][e]) experts_of[*dense_[table][e]].push_back(e);
      }
      for (const auto& [physical, experts] : experts_of) {
        DenseFallbackInput input{&node, experts, &weights, in_.calibration->weights, {}};
        input.observe = [&](Observer* observer) { return Collect(block, weights, observer); };
        MOEPACK_ASSIGN_OR_RETURN(const DenseFallback fit, FitDenseFallback(input, pool_));
        progress_.Note(StrFormat("block %d: the dense stand-in lacks %.1f %% of the energy of what experts give", block,
                                 fit.energy > 0 ? 100 * fit.error / fit.energy : 100.0));
        const UnitKey key{true, table, physical};
        MOEPACK_ASSIGN_OR_RETURN((*units)[key], EncodeDense(fit, key));
      }
    }
    return Status::Ok();
  }

  Result<FolderUnit> EncodeDense(const DenseFallback& fit, const UnitKey& key) {
    FolderUnit unit;
    unit.key = key;
    std::vector<MatrixJob> jobs;
    std::vector<ExpertMatrix> matrices;
    const auto add = [&](ExpertMatrix matrix, const Matrix& weights) {
      if (weights.size() == 0) return;
      MatrixJob& job = jobs.emplace_back();
      job.weights = &weights;
      job.codec = in_.recipe->dense_fallback->codec;
      if (matrix == ExpertMatrix::kDown) job.importance = fit.down_input;
      matrices.push_back(matrix);
    };
    add(ExpertMatrix::kGate, fit.gate);
    add(ExpertMatrix::kUp, fit.up);
    add(ExpertMatrix::kDown, fit.down);
    RunJobs(jobs, kSweeps, pool_);
    for (size_t i = 0; i < jobs.size(); ++i) {
      MOEPACK_ASSIGN_OR_RETURN(const Bytes plain, ToPlain(jobs[i].out));
      unit.tensors.push_back({static_cast<uint32_t>(matrices[i]), jobs[i].codec, jobs[i].out.shape});
      unit.plain.insert(unit.plain.end(), plain.begin(), plain.end());
    }
    return unit;
  }

  std::optional<Learns> ExpertLearns(size_t i) const {
    const Pattern& targets = in_.recipe->distill->targets;
    if (!tensors_[i].is_expert() || !(targets.empty() || targets.Matches(tensors_[i].name))) return std::nullopt;
    return codec(i).rate != 0 ? Learns::kScales : Learns::kAll;
  }

  Result<Matrix> FullExpert(uint32_t table, uint32_t expert, ExpertMatrix matrix) const {
    const ExpertTableDecl& full = in_.original->expert_tables[table];
    const uint32_t original = in_.program->expert_tables[table].original[expert];
    const auto at =
        static_cast<uint32_t>(std::find(full.original.begin(), full.original.end(), original) - full.original.begin());
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> values, in_.original_source->LoadExpert(table, at, matrix));
    const auto wide = static_cast<Eigen::Index>(full.intermediate[at]), hidden = static_cast<Eigen::Index>(full.hidden);
    const bool down = matrix == ExpertMatrix::kDown;
    return Matrix(Eigen::Map<const Matrix>(values.data(), down ? hidden : wide, down ? wide : hidden));
  }

  Status ReadEarlierErrors() {
    if (in_.writer == nullptr) return Status::Ok();
    MOEPACK_ASSIGN_OR_RETURN(const Bytes text, in_.writer->ReadFileIfPresent("errors.json"));
    const nlohmann::json root = nlohmann::json::parse(AsText(text), nullptr, false);
    if (!root.is_object() || !root.contains("relative_errors")) return Status::Ok();
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (const auto found = root["relative_errors"].find(tensors_[i].name);
          found != root["relative_errors"].end() && found->is_number()) {
        report_.relative_errors[i] = *found;
      }
    }
    return Status::Ok();
  }

  const ReplayInput& in_;
  ThreadPool& pool_;
  Progress& progress_;
  const std::vector<TensorRef> tensors_;
  Forward forward_, full_forward_;
  Stream stream_, full_stream_;   // compressed over all tokens; full over held-back ones
  std::vector<uint64_t> judged_;  // sequences held back
  TokenBatch held_back_;          // the same
  std::vector<Matrix> full_logits_;
  std::map<TensorId, Matrix> shared_;
  ReplayReport report_;
  ExpertIndex seconds_, dense_;
};

}  // namespace

Result<ReplayReport> Replay(const ReplayInput& input, ThreadPool& pool, Progress& progress) {
  return Replayer(input, pool, progress).Run();
}

std::string SerializeErrors(const Plan& plan, const ReplayReport& report, const std::vector<std::string>& domains) {
  const auto quoted = [](const std::string& name) { return nlohmann::json(name).dump(); };
  std::string out = "{\n\"version\": 1,\n";
  // For people, and for the bill of materials.
  if (report.kld >= 0) out += StrFormat("\"kld\": %.4g,\n", report.kld);
  if (!report.domain_kld.empty()) {
    out += "\"kld_by_domain\": {";
    const char* comma = "";
    for (const auto& [domain, kld] : report.domain_kld) {
      out += StrFormat("%s\n%s: %.4g", comma, quoted(domains[domain]).c_str(), kld);
      comma = ",";
    }
    out += "\n},\n";
  }
  out += "\"relative_errors\": {\n";
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    // Enough digits to read back the same number after a kill.
    out += StrFormat("%s: %.17g%s\n", quoted(plan.tensors[i].name).c_str(), report.relative_errors[i],
                     i + 1 < plan.tensors.size() ? "," : "");
  }
  return out + "}\n}\n";
}

}  // namespace moepack
