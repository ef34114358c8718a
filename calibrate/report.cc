#include <algorithm>
#include <cmath>

#include "base/outputs.h"
#include "calibrate/calibrate.h"

namespace moepack {
namespace {

using ull = unsigned long long;

constexpr char kStyle[] = R"(<style>
body { font: 14px/1.45 system-ui, sans-serif; color: #1c2430; max-width: 76em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid #e3e7ec; }
th:first-child, td:first-child { text-align: left; }
p.note { color: #5a6675; max-width: 60em; } p.warn { border-left: 4px solid #c4622d; padding-left: .8em; }
svg text { font: 11px system-ui, sans-serif; fill: #1c2430; } summary { cursor: pointer; margin: .3em 0; }
div.wide { overflow-x: auto; }
</style>
)";

std::string Escape(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// White at 0, blue towards 1, orange towards -1.
std::string Colour(double value) {
  const double v = std::isfinite(value) ? std::clamp(value, -1.0, 1.0) : 0.0, depth = std::abs(v);
  const double full[2][3] = {{196, 98, 45}, {22, 82, 150}};
  const double* target = full[v >= 0 ? 1 : 0];
  const auto channel = [&](int i) { return static_cast<int>(std::lround(255 + (target[i] - 255) * depth)); };
  return StrFormat("#%02x%02x%02x", channel(0), channel(1), channel(2));
}

// A picture of rows of cells, each coloured by a value in [-1, 1].
class HeatMap {
 public:
  explicit HeatMap(size_t columns) : columns_(columns) {}
  void Row(const std::string& label) {
    body_ +=
        StrFormat("<text x=\"%d\" y=\"%zu\" text-anchor=\"end\">", kLeft - 6, y_ + kCell - 3) + Escape(label) + "</text>\n";
    x_ = kLeft;
    y_ += kCell;
  }
  void Cell(double value, const std::string& title) {
    body_ += StrFormat("<rect x=\"%d\" y=\"%zu\" width=\"%d\" height=\"%d\" fill=\"%s\"><title>", x_, y_ - kCell, kCell - 1,
                       kCell - 1, Colour(value).c_str()) +
             Escape(title) + "</title></rect>\n";
    x_ += kCell;
  }
  void Gap() { y_ += 6; }
  std::string Svg() const {
    std::string axis;
    for (size_t e = 0; e<columns_; e += columns_> 32 ? 8 : 1) {
      axis += StrFormat("<text x=\"%zu\" y=\"12\" text-anchor=\"middle\">%zu</text>\n", kLeft + e * kCell + kCell / 2, e);
    }
    return StrFormat("<div class=\"wide\"><svg width=\"%zu\" height=\"%zu\" role=\"img\">\n", kLeft + columns_ * kCell + 8,
                     y_ + 4) +
           axis + body_ + "</svg></div>\n";
  }

 private:
  static constexpr int kCell = 15, kLeft = 190;
  size_t columns_;
  int x_ = kLeft;
  size_t y_ = 18;
  std::string body_;
};

struct Page {
  const Program& program;
  const Profile& profile;
  const CalibrateOptions& options;

  bool rows() const { return profile.row_width > 0; }  // instead of tokens
  size_t Columns() const {
    size_t most = 0;
    for (const TableProfile& table : profile.tables) most = std::max<size_t>(most, table.experts);
    return most;
  }
  int Layer(size_t table) const { return program.expert_tables[table].layer; }
  uint64_t Tokens(const TableProfile& table, size_t e) const { return table.coactivation[e * table.experts + e]; }
  uint64_t DomainTokens(size_t d) const {
    uint64_t tokens = 0;
    for (size_t s = 0; s < profile.sequence_start.size(); ++s) {
      const uint64_t end = s + 1 < profile.sequence_start.size() ? profile.sequence_start[s + 1] : profile.size();
      if (profile.sequence_domain[s] == d) tokens += end - profile.sequence_start[s];
    }
    return tokens;
  }

  std::string Overview() const {
    std::string out = "<h2>What was read</h2>\n<table><tr><th>domain</th><th>tokens</th><th>SHA-256 of the text</th></tr>\n";
    for (size_t d = 0; d < profile.domains.size(); ++d) {
      out += "<tr><td>" + Escape(profile.domains[d]) +
             StrFormat("</td><td>%llu</td><td>", static_cast<ull>(DomainTokens(d))) +
             profile.inputs[d].second.substr(0, 16) + "&hellip;</td></tr>\n";
    }
    return out + StrFormat("<tr><td>all</td><td>%zu</td><td></td></tr></table>\n", static_cast<size_t>(profile.size()));
  }

  std::string Warnings() const {
    std::string out = "<h2>What to watch</h2>\n";
    const std::vector<ThinExpert> thin = FindThinExperts(profile, options.min_tokens_per_expert);
    for (size_t i = 0; i < thin.size(); ++i) {
      const bool starts = i == 0 || thin[i - 1].table != thin[i].table;
      if (starts) {
        out += StrFormat("<p class=\"warn\">Layer %d: fewer than %llu tokens reached expert ", Layer(thin[i].table),
                         static_cast<ull>(options.min_tokens_per_expert));
      }
      out += StrFormat("%s%u (%llu)", starts ? "" : ", ", program.expert_tables[thin[i].table].original[thin[i].expert],
                       static_cast<ull>(thin[i].tokens));
      if (i + 1 == thin.size() || thin[i + 1].table != thin[i].table)
        out += ". Calibrate on more tokens or other text.</p>\n";
    }
    for (size_t d = 0; d < profile.domains.size(); ++d) {
      if (DomainTokens(d) == 0) out += "<p class=\"warn\">Domain " + Escape(profile.domains[d]) + " got no tokens.</p>\n";
    }
    if (out.find("<p") == std::string::npos)
      out += "<p>Nothing: every expert saw enough tokens, every domain was reached.</p>\n";
    return out;
  }

  std::string Use() const {
    std::string out =
        "<h2>Use of experts by layer and domain</h2>\n<p class=\"note\">Columns are experts. White: no token of the "
        "domain; the darkest blue: four times an even share, or more.</p>\n";
    HeatMap map(Columns());
    for (size_t t = 0; t < profile.tables.size(); ++t) {
      const TableProfile& table = profile.tables[t];
      for (size_t d = 0; d < profile.domains.size(); ++d) {
        map.Row(StrFormat("layer %d, ", Layer(t)) + profile.domains[d]);
        const double even = static_cast<double>(DomainTokens(d)) * table.k / table.experts;
        for (size_t e = 0; e < table.experts; ++e) {
          const uint64_t tokens = table.tokens[d * table.experts + e];
          map.Cell(even > 0 ? static_cast<double>(tokens) / even / 4 : 0,
                   StrFormat("expert %u: %llu tokens", program.expert_tables[t].original[e], static_cast<ull>(tokens)));
        }
      }
      map.Gap();
    }
    return out + map.Svg();
  }

  // One row a layer, scaled by the largest absolute value of the layer.
  template <typename Values>
  std::string ByLayer(const char* name, const Values& values) const {
    HeatMap map(Columns());
    for (size_t t = 0; t < profile.tables.size(); ++t) {
      const std::vector<double>& row = values(profile.tables[t]);
      double largest = 0;
      for (double v : row) largest = std::max(largest, std::abs(v));
      map.Row(StrFormat("layer %d", Layer(t)));
      for (size_t e = 0; e < row.size(); ++e) {
        map.Cell(largest > 0 ? row[e] / largest : 0,
                 StrFormat("expert %u: %s %.4g", program.expert_tables[t].original[e], name, row[e]));
      }
    }
    return map.Svg();
  }

  std::string Saliency() const {
    std::string out =
        "<h2>Saliency</h2>\n<p class=\"note\">Mean of router weight times output norm over an expert's tokens "
        "(REAP). The darkest of a row is the layer's largest.</p>\n";
    out += ByLayer("saliency", [](const TableProfile& t) -> const std::vector<double>& { return t.reap; });
    if (!rows()) {
      out +=
          "<h2>Attribution</h2>\n<p class=\"note\">Mean gain in log-probability of the next token when the expert's output "
          "is added to the state after attention. Blue helps, orange hurts.</p>\n";
      out += ByLayer("attribution", [](const TableProfile& t) -> const std::vector<double>& { return t.attribution; });
    }
    for (size_t t = 0; t < profile.tables.size(); ++t) out += SaliencyTable(t);
    return out;
  }

  std::string SaliencyTable(size_t t) const {
    const TableProfile& table = profile.tables[t];
    std::string out = StrFormat(
        "<details><summary>Layer %d, expert by expert (what stands beside the experts: attribution %.4f)"
        "</summary>\n<table><tr><th>expert</th><th>tokens</th><th>mean weight</th><th>saliency</th>"
        "<th>output norm</th><th>attribution</th></tr>\n",
        Layer(t), table.shared_attribution);
    for (size_t e = 0; e < table.experts; ++e) {
      double gate = 0;
      for (size_t d = 0; d < profile.domains.size(); ++d) gate += table.gate_sum[d * table.experts + e];
      const uint64_t tokens = Tokens(table, e);
      out += StrFormat("<tr><td>%u</td><td>%llu</td><td>%.4f</td><td>%.4f</td><td>%.4f</td><td>%+.4f</td></tr>\n",
                       program.expert_tables[t].original[e], static_cast<ull>(tokens),
                       tokens == 0 ? 0.0 : gate / static_cast<double>(tokens), table.reap[e], table.output_norm[e],
                       table.attribution[e]);
    }
    return out + "</table></details>\n";
  }

  std::string Locality() const {
    if (rows())
      return "<p class=\"note\">Rows have no next token and no text around them: no attribution, no locality.</p>\n";
    std::string out = StrFormat(
        "<h2>Locality</h2>\n<p class=\"note\">SRP: how well a fixed set of experts serves a window of %u tokens, in "
        "percent. SCH: "
        "hit rate of a cache of 1, 2 and 3 times the experts of a token, under an eviction that knows the next window.</p>\n"
        "<table><tr><th>layer</th><th>SRP %%</th><th>SCH 1x</th><th>SCH 2x</th><th>SCH 3x</th></tr>\n",
        kLocalityWindow);
    for (size_t t = 0; t < profile.tables.size(); ++t) {
      out += StrFormat("<tr><td>%d</td><td>%.1f</td>", Layer(t), profile.tables[t].srp);
      for (double rate : profile.tables[t].sch) out += StrFormat("<td>%.3f</td>", rate);
      out += "</tr>\n";
    }
    return out + "</table>\n";
  }
};

}  // namespace

std::string HtmlReport(const Program& program, const Profile& profile, const CalibrateOptions& options) {
  const Page page{program, profile, options};
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Calibration report</title>\n" +
         std::string(kStyle) + "</head><body>\n<h1>Calibration report</h1>\n" + page.Overview() + page.Warnings() +
         page.Use() + page.Saliency() + page.Locality() + "</body></html>\n";
}

Status WriteCalibration(Env& env, const std::string& output, const std::string& report, const Program& program,
                        const Profile& profile, const CalibrateOptions& options) {
  MOEPACK_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(env, output));
  MOEPACK_RETURN_IF_ERROR(AppendProfile(*file, profile));
  if (report.empty()) return file->Commit();
  MOEPACK_ASSIGN_OR_RETURN(const auto page, AtomicFile::Create(env, report));
  MOEPACK_RETURN_IF_ERROR(page->Append(AsBytes(HtmlReport(program, profile, options))));
  return CommitTogether(env, {{output, file.get()}, {report, page.get()}});
}

}  // namespace moepack
