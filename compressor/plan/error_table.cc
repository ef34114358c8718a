#include "compressor/plan/error_table.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <optional>

#include "compressor/pass/gptq.h"
#include "compressor/pass/hessian.h"
#include "compressor/pass/moments_jobs.h"

namespace moepack {
namespace {

// Weights that all probes together may go through, with a group for each kind of matrix and with one for each role.
constexpr double kMaxKindProbes = 1e9, kMaxRoleProbes = 5e10;
constexpr uint64_t kMaxBaseLogits = uint64_t{1} << 26;
constexpr uint64_t kProbeTokens = 1024;
constexpr size_t kSampleRows = 64;  // rows of every matrix that are encoded to measure an error
// The codec that probes disturb a group with: errors small enough that KLD grows in proportion to them.
Codec ProbeCodec() {
  Codec codec;
  codec.element = Element::kGroupInt;
  codec.bits = 4;
  codec.group_size = 64;
  return codec;
}

// "layers.3.experts.5.gate_proj" -> "layers.3.experts.gate_proj": the experts of a layer are one kind.
std::string KindOf(const TensorRef& tensor) {
  if (!tensor.is_expert()) return tensor.name;
  return StrFormat("layers.%d.experts.%s", tensor.layer, ExpertMatrixName(tensor.matrix));
}

// "layers.3.experts", "layers.3.attention".
std::string RoleOf(const TensorRef& tensor) {
  if (tensor.layer < 0) return tensor.name;
  return StrFormat("layers.%d.%s", tensor.layer, tensor.is_expert() ? "experts" : TensorRoleName(tensor.role));
}

// Sequences spread evenly over the calibration text, about `tokens` tokens, none of them held back.
std::vector<uint64_t> SpreadSequences(const Calibration& calibration, uint64_t tokens) {
  std::vector<uint64_t> usable;
  for (uint64_t s = 0; s < calibration.batch.sequences(); ++s) {
    if (calibration.weights[calibration.batch.begin(s)] > 0) usable.push_back(s);
  }
  return SpreadEvenly(calibration.batch, usable, tokens);
}

// Candidates that are measured: all, but of rates of one codec only those about this far apart. The logarithm of the error
// is all but a straight line between them.
constexpr int kRateSpacing = 75;
std::vector<bool> MeasuredCandidates(const std::vector<RatedCodec>& candidates) {
  std::vector<bool> out(candidates.size(), true);
  std::map<std::string, std::map<int, size_t>> rates;  // by codec
  for (size_t c = 0; c < candidates.size(); ++c) {
    if (candidates[c].rate != 0) rates[candidates[c].codec.Name()][candidates[c].rate] = c;
  }
  for (const auto& [codec, by_rate] : rates) {
    int last = by_rate.begin()->first;
    for (const auto& [rate, c] : by_rate) {
      out[c] = rate == last || rate == by_rate.rbegin()->first || rate - last >= kRateSpacing;
      if (out[c]) last = rate;
    }
  }
  return out;
}

// Errors of the candidates in between.
void FillRates(const std::vector<RatedCodec>& candidates, const std::vector<bool>& measured,
               std::map<std::string, double>* errors) {
  for (size_t c = 0; c < candidates.size(); ++c) {
    if (measured[c]) continue;
    const RatedCodec *below = nullptr, *above = nullptr;
    for (size_t o = 0; o < candidates.size(); ++o) {
      const RatedCodec& other = candidates[o];
      if (!measured[o] || other.rate == 0 || other.codec != candidates[c].codec) continue;
      if (other.rate < candidates[c].rate && (below == nullptr || other.rate > below->rate)) below = &other;
      if (other.rate > candidates[c].rate && (above == nullptr || other.rate < above->rate)) above = &other;
    }
    const double low = errors->at(below->Name()), high = errors->at(above->Name());
    const double share = static_cast<double>(candidates[c].rate - below->rate) / (above->rate - below->rate);
    (*errors)[candidates[c].Name()] = low > 0 && high > 0 ? low * std::pow(high / low, share) : low * (1 - share);
  }
}

class Measurer {
 public:
  Measurer(const ErrorTableInput& in, ThreadPool& pool, Progress& progress)
      : in_(in), pool_(pool), progress_(progress), forward_(*in.program, pool) {}

