#include "calibrate/attribution.h"

#include <algorithm>
#include <cmath>

namespace moepack {
namespace {

// Samples measured at once: bounds the rows that go through the head together.
constexpr size_t kGroup = 256;

uint64_t SplitMix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

std::vector<const Node*> Readers(const Program& program, ValueId id) {
  std::vector<const Node*> readers;
  for (const Node& node : program.nodes) {
    if (std::find(node.inputs.begin(), node.inputs.end(), id) != node.inputs.end()) readers.push_back(&node);
  }
  return readers;
}

Status NotResidual(const Node& moe, const std::string& why) {
  return Status(ErrorCode::kUnsupported, StrFormat("block %d: ", moe.block) + why);
}

}  // namespace

Result<ResidualPlan> FindResidual(const Program& program, const Node& moe) {
  ResidualPlan plan;
  const Node* before = ProducerOf(program, moe.inputs[0]);
  plan.state = before != nullptr && before->kind == NodeKind::kNorm ? before->inputs[0] : moe.inputs[0];
  plan.leaving = moe.output;
  bool joined = false;  // the state has been added
  for (;;) {
    const std::vector<const Node*> readers = Readers(program, plan.leaving);
    const bool leaves = std::any_of(readers.begin(), readers.end(), [&](const Node* n) { return n->block != moe.block; });
    if (leaves && joined) return plan;
    if (leaves || readers.size() != 1 || readers[0]->kind != NodeKind::kElementwise) {
      return NotResidual(moe, "the output of the experts is not added to the residual state");
    }
    const Node& next = *readers[0];
    if (next.elementwise.op == ElementOp::kScale && !joined) {
      plan.scale *= next.elementwise.alpha;
    } else if (next.elementwise.op == ElementOp::kAdd && next.inputs[0] != next.inputs[1]) {
      const ValueId other = next.inputs[0] == plan.leaving ? next.inputs[1] : next.inputs[0];
      if (other == plan.state) {
        joined = true;
      } else {
        plan.beside = true;
      }
    } else {
      return NotResidual(moe, "the output of the experts is changed before or after it joins the residual state");
    }
    plan.leaving = next.output;
  }
}

std::vector<uint64_t> SampleTokens(const TokenBatch& batch, uint64_t count) {
  // Eligible tokens are all but the last of each sequence; the i-th of them is found by walking the sequences once.
  const uint64_t eligible = batch.size() - batch.sequences();
  count = std::min(count, eligible);
  std::vector<uint64_t> samples;
  uint64_t sequence = 0, before = 0;  // eligible tokens in earlier sequences
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t begin = i * eligible / count, end = (i + 1) * eligible / count;
    const uint64_t chosen = begin + SplitMix(i) % (end - begin);
    while (chosen >= before + batch.end(sequence) - batch.begin(sequence) - 1) {
      before += batch.end(sequence) - batch.begin(sequence) - 1;
      ++sequence;
    }
    samples.push_back(batch.begin(sequence) + chosen - before);
  }
  return samples;
}

Result<HeadEvaluator> HeadEvaluator::Make(const Program& program, const BlockWeights& last, ThreadPool& pool) {
  HeadEvaluator head;
  head.program_ = &program;
  head.last_ = &last;
  head.pool_ = &pool;
  const int32_t block = program.blocks() - 1;
  for (const Node& node : program.nodes) {
    if (node.block != block) continue;
    if (node.kind == NodeKind::kAttention || node.kind == NodeKind::kMoe || node.kind == NodeKind::kRotary ||
        node.kind == NodeKind::kConvolution) {
      return Status(ErrorCode::kUnsupported, "the last block is more than a norm and a head");
    }
    for (ValueId id : node.inputs) {
      const Node* producer = ProducerOf(program, id);
      if (producer != nullptr && producer->block == block) continue;
      if (producer == nullptr || (head.import_ != kNone && head.import_ != id)) {
        return Status(ErrorCode::kUnsupported, "the last block reads more than the residual state");
      }
      head.import_ = id;
    }
  }
  if (head.import_ == kNone) return Status(ErrorCode::kUnsupported, "the last block reads no residual state");
  return head;
}

Result<std::vector<double>> HeadEvaluator::LogLikelihood(Matrix states, std::span<const int32_t> targets) const {
  TokenBatch batch;
  batch.tokens.assign(static_cast<size_t>(states.rows()), 0);
  for (uint64_t i = 0; i < batch.size(); ++i) batch.sequence_start.push_back(i);
  Stream stream;
  stream.values[import_] = std::move(states);
  std::vector<double> result(batch.size());
  const auto sink = [&](uint64_t first, const Matrix& logits) {
    pool_->ParallelFor(static_cast<size_t>(logits.rows()), 16, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const auto row = logits.row(static_cast<Eigen::Index>(i)).array();
        const float largest = row.maxCoeff();
        const double sum = (row - largest).exp().cast<double>().sum();
        result[first + i] = static_cast<double>(row[targets[first + i]]) - static_cast<double>(largest) - std::log(sum);
      }
    });
    return Status::Ok();
  };
  MOEPACK_RETURN_IF_ERROR(Forward(*program_, *pool_).RunLastBlock(*last_, batch, stream, sink));
  return result;
}

