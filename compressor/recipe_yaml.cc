#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/progress.h"
#include "compressor/recipe.h"

namespace moepack {
namespace {

// Levenshtein distance: which valid key a typo was meant to be.
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row.back();
}

const std::string& Nearest(const std::string& key, const std::vector<std::string>& valid) {
  return *std::min_element(valid.begin(), valid.end(),
                           [&](const auto& a, const auto& b) { return Distance(key, a) < Distance(key, b); });
}

// ": line 2, column 3", nothing where the document is empty.
std::string PlaceOf(const YAML::Mark& mark) {
  return mark.line < 0 ? "" : StrFormat(": line %d, column %d", mark.line + 1, mark.column + 1);
}

// Reads one recipe; the first error stops it. yaml-cpp's exceptions end at ParseRecipe.
class Reader {
 public:
  explicit Reader(std::string file) : file_(std::move(file)) {}

  Status Read(const YAML::Node& root, Recipe* out) {
    using Handler = std::function<void(const YAML::Node&)>;
    bool version = false;
    Map(root, "the recipe",
        std::map<std::string, Handler>{
            {"version",
             [&](const auto& n) {
               version = true;
               // A quoted scalar is a string ("!"), whatever it holds.
               if (Text(n) != "1" || n.Tag() == "!") Fail(n, "version must be the number 1");
             }},
            {"defaults", [&](const auto& n) { out->defaults = ReadChoice(n); }},
            {"rules", [&](const auto& n) { ReadRules(n, out); }},
            {"prune", [&](const auto& n) { out->prune = ReadPrune(n); }},
            {"drop_experts", [&](const auto& n) { out->drop_experts = ReadDrop(n); }},
            {"prune_channels",
             [&](const auto& n) {
               Map(n, "prune_channels", {{"share", [&](const auto& s) { out->prune_channels = ChannelShare(s); }}});
             }},
            {"second_precision",
             [&](const auto& n) {
               Map(n, "second_precision", {{"codec", [&](const auto& c) { out->second_precision = ReadCodec(c); }}});
               if (error_.ok() && !out->second_precision) Fail(n, "second_precision needs 'codec'");
               if (error_.ok() && out->second_precision->rate != 0) {
                 Fail(n, "second_precision: expected a codec without a rate, which takes few bytes once loaded too");
               }
             }},
            {"twins", [&](const auto& n) { out->twins = Flag(n); }},
            {"dense_fallback",
             [&](const auto& n) {
               Map(n, "dense_fallback", {{"codec", [&](const auto& c) { out->dense_fallback = ReadCodec(c); }}});
               if (error_.ok() && !out->dense_fallback) Fail(n, "dense_fallback needs 'codec'");
               if (!error_.ok()) return;
               if (out->dense_fallback->rate != 0 || out->dense_fallback->codec.sparsity != Sparsity::kNone)
                 Fail(n, "dense_fallback: expected a codec without a rate that keeps every weight");
             }},
            {"gptq", [&](const auto& n) { out->gptq = Flag(n); }},
            {"distill", [&](const auto& n) { out->distill = ReadDistill(n); }},
            {"probes", [&](const auto& n) { out->probes = Flag(n); }},
            {"domains", [&](const auto& n) { ReadDomains(n, out); }},
            {"target_size", [&](const auto& n) { SetBudget(n, Size(n), &Budget::target_bytes, &out->budget); }},
            {"target_bpw", [&](const auto& n) { SetBudget(n, Number(n), &Budget::target_bpw, &out->budget); }},
            {"target_resident",
             [&](const auto& n) {
               const bool unlimited = n.IsScalar() && n.Scalar() == "unlimited";
               SetBudget(n, unlimited ? Budget::kUnlimited : Size(n), &Budget::target_resident, &out->budget);
             }},
            {"max_kld", [&](const auto& n) { SetBudget(n, Number(n), &Budget::max_kld, &out->budget); }},
        });
    if (error_.ok() && !version) Fail(root, "needs 'version: 1'");
    return error_;
  }

 private:
  using Handlers = std::map<std::string, std::function<void(const YAML::Node&)>>;

  void Fail(const YAML::Node& at, const std::string& message) {
    if (!error_.ok()) return;
    error_ = Status(ErrorCode::kRecipe, file_ + PlaceOf(at.Mark()) + ": " + message);
  }

  void Map(const YAML::Node& node, const std::string& what, const Handlers& handlers) {
    if (!node.IsMap()) return Fail(node, what + " must be a map");
    std::vector<std::string> valid, seen;
    for (const auto& [key, handler] : handlers) valid.push_back(key);
    for (const auto& entry : node) {
      const auto key = Text(entry.first);
      if (!error_.ok()) return;
      const auto handler = handlers.find(key);
      if (handler == handlers.end()) {
        return Fail(entry.first, StrFormat("unknown key '%s' in %s; did you mean '%s'?", key.c_str(), what.c_str(),
                                           Nearest(key, valid).c_str()));
      }
      if (std::find(seen.begin(), seen.end(), key) != seen.end()) return Fail(entry.first, "key '" + key + "' stands twice");
      seen.push_back(key);
      handler->second(entry.second);
      if (!error_.ok()) return;
    }
  }

