#include "calibrate/calibrate.h"

#include <map>
#include <optional>

#include "base/digest/sha256.h"
#include "calibrate/attribution.h"
#include "calibrate/locality.h"
#include "calibrate/sample.h"
#include "calibrate/table_collector.h"
#include "format/program_input.h"

namespace moepack {
namespace {

using ull = unsigned long long;

// Second moments of the inputs of linear weights, by tensor.
using DenseSums = std::vector<std::vector<double>>;

void AddInput(const Program& program, const Node& linear, const Matrix& input, ThreadPool& pool, DenseSums* dense) {
  std::vector<double>& sums = (*dense)[linear.linear.weight];
  sums.resize(program.tensors[linear.linear.weight].cols, 0);
  AddSquares(input, pool, &sums);
}

// Collects everything about one block.
class BlockObserver final : public Observer {
 public:
  struct Moe {
    uint32_t table = 0;
    TableCollector collector;
    std::optional<AttributionProbe> probe;
  };

  BlockObserver(const Program& program, std::span<const uint32_t> token_domain, ThreadPool& pool, const Node* head,
                DenseSums* dense)
      : program_(program), token_domain_(token_domain), pool_(pool), head_(head), dense_(dense) {}

  std::vector<Moe>& moes() { return moes_; }
  bool wants_linear() const override { return true; }
  bool wants_moe() const override { return true; }
  bool wants_values() const override { return true; }

  void OnLinear(const Node& node, uint64_t, const Matrix& input, const Matrix&) override {
    AddInput(program_, node, input, pool_, dense_);
  }

  void OnMoe(const MoeCapture& capture) override {
    for (Moe& moe : moes_) {
      if (moe.table != capture.node->moe.table) continue;
      moe.collector.Add(capture, token_domain_, pool_);
      if (moe.probe) moe.probe->OnMoe(capture);
    }
  }

  void OnValue(const Node& node, uint64_t first_token, const Matrix& value) override {
    if (head_ != nullptr && node.output == head_->inputs[0]) AddInput(program_, *head_, value, pool_, dense_);
    for (Moe& moe : moes_) {
      if (moe.probe) moe.probe->OnValue(node, first_token, value);
    }
  }

 private:
  const Program& program_;
  std::span<const uint32_t> token_domain_;
  ThreadPool& pool_;
  const Node* head_;
  DenseSums* dense_;
  std::vector<Moe> moes_;
};

// The last linear node of the last block: the head, as far as statistics go. Null when that block has none, or experts.
const Node* HeadOf(const Program& program) {
  for (const Node& node : program.nodes) {
    if (node.kind == NodeKind::kMoe && node.block + 1 == program.blocks()) return nullptr;
  }
  for (auto node = program.nodes.rbegin(); node != program.nodes.rend() && node->block + 1 == program.blocks(); ++node) {
    if (node->kind == NodeKind::kLinear) return &*node;
  }
  return nullptr;
}

// Domain -> SHA-256 of what was read.
using Inputs = std::vector<std::pair<std::string, std::string>>;

class Calibration {
 public:
  Calibration(const Model& model, Inputs inputs, const CalibrateOptions& options, CalibrationSample sample, ThreadPool& pool,
              Progress& progress)
      : program_(model.program),
        source_(model.program, *model.tensors),
        inputs_(std::move(inputs)),
        options_(options),
        sample_(std::move(sample)),
        pool_(pool),
        progress_(progress),
        dense_(program_.tensors.size()),
        stream_(InputStream(program_, sample_.batch)) {
    profile_.tables.resize(program_.expert_tables.size());
  }

