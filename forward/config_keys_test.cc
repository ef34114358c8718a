// Every key of a configuration, changed one at a time, in every family with a golden checkpoint: the model is refused with a
// message that names what is wrong, or computes something else, or the key is on a list of those without effect.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "forward/forward.h"
#include "model/family/family.h"
#include "model/model_testing.h"

namespace moepack {
namespace {

using nlohmann::json;

// Honoured keys that change nothing in these checkpoints or at these sequence lengths, and why.
const std::map<std::string, std::set<std::string>> kWithoutEffectHere = {
    {"",
     {
         "max_position_embeddings",                     // longest sequence
         "num_nextn_predict_layers",                    // layers that are not run
         "max_window_layers",                           // only with use_sliding_window
         "use_sliding_window",                          // only with sliding_window
         "quantization_config.activation_scheme",       // of activations
         "quantization_config.modules_to_not_convert",  // element types say it
     }},
    // Only with use_sliding_window; no layer is dense.
    {"qwen2_moe", {"sliding_window", "intermediate_size"}},
    {"qwen3_moe", {"sliding_window", "intermediate_size"}},
    // Wider than the sequence; of longer or shorter sequences; both have their magnitudes given.
    {"phimoe",
     {"sliding_window", "rope_scaling.long_factor", "rope_scaling.long_mscale",
      "rope_scaling.original_max_position_embeddings"}},
    {"phimoe_long",
     {"sliding_window", "rope_scaling.short_factor", "rope_scaling.short_mscale",
      "rope_scaling.original_max_position_embeddings"}},
    {"llama4", {"interleave_moe_layer_step"}},  // moe_layers says it
    // The ends of YaRN's ramp are whole columns.
    {"deepseek_v3", {"rope_scaling.beta_fast", "rope_scaling.original_max_position_embeddings"}},
    {"deepseek_v2", {"n_group", "topk_group"}},  // not read by topk_method greedy
    {"ernie4_5_moe", {"moe_layer_end_index"}},   // the last layer already
};

bool WithoutEffectHere(const std::string& checkpoint, const std::string& key) {
  const auto listed = [&](const std::string& name) {
    const auto it = kWithoutEffectHere.find(name);
    return it != kWithoutEffectHere.end() && it->second.count(key) != 0;
  };
  return listed("") || listed(checkpoint);
}

// Another value of the same type.
json Changed(const json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number_integer()) return value.get<int64_t>() + 1;
  if (value.is_number()) return value.get<double>() < 1e-3 ? value.get<double>() * 1e4 : value.get<double>() * 1.5;
  if (value.is_string()) return "something-else";
  if (value.is_array() && value.empty()) return json::array({0});
  if (value.is_array()) {
    json out = value;
    out[0] = value[0].is_number_integer() ? json(1 - std::min<int64_t>(value[0].get<int64_t>(), 1)) : Changed(value[0]);
    return out;
  }
  return nullptr;
}

std::vector<std::string> Families() {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(SourcePath("tests/golden"))) {
    if (std::filesystem::exists(entry.path() / "config.json")) out.push_back(entry.path().filename().string());
  }
  std::sort(out.begin(), out.end());
  return out;
}

class ConfigKeysTest : public ::testing::TestWithParam<std::string> {
 protected:
  ConfigKeysTest() : folder_("tests/golden/" + GetParam()) {
    const auto read = [&](const char* name) { return ReadAll(JoinPath(SourcePath(folder_), name)); };
    const Bytes config = read("config.json"), record = read("golden.json");
    config_ = json::parse(config.begin(), config.end());
    tokens_ = json::parse(record.begin(), record.end())["tokens"].get<std::vector<int32_t>>();
    copy_.Write("model.safetensors", read("model.safetensors"));
  }

  // Logits, or the error.
  Result<Matrix> Run(const json& config) {
    copy_.Write("config.json", config.dump());
    MOEPACK_ASSIGN_OR_RETURN(const Model model, OpenModel(PosixEnv(), copy_.path()));
    ThreadPool pool(1);
    const TokenBatch batch{tokens_, {0}};
    Matrix logits;
    MOEPACK_RETURN_IF_ERROR(Forward(model.program, pool)
                                .Run(
                                    *model.tensors, batch,
                                    [&](uint64_t, const Matrix& rows) {
                                      logits = rows;
                                      return Status::Ok();
                                    },
                                    NoProgress()));
    return logits;
  }

  // The key itself, one that it contradicts, or a tensor that is not as the keys say.
  bool NamesAKeyOrTensor(const std::string& message) const {
    const auto names = [&message](const json& object) {
      return std::any_of(object.items().begin(), object.items().end(), [&message](const auto& item) {
        return message.find(": " + item.key() + ": ") != std::string::npos;
      });
    };
    const bool inner = std::any_of(config_.begin(), config_.end(), [&](const json& v) { return v.is_object() && names(v); });
    return inner || names(config_) || message.find("tensor ") != std::string::npos;
  }

  void CheckChange(const json& config, const std::string& key, bool inert, const Matrix& before) {
    const Result<Matrix> after = Run(config);
    if (inert || WithoutEffectHere(GetParam(), key)) {
      ASSERT_TRUE(!after.ok() || after->size() == before.size());
      if (inert) {
        EXPECT_TRUE(after.ok()) << key << ": " << after.status().message();
      }
      if (after.ok()) {
        EXPECT_TRUE((after->array() == before.array()).all()) << key << " changes logits";
      }
      return;
    }
    if (!after.ok()) {
      EXPECT_TRUE(NamesAKeyOrTensor(after.status().message())) << key << ": " << after.status().message();
      return;
    }
    const bool same =
        after->size() == before.size() && (*after - before).cwiseAbs().maxCoeff() <= 1e-6f * before.cwiseAbs().maxCoeff();
    EXPECT_FALSE(same) << key << " is honoured but changes nothing";
  }

  const std::string folder_;
  json config_;
  std::vector<int32_t> tokens_;
  TempFolder copy_;
};

TEST_P(ConfigKeysTest, EveryKeyIsRefusedChangesLogitsOrIsListed) {
  const Result<Matrix> before = Run(config_);
  ASSERT_TRUE(before.ok()) << before.status().message();
  for (const auto& [key, value] : config_.items()) {
    const bool inert = IsInertKey(config_["model_type"], key);
    json config = config_;
    if (!value.is_object()) {
      if (value.is_null() || key == "model_type") continue;
      config[key] = Changed(value);
      CheckChange(config, key, inert, *before);
      continue;
    }
    for (const auto& [inner, inner_value] : value.items()) {
      config = config_;
      config[key][inner] = Changed(inner_value);
      CheckChange(config, key + "." + inner, inert, *before);
    }
  }
}

TEST_P(ConfigKeysTest, UnknownKeysAreRefusedByName) {
  json config = config_;
  config["mystery_scale"] = 2;
  Result<Matrix> run = Run(config);
  EXPECT_EQ(run.status().code(), ErrorCode::kUnknownKey);
  EXPECT_NE(run.status().message().find("mystery_scale"), std::string::npos) << run.status().message();
  config = config_;
  config["rope_scaling"]["mystery_factor"] = 2;
  run = Run(config);
  EXPECT_EQ(run.status().code(), ErrorCode::kUnknownKey) << run.status().message();
  EXPECT_NE(run.status().message().find("mystery_factor"), std::string::npos) << run.status().message();
}

INSTANTIATE_TEST_SUITE_P(Goldens, ConfigKeysTest, ::testing::ValuesIn(Families()),
                         [](const auto& family) { return family.param; });

}  // namespace
}  // namespace moepack
