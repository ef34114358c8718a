#include "compressor/calibration.h"

#include <algorithm>

#include "base/divergence.h"

namespace moepack {
namespace {

constexpr uint64_t kHoldBackEvery = 8;
constexpr uint64_t kTokensAtOnce = 1024;  // logits held at a time

Result<Matrix> Logits(const LastBlock& model, const TokenBatch& batch, const TokenBatch& part, const std::vector<uint64_t>& sequences) {
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

}  // namespace

Result<Calibration> MakeCalibration(const Profile& profile, const std::map<std::string, double>& domain_weights) {
  Calibration out;
  out.batch = {profile.tokens, profile.sequence_start};
  for (const auto& [name, weight] : domain_weights) {
    if (std::find(profile.domains.begin(), profile.domains.end(), name) == profile.domains.end()) {
      return Status(ErrorCode::kRecipe, "domains: the profile has no domain '" + name + "'");
    }
  }
  const bool hold_back = out.batch.sequences() >= kHoldBackEvery;
  out.weights.resize(out.batch.size());
  for (uint64_t s = 0; s < out.batch.sequences(); ++s) {
    const bool held = hold_back && s % kHoldBackEvery == kHoldBackEvery - 1;
    if (held) out.held_back.push_back(s);
    const auto weight = domain_weights.find(profile.domains[profile.sequence_domain[s]]);
    const double value = held ? 0 : weight == domain_weights.end() ? 1 : weight->second;
    std::fill(out.weights.begin() + static_cast<ptrdiff_t>(out.batch.begin(s)), out.weights.begin() + static_cast<ptrdiff_t>(out.batch.end(s)),
              static_cast<float>(value));
  }
  return out;
}

TokenBatch SelectSequences(const TokenBatch& batch, const std::vector<uint64_t>& sequences) {
  TokenBatch out;
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

Result<double> MeanKld(const LastBlock& base, const LastBlock& other, const TokenBatch& batch) {
  Divergence divergence;
  for (uint64_t s = 0; s < batch.sequences();) {
    std::vector<uint64_t> sequences;
    for (uint64_t tokens = 0; s < batch.sequences() && (sequences.empty() || tokens + batch.end(s) - batch.begin(s) <= kTokensAtOnce); ++s) {
      sequences.push_back(s);
      tokens += batch.end(s) - batch.begin(s);
    }
    const TokenBatch part = SelectSequences(batch, sequences);
    MOEPACK_ASSIGN_OR_RETURN(const Matrix expected, Logits(base, batch, part, sequences));
    MOEPACK_ASSIGN_OR_RETURN(const Matrix actual, Logits(other, batch, part, sequences));
    const auto vocab = static_cast<size_t>(expected.cols());
    for (uint64_t p = 0; p < part.sequences(); ++p) {
      for (uint64_t t = part.begin(p) + (part.end(p) - part.begin(p)) / 2; t + 1 < part.end(p); ++t) {
        divergence.Add({expected.data() + t * vocab, vocab}, {actual.data() + t * vocab, vocab}, part.tokens[t + 1]);
      }
    }
  }
  return divergence.Report().kld_mean;
}

}  // namespace moepack