  Result<Profile> Run() {
    const int32_t last = program_.blocks() - 1;
    MOEPACK_ASSIGN_OR_RETURN(const BlockWeights last_weights, BlockWeights::Load(program_, source_, last, pool_));
    PrepareAttribution(last_weights);
    progress_.Begin("calibrate", sample_.batch.size() * static_cast<uint64_t>(program_.blocks()), "token-layers");
    for (int32_t block = 0; block < last; ++block) {
      auto weights = BlockWeights::Load(program_, source_, block, pool_);
      if (!weights.ok()) return weights.status();
      MOEPACK_RETURN_IF_ERROR(RunBlock(program_, block, *weights));
    }
    MOEPACK_RETURN_IF_ERROR(RunLastBlock(last, last_weights));
    progress_.End();
    FinishProfile();
    MOEPACK_ASSIGN_OR_RETURN(profile_.weights, source_.Finish());
    return std::move(profile_);
  }

 private:
  void PrepareAttribution(const BlockWeights& last_weights) {
    if (InputWidth(program_) > 0) return;
    auto head = HeadEvaluator::Make(program_, last_weights, pool_);
    if (!head.ok()) {
      progress_.Note("attribution is not measured: " + head.status().message());
      return;
    }
    head_ = *head;
    const uint64_t share = std::max(kMinAttributionTokens, sample_.batch.size() / 8);
    samples_ = SampleTokens(sample_.batch, std::min(options_.attribution_tokens, share));
  }

  std::optional<AttributionProbe> Probe(const Program& program, const Node& moe) {
    if (!head_ || samples_.empty()) return std::nullopt;
    const auto plan = FindResidual(program, moe);
    if (!plan.ok()) {
      progress_.Note("attribution is not measured: " + plan.status().message());
      return std::nullopt;
    }
    return AttributionProbe(program, moe, *plan, sample_.batch, samples_, stream_);
  }

  // head: a linear node that is not run, whose input is observed all the same; or null.
  Status RunBlock(const Program& program, int32_t block, const BlockWeights& weights, const Node* head = nullptr) {
    BlockObserver observer(program, sample_.token_domain, pool_, head, &dense_);
    for (const Node& node : program.nodes) {
      if (node.block != block || node.kind != NodeKind::kMoe) continue;
      const uint32_t table = node.moe.table;
      TableCollector collector(program.expert_tables[table], node.moe.routing.k, inputs_.size());
      observer.moes().push_back({table, std::move(collector), Probe(program, node)});
    }
    MOEPACK_RETURN_IF_ERROR(Forward(program, pool_).RunBlock(block, weights, sample_.batch, &stream_, &observer));
    for (BlockObserver::Moe& moe : observer.moes()) {
      TableProfile& table = profile_.tables[moe.table];
      table = moe.collector.Finish();
      if (moe.probe) MOEPACK_RETURN_IF_ERROR(moe.probe->Measure(*head_, &table));
    }
    progress_.Advance(sample_.batch.size());
    return Status::Ok();
  }

  // Up to the head's input: the product with the head, often the largest of all, gives no statistics.
  Status RunLastBlock(int32_t last, const BlockWeights& weights) {
    const Node* head = HeadOf(program_);
    if (head == nullptr) return RunBlock(program_, last, weights);
    const auto input = stream_.values.find(head->inputs[0]);
    if (input != stream_.values.end()) AddInput(program_, *head, input->second, pool_, &dense_);
    Program before = program_;
    before.nodes.resize(static_cast<size_t>(head - program_.nodes.data()));
    if (before.blocks() <= last) return Status::Ok();
    return RunBlock(before, last, weights, head);
  }

