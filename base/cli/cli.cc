#include "base/cli/cli.h"

#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>
#include <typeinfo>

namespace moepack::cli {
namespace po = boost::program_options;

namespace {

// Boost reads "-1" as the largest unsigned number.
Status RefuseNegatives(const po::parsed_options& parsed, const po::variables_map& values) {
  for (const po::option& option : parsed.options) {
    const std::type_info& type = values[option.string_key].value().type();
    if (type != typeid(uint32_t) && type != typeid(uint64_t)) continue;
    for (const std::string& text : option.value) {
      if (text.find('-') == std::string::npos) continue;
      return Status(ErrorCode::kUsage, "--" + option.string_key + " " + text + ": expected a number of at least 0");
    }
  }
  return Status::Ok();
}

}  // namespace

Command::Command(CommandInfo info) : info_(std::move(info)), options_("Options") {}

void Command::Positional(const std::string& name, bool many) {
  positional_names_.push_back(name);
  positional_.add(name.c_str(), many ? -1 : 1);
}

Status Command::Parse(int argc, char** argv) {
  options_.add_options()("help,h", "this text")("json", "print one JSON object to standard output")(
      "quiet,q", "no progress on standard error")("threads", po::value<int>(), "worker threads (default: all cores)");
  po::options_description hidden;
  for (size_t i = 0; i < positional_names_.size(); ++i) {
    const bool many = positional_.max_total_count() > positional_names_.size() && i + 1 == positional_names_.size();
    if (many) {
      hidden.add_options()(positional_names_[i].c_str(), po::value<std::vector<std::string>>());
    } else {
      hidden.add_options()(positional_names_[i].c_str(), po::value<std::string>());
    }
  }
  po::options_description all;
  all.add(options_).add(hidden);
  try {
    const int style = po::command_line_style::default_style & ~po::command_line_style::allow_guessing;
    const po::parsed_options parsed =
        po::command_line_parser(argc, argv).options(all).positional(positional_).style(style).run();
    po::store(parsed, values_);
    MOEPACK_RETURN_IF_ERROR(RefuseNegatives(parsed, values_));
  } catch (const po::error& error) {
    return Status(ErrorCode::kUsage, std::string(error.what()) + " (see " + info_.name + " --help)");
  }
  if (Has("help")) {
    help_shown_ = true;
    std::cout << info_.summary << "\n\nUsage: " << info_.name << " " << info_.usage << "\n\n" << options_ << "\nExamples:\n";
    for (const std::string& example : info_.examples) std::cout << "  " << example << "\n";
    return Status::Ok();
  }
  if (Has("threads") && (Get<int>("threads") < 1 || Get<int>("threads") > 1024)) {
    return Status(ErrorCode::kUsage, "--threads: expected 1 to 1024");
  }
  return Status::Ok();
}

int Command::threads() const { return GetOr<int>("threads", 0); }

Progress& Command::progress() const { return StderrProgress(Has("quiet")); }

Status Command::Require(const std::string& name) const {
  if (Has(name)) return Status::Ok();
  bool positional = false;
  for (const std::string& p : positional_names_) positional |= p == name;
  return Status(ErrorCode::kUsage, (positional ? "missing argument " : "missing option --") + name +
                                       "; usage: " + info_.name + " " + info_.usage);
}

Result<std::vector<int32_t>> ParseTokens(const std::string& text) {
  std::vector<int32_t> tokens;
  const char* at = text.data();
  const char* end = at + text.size();
  for (;;) {
    int32_t token = 0;
    const auto [next, error] = std::from_chars(at, end, token);
    if (error != std::errc() || token < 0 || (next != end && *next != ',')) {
      return Status(ErrorCode::kUsage, "--tokens: expected token ids separated by commas, such as 1,2,3");
    }
    tokens.push_back(token);
    if (next == end) return tokens;
    at = next + 1;
  }
}

namespace {

// What an exception ends in that cannot reach Main: thrown on a worker thread, or through a library without exceptions.
[[noreturn]] void Terminate() {
  try {
    if (const std::exception_ptr exception = std::current_exception()) std::rethrow_exception(exception);
  } catch (const std::bad_alloc&) {
    std::fputs("out of memory\n", stderr);
    std::_Exit(static_cast<int>(ErrorCode::kNoMemory) / 100);
  } catch (...) {
  }
  std::abort();
}

}  // namespace

int Main(const std::string& name, const std::function<Status()>& body) {
  std::set_terminate(Terminate);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit is then a write error with a message
  Status status;
  try {
    status = body();
  } catch (const std::bad_alloc&) {
    status = Status(ErrorCode::kNoMemory, "out of memory");
  } catch (const std::exception& error) {
    status = Status(ErrorCode::kInternal, error.what());
  }
  if (status.ok() && (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)) {
    status = Status(ErrorCode::kNoSpace, "standard output: cannot write; what it shows is not complete");
  }
  if (!status.ok()) std::fprintf(stderr, "%s: %s\n", name.c_str(), status.message().c_str());
  return status.exit_status();
}

void PrintJson(const nlohmann::json& object) {
  std::cout << object.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
}

}  // namespace moepack::cli