  std::string Text(const YAML::Node& node) {
    if (node.IsScalar()) return node.Scalar();
    Fail(node, "expected a single value");
    return "";
  }

  double Number(const YAML::Node& node) {
    double value = 0;
    if (!node.IsScalar() || !YAML::convert<double>::decode(node, value)) Fail(node, "expected a number");
    return value;
  }
  double Number(const YAML::Node& node, double low, double high) {
    double value = 0;
    if (!node.IsScalar() || !YAML::convert<double>::decode(node, value) || !(value >= low && value <= high)) {
      Fail(node, StrFormat("expected a number from %g to %g", low, high));
      return low;
    }
    return value;
  }
  uint32_t Count(const YAML::Node& node) {
    const double value = Number(node, 0, 1 << 20);
    if (value != std::floor(value)) Fail(node, "expected a whole number");
    return static_cast<uint32_t>(value);
  }
  double Share(const YAML::Node& node) {
    const double value = Number(node, 0, 1);
    if (!(value > 0 && value < 1)) Fail(node, "expected a share above 0 and below 1");
    return value;
  }
  // A sliver of every expert is not what anybody means; whole experts go by drop_experts.
  double ChannelShare(const YAML::Node& node) {
    static constexpr double kMost = 0.9;
    const double value = Share(node);
    if (value > kMost) Fail(node, StrFormat("expected a share of at most %g; drop_experts removes whole experts", kMost));
    return value;
  }
  bool Flag(const YAML::Node& node) {
    bool value = false;
    if (!node.IsScalar() || !YAML::convert<bool>::decode(node, value)) Fail(node, "expected true or false");
    return value;
  }

  uint64_t Size(const YAML::Node& node) {
    const auto bytes = ParseSize(Text(node));
    if (!bytes.ok()) Fail(node, bytes.status().message());
    return bytes.ok() ? *bytes : 0;
  }
  // A key of the budget, which the others must go with.
  template <typename T>
  void SetBudget(const YAML::Node& node, T value, std::optional<T> Budget::*field, Budget* out) {
    out->*field = value;
    const std::string wrong = out->Check({"target_size", "target_bpw", "target_resident", "max_kld"});
    if (error_.ok() && !wrong.empty()) Fail(node, wrong);
  }

  RatedCodec ReadCodec(const YAML::Node& node) {
    auto codec = ParseRatedCodec(Text(node));
    if (codec.ok()) return *codec;
    Fail(node, codec.status().message());
    return {};
  }

  void ReadCandidates(const YAML::Node& list, std::vector<RatedCodec>* out) {
    if (list.size() > kMaxCandidates) return Fail(list, StrFormat("candidates has at most %zu codecs", kMaxCandidates));
    for (const auto& item : list) {
      const RatedCodec codec = ReadCodec(item);
      if (std::find(out->begin(), out->end(), codec) != out->end())
        return Fail(item, "codec '" + codec.Name() + "' stands twice");
      out->push_back(codec);
    }
  }

  Handlers ChoiceHandlers(Choice* out) {
    return {
        {"codec", [this, out](const auto& n) { out->candidates = {ReadCodec(n)}; }},
        {"candidates",
         [this, out](const auto& n) {
           if (!n.IsSequence() || n.size() == 0) return Fail(n, "candidates must be a list of codecs");
           ReadCandidates(n, &out->candidates);
         }},
        {"keep", [this, out](const auto& n) { out->keep = Flag(n); }},
    };
  }
  void CheckChoice(const YAML::Node& node, const Choice& choice, size_t fields) {
    if (error_.ok() && (fields != 1 || (!choice.keep && choice.candidates.empty()))) {
      Fail(node, "needs exactly one of codec, candidates and 'keep: true'");
    }
  }
  Choice ReadChoice(const YAML::Node& node) {
    Choice choice;
    Map(node, "defaults", ChoiceHandlers(&choice));
    if (error_.ok()) CheckChoice(node, choice, node.size());
    return choice;
  }

  Pattern ReadPattern(const YAML::Node& node) {
    Pattern out{Text(node), {}, file_ + PlaceOf(node.Mark())};
    // The library's parser recurses once a nested group, and adds up digits behind a brace or backslash without a check.
    static constexpr size_t kMaxPattern = 1000, kMaxDigits = 9;
    size_t digits = 0;
    for (const char c : out.text) {
      digits = c >= '0' && c <= '9' ? digits + 1 : 0;
      if (digits > kMaxDigits) Fail(node, StrFormat("a number in a regular expression has at most %zu digits", kMaxDigits));
    }
    if (out.text.size() > kMaxPattern) Fail(node, StrFormat("a regular expression has at most %zu characters", kMaxPattern));
    if (!error_.ok()) return out;
    try {
      out.regex = std::regex(out.text, std::regex::ECMAScript | std::regex::optimize);
    } catch (const std::regex_error& e) {
      Fail(node, "'" + out.text + "' is not a regular expression: " + e.what());
    }
    return out;
  }

