// Which arrays a profile has, under which names, with which shapes: one list that writing, reading and checking share.
// Not for use outside of model/profile*.cc.
#pragma once

#include <string>
#include <vector>

#include "model/frontend/safetensors.h"
#include "model/profile.h"

namespace moepack {

// Widths of a table's experts, kept in the metadata.
struct TableShape {
  uint64_t hidden = 0;
  std::vector<uint64_t> intermediate;  // by expert
};

enum class Presence : uint8_t { kRequired, kOptional };

// Calls visitor.Array(name, shape, &vector, presence) for each flat array and visitor.Rows(name, widths, &rows) for each
// array with one row an expert.
template <typename Table, typename Visitor>
void VisitTable(Table& t, const std::string& prefix, uint64_t domains, uint64_t tokens, const TableShape& shape,
                Visitor& visitor) {
  const uint64_t experts = t.experts;
  const std::vector<uint64_t> hidden(experts, shape.hidden);
  visitor.Array(prefix + "tokens", {domains, experts}, &t.tokens, Presence::kRequired);
  visitor.Array(prefix + "gate_sum", {domains, experts}, &t.gate_sum, Presence::kRequired);
  visitor.Array(prefix + "gate_sq_sum", {domains, experts}, &t.gate_sq_sum, Presence::kRequired);
  visitor.Array(prefix + "reap", {experts}, &t.reap, Presence::kRequired);
  visitor.Array(prefix + "output_norm", {experts}, &t.output_norm, Presence::kRequired);
  visitor.Array(prefix + "coactivation", {experts, experts}, &t.coactivation, Presence::kRequired);
  visitor.Array(prefix + "attribution", {experts}, &t.attribution, Presence::kOptional);
  visitor.Array(prefix + "trace", {tokens, t.k}, &t.trace, Presence::kOptional);
  visitor.Rows(prefix + "in_sq", hidden, &t.in_sq);
  visitor.Rows(prefix + "in_gate_sq", hidden, &t.in_gate_sq);
  visitor.Rows(prefix + "output_mean", hidden, &t.output_mean);
  visitor.Rows(prefix + "down_sq", shape.intermediate, &t.down_sq);
  visitor.Rows(prefix + "down_gate_sq", shape.intermediate, &t.down_gate_sq);
}

// The same for what stands outside of tables.
template <typename AnyProfile, typename Visitor>
void VisitSequences(AnyProfile& p, uint64_t tokens, uint64_t sequences, Visitor& visitor) {
  if (p.row_width > 0) {
    visitor.Array("rows", {tokens, p.row_width}, &p.rows, Presence::kRequired);
  } else {
    visitor.Array("tokens", {tokens}, &p.tokens, Presence::kRequired);
  }
  visitor.Array("sequence_start", {sequences}, &p.sequence_start, Presence::kRequired);
  visitor.Array("sequence_domain", {sequences}, &p.sequence_domain, Presence::kRequired);
}

inline std::string TablePrefix(size_t table) { return StrFormat("table.%zu.", table); }
inline std::string DenseName(size_t tensor) { return StrFormat("dense.%zu.in_sq", tensor); }

inline Dtype DtypeOf(double) { return Dtype::kF64; }
inline Dtype DtypeOf(float) { return Dtype::kF32; }
inline Dtype DtypeOf(uint64_t) { return Dtype::kU64; }
inline Dtype DtypeOf(uint32_t) { return Dtype::kU32; }
inline Dtype DtypeOf(int32_t) { return Dtype::kI32; }
inline Dtype DtypeOf(uint16_t) { return Dtype::kU16; }

inline constexpr char kProfileKey[] = "moepack_profile";
inline constexpr char kWeightsName[] = "weights";  // [digests, 32] bytes
inline constexpr uint64_t kProfileVersion = 2;

// Rules between the parts that shapes do not cover: sequences in order, domains and experts in range, finite numbers.
Status CheckProfile(const Profile& profile);

}  // namespace moepack
