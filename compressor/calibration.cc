#include "compressor/calibration.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/checked.h"

namespace moepack {
namespace {

constexpr uint64_t kHoldBackEvery = 8;

}  // namespace

uint64_t EnoughTokens(const Program& program) {
  static constexpr uint64_t kTokensADimension = 16;
  uint64_t most = 0;
  for (const TensorDecl& tensor : program.tensors) most = std::max(most, tensor.rows > 1 ? tensor.cols : 0);
  for (const Node& node : program.nodes) {
    if (node.kind != NodeKind::kMoe) continue;
    const ExpertTableDecl& table = program.expert_tables[node.moe.table];
    uint64_t widest = table.hidden;
    for (uint64_t width : table.intermediate) widest = std::max(widest, width);
    most = std::max(most, widest * CeilDiv(table.experts(), node.moe.routing.k));
  }
  return most * kTokensADimension;
}

std::vector<float> RowWeights(const TensorRef& tensor, const TokenBatch& batch, std::span<const float> token_weights) {
  const bool table = tensor.role == TensorRole::kEmbedding || tensor.role == TensorRole::kHead;
  if (!table || tensor.is_expert()) return {};
  std::vector<float> counts(tensor.shape.rows, 1.0f);
  for (size_t t = 0; t < batch.tokens.size(); ++t) {
    const auto token = static_cast<size_t>(batch.tokens[t]);
    if (token < counts.size()) counts[token] += token_weights[t];
  }
  return counts;
}

std::vector<uint64_t> SpreadEvenly(const TokenBatch& batch, const std::vector<uint64_t>& sequences, uint64_t max_tokens) {
  uint64_t tokens = 0;
  for (uint64_t s : sequences) tokens += batch.end(s) - batch.begin(s);
  if (tokens <= max_tokens || sequences.empty()) return sequences;
  const double share = static_cast<double>(max_tokens) / static_cast<double>(tokens);
  const auto wanted = std::max<size_t>(1, static_cast<size_t>(static_cast<double>(sequences.size()) * share));
  std::vector<uint64_t> out;
  for (size_t i = 0; i < wanted; ++i) out.push_back(sequences[i * sequences.size() / wanted]);
  return out;
}

Result<Calibration> MakeCalibration(const Profile& profile, uint64_t max_tokens,
                                    const std::map<std::string, double>& domain_weights) {
  for (const auto& [name, weight] : domain_weights) {
    if (std::find(profile.domains.begin(), profile.domains.end(), name) == profile.domains.end()) {
      return Status(ErrorCode::kRecipe, "domains: the profile has no domain '" + name + "'");
    }
  }
  TokenBatch all = {profile.tokens, profile.sequence_start};
  if (profile.row_width > 0) all = RowBatch(profile.rows, profile.row_width);
  const bool hold_back = all.sequences() >= kHoldBackEvery;
  std::vector<uint64_t> used, held;
  for (uint64_t s = 0; s < all.sequences(); ++s) {
    (hold_back && s % kHoldBackEvery == kHoldBackEvery - 1 ? held : used).push_back(s);
  }
  used = SpreadEvenly(all, used, max_tokens);
  held = SpreadEvenly(all, held, kMaxHeldBackTokens);
  std::vector<uint64_t> sequences(used.size() + held.size());
  std::merge(used.begin(), used.end(), held.begin(), held.end(), sequences.begin());
  Calibration out;
  out.batch = SelectSequences(all, sequences);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const uint64_t s = sequences[i];
    const bool is_held = std::binary_search(held.begin(), held.end(), s);
    if (is_held) out.held_back.push_back(i);
    out.domain.push_back(profile.sequence_domain[s]);
    const auto weight = domain_weights.find(profile.domains[profile.sequence_domain[s]]);
    const double value = is_held ? 0 : weight == domain_weights.end() ? 1 : weight->second;
    out.weights.insert(out.weights.end(), all.end(s) - all.begin(s), static_cast<float>(value));
  }
  return out;
}

TokenBatch SelectSequences(const TokenBatch& batch, const std::vector<uint64_t>& sequences) {
  TokenBatch out;
  if (batch.rows.size() > 0) {
    out.rows.resize(static_cast<Eigen::Index>(sequences.size()), batch.rows.cols());
    for (size_t i = 0; i < sequences.size(); ++i) {
      out.sequence_start.push_back(i);
      out.rows.row(static_cast<Eigen::Index>(i)) = batch.rows.row(static_cast<Eigen::Index>(sequences[i]));
    }
    return out;
  }
  for (uint64_t s : sequences) {
    out.sequence_start.push_back(out.tokens.size());
    out.tokens.insert(out.tokens.end(), batch.tokens.begin() + static_cast<ptrdiff_t>(batch.begin(s)),
                      batch.tokens.begin() + static_cast<ptrdiff_t>(batch.end(s)));
  }
  return out;
}

Stream SelectRows(const Stream& stream, const TokenBatch& batch, const std::vector<uint64_t>& sequences) {
  uint64_t rows = 0;
  for (uint64_t s : sequences) rows += batch.end(s) - batch.begin(s);
  Stream out;
  for (const auto& [id, value] : stream.values) {
    Matrix& chosen = out.values[id];
    chosen.resize(static_cast<Eigen::Index>(rows), value.cols());
    Eigen::Index at = 0;
    for (uint64_t s : sequences) {
      const auto count = static_cast<Eigen::Index>(batch.end(s) - batch.begin(s));
      chosen.middleRows(at, count) = value.middleRows(static_cast<Eigen::Index>(batch.begin(s)), count);
      at += count;
    }
  }
  return out;
}