  void ReadRules(const YAML::Node& node, Recipe* out) {
    if (!node.IsSequence()) return Fail(node, "rules must be a list");
    for (const auto& item : node) {
      RecipeRule rule;
      Handlers handlers = ChoiceHandlers(&rule.choice);
      handlers["match"] = [&](const auto& n) { rule.match = ReadPattern(n); };
      Map(item, "a rule", handlers);
      if (!error_.ok()) return;
      if (rule.match.empty()) return Fail(item, "a rule needs 'match'");
      CheckChoice(item, rule.choice, item.size() - 1);
      out->rules.push_back(std::move(rule));
    }
  }

  PruneRecipe ReadPrune(const YAML::Node& node) {
    PruneRecipe prune;
    Map(node, "prune",
        {
            {"method", [&](const auto& n) { prune.method = Method(n); }},
            {"sparsity", [&](const auto& n) { prune.sparsity = Share(n); }},
            {"nm", [&](const auto& n) { ReadNM(n, &prune); }},
            {"targets", [&](const auto& n) { prune.targets = ReadPattern(n); }},
        });
    if (error_.ok() && (prune.sparsity > 0) == (prune.m > 0)) Fail(node, "prune needs one of sparsity and nm");
    return prune;
  }
  PruneMethod Method(const YAML::Node& node) {
    const std::vector<std::string> names = {"moe-pruner", "wanda", "magnitude"};
    const std::string name = Text(node);
    const auto found = std::find(names.begin(), names.end(), name);
    if (error_.ok() && found == names.end())
      Fail(node, "unknown method '" + name + "'; did you mean '" + Nearest(name, names) + "'?");
    return found == names.end() ? PruneMethod::kMoePruner : static_cast<PruneMethod>(found - names.begin());
  }
  void ReadNM(const YAML::Node& node, PruneRecipe* prune) {
    const std::string text = Text(node);
    for (uint8_t m : {4, 8, 16}) {
      for (uint8_t n = 1; n < m; ++n) {
        if (text != StrFormat("%d:%d", n, m)) continue;
        prune->n = n;
        prune->m = m;
        return;
      }
    }
    Fail(node, "nm must be N:M with M 4, 8 or 16 and 1 <= N < M, in quotes ('2:4')");
  }

  DropRecipe ReadDrop(const YAML::Node& node) {
    DropRecipe drop;
    int given = 0;
    Map(node, "drop_experts",
        {
            {"count",
             [&](const auto& n) {
               drop.count = Count(n);
               ++given;
             }},
            {"share",
             [&](const auto& n) {
               drop.share = Share(n);
               ++given;
             }},
            {"per_layer",
             [&](const auto& n) {
               if (!n.IsSequence()) return Fail(n, "per_layer must be a list of numbers");
               for (const auto& item : n) drop.per_layer.push_back(Count(item));
               ++given;
             }},
            {"by",
             [&](const auto& n) {
               if (Text(n) != "reap") Fail(n, "experts are dropped by 'reap'");
             }},
        });
    if (error_.ok() && given != 1) Fail(node, "drop_experts needs one of count, share and per_layer");
    return drop;
  }

  DistillLogits ReadDistillLogits(const YAML::Node& node) {
    const std::string text = Text(node);
    if (text == "scales") return DistillLogits::kScales;
    if (text == "all") return DistillLogits::kAll;
    if (text != "none") Fail(node, "logits is one of scales, all and none");
    return DistillLogits::kNone;
  }

  DistillRecipe ReadDistill(const YAML::Node& node) {
    DistillRecipe distill;
    Map(node, "distill",
        {
            {"epochs", [&](const auto& n) { distill.epochs = Count(n); }},
            {"logits", [&](const auto& n) { distill.logits = ReadDistillLogits(n); }},
            {"rate", [&](const auto& n) { distill.rate = Number(n, 1e-6, 1); }},
            {"code_rate", [&](const auto& n) { distill.code_rate = Number(n, 0, 1); }},
            {"targets", [&](const auto& n) { distill.targets = ReadPattern(n); }},
        });
    if (error_.ok() && (distill.epochs == 0 || distill.epochs > 1000)) Fail(node, "epochs must be from 1 to 1000");
    return distill;
  }

  void ReadDomains(const YAML::Node& node, Recipe* out) {
    if (!node.IsMap()) return Fail(node, "domains must be a map from domain to weight");
    for (const auto& entry : node) out->domains[Text(entry.first)] = Number(entry.second, 0, 1e6);
  }

  std::string file_;
  Status error_;
};

}  // namespace

Result<Recipe> ParseRecipe(std::string_view yaml, const std::string& file_name) {
  Recipe recipe;
  try {
    const YAML::Node root = YAML::Load(std::string(yaml));
    MOEPACK_RETURN_IF_ERROR(Reader(file_name).Read(root, &recipe));
  } catch (const YAML::Exception& e) {
    return Status(ErrorCode::kRecipe, file_name + PlaceOf(e.mark) + ": " + e.msg);
  }
  return recipe;
}

}  // namespace moepack