  Result<ErrorTable> Run() {
    const std::vector<uint64_t> sequences = SpreadSequences(*in_.calibration, in_.calibration->batch.size());
    if (sequences.empty()) return Status(ErrorCode::kRecipe, "domains: no calibration token has a weight above 0");
    batch_ = SelectSequences(in_.calibration->batch, sequences);
    for (uint64_t s : sequences) {
      const TokenBatch& all = in_.calibration->batch;
      token_weights_.insert(token_weights_.end(), in_.calibration->weights.begin() + static_cast<ptrdiff_t>(all.begin(s)),
                            in_.calibration->weights.begin() + static_cast<ptrdiff_t>(all.end(s)));
    }
    // The full model's logits of half of the probe tokens stay in memory.
    const uint64_t vocabulary = in_.program->values[in_.program->output].width;
    const uint64_t probe_tokens = std::min(kProbeTokens, std::max<uint64_t>(1, kMaxBaseLogits / vocabulary * 2));
    probe_batch_ = SelectSequences(in_.calibration->batch, SpreadSequences(*in_.calibration, probe_tokens));
    stream_ = InputStream(*in_.program, batch_);
    probe_stream_ = InputStream(*in_.program, probe_batch_);
    ChooseGroups();
    if (table_.measured_by == "probes") MOEPACK_RETURN_IF_ERROR(KeepBaseLogits());
    progress_.Begin("measure errors", in_.tensors.size(), "tensors");
    for (int32_t block = 0; block < in_.program->blocks(); ++block) MOEPACK_RETURN_IF_ERROR(MeasureBlock(block));
    progress_.End();
    return std::move(table_);
  }

 private:
  bool last(int32_t block) const { return block + 1 == in_.program->blocks(); }
  bool Open(size_t i) const { return in_.choices[i].candidates.size() > 1; }

  // Weights that probes of these groups go through: every block from a group's own on.
  double ProbeWork(std::string (*group_of)(const TensorRef&)) const {
    std::map<std::string, int32_t> groups;
    for (size_t i = 0; i < in_.tensors.size(); ++i) {
      if (Open(i)) groups.emplace(group_of(in_.tensors[i]), in_.tensors[i].block);
    }
    const double per_block = static_cast<double>(CountParameters(*in_.program)) / in_.program->blocks();
    double weights = 0;
    for (const auto& [group, block] : groups) weights += per_block * (in_.program->blocks() - block);
    return weights;
  }

  void ChooseGroups() {
    const bool kinds = ProbeWork(&KindOf) <= kMaxKindProbes;
    group_of_ = kinds ? &KindOf : &RoleOf;
    table_.measured_by = in_.recipe->probes && (kinds || ProbeWork(&RoleOf) <= kMaxRoleProbes) ? "probes" : "energy";
  }

  Status MeasureBlock(int32_t block) {
    auto weights = BlockWeights::Load(*in_.program, *in_.source, block, pool_);
    if (!weights.ok()) return weights.status();
    std::vector<size_t> open;
    for (size_t i = 0; i < in_.tensors.size(); ++i) {
      if (in_.tensors[i].block == block && Open(i)) open.push_back(i);
    }
    if (!open.empty()) MOEPACK_RETURN_IF_ERROR(MeasureTensors(block, open, *weights));
    progress_.Advance(static_cast<uint64_t>(
        std::count_if(in_.tensors.begin(), in_.tensors.end(), [&](const auto& t) { return t.block == block; })));
    if (last(block)) return Status::Ok();
    MOEPACK_RETURN_IF_ERROR(forward_.RunBlock(block, *weights, batch_, &stream_));
    return forward_.RunBlock(block, *weights, probe_batch_, &probe_stream_);
  }

  // What is measured of the open tensors of a block, by their position.
  struct Measured {
    explicit Measured(size_t count) : energy(count, 0), probe(count), probe_error(count, 0) {}
    std::vector<double> energy;       // of the outputs
    std::vector<Bytes> probe;         // plain bytes under the probe codec
    std::vector<double> probe_error;  // what it adds to the outputs
  };

