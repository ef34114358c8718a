#include "format/manifest/unavailable.h"

#include <algorithm>
#include <iterator>

namespace moepack {
namespace {

constexpr Unavailable kSteps[] = {Unavailable::kRetry, Unavailable::kLower, Unavailable::kTwin, Unavailable::kRenormalise,
                                  Unavailable::kDense};
constexpr char kNoSteps[] = "fail";

}  // namespace

std::vector<Unavailable> AllUnavailable() { return {std::begin(kSteps), std::end(kSteps)}; }

const char* UnavailableName(Unavailable step) {
  switch (step) {
    case Unavailable::kRetry:
      return "retry";
    case Unavailable::kLower:
      return "lower";
    case Unavailable::kTwin:
      return "twin";
    case Unavailable::kRenormalise:
      return "renormalise";
    case Unavailable::kDense:
      return "dense";
  }
  return "unknown";
}

std::string DescribeUnavailable(const std::vector<Unavailable>& steps) {
  std::string out;
  for (const Unavailable step : steps) out += (out.empty() ? "" : ",") + std::string(UnavailableName(step));
  return out.empty() ? kNoSteps : out;
}

Result<std::vector<Unavailable>> ParseUnavailable(std::string_view text) {
  std::vector<Unavailable> out;
  if (text == kNoSteps) return out;
  for (size_t at = 0; at <= text.size();) {
    const std::string_view name = text.substr(at, std::min(text.find(',', at), text.size()) - at);
    at += name.size() + 1;
    const Unavailable before = out.empty() ? Unavailable{} : out.back();
    for (const Unavailable step : kSteps) {
      if (name == UnavailableName(step) && step > before) out.push_back(step);
    }
    if (out.empty() || out.back() == before) {
      return Status(ErrorCode::kUsage, "'" + std::string(text) +
                                           "': expected fail, or some of retry, lower, twin, renormalise, "
                                           "dense in this order with commas between them");
    }
  }
  return out;
}

}  // namespace moepack
