#include "compressor/hot_list.h"

#include <algorithm>

#include "compressor/cache_simulation.h"

namespace moepack {
namespace {

uint64_t TokensOf(const TableProfile& seen, size_t domains, uint32_t original) {
  uint64_t tokens = 0;
  for (size_t d = 0; d < domains; ++d) tokens += seen.tokens[d * seen.experts + original];
  return tokens;
}

std::vector<std::pair<uint32_t, uint32_t>> ByTokens(const Profile& profile, const Program& program,
                                                    const Structure& structure) {
  struct Entry {
    uint64_t tokens;
    uint32_t table, expert;
  };
  std::vector<Entry> entries;
  for (uint32_t t = 0; t < program.expert_tables.size(); ++t) {
    for (uint32_t e = 0; e < program.expert_tables[t].experts(); ++e) {
      const uint64_t tokens = TokensOf(profile.tables[t], profile.domains.size(), structure.tables[t].experts[e]);
      if (tokens > 0) entries.push_back({tokens, t, e});
    }
  }
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.tokens > b.tokens; });
  std::vector<std::pair<uint32_t, uint32_t>> out;
  for (const Entry& e : entries) out.emplace_back(e.table, e.expert);
  return out;
}

CacheTrace::Table TraceOf(const TableProfile& seen, const ExpertTableDecl& table, const std::vector<uint32_t>& kept) {
  std::vector<uint32_t> now(seen.experts, CacheTrace::kNone);
  for (uint32_t e = 0; e < kept.size(); ++e) now[kept[e]] = e;
  CacheTrace::Table out;
  out.k = seen.k;
  out.chosen.reserve(seen.trace.size());
  for (const uint16_t expert : seen.trace) out.chosen.push_back(now[expert]);
  for (const uint64_t width : table.intermediate) out.bytes.push_back(width * table.hidden * (table.gated ? 3 : 2));
  return out;
}

}  // namespace

HotList MakeHotList(const Profile& profile, const Program& program, const Structure& structure, ThreadPool& pool) {
  HotList out;
  out.experts = ByTokens(profile, program, structure);
  CacheTrace trace;
  trace.hot = out.experts;
  for (uint32_t t = 0; t < program.expert_tables.size(); ++t) {
    if (profile.tables[t].trace.empty()) return out;
    trace.tables.push_back(TraceOf(profile.tables[t], program.expert_tables[t], structure.tables[t].experts));
  }
  if (!trace.tables.empty()) out.cache = ChooseCachePolicy(trace, pool);
  return out;
}

}  // namespace moepack