AttributionProbe::AttributionProbe(const Program& program, const Node& moe, const ResidualPlan& plan,
                                   const TokenBatch& batch, const std::vector<uint64_t>& samples, const Stream& stream)
    : moe_(moe), plan_(plan), batch_(batch), samples_(samples) {
  const Eigen::Index rows = static_cast<Eigen::Index>(samples.size());
  const Eigen::Index width = static_cast<Eigen::Index>(program.values[moe.output].width);
  const Eigen::Index k = moe.moe.routing.k;
  for (Matrix* m : {&state_, &leaving_, &routed_}) m->setZero(rows, width);
  added_.setZero(rows * k, width);
  expert_.assign(samples.size() * moe.moe.routing.k, 0);
  if (const auto before = stream.values.find(plan.state); before != stream.values.end()) {
    for (Eigen::Index i = 0; i < rows; ++i) state_.row(i) = before->second.row(static_cast<Eigen::Index>(samples[i]));
  }
}

std::pair<size_t, size_t> AttributionProbe::InTile(uint64_t first, uint64_t rows) const {
  const auto begin = std::lower_bound(samples_.begin(), samples_.end(), first);
  const auto end = std::lower_bound(begin, samples_.end(), first + rows);
  return {begin - samples_.begin(), end - samples_.begin()};
}

void AttributionProbe::OnValue(const Node& node, uint64_t first_token, const Matrix& value) {
  if (node.output != plan_.state && node.output != plan_.leaving && node.output != moe_.output) return;
  const auto [begin, end] = InTile(first_token, value.rows());
  for (size_t i = begin; i < end; ++i) {
    const auto row = value.row(static_cast<Eigen::Index>(samples_[i] - first_token));
    if (node.output == plan_.state) state_.row(i) = row;
    if (node.output == plan_.leaving) leaving_.row(i) = row;
    if (node.output == moe_.output) routed_.row(i) = plan_.scale * row;
  }
}

void AttributionProbe::OnMoe(const MoeCapture& capture) {
  const size_t k = moe_.moe.routing.k;
  const auto [begin, end] = InTile(capture.first_token, capture.input->rows());
  std::vector<size_t> filled(end - begin, 0);
  for (const ExpertCapture& expert : capture.experts) {
    size_t at = 0;
    for (size_t i = begin; i < end; ++i) {
      const uint64_t row = samples_[i] - capture.first_token;
      while (at < expert.rows.size() && expert.rows[at] < row) ++at;
      if (at == expert.rows.size() || expert.rows[at] != row) continue;
      const size_t slot = i * k + filled[i - begin]++;
      expert_[slot] = expert.expert;
      added_.row(slot) = plan_.scale * expert.gates[at] * expert.output.row(at);
    }
  }
}

Status AttributionProbe::MeasureGroup(const HeadEvaluator& head, size_t begin, size_t end, std::vector<double>* gain,
                                      double* shared) const {
  const size_t k = moe_.moe.routing.k, n = end - begin, per = 1 + k + (plan_.beside ? 1 : 0);
  Matrix states(n * per, state_.cols());
  std::vector<int32_t> targets;
  for (size_t i = 0; i < n; ++i) {
    const size_t s = begin + i;
    states.row(i * per) = state_.row(s);
    for (size_t j = 0; j < k; ++j) states.row(i * per + 1 + j) = state_.row(s) + added_.row(s * k + j);
    if (plan_.beside) states.row(i * per + 1 + k) = leaving_.row(s) - routed_.row(s);
    targets.insert(targets.end(), per, batch_.tokens[samples_[s] + 1]);
  }
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<double> log_p, head.LogLikelihood(std::move(states), targets));
  for (size_t i = 0; i < n; ++i) {
    const double base = log_p[i * per];
    for (size_t j = 0; j < k; ++j) (*gain)[expert_[(begin + i) * k + j]] += log_p[i * per + 1 + j] - base;
    if (plan_.beside) *shared += log_p[i * per + 1 + k] - base;
  }
  return Status::Ok();
}

Status AttributionProbe::Measure(const HeadEvaluator& head, TableProfile* table) const {
  std::vector<double> gain(table->experts, 0.0);
  double shared = 0;
  for (size_t begin = 0; begin < samples_.size(); begin += kGroup) {
    MOEPACK_RETURN_IF_ERROR(MeasureGroup(head, begin, std::min(begin + kGroup, samples_.size()), &gain, &shared));
  }
  std::vector<uint64_t> counts(table->experts, 0);
  for (uint32_t e : expert_) ++counts[e];
  for (uint32_t e = 0; e < table->experts; ++e) {
    if (counts[e] != 0) table->attribution[e] = gain[e] / static_cast<double>(counts[e]);
  }
  if (!samples_.empty()) table->shared_attribution = shared / static_cast<double>(samples_.size());
  return Status::Ok();
}

}  // namespace moepack
