#include "packager/commands/golden_prompts.h"

#include <algorithm>

#include "format/program_input.h"
#include "runtime-min/golden.h"
#include "tokenizer/tokenizer.h"

namespace moepack::commands {
namespace {

namespace po = boost::program_options;

constexpr uint64_t kMaxGoldenFileBytes = 1 << 20;

using Lines = std::vector<std::string>;
using TokenLists = std::vector<std::vector<uint32_t>>;

// Lines of a file without those that are empty.
Result<Lines> ReadLines(const std::string& path) {
  MOEPACK_ASSIGN_OR_RETURN(const Bytes bytes, ReadFile(PosixEnv(), path, kMaxGoldenFileBytes));
  const std::string_view text = AsText(bytes);
  Lines lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) lines.emplace_back(line);
    at = end + 1;
  }
  if (lines.empty()) return Status(ErrorCode::kUsage, path + ": holds no prompt; write one a line");
  return lines;
}

Result<TokenLists> ParseIds(const std::string& path, const Lines& lines) {
  TokenLists out;
  for (const std::string& line : lines) {
    const Result<std::vector<int32_t>> ids = cli::ParseTokens(line);
    if (!ids.ok()) return Status(ErrorCode::kUsage, path + ": '" + line + "': expected token ids like 1,2,3 in every line");
    out.emplace_back(ids->begin(), ids->end());
  }
  return out;
}

Result<TokenLists> Tokenize(ByteSpan blob, const Lines& lines) {
  if (blob.empty()) return Status(ErrorCode::kTokenizer, "--golden: the folder has no tokenizer; give ids by --golden-ids");
  MOEPACK_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Parse(blob));
  TokenLists out;
  for (const std::string& line : lines) {
    std::vector<uint32_t>& tokens = out.emplace_back(tokenizer->beginning().begin(), tokenizer->beginning().end());
    const std::vector<int32_t> encoded = tokenizer->Encode(line);
    tokens.insert(tokens.end(), encoded.begin(), encoded.end());
  }
  return out;
}

// An engine over the draft, set up for sequences of `positions` tokens as a device on trial sets one up.
Result<std::unique_ptr<runtime::Engine>> MakeEngine(const OpenDraft& open, ThreadPool& pool, kernels::Isa isa,
                                                    uint64_t positions) {
  MOEPACK_ASSIGN_OR_RETURN(auto bundle, open());
  const uint32_t most = bundle->program().max_positions;
  if (positions > most) {
    return Status(ErrorCode::kUsage, StrFormat("golden prompts: the longest takes %llu positions, the model has %u",
                                               static_cast<unsigned long long>(positions), most));
  }
  runtime::EngineOptions options;
  options.isa = isa;
  options.context = static_cast<uint32_t>(positions);
  options.bridge_unavailable = false;
  return runtime::Engine::Create(std::move(bundle), pool, options);
}

// What the scalar kernels answer.
Result<GoldenPrompts> Ask(const OpenDraft& open, ThreadPool& pool, const TokenLists& prompts, uint32_t steps,
                          float tolerance) {
  size_t longest = 0;
  for (const std::vector<uint32_t>& prompt : prompts) longest = std::max(longest, prompt.size());
  MOEPACK_ASSIGN_OR_RETURN(const auto engine, MakeEngine(open, pool, kernels::Isa::kScalar, longest + steps - 1));
  return runtime::RecordGolden(*engine, prompts, steps, tolerance);
}

Result<GoldenPrompts> Record(const OpenDraft& open, ThreadPool& pool, const TokenLists& prompts, uint32_t steps,
                             float tolerance) {
  MOEPACK_ASSIGN_OR_RETURN(GoldenPrompts golden, Ask(open, pool, prompts, steps, tolerance));
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    MOEPACK_ASSIGN_OR_RETURN(const auto engine, MakeEngine(open, pool, isa, golden.context()));
    runtime::GoldenReport report;
    const Status status = runtime::CheckGolden(*engine, golden, &report);
    if (!status.ok()) {
      return status.With(StrFormat("the %s kernels answer otherwise than the scalar ones", kernels::IsaName(isa)));
    }
  }
  return golden;
}

}  // namespace

void AddGoldenOptions(cli::Command* command) {
  command->options().add_options()("golden", po::value<std::string>(),
                                   "file with a prompt a line: what the bundle answers to them is signed with it, and "
                                   "'moepack device trial' confirms it by that; needs the memory to run the model")(
      "golden-ids", po::value<std::string>(), "the same with token ids, 1,2,3 a line, for models without a tokenizer")(
      "golden-steps", po::value<uint32_t>(), "tokens to record for each prompt, at most 256 (default 8)")(
      "golden-tolerance", po::value<float>(),
      "how far a logit may be from what is recorded, as a share of the largest (default 0.01)");
}

Result<RecordGoldenFunction> GoldenRecorder(const cli::Command& command, ThreadPool& pool) {
  const bool text = command.Has("golden"), ids = command.Has("golden-ids");
  if (text && ids) return Status(ErrorCode::kUsage, "give one of --golden and --golden-ids");
  if (!text && !ids) {
    for (const char* name : {"golden-steps", "golden-tolerance"}) {
      if (command.Has(name)) return Status(ErrorCode::kUsage, StrFormat("--%s goes with --golden or --golden-ids", name));
    }
    return RecordGoldenFunction();
  }
  const uint32_t steps = command.GetOr<uint32_t>("golden-steps", 8);
  if (steps < 1 || steps > kMaxGoldenSteps) return Status(ErrorCode::kUsage, "--golden-steps: expected 1 to 256");
  const float tolerance = command.GetOr<float>("golden-tolerance", runtime::kGoldenTolerance);
  if (!(tolerance > 0 && tolerance < 1)) return Status(ErrorCode::kUsage, "--golden-tolerance: expected above 0, below 1");
  const std::string path = command.Get<std::string>(text ? "golden" : "golden-ids");
  MOEPACK_ASSIGN_OR_RETURN(const Lines lines, ReadLines(path));
  TokenLists prompts;
  if (ids) {
    MOEPACK_ASSIGN_OR_RETURN(prompts, ParseIds(path, lines));
  }
  return RecordGoldenFunction(
      [lines, prompts, ids, steps, tolerance, &pool](const OpenDraft& open) -> Result<GoldenPrompts> {
        MOEPACK_ASSIGN_OR_RETURN(const auto bundle, open());
        if (InputWidth(bundle->program()) > 0) {
          return Status(ErrorCode::kUsage,
                        "the model takes rows of numbers, and golden prompts are of tokens: pack it without --golden");
        }
        if (ids) return Record(open, pool, prompts, steps, tolerance);
        MOEPACK_ASSIGN_OR_RETURN(const TokenLists tokenized, Tokenize(bundle->tokenizer_blob(), lines));
        return Record(open, pool, tokenized, steps, tolerance);
      });
}

RecordGoldenFunction GoldenAgain(const GoldenPrompts& recorded, ThreadPool& pool) {
  return [&recorded, &pool](const OpenDraft& open) -> Result<GoldenPrompts> {
    TokenLists prompts;
    for (const GoldenPrompt& prompt : recorded.prompts) prompts.push_back(prompt.tokens);
    const auto steps = static_cast<uint32_t>(recorded.prompts[0].steps.size());
    MOEPACK_ASSIGN_OR_RETURN(GoldenPrompts again, Ask(open, pool, prompts, steps, runtime::kGoldenTolerance));
    again.tolerance = recorded.tolerance;
    return again;
  };
}

}  // namespace moepack::commands
