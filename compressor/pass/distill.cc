#include "compressor/pass/distill.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "compressor/pass/distill_state.h"
#include "compressor/pass/distill_student.h"
#include "compressor/pass/distill_tape.h"

namespace moepack {
namespace {

// Softmax of the student minus that of the teacher, times the row's weight, into `student`: the gradient of the weighted
// KLD.
void KldGradient(const Matrix& teacher, std::span<const float> weights, ThreadPool& pool, Matrix* student) {
  pool.ParallelFor(static_cast<size_t>(teacher.rows()), 8, [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      auto q = student->row(static_cast<Eigen::Index>(r)).array();
      const auto row = teacher.row(static_cast<Eigen::Index>(r)).array();
      const Eigen::ArrayXf p = (row - row.maxCoeff()).exp(), e = (q - q.maxCoeff()).exp();
      q = (e / e.sum() - p / p.sum()).transpose() * weights[r];
    }
  });
}

class Distiller {
 public:
  Distiller(const DistillInput& in, ThreadPool& pool, Progress& progress)
      : in_(in),
        pool_(pool),
        progress_(progress),
        full_forward_(*in.original, pool),
        forward_(*in.program, pool),
        student_(*in.program, *in.plan, *in.encoded),
        judged_(JudgedSequences(*in.calibration, in.program->values[in.program->output].width)),
        held_(SelectSequences(in.calibration->batch, judged_)) {}

  Status Run() {
    MOEPACK_RETURN_IF_ERROR(ChooseWhatLearns());
    MOEPACK_RETURN_IF_ERROR(RunTeacher());
    MOEPACK_ASSIGN_OR_RETURN(const double before, HeldBackKld());
    MOEPACK_RETURN_IF_ERROR(Train());
    MOEPACK_ASSIGN_OR_RETURN(const double after, HeldBackKld());
    const bool kept = held_.size() == 0 || after < before;
    progress_.Note(held_.size() == 0 ? "distilled: no text was held back, so whether it helped was not measured"
                                     : StrFormat("distilled: mean KLD on held-back text %.6f, before %.6f%s", after, before,
                                                 kept ? "" : "; what this last stage learnt is not kept"));
    for (int32_t block = 0; block < in_.program->blocks(); ++block) {
      MOEPACK_RETURN_IF_ERROR(student_.Open(block));
      MOEPACK_ASSIGN_OR_RETURN(const std::vector<FolderUnit> units, student_.Units(kept));
      MOEPACK_RETURN_IF_ERROR(in_.writer->WriteBlock(block, units));
    }
    return Status::Ok();
  }

 private:
  // What moves when only scales do: vectors and integer matrices. Nothing is loaded yet when what learns is too much.
  std::optional<Learns> LearnsOf(const TensorRef& tensor, const RatedCodec& codec) const {
    const DistillRecipe& distill = *in_.recipe->distill;
    const bool named = distill.targets.empty() ? tensor.is_expert() || tensor.role != TensorRole::kRouter
                                               : distill.targets.Matches(tensor.name);
    // The tape has no gradient of an embedding.
    if (!named || (!tensor.is_expert() && tensor.role == TensorRole::kEmbedding)) return std::nullopt;
    const bool integer = codec.codec.coded();
    if (distill.logits == DistillLogits::kAll && codec.rate == 0) return Learns::kAll;
    return integer || tensor.shape.rows == 1 ? std::optional(Learns::kScales) : std::nullopt;
  }

  Status ChooseWhatLearns() {
    const std::vector<TensorRef> tensors = ListTensors(*in_.program);
    std::map<std::string, Learns> names;
    uint64_t bytes = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const std::optional<Learns> learns = LearnsOf(tensors[i], in_.plan->tensors[i].codec);
      if (!learns) continue;
      names.emplace(tensors[i].name, *learns);
      bytes += Learner::Bytes(in_.plan->tensors[i].codec, tensors[i].shape, *learns);
    }
    if (bytes > kMaxLearningBytes) {
      return Status(ErrorCode::kUsage,
                    StrFormat("distill: what is to learn takes %s of memory, more than %s; set logits to scales, or name "
                              "less with targets",
                              FormatBytes(bytes).c_str(), FormatBytes(kMaxLearningBytes).c_str()));
    }
    return student_.Learn(names);
  }

