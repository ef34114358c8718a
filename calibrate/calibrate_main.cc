// moepack calibrate: profile of a model on text.
#include <sys/resource.h>

#include <chrono>
#include <filesystem>

#include "base/cli/accept_keys.h"
#include "base/digest/sha256.h"
#include "calibrate/calibrate.h"

namespace moepack {
namespace {

constexpr uint64_t kMaxTextBytes = uint64_t{1} << 32;

struct DomainFile {
  std::string domain, path;
};

// "NAME=FILE", or FILE alone: its name up to the first dot is the domain.
Result<DomainFile> ParseDomain(const char* option, const std::string& argument) {
  const size_t equals = argument.find('=');
  const std::string path = equals == std::string::npos ? argument : argument.substr(equals + 1);
  const std::string base = BaseName(path);
  const std::string domain = equals == std::string::npos ? base.substr(0, base.find('.')) : argument.substr(0, equals);
  if (!domain.empty()) return DomainFile{domain, path};
  return Status(ErrorCode::kUsage, StrFormat("--%s ", option) + argument + ": no domain name; write NAME=FILE");
}

Result<CalibrationText> ReadText(const std::string& argument) {
  MOEPACK_ASSIGN_OR_RETURN(const DomainFile file, ParseDomain("data", argument));
  MOEPACK_ASSIGN_OR_RETURN(const Bytes bytes, ReadFile(PosixEnv(), file.path, kMaxTextBytes));
  if (bytes.empty()) return Status(ErrorCode::kBadInput, file.path + ": the file is empty");
  return CalibrationText{file.domain, std::string(AsText(bytes))};
}

Result<CalibrationRows> ReadTable(const std::string& argument, const Program& program) {
  MOEPACK_ASSIGN_OR_RETURN(const DomainFile file, ParseDomain("inputs", argument));
  CalibrationRows table;
  table.domain = file.domain;
  MOEPACK_ASSIGN_OR_RETURN(table.batch, ReadRows(PosixEnv(), file.path, program));
  MOEPACK_ASSIGN_OR_RETURN(const Digest digest, Sha256File(PosixEnv(), file.path));
  table.sha256 = ToHex(digest);
  return table;
}

nlohmann::json Summary(const Profile& profile, const CalibrateOptions& options, double seconds) {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  nlohmann::json json;
  const bool rows = profile.row_width > 0;
  json["tokens"] = rows ? nlohmann::json(nullptr) : nlohmann::json(profile.tokens.size());
  json["rows"] = rows ? nlohmann::json(profile.size()) : nlohmann::json(nullptr);
  json["sequences"] = profile.sequence_start.size();
  json["domains"] = profile.domains;
  json["tables"] = profile.tables.size();
  json["min_tokens_per_expert"] = options.min_tokens_per_expert;
  json["thin_experts"] = FindThinExperts(profile, options.min_tokens_per_expert).size();
  json["srp"] = json["sch"] = nullptr;
  if (!rows) {
    json["srp"] = json["sch"] = nlohmann::json::array();
    for (const TableProfile& table : profile.tables) {
      json["srp"].push_back(table.srp);
      json["sch"].push_back(table.sch);
    }
  }
  json["seconds"] = seconds;
  json["tokens_per_s"] = nullptr;
  if (!rows) json["tokens_per_s"] = static_cast<double>(profile.tokens.size()) / seconds;
  json["peak_rss_bytes"] = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
  return json;
}

void DeclareOptions(cli::Command* command) {
  namespace po = boost::program_options;
  const CalibrateOptions defaults;
  command->options().add_options()(
      "data", po::value<std::vector<std::string>>()->multitoken(),
      "[NAME=]FILE...: text of one domain each; NAME defaults to the file's name up to its first dot")(
      "inputs", po::value<std::vector<std::string>>()->multitoken(),
      "[NAME=]FILE.npy...: rows of numbers [rows, columns] for a model that takes them; all of them are used")(
      "tokens", po::value<int64_t>(), "calibration tokens in all, taken evenly from the domains")(
      "ctx", po::value<int64_t>()->default_value(static_cast<int64_t>(defaults.ctx)), "tokens of a sequence")(
      "min-tokens", po::value<int64_t>()->default_value(static_cast<int64_t>(defaults.min_tokens_per_expert)),
      "warn about experts that saw fewer tokens")(
      "attribution-tokens", po::value<int64_t>()->default_value(static_cast<int64_t>(defaults.attribution_tokens)),
      "tokens sampled for attribution, at most")("output,o", po::value<std::string>(), "profile to write")(
      "report", po::value<std::string>(), "HTML page to write");
  command->Positional("model");
}

Status ReadCount(const cli::Command& command, const char* name, uint64_t* out) {
  const int64_t value = command.Get<int64_t>(name);
  if (value < 0) return Status(ErrorCode::kUsage, StrFormat("--%s: expected a number that is not negative", name));
  *out = static_cast<uint64_t>(value);
  return Status::Ok();
}

Result<CalibrateOptions> ReadOptions(const cli::Command& command) {
  CalibrateOptions options;
  if (command.Has("tokens")) MOEPACK_RETURN_IF_ERROR(ReadCount(command, "tokens", &options.tokens));
  MOEPACK_RETURN_IF_ERROR(ReadCount(command, "ctx", &options.ctx));
  MOEPACK_RETURN_IF_ERROR(ReadCount(command, "min-tokens", &options.min_tokens_per_expert));
  MOEPACK_RETURN_IF_ERROR(ReadCount(command, "attribution-tokens", &options.attribution_tokens));
  return options;
}

// Before the long work, not after it.
Status CheckWritable(const cli::Command& command) {
  for (const char* name : {"output", "report"}) {
    if (!command.Has(name)) continue;
    const auto file = AtomicFile::Create(PosixEnv(), command.Get<std::string>(name));
    if (!file.ok()) return file.status();
  }
  const std::filesystem::path output = command.Get<std::string>("output"), report = command.GetOr<std::string>("report", "");
  std::error_code error;  // where there is no current folder, paths stay as they are
  const auto plain = [&](const auto& path) { return std::filesystem::absolute(path, error).lexically_normal(); };
  if (!report.empty() && plain(output) == plain(report)) {
    return Status(ErrorCode::kUsage, "--report and -o name the same file, " + output.string());
  }
  return Status::Ok();
}

Result<Profile> CalibrateOn(const cli::Command& command, const Model& model, const CalibrateOptions& options,
                            ThreadPool& pool) {
  if (command.Has("inputs")) {
    std::vector<CalibrationRows> tables;
    for (const std::string& argument : command.Get<std::vector<std::string>>("inputs")) {
      MOEPACK_ASSIGN_OR_RETURN(CalibrationRows table, ReadTable(argument, model.program));
      tables.push_back(std::move(table));
    }
    return CalibrateRows(model, tables, options, pool, command.progress());
  }
  std::vector<CalibrationText> texts;
  for (const std::string& argument : command.Get<std::vector<std::string>>("data")) {
    MOEPACK_ASSIGN_OR_RETURN(CalibrationText text, ReadText(argument));
    texts.push_back(std::move(text));
  }
  return Calibrate(model, texts, options, pool, command.progress());
}

Status CheckInputOptions(const cli::Command& command) {
  if (command.Has("data") && command.Has("inputs")) return Status(ErrorCode::kUsage, "give one of --data and --inputs");
  if (command.Has("inputs") && command.Has("tokens"))
    return Status(ErrorCode::kUsage, "--tokens goes with --data; of --inputs every row is used");
  if (command.Has("inputs")) return Status::Ok();
  MOEPACK_RETURN_IF_ERROR(command.Require("data"));
  return command.Require("tokens");
}

Status Run(int argc, char** argv) {
  cli::Command command(
      {"moepack calibrate",
       "Profile a model: what each expert sees on your text, or on your rows. `moepack compress` decides by it.",
       "MODEL (--data [NAME=]FILE... --tokens N | --inputs [NAME=]FILE.npy...) -o P.mprof",
       {"moepack calibrate examples/wren/model --data examples/wren/text/novel.calib.txt \\\n"
        "      code=examples/wren/text/python.calib.txt --tokens 65536 -o wren.mprof --report wren.html",
        "moepack calibrate classifier.onnx --inputs rows.npy -o classifier.mprof"}});
  DeclareOptions(&command);
  cli::AddAcceptKeyOption(&command);
  MOEPACK_RETURN_IF_ERROR(command.Parse(argc, argv));
  if (command.help_shown()) return Status::Ok();
  for (const char* name : {"model", "output"}) MOEPACK_RETURN_IF_ERROR(command.Require(name));
  MOEPACK_RETURN_IF_ERROR(CheckInputOptions(command));
  MOEPACK_ASSIGN_OR_RETURN(const std::vector<std::string> accept_keys, cli::AcceptKeys(command));
  MOEPACK_ASSIGN_OR_RETURN(const CalibrateOptions options, ReadOptions(command));
  MOEPACK_RETURN_IF_ERROR(CheckWritable(command));
  MOEPACK_ASSIGN_OR_RETURN(const Model model,
                           OpenModel(PosixEnv(), command.Get<std::string>("model"), {.accept_keys = accept_keys}));
  ThreadPool pool(command.threads());
  MOEPACK_RETURN_IF_ERROR(pool.status());
  const auto start = std::chrono::steady_clock::now();
  MOEPACK_ASSIGN_OR_RETURN(const Profile profile, CalibrateOn(command, model, options, pool));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  MOEPACK_RETURN_IF_ERROR(WriteCalibration(PosixEnv(), command.Get<std::string>("output"),
                                           command.GetOr<std::string>("report", ""), model.program, profile, options));
  if (command.json()) cli::PrintJson(Summary(profile, options, seconds));
  return Status::Ok();
}

}  // namespace
}  // namespace moepack

int main(int argc, char** argv) {
  return moepack::cli::Main("moepack calibrate", [&] { return moepack::Run(argc, argv); });
}