  Status MeasureTensors(int32_t block, const std::vector<size_t>& open, BlockWeights& weights) {
    std::vector<TensorRef> wanted;
    wanted.reserve(open.size());
    for (size_t i : open) {
      wanted.push_back(in_.tensors[i]);
      table_.tensors.push_back({in_.tensors[i].name, group_of_(in_.tensors[i]), {}});
    }
    Measured measured(open.size());
    for (const std::vector<size_t>& run : HessianCollector::CutByMoments(*in_.program, wanted, kMaxMomentBytes)) {
      MOEPACK_RETURN_IF_ERROR(MeasureRun(block, open, run, weights, &measured));
    }
    MOEPACK_ASSIGN_OR_RETURN(const Energies energies, Normalise(open, measured));
    return MeasureSensitivities(block, open, energies, measured, weights);
  }

  // The tensors at these positions of `open`.
  Status MeasureRun(int32_t block, const std::vector<size_t>& open, const std::vector<size_t>& run, BlockWeights& weights,
                    Measured* measured) {
    std::vector<TensorRef> wanted;
    for (size_t p : run) wanted.push_back(in_.tensors[open[p]]);
    HessianCollector moments(*in_.program, wanted, token_weights_, pool_);
    if (moments.wants_linear() || moments.wants_moe())
      MOEPACK_RETURN_IF_ERROR(forward_.Observe(block, weights, batch_, stream_, &moments));
    MOEPACK_ASSIGN_OR_RETURN(const MomentFactors factors, FactorMoments(wanted, in_.recipe->gptq, &moments, pool_));
    MOEPACK_RETURN_IF_ERROR(MeasureCandidates(open, run, weights, &moments, factors, measured));
    return table_.measured_by == "probes" ? EncodeProbes(open, run, weights, &moments, measured) : Status::Ok();
  }

  TensorErrors& EntryOf(const std::vector<size_t>& open, size_t position) {
    return table_.tensors[table_.tensors.size() - open.size() + position];
  }

  // Every candidate of every tensor of a run, on a sample of its rows: errors as energy.
  Status MeasureCandidates(const std::vector<size_t>& open, const std::vector<size_t>& run, BlockWeights& weights,
                           HessianCollector* moments, const MomentFactors& factors, Measured* measured) {
    std::vector<Matrix> samples;
    std::vector<std::vector<float>> row_weights;
    std::vector<std::vector<bool>> wanted;
    size_t most = 0;
    for (size_t p : run) {
      const TensorRef& tensor = in_.tensors[open[p]];
      const Matrix& all = WeightsOf(tensor, weights);
      const std::vector<float> counts = RowWeights(tensor, batch_, token_weights_);
      // Rows that matter very differently need a larger sample.
      static constexpr size_t kMoreRows = 8;
      const auto rows = static_cast<size_t>(all.rows());
      const size_t count = std::min(counts.empty() ? kSampleRows : kSampleRows * kMoreRows, rows);
      samples.emplace_back(count, all.cols());
      row_weights.emplace_back(count, static_cast<float>(rows) / static_cast<float>(count));
      for (size_t r = 0; r < count; ++r) {
        const size_t row = r * rows / count;
        samples.back().row(r) = all.row(row);
        if (!counts.empty()) row_weights.back()[r] *= counts[row];
      }
      const std::vector<RatedCodec>& candidates = in_.choices[open[p]].candidates;
      wanted.push_back(MeasuredCandidates(candidates));
      most = std::max(most, candidates.size());
    }
    for (size_t c = 0; c < most; ++c) {
      std::vector<MatrixJob> jobs;
      std::vector<size_t> owners;  // places in the run
      for (size_t o = 0; o < run.size(); ++o) {
        const std::vector<RatedCodec>& candidates = in_.choices[open[run[o]]].candidates;
        if (c >= candidates.size() || !wanted[o][c]) continue;
        jobs.emplace_back();
        owners.push_back(o);
        MOEPACK_RETURN_IF_ERROR(PrepareJob(in_.tensors[open[run[o]]], candidates[c], *in_.recipe, samples[o], moments,
                                           factors, pool_, &jobs.back()));
        jobs.back().row_weights = row_weights[o];
      }
      RunJobs(jobs, kSweeps, pool_);
      for (size_t j = 0; j < jobs.size(); ++j) {
        const size_t p = run[owners[j]];
        EntryOf(open, p).errors[in_.choices[open[p]].candidates[c].Name()] = std::max(0.0, jobs[j].error);
        measured->energy[p] = jobs[j].energy;
      }
    }
    return Status::Ok();
  }