  // The teacher's values before its last block, over all tokens.
  Status RunTeacher() {
    const int32_t last = in_.original->blocks() - 1;
    for (int32_t block = 0; block <= last; ++block) {
      MOEPACK_ASSIGN_OR_RETURN(BlockWeights loaded, BlockWeights::Load(*in_.original, *in_.original_source, block, pool_));
      if (block == last) {
        teacher_head_ = std::move(loaded);
      } else {
        MOEPACK_RETURN_IF_ERROR(full_forward_.RunBlock(block, loaded, in_.calibration->batch, &teacher_));
      }
    }
    return Status::Ok();
  }

  Result<BlockWeights> OpenBlock(int32_t block) {
    MOEPACK_RETURN_IF_ERROR(student_.Open(block));
    return BlockWeights::Load(*in_.program, student_, block, pool_);
  }

  // The mean between both models on held-back text, 0 without such text.
  Result<double> HeldBackKld() {
    if (held_.size() == 0) return 0.0;
    const int32_t last = in_.program->blocks() - 1;
    Stream stream;
    for (int32_t block = 0; block < last; ++block) {
      MOEPACK_ASSIGN_OR_RETURN(const BlockWeights weights, OpenBlock(block));
      MOEPACK_RETURN_IF_ERROR(forward_.RunBlock(block, weights, held_, &stream));
    }
    MOEPACK_ASSIGN_OR_RETURN(const BlockWeights weights, OpenBlock(last));
    const Stream teacher = SelectRows(teacher_, in_.calibration->batch, judged_);
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<Matrix> base, ScoredLogits({&full_forward_, &teacher_head_, &teacher}, held_));
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<KldSum> klds,
                             SequenceKlds(base, {&forward_, &weights, &stream}, held_, pool_));
    KldSum all;
    for (const KldSum& kld : klds) all.Add(kld);
    return all.mean();
  }

  Status Train() {
    if (student_.first_lesson() < 0) return Status::Ok();
    const TokenBatch& batch = in_.calibration->batch;
    std::vector<uint64_t> sequences;
    for (uint64_t s = 0; s < batch.sequences(); ++s) {
      if (in_.calibration->weights[batch.begin(s)] > 0) sequences.push_back(s);
    }
    const DistillRecipe& recipe = *in_.recipe->distill;
    MOEPACK_ASSIGN_OR_RETURN(const uint64_t done, ReadTraining(*in_.env, in_.encoded->StatePath(), &student_.learners()));
    uint64_t step = 0, tokens = 0;
    // Steps of kTokensAtOnce tokens: enough that most experts of a wide table get some.
    const uint64_t steps = CutIntoParts(batch, sequences).size() * recipe.epochs;
    for (uint64_t s : sequences) tokens += batch.end(s) - batch.begin(s);
    progress_.Begin("distill", tokens * recipe.epochs, "tokens");
    for (uint32_t epoch = 0; epoch < recipe.epochs; ++epoch) {
      std::vector<uint64_t> order = sequences;
      ShuffleForEpoch(epoch, &order);
      for (const std::vector<uint64_t>& part : CutIntoParts(batch, order)) {
        if (++step <= done) {
          progress_.Advance(SelectSequences(batch, part).size());
          continue;
        }
        MOEPACK_RETURN_IF_ERROR(Step(part, StepSizeAt(step, steps, recipe.rate, recipe.code_rate)));
        MOEPACK_RETURN_IF_ERROR(SaveNowAndThen(step));
      }
    }
    progress_.End();
    return Status::Ok();
  }

  Status SaveNowAndThen(uint64_t step) {
    using Clock = std::chrono::steady_clock;
    // A large state takes long to write, and most of the time is for training.
    static constexpr double kTrainToSave = 10;
    const auto now = Clock::now();
    if (!saves_ || std::chrono::duration<double>(now - saved_).count() < std::max(in_.save_seconds, kTrainToSave * save_took_))
      return Status::Ok();
    const Status written = WriteTraining(*in_.env, in_.encoded->StatePath(), step, &student_.learners());
    saved_ = Clock::now();
    if (in_.save_seconds > 0) save_took_ = std::chrono::duration<double>(saved_ - now).count();
    if (written.code() != ErrorCode::kNoSpace) return written;
    // The model may still fit: its own writes tell.
    saves_ = false;
    progress_.Note("distill: no room to save the training; interrupted, it goes on from the state before, or begins again");
    return Status::Ok();
  }

  Status Step(const std::vector<uint64_t>& sequences, const StepSize& size) {
    const TokenBatch& batch = in_.calibration->batch;
    const TokenBatch part = SelectSequences(batch, sequences);
    const int32_t last = in_.program->blocks() - 1;
    // Values before every block, which the way back starts from again.
    std::vector<Stream> before(1);
    for (int32_t block = 0; block < last; ++block) {
      MOEPACK_ASSIGN_OR_RETURN(const BlockWeights weights, OpenBlock(block));
      before.push_back(before.back());
      MOEPACK_RETURN_IF_ERROR(forward_.RunBlock(block, weights, part, &before.back()));
    }
    Stream derivatives;
    for (int32_t block = last; block >= student_.first_lesson(); --block) {
      MOEPACK_ASSIGN_OR_RETURN(const BlockWeights weights, OpenBlock(block));
      Tape tape(*in_.program, block, weights, pool_);
      MOEPACK_RETURN_IF_ERROR(tape.Forward(part, before[block]));
      if (block == last) {
        MOEPACK_ASSIGN_OR_RETURN(derivatives.values[in_.program->output],
                                 LossGradient(sequences, part, tape.value(in_.program->output)));
      }
      MOEPACK_RETURN_IF_ERROR(LearnFrom(&tape, block, size, &derivatives));
    }
    progress_.Advance(part.size());
    return Status::Ok();
  }

  // Of the mean KLD, rows weighted by their domains.
  Result<Matrix> LossGradient(const std::vector<uint64_t>& sequences, const TokenBatch& part, Matrix logits) {
    const TokenBatch& batch = in_.calibration->batch;
    std::vector<float> weights;
    for (uint64_t s : sequences) {
      for (uint64_t t = batch.begin(s); t < batch.end(s); ++t) weights.push_back(in_.calibration->weights[t]);
    }
    const float total = std::accumulate(weights.begin(), weights.end(), 0.0f);
    for (float& w : weights) w /= total;
    const LastBlock teacher = {&full_forward_, &teacher_head_, &teacher_};
    MOEPACK_ASSIGN_OR_RETURN(const Matrix expected, LastBlockLogits(teacher, batch, part, sequences));
    KldGradient(expected, weights, pool_, &logits);
    return logits;
  }

  Status LearnFrom(Tape* tape, int32_t block, const StepSize& size, Stream* derivatives) {
    const std::vector<Student::Lesson> lessons = student_.Lessons();
    Gradients gradients;
    for (const Student::Lesson& lesson : lessons) gradients.Add(*lesson.tensor);
    tape->Backward(block > student_.first_lesson(), derivatives, &gradients);
    std::vector<Status> statuses(lessons.size());
    pool_.ParallelFor(lessons.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const Result<QuantizedMatrix> encoded = student_.Encoded(*lessons[i].tensor);
        statuses[i] = encoded.status();
        if (encoded.ok()) lessons[i].learner->Step(gradients.Of(*lessons[i].tensor), *encoded, size);
      }
    });
    for (const Status& status : statuses) MOEPACK_RETURN_IF_ERROR(status);
    return Status::Ok();
  }

  const DistillInput& in_;
  ThreadPool& pool_;
  Progress& progress_;
  Forward full_forward_, forward_;
  Student student_;
  const std::vector<uint64_t> judged_;  // sequences that nothing learns from
  const TokenBatch held_;               // the same
  Stream teacher_;
  BlockWeights teacher_head_;
  std::chrono::steady_clock::time_point saved_ = std::chrono::steady_clock::now();
  double save_took_ = 0;  // seconds
  bool saves_ = true;
};

}  // namespace

Status Distill(const DistillInput& input, ThreadPool& pool, Progress& progress) {
  return Distiller(input, pool, progress).Run();
}

}  // namespace moepack
