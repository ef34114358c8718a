// moepack compress: a checkpoint and its profile -> a compressed model folder.
#include <algorithm>
#include <iterator>

#include "base/cli/accept_keys.h"
#include "compressor/compressor.h"

namespace moepack {
namespace {

constexpr uint64_t kMaxRecipeBytes = 1 << 20;
constexpr const char* kBudgetOptions[] = {"target-size", "target-bpw", "target-resident", "max-kld"};

Status CheckOptions(const cli::Command& command) {
  MOEPACK_RETURN_IF_ERROR(command.Require("model"));
  if (!command.Has("dry-run")) MOEPACK_RETURN_IF_ERROR(command.Require("output"));
  const int ways = command.Has("recipe") + command.Has("codec");
  if (ways > 1) return Status(ErrorCode::kUsage, "give one of --recipe and --codec");
  const bool plan_only = command.Has("dry-run") && command.Has("recipe");
  if (!command.Has("codec") && !command.Has("profile") && !plan_only) {
    return Status(ErrorCode::kUsage,
                  "needs --profile P.mprof (made by moepack calibrate), or --codec NAME to encode without one");
  }
  const auto has = [&](const char* name) { return command.Has(name); };
  if (ways == 0 && std::none_of(std::begin(kBudgetOptions), std::end(kBudgetOptions), has)) {
    return Status(ErrorCode::kUsage,
                  "say what to aim for: --target-size, --target-bpw, --target-resident, --max-kld, --recipe or --codec");
  }
  return Status::Ok();
}

// What the command line asks for replaces all that the recipe aims for.
Status ReadBudget(const cli::Command& command, Budget* out) {
  Budget budget;
  if (command.Has("target-size")) {
    MOEPACK_ASSIGN_OR_RETURN(budget.target_bytes, ParseSize(command.Get<std::string>("target-size")));
  }
  if (command.Has("target-resident")) {
    const std::string size = command.Get<std::string>("target-resident");
    if (size == "unlimited") {
      budget.target_resident = Budget::kUnlimited;
    } else {
      MOEPACK_ASSIGN_OR_RETURN(budget.target_resident, ParseSize(size));
    }
  }
  if (command.Has("target-bpw")) budget.target_bpw = command.Get<double>("target-bpw");
  if (command.Has("max-kld")) budget.max_kld = command.Get<double>("max-kld");
  if (!budget.set()) return Status::Ok();
  const std::string wrong = budget.Check({"--target-size", "--target-bpw", "--target-resident", "--max-kld"});
  if (!wrong.empty()) return Status(ErrorCode::kUsage, wrong);
  *out = budget;
  return Status::Ok();
}

Result<Recipe> ReadRecipe(const cli::Command& command) {
  Recipe recipe;
  if (command.Has("recipe")) {
    const std::string path = command.Get<std::string>("recipe");
    MOEPACK_ASSIGN_OR_RETURN(const Bytes text, ReadFile(PosixEnv(), path, kMaxRecipeBytes));
    MOEPACK_ASSIGN_OR_RETURN(recipe, ParseRecipe(AsText(text), path));
  } else if (command.Has("codec")) {
    MOEPACK_ASSIGN_OR_RETURN(recipe, RecipeForCodec(command.Get<std::string>("codec")));
  }
  MOEPACK_RETURN_IF_ERROR(ReadBudget(command, &recipe.budget));
  return recipe;
}

nlohmann::json Summary(const CompressReport& report) {
  const Plan& plan = report.plan;
  nlohmann::json json;
  const auto bpw = [&](uint64_t bytes) {
    return static_cast<double>(bytes) * 8 / static_cast<double>(report.original_parameters);
  };
  json["bundle_bytes"] = plan.bundle_bytes;
  json["bytes_plain"] = plan.plain_bytes;
  json["bytes_resident"] = plan.resident_bytes;
  json["parameters"] = report.original_parameters;
  json["bits_per_weight"] = bpw(plan.bundle_bytes);
  json["target_bytes"] = plan.target_bytes == 0 ? nlohmann::json(nullptr) : nlohmann::json(plan.target_bytes);
  json["target_resident_bytes"] =
      plan.target_resident_bytes == 0 ? nlohmann::json(nullptr) : nlohmann::json(plan.target_resident_bytes);
  json["predicted_kld"] = plan.measured_by == "none" ? nlohmann::json(nullptr) : nlohmann::json(plan.predicted_kld);
  json["gap"] = plan.measured_by == "none" ? nlohmann::json(nullptr) : nlohmann::json(plan.gap);
  json["kld_held_back"] = report.kld ? nlohmann::json(*report.kld) : nlohmann::json(nullptr);
  json["kld_by_domain"] = nlohmann::json::object();
  for (const auto& [domain, kld] : report.domain_kld) {
    json["kld_by_domain"][domain] = kld ? nlohmann::json(*kld) : nlohmann::json(nullptr);
  }
  json["tensors"] = nlohmann::json::object();
  std::map<std::string, uint64_t> codecs;
  for (const PlanTensor& tensor : plan.tensors) {
    json["tensors"][tensor.name] = {{"codec", tensor.codec.Name()}, {"bytes", tensor.bytes}};
    codecs[tensor.codec.Name()] += tensor.bytes;
  }
  json["codecs"] = codecs;
  json["second_precision"] = {{"experts", report.second_experts}, {"bytes", report.second_bytes}};
  json["dense_fallback"] = {{"units", report.dense_units}, {"bytes", report.dense_bytes}};
  json["cache_policy"] = DescribeCachePolicy(report.cache);
  return json;
}

void PrintSummary(const CompressReport& report, bool dry_run, const std::string& output) {
  const Plan& plan = report.plan;
  std::map<std::string, std::pair<size_t, uint64_t>> codecs;
  for (const PlanTensor& tensor : plan.tensors) {
    auto& [count, bytes] = codecs[tensor.codec.Name()];
    ++count;
    bytes += tensor.bytes;
  }
  std::printf("%-16s %8s %14s\n", "codec", "tensors", "bytes");
  for (const auto& [name, entry] : codecs) {
    std::printf("%-16s %8zu %14llu\n", name.c_str(), entry.first, static_cast<unsigned long long>(entry.second));
  }
  if (report.second_experts > 0)
    std::printf("%-16s %8s %14llu (%zu experts)\n", "second precision", "",
                static_cast<unsigned long long>(report.second_bytes), static_cast<size_t>(report.second_experts));
  if (report.dense_units > 0)
    std::printf("%-16s %8s %14llu (%zu stand-ins)\n", "dense fallback", "",
                static_cast<unsigned long long>(report.dense_bytes), static_cast<size_t>(report.dense_units));
  std::printf("bundle at most %llu bytes (%.3f bits per weight), resident %llu bytes\n",
              static_cast<unsigned long long>(plan.bundle_bytes),
              static_cast<double>(plan.bundle_bytes) * 8 / static_cast<double>(report.original_parameters),
              static_cast<unsigned long long>(plan.resident_bytes));
  if (plan.measured_by != "none")
    std::printf("predicted mean KLD %.6f (within %.2f %% of the best plan)\n", plan.predicted_kld, 100 * plan.gap);
  if (report.kld) std::printf("mean KLD on held-back calibration text %.6f\n", *report.kld);
  if (!dry_run) std::printf("wrote %s\n", output.c_str());
}

Status Run(int argc, char** argv) {
  namespace po = boost::program_options;
  cli::Command command({"moepack compress",
                        "Compress a Mixture-of-Experts model",
                        "MODEL --profile P.mprof (--target-size S | --target-bpw B | --max-kld K | --recipe R.yaml) -o DIR",
                        {"moepack compress examples/wren/model --profile wren.mprof --target-size 10MB -o wren-10mb",
                         "moepack compress model --profile p.mprof --recipe recipe.yaml --dry-run --json",
                         "moepack compress model --codec f32 -o lossless"}});
  auto add = command.options().add_options();
  add("profile", po::value<std::string>(), "what calibration saw (moepack calibrate)");
  add("recipe", po::value<std::string>(), "YAML recipe (docs/recipes.md)");
  add("codec", po::value<std::string>(), "one codec for all matrices, such as i8g64, i4g32, bf16 or f32");
  add("target-size", po::value<std::string>(), "largest bundle file: 10221888, 9.5MB, 8MiB");
  add("target-bpw", po::value<double>(), "largest bundle file in bits per weight of the original model");
  add("target-resident", po::value<std::string>(),
      "most bytes of all weights once loaded, or 'unlimited'; the target of the file when absent");
  add("max-kld", po::value<double>(), "smallest bundle whose mean KLD on held-back calibration text stays below");
  add("output,o", po::value<std::string>(), "folder to write");
  add("like", po::value<std::string>(), "earlier plan.json whose choices are kept unless the gain is worth an update");
  add("error-table", po::value<std::string>(),
      "measured errors to reuse, or to write when the file is not there (with --dry-run: to reuse only)");
  add("resume", "continue an interrupted run");
  cli::AddAcceptKeyOption(&command);
  add("require-chat-template", "fail unless the checkpoint's chat template goes whole into the bundle");
  add("dry-run", "print the plan with exact sizes and write nothing; needs no -o");
  command.Positional("model");
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(CheckOptions(command));
  CompressRequest request;
  MOEPACK_ASSIGN_OR_RETURN(request.recipe, ReadRecipe(command));
  request.model_path = command.Get<std::string>("model");
  request.profile_path = command.GetOr<std::string>("profile", "");
  request.output = command.GetOr<std::string>("output", "");
  request.like_path = command.GetOr<std::string>("like", "");
  request.error_table_path = command.GetOr<std::string>("error-table", "");
  request.resume = command.Has("resume");
  request.dry_run = command.Has("dry-run");
  MOEPACK_ASSIGN_OR_RETURN(request.accept_keys, cli::AcceptKeys(command));
  request.require_chat_template = command.Has("require-chat-template");
  request.tool_version = MOEPACK_VERSION;
  ThreadPool pool(command.threads());
  MOEPACK_RETURN_IF_ERROR(pool.status());
  MOEPACK_ASSIGN_OR_RETURN(const CompressReport report, Compress(PosixEnv(), request, pool, command.progress()));
  if (command.json()) {
    cli::PrintJson(Summary(report));
  } else {
    PrintSummary(report, request.dry_run, request.output);
  }
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack compress", [&] { return moepack::Run(argc, argv); });
}