std::vector<double> RowKlds(const Matrix& base, const Matrix& other, ThreadPool& pool) {
  std::vector<double> out(static_cast<size_t>(base.rows()));
  pool.ParallelFor(out.size(), 8, [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      // log p and log q in double: the difference of two nearly equal distributions is all that matters here.
      const Eigen::ArrayXd p = base.row(r).cast<double>().array() - static_cast<double>(base.row(r).maxCoeff());
      const Eigen::ArrayXd q = other.row(r).cast<double>().array() - static_cast<double>(other.row(r).maxCoeff());
      const Eigen::ArrayXd weight = p.exp();
      const double total = weight.sum();
      out[r] = (weight * (p - q)).sum() / total - std::log(total) + std::log(q.exp().sum());
    }
  });
  return out;
}

Result<Matrix> LastBlockLogits(const LastBlock& model, const TokenBatch& batch, const TokenBatch& part,
                               const std::vector<uint64_t>& sequences) {
  Matrix out;
  const Stream stream = SelectRows(*model.stream, batch, sequences);
  const auto sink = [&](uint64_t first, const Matrix& logits) {
    if (out.size() == 0) out.resize(static_cast<Eigen::Index>(part.size()), logits.cols());
    out.middleRows(static_cast<Eigen::Index>(first), logits.rows()) = logits;
    return Status::Ok();
  };
  MOEPACK_RETURN_IF_ERROR(model.forward->RunLastBlock(*model.weights, part, stream, sink));
  return out;
}

std::vector<std::vector<uint64_t>> CutIntoParts(const TokenBatch& batch, const std::vector<uint64_t>& sequences) {
  std::vector<std::vector<uint64_t>> parts;
  uint64_t tokens = 0;
  for (uint64_t s : sequences) {
    const uint64_t length = batch.end(s) - batch.begin(s);
    if (parts.empty() || tokens + length > kTokensAtOnce) {
      parts.emplace_back();
      tokens = 0;
    }
    parts.back().push_back(s);
    tokens += length;
  }
  return parts;
}

namespace {

std::vector<std::vector<uint64_t>> PartsOf(const TokenBatch& batch) {
  std::vector<uint64_t> all(batch.sequences());
  std::iota(all.begin(), all.end(), 0u);
  return CutIntoParts(batch, all);
}

Result<Matrix> ScoredLogitsOfPart(const LastBlock& model, const TokenBatch& batch, const std::vector<uint64_t>& sequences) {
  const TokenBatch part = SelectSequences(batch, sequences);
  MOEPACK_ASSIGN_OR_RETURN(const Matrix logits, LastBlockLogits(model, batch, part, sequences));
  std::vector<uint64_t> rows;
  for (uint64_t p = 0; p < part.sequences(); ++p) {
    for (uint64_t t = part.begin(p); t < part.end(p); ++t) {
      if (Scored(t - part.begin(p), part.end(p) - part.begin(p))) rows.push_back(t);
    }
  }
  Matrix out(static_cast<Eigen::Index>(rows.size()), logits.cols());
  for (size_t i = 0; i < rows.size(); ++i)
    out.row(static_cast<Eigen::Index>(i)) = logits.row(static_cast<Eigen::Index>(rows[i]));
  return out;
}

}  // namespace

std::vector<uint64_t> JudgedSequences(const Calibration& calibration, uint64_t vocabulary) {
  // Half of a sequence is scored.
  const uint64_t tokens = std::max<uint64_t>(1, 2 * (kMaxJudgedLogitBytes / sizeof(float) / std::max<uint64_t>(1, vocabulary)));
  std::map<uint32_t, std::vector<uint64_t>> by_domain;
  uint64_t all = 0;
  for (uint64_t s : calibration.held_back) {
    by_domain[calibration.domain[s]].push_back(s);
    all += calibration.batch.end(s) - calibration.batch.begin(s);
  }
  if (all <= tokens) return calibration.held_back;
  std::vector<uint64_t> out;
  for (const auto& [domain, sequences] : by_domain) {
    uint64_t own = 0;
    for (uint64_t s : sequences) own += calibration.batch.end(s) - calibration.batch.begin(s);
    const double share = static_cast<double>(own) / static_cast<double>(all);
    const auto most = static_cast<uint64_t>(static_cast<double>(tokens) * share);
    const std::vector<uint64_t> some = SpreadEvenly(calibration.batch, sequences, most);
    out.insert(out.end(), some.begin(), some.end());
  }
  std::sort(out.begin(), out.end());
  return out;
}

Result<std::vector<Matrix>> ScoredLogits(const LastBlock& model, const TokenBatch& batch) {
  std::vector<Matrix> out;
  for (const std::vector<uint64_t>& sequences : PartsOf(batch)) {
    MOEPACK_ASSIGN_OR_RETURN(Matrix logits, ScoredLogitsOfPart(model, batch, sequences));
    out.push_back(std::move(logits));
  }
  return out;
}

Result<std::vector<KldSum>> SequenceKlds(const std::vector<Matrix>& base, const LastBlock& other, const TokenBatch& batch,
                                         ThreadPool& pool) {
  std::vector<KldSum> out;
  size_t part = 0;
  for (const std::vector<uint64_t>& sequences : PartsOf(batch)) {
    MOEPACK_ASSIGN_OR_RETURN(const Matrix logits, ScoredLogitsOfPart(other, batch, sequences));
    const std::vector<double> klds = RowKlds(base[part++], logits, pool);
    size_t row = 0;
    for (uint64_t s : sequences) {
      const uint64_t length = batch.end(s) - batch.begin(s);
      KldSum& sum = out.emplace_back();
      for (uint64_t t = 0; t < length; ++t) {
        if (Scored(t, length)) sum.Add({klds[row++], 1});
      }
    }
  }
  return out;
}

}  // namespace moepack
