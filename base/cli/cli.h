// What every moepack program shares: option parsing with Boost.ProgramOptions, --help with examples, --json, sizes, exit
// status. Only programs (*_main.cc) use it; libraries neither parse options nor print.
#pragma once

#include <boost/program_options.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/progress.h"
#include "base/status.h"

namespace moepack::cli {

struct CommandInfo {
  std::string name;                   // "moepack calibrate"
  std::string summary;                // one line
  std::string usage;                  // "MODEL --data FILE... -o P.mprof"
  std::vector<std::string> examples;  // whole command lines, shown by --help
};

// Options of one command. Positional arguments are declared by name, in order; the last one may repeat.
class Command {
 public:
  explicit Command(CommandInfo info);
  boost::program_options::options_description& options() { return options_; }
  // Adds a positional argument; `many`: takes all that remain.
  void Positional(const std::string& name, bool many = false);
  // Parses argv[1..]. On --help prints to standard output and sets help_shown(). Adds --help, --json, --quiet, --threads.
  Status Parse(int argc, char** argv);

  bool help_shown() const { return help_shown_; }
  bool json() const { return Has("json"); }
  int threads() const;         // 0: all cores
  Progress& progress() const;  // standard error; silent with --quiet
  bool Has(const std::string& name) const { return values_.count(name) != 0; }
  template <typename T>
  T Get(const std::string& name) const {
    return values_[name].as<T>();
  }
  template <typename T>
  T GetOr(const std::string& name, T fallback) const {
    return Has(name) ? values_[name].as<T>() : fallback;
  }
  // kUsage with a hint when `name` is missing.
  Status Require(const std::string& name) const;

 private:
  CommandInfo info_;
  boost::program_options::options_description options_;
  std::vector<std::string> positional_names_;
  boost::program_options::positional_options_description positional_;
  boost::program_options::variables_map values_;
  bool help_shown_ = false;
};

// "1,2,3": token ids of at least 0. kUsage, naming --tokens, on anything else.
Result<std::vector<int32_t>> ParseTokens(const std::string& text);

// Largest text file that --data takes.
inline constexpr uint64_t kMaxTextBytes = uint64_t{1} << 32;

// Runs `body`, prints "NAME: message" for an error to standard error and returns the exit status; an exception that
// reaches it is a fault of ours (1), std::bad_alloc is kNoMemory, also on another thread. Standard output that could not
// be written is kNoSpace. Ignores SIGPIPE.
int Main(const std::string& name, const std::function<Status()>& body);

// One JSON object on standard output with a newline. Bytes that are not UTF-8 (of a path, say) become U+FFFD.
void PrintJson(const nlohmann::json& object);

}  // namespace moepack::cli
