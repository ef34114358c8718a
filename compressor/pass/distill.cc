#include "compressor/pass/distill.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>
#include <numeric>
#include <regex>
#include <set>

#include "compressor/pass/distill_learner.h"
#include "compressor/pass/distill_tape.h"

namespace moepack {
namespace {

constexpr double kWarmUpShare = 0.05;

// Softmax of the student minus that of the teacher, times the row's weight, into `student`; the weighted KLD of each row.
std::vector<double> KldGradient(const Matrix& teacher, std::span<const float> weights, ThreadPool& pool, Matrix* student) {
  std::vector<double> klds(static_cast<size_t>(teacher.rows()));
  pool.ParallelFor(klds.size(), 8, [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      auto q = student->row(static_cast<Eigen::Index>(r)).array();
      const auto row = teacher.row(static_cast<Eigen::Index>(r)).array();
      Eigen::ArrayXf p = (row - row.maxCoeff()).exp();
      const float p_sum = p.sum(), top = q.maxCoeff();
      const Eigen::ArrayXf e = (q - top).exp();
      const float q_sum = e.sum();
      p /= p_sum;
      const float mean = (p * (row.transpose() - q.transpose())).sum();
      klds[r] = static_cast<double>(weights[r]) *
                static_cast<double>(mean - (row.maxCoeff() - top) - std::log(p_sum) + std::log(q_sum));
      q = (e / q_sum - p).transpose() * weights[r];
    }
  });
  return klds;
}

// Sequences in an order that depends on the epoch only.
std::vector<uint64_t> Shuffled(std::vector<uint64_t> sequences, uint64_t epoch) {
  uint64_t state = 0x9E3779B97F4A7C15ull * (epoch + 1);
  for (size_t i = sequences.size(); i > 1; --i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    std::swap(sequences[i - 1], sequences[(state >> 33) % i]);
  }
  return sequences;
}

class Distiller {
 public:
  Distiller(const DistillInput& in, ThreadPool& pool, Progress& progress)
      : in_(in),
        pool_(pool),
        progress_(progress),
        full_forward_(*in.original, pool),
        tape_(*in.program, weights_, pool) {}