  Status EncodeProbes(const std::vector<size_t>& open, const std::vector<size_t>& run, BlockWeights& weights,
                      HessianCollector* moments, Measured* measured) {
    std::vector<MatrixJob> jobs(run.size());
    for (size_t j = 0; j < run.size(); ++j) {
      const TensorRef& tensor = in_.tensors[open[run[j]]];
      MOEPACK_RETURN_IF_ERROR(
          PrepareJob(tensor, ProbeCodec(), *in_.recipe, WeightsOf(tensor, weights), moments, {}, pool_, &jobs[j]));
      jobs[j].row_weights = RowWeights(tensor, batch_, token_weights_);
    }
    RunJobs(jobs, 0, pool_);
    for (size_t j = 0; j < run.size(); ++j) {
      measured->probe_error[run[j]] = jobs[j].error;
      MOEPACK_ASSIGN_OR_RETURN(measured->probe[run[j]], ToPlain(jobs[j].out));
      jobs[j].out = {};
    }
    return Status::Ok();
  }

  // Output energy by kind.
  using Energies = std::map<std::string, double>;

  // Errors in units of their kind's energy.
  Result<Energies> Normalise(const std::vector<size_t>& open, const Measured& measured) {
    Energies energies;
    for (size_t p = 0; p < open.size(); ++p) energies[KindOf(in_.tensors[open[p]])] += measured.energy[p];
    for (size_t p = 0; p < open.size(); ++p) {
      const double whole = energies.at(KindOf(in_.tensors[open[p]]));
      TensorErrors& entry = EntryOf(open, p);
      for (auto& [codec, error] : entry.errors) error = whole > 0 ? error / whole : 0;
      const std::vector<RatedCodec>& candidates = in_.choices[open[p]].candidates;
      FillRates(candidates, MeasuredCandidates(candidates), &entry.errors);
    }
    return energies;
  }

  Status MeasureSensitivities(int32_t block, const std::vector<size_t>& open, const Energies& energies,
                              const Measured& measured, BlockWeights& weights) {
    std::map<std::string, std::vector<size_t>> groups;
    for (size_t p = 0; p < open.size(); ++p) groups[group_of_(in_.tensors[open[p]])].push_back(p);
    for (const auto& [group, members] : groups) {
      table_.sensitivity[group] = 1;
      if (table_.measured_by != "probes") continue;
      MOEPACK_ASSIGN_OR_RETURN(table_.sensitivity[group], Probe(block, open, members, energies, measured, weights));
    }
    return Status::Ok();
  }

  // Mean KLD that rounding these tensors causes, by unit of error.
  Result<double> Probe(int32_t block, const std::vector<size_t>& open, const std::vector<size_t>& members,
                       const Energies& energies, const Measured& measured, BlockWeights& weights) {
    double error = 0;
    for (size_t p : members) {
      const TensorRef& tensor = in_.tensors[open[p]];
      Matrix& target = WeightsOf(tensor, weights);
      MOEPACK_RETURN_IF_ERROR(
          DecodePlain(ProbeCodec(), tensor.shape, measured.probe[p], {target.data(), static_cast<size_t>(target.size())}));
      const double energy = energies.at(KindOf(tensor));
      error += energy > 0 ? measured.probe_error[p] / energy : 0;
    }
    const auto kld = RunProbe(block, weights);
    for (size_t p : members) MOEPACK_RETURN_IF_ERROR(Reload(in_.tensors[open[p]], &weights));
    if (!kld.ok()) return kld.status();
    return error > 0 ? *kld / error : 0.0;
  }

