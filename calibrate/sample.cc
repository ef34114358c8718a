#include "calibrate/sample.h"

#include <algorithm>
#include <set>

#include "tokenizer/tokenizer.h"

namespace moepack {
namespace {

using ull = unsigned long long;

Status AddDomain(const std::string& what, const std::string& domain, std::set<std::string>* names) {
  if (domain.empty()) return Status(ErrorCode::kUsage, "a " + what + " has no domain name; write NAME=FILE");
  if (names->insert(domain).second) return Status::Ok();
  return Status(ErrorCode::kUsage, "two " + what + "s are named '" + domain + "'; tell them apart with NAME=FILE");
}

Status CheckRequest(const Model& model, const std::vector<CalibrationText>& texts, const CalibrateOptions& options) {
  if (texts.empty()) return Status(ErrorCode::kUsage, "no calibration text");
  if (options.ctx < 2 || options.ctx > model.program.max_positions) {
    return Status(ErrorCode::kUsage, StrFormat("ctx is %llu; expected 2 to %u, the longest sequence of this model",
                                               static_cast<ull>(options.ctx), model.program.max_positions));
  }
  if (options.tokens < options.ctx) {
    return Status(ErrorCode::kUsage, StrFormat("%llu tokens are fewer than one sequence of %llu; ask for more",
                                               static_cast<ull>(options.tokens), static_cast<ull>(options.ctx)));
  }
  std::set<std::string> names;
  for (const CalibrationText& text : texts) {
    MOEPACK_RETURN_IF_ERROR(AddDomain("text", text.domain, &names));
    if (text.text.empty()) return Status(ErrorCode::kBadInput, "domain '" + text.domain + "': the text is empty");
  }
  if (model.tokenizer.empty()) {
    return Status(ErrorCode::kTokenizer, "the model has no tokenizer (tokenizer.json), without which text cannot be read");
  }
  return Status::Ok();
}

// Tells of texts that are too short for their share.
void NoteShares(const std::vector<CalibrationText>& texts, const std::vector<uint64_t>& shares, uint64_t wanted,
                const CalibrateOptions& options, Progress& progress) {
  ull taken = 0;
  for (size_t d = 0; d < texts.size(); ++d) {
    taken += shares[d];
    if (shares[d] == 0) {
      progress.Note(
          StrFormat("domain '%s' is not reached: %llu sequences of %llu tokens are fewer than the %zu domains; "
                    "raise the number of tokens",
                    texts[d].domain.c_str(), static_cast<ull>(wanted), static_cast<ull>(options.ctx), texts.size()));
    }
  }
  if (taken < wanted) {
    progress.Note(StrFormat("the texts hold only %llu of the %llu tokens asked for; all of them are used",
                            taken * static_cast<ull>(options.ctx), wanted * static_cast<ull>(options.ctx)));
  }
}

}  // namespace

std::vector<uint64_t> ShareEvenly(uint64_t wanted, std::span<const uint64_t> available) {
  std::vector<size_t> order(available.size());
  for (size_t d = 0; d < order.size(); ++d) order[d] = d;
  // The poorest first: what it cannot give falls to the others. Among equals the last first, so that a rest that does not
  // divide goes to the first domains.
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return available[a] != available[b] ? available[a] < available[b] : a > b; });
  std::vector<uint64_t> shares(available.size());
  uint64_t left = wanted;
  for (size_t i = 0; i < order.size(); ++i) {
    shares[order[i]] = std::min(available[order[i]], left / (order.size() - i));
    left -= shares[order[i]];
  }
  return shares;
}

Result<CalibrationSample> SampleTexts(const Model& model, const std::vector<CalibrationText>& texts,
                                      const CalibrateOptions& options, Progress& progress) {
  MOEPACK_RETURN_IF_ERROR(CheckRequest(model, texts, options));
  MOEPACK_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Parse(model.tokenizer));
  std::vector<std::vector<int32_t>> tokens;
  std::vector<uint64_t> available;
  for (const CalibrationText& text : texts) {
    tokens.push_back(tokenizer->Encode(text.text));
    available.push_back(tokens.back().size() / options.ctx);
    if (available.back() == 0) {
      return Status(
          ErrorCode::kBadInput,
          StrFormat("domain '%s': %zu tokens, fewer than one sequence of %llu; give a longer text or a smaller ctx",
                    text.domain.c_str(), tokens.back().size(), static_cast<ull>(options.ctx)));
    }
  }
  const uint64_t wanted = options.tokens / options.ctx;
  const std::vector<uint64_t> shares = ShareEvenly(wanted, available);
  NoteShares(texts, shares, wanted, options, progress);
  CalibrationSample sample;
  for (uint32_t d = 0; d < texts.size(); ++d) {
    for (uint64_t i = 0; i < shares[d]; ++i) {
      const auto from = tokens[d].begin() + static_cast<std::ptrdiff_t>(i * available[d] / shares[d] * options.ctx);
      sample.batch.sequence_start.push_back(sample.batch.tokens.size());
      sample.batch.tokens.insert(sample.batch.tokens.end(), from, from + static_cast<std::ptrdiff_t>(options.ctx));
      sample.sequence_domain.push_back(d);
      sample.token_domain.insert(sample.token_domain.end(), options.ctx, d);
    }
  }
  return sample;
}

Result<CalibrationSample> SampleRows(const std::vector<CalibrationRows>& tables) {
  CalibrationSample sample;
  std::set<std::string> names;
  Eigen::Index rows = 0;
  for (const CalibrationRows& table : tables) {
    MOEPACK_RETURN_IF_ERROR(AddDomain("table", table.domain, &names));
    rows += table.batch.rows.rows();
  }
  sample.batch.rows.resize(rows, tables.empty() ? 0 : tables[0].batch.rows.cols());
  Eigen::Index at = 0;
  for (uint32_t d = 0; d < tables.size(); ++d) {
    const Matrix& from = tables[d].batch.rows;
    sample.batch.rows.middleRows(at, from.rows()) = from;
    for (const Eigen::Index end = at + from.rows(); at < end; ++at) {
      sample.batch.sequence_start.push_back(static_cast<uint64_t>(at));
      sample.sequence_domain.push_back(d);
    }
  }
  sample.token_domain = sample.sequence_domain;
  return sample;
}

}  // namespace moepack