  void FinishProfile() {
    profile_.model_digest = ProgramDigest(program_);
    for (const auto& [domain, digest] : inputs_) profile_.domains.push_back(domain);
    profile_.inputs = inputs_;
    for (const std::vector<double>& sums : dense_) profile_.dense_in_sq.emplace_back(sums.begin(), sums.end());
    profile_.tokens = std::move(sample_.batch.tokens);
    profile_.row_width = InputWidth(program_);
    profile_.rows.assign(sample_.batch.rows.data(), sample_.batch.rows.data() + sample_.batch.rows.size());
    profile_.sequence_start = std::move(sample_.batch.sequence_start);
    profile_.sequence_domain = std::move(sample_.sequence_domain);
    NoteThinExperts();
    if (profile_.row_width > 0) return;
    for (TableProfile& table : profile_.tables) {
      const RoutingTrace trace{table.trace, profile_.sequence_start, table.experts, table.k};
      table.srp = SegmentRoutingPerformance(trace, kLocalityWindow);
      for (uint32_t rho = 1; rho <= kLocalityMaxRho; ++rho) {
        table.sch.push_back(SegmentCacheHitRate(trace, kLocalityWindow, rho));
      }
    }
  }

  void NoteThinExperts() {
    std::map<uint32_t, std::string> lines;
    for (const ThinExpert& thin : FindThinExperts(profile_, options_.min_tokens_per_expert)) {
      std::string& line = lines[thin.table];
      line += StrFormat("%s%u (%llu)", line.empty() ? "" : ", ", program_.expert_tables[thin.table].original[thin.expert],
                        static_cast<ull>(thin.tokens));
    }
    for (const auto& [table, experts] : lines) {
      progress_.Note(
          StrFormat("layer %d: experts that saw fewer than %llu %s, with the number they saw: %s; %s that uses them",
                    program_.expert_tables[table].layer, static_cast<ull>(options_.min_tokens_per_expert),
                    profile_.row_width > 0 ? "rows" : "tokens", experts.c_str(),
                    profile_.row_width > 0 ? "add input" : "raise --tokens or add text"));
    }
  }

  const Program& program_;
  const DigestingSource source_;
  const Inputs inputs_;
  const CalibrateOptions& options_;
  CalibrationSample sample_;
  ThreadPool& pool_;
  Progress& progress_;
  DenseSums dense_;
  Stream stream_;
  Profile profile_;
  std::optional<HeadEvaluator> head_;
  std::vector<uint64_t> samples_;
};

}  // namespace

Result<Profile> Calibrate(const Model& model, const std::vector<CalibrationText>& texts, const CalibrateOptions& options,
                          ThreadPool& pool, Progress& progress) {
  if (model.tensors == nullptr) return Status(ErrorCode::kBadInput, "a configuration without weights cannot be calibrated");
  MOEPACK_RETURN_IF_ERROR(CheckTakesTokens(model.program));
  MOEPACK_ASSIGN_OR_RETURN(CalibrationSample sample, SampleTexts(model, texts, options, progress));
  Inputs inputs;
  for (const CalibrationText& text : texts) inputs.emplace_back(text.domain, ToHex(Sha256(AsBytes(text.text))));
  return Calibration(model, std::move(inputs), options, std::move(sample), pool, progress).Run();
}

Result<Profile> CalibrateRows(const Model& model, const std::vector<CalibrationRows>& tables,
                              const CalibrateOptions& options, ThreadPool& pool, Progress& progress) {
  if (model.tensors == nullptr) return Status(ErrorCode::kBadInput, "a configuration without weights cannot be calibrated");
  MOEPACK_ASSIGN_OR_RETURN(CalibrationSample sample, SampleRows(tables));
  Inputs inputs;
  for (const CalibrationRows& table : tables) inputs.emplace_back(table.domain, table.sha256);
  return Calibration(model, std::move(inputs), options, std::move(sample), pool, progress).Run();
}

std::vector<ThinExpert> FindThinExperts(const Profile& profile, uint64_t min_tokens) {
  std::vector<ThinExpert> thin;
  for (uint32_t t = 0; t < profile.tables.size(); ++t) {
    const TableProfile& table = profile.tables[t];
    for (uint32_t e = 0; e < table.experts; ++e) {
      const uint64_t tokens = table.coactivation[uint64_t{e} * table.experts + e];
      if (tokens < min_tokens) thin.push_back({t, e, tokens});
    }
  }
  return thin;
}

}  // namespace moepack