  Result<double> Run() {
    MOEPACK_RETURN_IF_ERROR(ChooseWhatLearns());
    MOEPACK_RETURN_IF_ERROR(LoadStudent());
    MOEPACK_RETURN_IF_ERROR(RunTeacher());
    const std::vector<uint64_t>& held = in_.calibration->held_back;
    MOEPACK_ASSIGN_OR_RETURN(const double before, MeanKld(held));
    if (!learners_.empty()) MOEPACK_RETURN_IF_ERROR(Train());
    pool_.ParallelFor(learners_.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) learners_[i].Encode();
    });
    MOEPACK_ASSIGN_OR_RETURN(const double after, MeanKld(held));
    const bool kept = held.empty() || after < before;
    progress_.Note(held.empty() ? "distilled: no text was held back, so whether it helped was not measured"
                                : StrFormat("distilled: mean KLD on held-back text %.6f, before %.6f%s", after, before,
                                            kept ? "" : "; the model stays as it was"));
    if (kept) MOEPACK_RETURN_IF_ERROR(TakeOver());
    for (int32_t block = 0; block < in_.program->blocks(); ++block)
      MOEPACK_RETURN_IF_ERROR(in_.writer->WriteBlock(block, units_[block]));
    return kept ? after : before;
  }

 private:
  bool Wanted(const TensorRef& tensor) const {
    const DistillRecipe& distill = *in_.recipe->distill;
    if (!distill.targets.empty()) return distill.targets.Matches(tensor.name);
    return tensor.is_expert() || (tensor.role != TensorRole::kEmbedding && tensor.role != TensorRole::kRouter);
  }

  // Before anything is loaded, also whether there is memory for it.
  Status ChooseWhatLearns() {
    const std::vector<float>& weights = in_.calibration->weights;
    if (std::none_of(weights.begin(), weights.end(), [](float w) { return w > 0; }))
      return Status(ErrorCode::kRecipe, "domains: no calibration token has a weight above 0");
    const std::vector<TensorRef> tensors = ListTensors(*in_.program);
    uint64_t bytes = 0;
    size_t left_out = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const TensorRef& t = tensors[i];
      if (!Wanted(t)) continue;
      // The tape has no gradient of an embedding, and the codes of a rated codec were fitted to its bytes.
      if ((!t.is_expert() && t.role == TensorRole::kEmbedding) || in_.plan->tensors[i].codec.rate != 0) {
        ++left_out;
      } else {
        learning_.insert(t.name);
        bytes += Learner::Bytes(t.shape);
      }
    }
    if (left_out > 0) {
      progress_.Note(StrFormat("distill: %zu of %zu tensors stay as encoded: embeddings and codecs with a rate do not learn",
                               left_out, left_out + learning_.size()));
    }
    if (bytes <= kMaxLearningBytes) return Status::Ok();
    return Status(ErrorCode::kUsage,
                  StrFormat("distill: what is to learn takes %s of memory, more than %s; name less with targets",
                            FormatBytes(bytes).c_str(), FormatBytes(kMaxLearningBytes).c_str()));
  }

  // Values of every tensor, and a learner for those that learn.
  Status LoadStudent() {
    std::map<UnitKey, std::map<uint32_t, TensorRef>> refs;
    std::map<std::pair<int32_t, TensorId>, TensorRef> dense;
    for (const TensorRef& t : ListTensors(*in_.program)) {
      if (t.is_expert()) {
        refs[t.unit].emplace(static_cast<uint32_t>(t.matrix), t);
      } else {
        dense.emplace(std::pair(t.block, t.dense), t);
      }
    }
    for (int32_t block = 0; block < in_.program->blocks(); ++block) {
      auto loaded = BlockWeights::Load(*in_.program, *in_.source, block, pool_);
      if (!loaded.ok()) return loaded.status();
      weights_.push_back(std::move(*loaded));
    }
    for (int32_t block = 0; block < in_.program->blocks(); ++block) {
      units_.emplace_back();
      MOEPACK_ASSIGN_OR_RETURN(units_.back(), in_.encoded->ReadBlock(block));
      for (const FolderUnit& unit : units_.back()) {
        MOEPACK_ASSIGN_OR_RETURN(const std::vector<TensorBytes> tensors, BytesOfTensors(unit));
        for (const TensorBytes& tensor : tensors) {
          const uint32_t id = tensor.info->tensor;
          const TensorRef& ref = unit.key.expert ? refs.at(unit.key).at(id) : dense.at(std::pair(block, TensorId{id}));
          MOEPACK_RETURN_IF_ERROR(LoadTensor(ref, *tensor.info, ByteSpan(unit.plain).subspan(tensor.offset, tensor.bytes)));
        }
      }
    }
    return Status::Ok();
  }

  Status LoadTensor(const TensorRef& ref, const UnitTensor& tensor, ByteSpan plain) {
    MOEPACK_ASSIGN_OR_RETURN(QuantizedMatrix encoded, FromPlain(tensor.codec, tensor.shape, plain));
    Matrix& weights = ref.is_expert() ? weights_[ref.block].expert(ref.table, ref.expert, ref.matrix)
                                      : weights_[ref.block].dense(ref.dense);
    int readers = 0;
    for (int32_t b = ref.block + 1; !ref.is_expert() && b < in_.program->blocks(); ++b) {
      if (!weights_[b].all_dense().contains(ref.dense)) continue;
      ++readers;
      Dequantize(encoded, {weights_[b].dense(ref.dense).data(), static_cast<size_t>(weights.size())});
    }
    if (learning_.contains(ref.name) && readers == 0) {
      gradients_.Add(ref);
      learners_.emplace_back(ref, std::move(encoded), &weights);
    } else {
      Dequantize(encoded, {weights.data(), static_cast<size_t>(weights.size())});
    }
    return Status::Ok();
  }

  // The teacher's values before its last block, over all tokens.
  Status RunTeacher() {
    const int32_t last = in_.original->blocks() - 1;
    for (int32_t block = 0; block <= last; ++block) {
      auto loaded = BlockWeights::Load(*in_.original, *in_.original_source, block, pool_);
      if (!loaded.ok()) return loaded.status();
      if (block == last) {
        teacher_head_ = std::make_unique<BlockWeights>(std::move(*loaded));
      } else {
        MOEPACK_RETURN_IF_ERROR(full_forward_.RunBlock(block, *loaded, in_.calibration->batch, &teacher_));
      }
    }
    return Status::Ok();
  }

  // Runs both models over some sequences: the weighted KLD of each row, and its gradient by the student's logits.
  Result<std::vector<double>> RunBoth(const std::vector<uint64_t>& sequences, std::span<const float> weights,
                                      const TokenBatch& part, Matrix* gradient) {
    const LastBlock teacher = {&full_forward_, teacher_head_.get(), &teacher_};
    MOEPACK_ASSIGN_OR_RETURN(const Matrix expected,
                             LastBlockLogits(teacher, in_.calibration->batch, part, sequences));
    MOEPACK_RETURN_IF_ERROR(tape_.Forward(part));
    *gradient = tape_.value(in_.program->output);
    return KldGradient(expected, weights, pool_, gradient);
  }

  Result<double> MeanKld(const std::vector<uint64_t>& sequences) {
    double sum = 0;
    uint64_t rows = 0;
    for (const std::vector<uint64_t>& step : CutIntoParts(in_.calibration->batch, sequences)) {
      const TokenBatch part = SelectSequences(in_.calibration->batch, step);
      std::vector<float> weights;
      for (uint64_t s = 0; s < part.sequences(); ++s) {
        const uint64_t length = part.end(s) - part.begin(s);
        for (uint64_t t = 0; t < length; ++t) weights.push_back(Scored(t, length) ? 1.0f : 0.0f);
      }
      Matrix gradient;
      MOEPACK_ASSIGN_OR_RETURN(const std::vector<double> klds, RunBoth(step, weights, part, &gradient));
      for (size_t r = 0; r < klds.size(); ++r) sum += klds[r];
      rows += static_cast<uint64_t>(std::accumulate(weights.begin(), weights.end(), 0.0));
    }
    return rows > 0 ? sum / static_cast<double>(rows) : -1;
  }

  Status Train() {
    std::vector<uint64_t> sequences;
    for (uint64_t s = 0; s < in_.calibration->batch.sequences(); ++s) {
      if (in_.calibration->weights[in_.calibration->batch.begin(s)] > 0) sequences.push_back(s);
    }
    const uint32_t epochs = in_.recipe->distill->epochs;
    uint64_t step = 0, tokens = 0;
    // Steps of kTokensAtOnce tokens: enough that most experts of a wide table get some.
    const uint64_t steps = CutIntoParts(in_.calibration->batch, sequences).size() * epochs;
    for (uint64_t s : sequences) tokens += in_.calibration->batch.end(s) - in_.calibration->batch.begin(s);
    progress_.Begin("distill", tokens * epochs, "tokens");
    for (uint32_t epoch = 0; epoch < epochs; ++epoch) {
      double loss = 0, weight = 0;
      for (const std::vector<uint64_t>& part : CutIntoParts(in_.calibration->batch, Shuffled(sequences, epoch))) {
        MOEPACK_RETURN_IF_ERROR(Step(part, SizeAt(++step, steps), &loss, &weight));
      }
      progress_.Note(StrFormat("epoch %u: mean KLD on calibration text %.6f", epoch + 1, loss / weight));
    }
    progress_.End();
    return Status::Ok();
  }

  // Rises over the first steps, then falls to zero along a cosine.
  StepSize SizeAt(uint64_t step, uint64_t steps) const {
    const double at = static_cast<double>(step), warm = std::max(1.0, kWarmUpShare * static_cast<double>(steps));
    const double left = (at - warm) / std::max(1.0, static_cast<double>(steps) - warm);
    const double shape = at < warm ? at / warm : 0.5 * (1 + std::cos(std::numbers::pi * left));
    const DistillRecipe& distill = *in_.recipe->distill;
    StepSize size{.weights = distill.rate * shape, .scales = distill.rate * shape, .codes = distill.code_rate * shape};
    size.CorrectFor(step);
    return size;
  }

  Status Step(const std::vector<uint64_t>& sequences, const StepSize& size, double* loss, double* weight) {
    const TokenBatch& batch = in_.calibration->batch;
    const TokenBatch part = SelectSequences(batch, sequences);
    std::vector<float> weights;
    double total = 0;
    for (uint64_t s : sequences) {
      for (uint64_t t = batch.begin(s); t < batch.end(s); ++t) weights.push_back(in_.calibration->weights[t]);
    }
    for (float w : weights) total += static_cast<double>(w);
    for (float& w : weights) w /= static_cast<float>(total);
    Matrix gradient;
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<double> klds, RunBoth(sequences, weights, part, &gradient));
    for (double kld : klds) *loss += kld * total;
    *weight += total;
    gradients_.SetZero();
    tape_.Backward(in_.program->output, std::move(gradient), &gradients_);
    pool_.ParallelFor(learners_.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) learners_[i].Step(gradients_.Of(learners_[i].tensor()), size);
    });
    progress_.Advance(part.size());
    return Status::Ok();
  }

  // What was learnt, into the units.
  Status TakeOver() {
    std::map<std::pair<UnitKey, uint32_t>, Bytes> plain;
    for (Learner& learner : learners_) {
      const TensorRef& t = learner.tensor();
      MOEPACK_ASSIGN_OR_RETURN((plain[{t.unit, t.is_expert() ? static_cast<uint32_t>(t.matrix) : t.dense}]),
                               ToPlain(learner.Encode()));
    }
    for (int32_t block = 0; block < in_.program->blocks(); ++block) {
      for (FolderUnit& unit : units_[block]) {
        MOEPACK_ASSIGN_OR_RETURN(const std::vector<TensorBytes> tensors, BytesOfTensors(unit));
        for (const TensorBytes& tensor : tensors) {
          const auto learnt = plain.find({unit.key, tensor.info->tensor});
          if (learnt == plain.end()) continue;
          std::copy(learnt->second.begin(), learnt->second.end(),
                    unit.plain.begin() + static_cast<ptrdiff_t>(tensor.offset));
        }
      }
    }
    return Status::Ok();
  }

  const DistillInput& in_;
  ThreadPool& pool_;
  Progress& progress_;
  Forward full_forward_;
  std::set<std::string> learning_;     // names of the tensors that may learn
  std::vector<BlockWeights> weights_;  // of the student, one a block
  std::vector<std::vector<FolderUnit>> units_;
  std::vector<Learner> learners_;
  Gradients gradients_;
  Stream teacher_;
  std::unique_ptr<BlockWeights> teacher_head_;
  Tape tape_;
};

}  // namespace

Result<double> Distill(const DistillInput& input, ThreadPool& pool, Progress& progress) {
  return Distiller(input, pool, progress).Run();
}

}  // namespace moepack
