#include "model/profile.h"

#include <algorithm>
#include <cmath>

#include "base/digest/sha256.h"
#include "format/manifest/program_wire.h"
#include "format/program_input.h"
#include "model/profile_layout.h"

namespace moepack {
namespace {

Status Bad(const std::string& field, const std::string& rule) {
  return Status(ErrorCode::kBadInput, "profile: " + field + ": " + rule);
}

Status CheckFinite(const std::string& field, std::span<const double> values) {
  const bool finite = std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
  return finite ? Status::Ok() : Bad(field, "holds a number that is not finite");
}

Status CheckFinite(const std::string& field, const std::vector<std::vector<float>>& rows) {
  for (const std::vector<float>& row : rows) {
    if (!std::all_of(row.begin(), row.end(), [](float v) { return std::isfinite(v); }))
      return Bad(field, "holds a number that is not finite");
  }
  return Status::Ok();
}

Status CheckRows(const Profile& p) {
  if (p.rows.size() != p.size() * p.row_width || !p.tokens.empty()) return Bad("rows", "must be whole and without tokens");
  if (p.sequence_start.size() != p.size()) return Bad("sequence_start", "each row must be a sequence of its own");
  const bool finite = std::all_of(p.rows.begin(), p.rows.end(), [](float v) { return std::isfinite(v); });
  return finite ? Status::Ok() : Bad("rows", "holds a number that is not finite");
}

Status CheckSequences(const Profile& p) {
  if (p.domains.empty()) return Bad("domains", "must not be empty");
  if (p.sequence_start.size() != p.sequence_domain.size()) return Bad("sequence_domain", "needs one entry a sequence");
  for (size_t i = 0; i < p.sequence_start.size(); ++i) {
    const bool ordered = i == 0 ? p.sequence_start[i] == 0 : p.sequence_start[i] > p.sequence_start[i - 1];
    if (!ordered || p.sequence_start[i] >= p.size())
      return Bad("sequence_start", "must rise strictly from 0 below the number of tokens or rows");
    if (p.sequence_domain[i] >= p.domains.size()) return Bad("sequence_domain", "names a domain that is not there");
  }
  if (p.sequence_start.empty() != (p.size() == 0)) return Bad("sequence_start", "must cover the tokens or rows");
  if (p.row_width > 0) return CheckRows(p);
  const bool ids = std::all_of(p.tokens.begin(), p.tokens.end(), [](int32_t t) { return t >= 0; });
  return ids ? Status::Ok() : Bad("tokens", "holds a negative id");
}

Status CheckTable(const TableProfile& t, const std::string& prefix) {
  if (t.experts == 0 || t.experts > kMaxExperts || t.k == 0 || t.k > t.experts)
    return Bad(prefix + "experts", "or k out of range");
  const auto known = [&](uint16_t e) { return e < t.experts; };
  if (!std::all_of(t.trace.begin(), t.trace.end(), known)) return Bad(prefix + "trace", "names an expert that is not there");
  const double scalars[] = {t.srp, t.shared_attribution};
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "srp", scalars));
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "sch", t.sch));
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "gate_sum", t.gate_sum));
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "gate_sq_sum", t.gate_sq_sum));
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "reap", t.reap));
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "output_norm", t.output_norm));
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "attribution", t.attribution));
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "in_sq", t.in_sq));
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "in_gate_sq", t.in_gate_sq));
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "down_sq", t.down_sq));
  MOEPACK_RETURN_IF_ERROR(CheckFinite(prefix + "down_gate_sq", t.down_gate_sq));
  return CheckFinite(prefix + "output_mean", t.output_mean);
}

Status DoesNotFit(const std::string& what) {
  return Status(ErrorCode::kBadInput,
                "the profile was made from another model (" + what + "); run `moepack calibrate` on this one");
}

}  // namespace

Status CheckProfile(const Profile& profile) {
  uint8_t digest[32];
  if (!FromHex(profile.model_digest, digest)) return Bad("model_digest", "must be 64 hexadecimal digits");
  MOEPACK_RETURN_IF_ERROR(CheckSequences(profile));
  for (size_t t = 0; t < profile.tables.size(); ++t) MOEPACK_RETURN_IF_ERROR(CheckTable(profile.tables[t], TablePrefix(t)));
  return CheckFinite("dense_in_sq", profile.dense_in_sq);
}

std::string ProgramDigest(const Program& program) { return ToHex(Sha256(SerializeProgram(program))); }

Status CheckProfileFits(const Profile& profile, const Program& program) {
  if (profile.model_digest != ProgramDigest(program)) return DoesNotFit("another program");
  if (profile.tables.size() != program.expert_tables.size()) return DoesNotFit("another number of MoE layers");
  for (size_t t = 0; t < profile.tables.size(); ++t) {
    const TableProfile& table = profile.tables[t];
    const ExpertTableDecl& decl = program.expert_tables[t];
    if (table.experts != decl.experts()) return DoesNotFit("another number of experts");
    for (uint32_t e = 0; e < table.experts; ++e) {
      if (table.in_sq[e].size() != decl.hidden || table.down_sq[e].size() != decl.intermediate[e])
        return DoesNotFit("experts of another width");
    }
  }
  if (profile.row_width != InputWidth(program)) return DoesNotFit("another input");
  for (const Node& node : program.nodes) {
    if (node.kind != NodeKind::kEmbedding) continue;
    const uint64_t vocabulary = program.tensors[node.embedding.table].rows;
    const auto known = [vocabulary](int32_t token) { return token >= 0 && static_cast<uint64_t>(token) < vocabulary; };
    if (!std::all_of(profile.tokens.begin(), profile.tokens.end(), known)) return DoesNotFit("another vocabulary");
  }
  if (profile.dense_in_sq.size() != program.tensors.size() ||
      profile.weights.digests.size() != CountWeightDigests(program)) {
    return DoesNotFit("another number of tensors");
  }
  for (size_t id = 0; id < program.tensors.size(); ++id) {
    const std::vector<float>& moments = profile.dense_in_sq[id];
    if (!moments.empty() && moments.size() != program.tensors[id].cols)
      return DoesNotFit("tensor " + program.tensors[id].name);
  }
  return Status::Ok();
}

}  // namespace moepack