  Status Reload(const TensorRef& tensor, BlockWeights* weights) {
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<float> values,
                             tensor.is_expert() ? in_.source->LoadExpert(tensor.table, tensor.expert, tensor.matrix)
                                                : in_.source->Load(tensor.dense));
    std::copy(values.begin(), values.end(), WeightsOf(tensor, *weights).data());
    return Status::Ok();
  }

  // KLD between the model with this block's weights as they are now and the full model.
  Result<double> RunProbe(int32_t block, const BlockWeights& disturbed) {
    Stream stream = probe_stream_;
    if (last(block)) return ProbeKld(disturbed, stream);
    MOEPACK_RETURN_IF_ERROR(forward_.RunBlock(block, disturbed, probe_batch_, &stream));
    for (int32_t b = block + 1; b < in_.program->blocks(); ++b) {
      auto weights = BlockWeights::Load(*in_.program, *in_.source, b, pool_);
      if (!weights.ok()) return weights.status();
      // A tied head is the embedding of an earlier block.
      for (const auto& [id, value] : disturbed.all_dense()) {
        if (weights->all_dense().contains(id)) weights->dense(id) = value;
      }
      if (last(b)) return ProbeKld(*weights, stream);
      MOEPACK_RETURN_IF_ERROR(forward_.RunBlock(b, *weights, probe_batch_, &stream));
    }
    return Status(ErrorCode::kInternal, "a program without a last block");
  }

  // Rows of a tile that count.
  std::vector<uint64_t> ScoredRows(uint64_t first, uint64_t count) const {
    std::vector<uint64_t> rows;
    for (uint64_t s = 0; s < probe_batch_.sequences(); ++s) {
      const uint64_t begin = probe_batch_.begin(s), end = probe_batch_.end(s);
      for (uint64_t t = std::max(begin, first); t < std::min(end, first + count); ++t) {
        if (Scored(t - begin, end - begin)) rows.push_back(t - first);
      }
    }
    return rows;
  }

  static Matrix PickRows(const Matrix& logits, const std::vector<uint64_t>& rows) {
    Matrix out(static_cast<Eigen::Index>(rows.size()), logits.cols());
    for (size_t i = 0; i < rows.size(); ++i) out.row(i) = logits.row(rows[i]);
    return out;
  }

  Status KeepBaseLogits() {
    const auto keep = [&](uint64_t first, const Matrix& logits) {
      base_logits_.push_back(PickRows(logits, ScoredRows(first, static_cast<uint64_t>(logits.rows()))));
      return Status::Ok();
    };
    return forward_.Run(*in_.source, probe_batch_, keep, NoProgress());
  }

  // Tiles of the last block are the same in every run, so they meet the kept logits in order.
  Result<double> ProbeKld(const BlockWeights& weights, const Stream& stream) {
    double sum = 0;
    uint64_t rows = 0;
    size_t tile = 0;
    const auto compare = [&](uint64_t first, const Matrix& logits) {
      const Matrix picked = PickRows(logits, ScoredRows(first, static_cast<uint64_t>(logits.rows())));
      for (double kld : RowKlds(base_logits_[tile++], picked, pool_)) sum += kld;
      rows += static_cast<uint64_t>(picked.rows());
      return Status::Ok();
    };
    MOEPACK_RETURN_IF_ERROR(forward_.RunLastBlock(weights, probe_batch_, stream, compare));
    return rows > 0 ? std::max(0.0, sum / static_cast<double>(rows)) : 0.0;
  }

  const ErrorTableInput& in_;
  ThreadPool& pool_;
  Progress& progress_;
  Forward forward_;
  TokenBatch batch_, probe_batch_;
  std::vector<float> token_weights_;  // of batch_
  Stream stream_, probe_stream_;      // of the full model, before the current block
  std::vector<Matrix> base_logits_;   // scored rows of the probe batch, tile by tile
  std::string (*group_of_)(const TensorRef&) = &KindOf;
  ErrorTable table_;
};

}  // namespace

Result<ErrorTable> MeasureErrors(const ErrorTableInput& input, ThreadPool& pool, Progress& progress) {
  return Measurer(input, pool, progress).Run();
}

}  // namespace moepack
