// The steps of Manifest::unavailable as people write them: "retry,lower,twin,renormalise,dense".
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "format/manifest/manifest.h"

namespace moepack {

// Every step there is, in the order of trying.
std::vector<Unavailable> AllUnavailable();
// "retry"; static storage. "unknown" for what is no step.
const char* UnavailableName(Unavailable step);
// Names with commas between them; "fail" for none.
std::string DescribeUnavailable(const std::vector<Unavailable>& steps);
// The reverse. kUsage unless every name is known and none comes before or beside one that is tried later.
Result<std::vector<Unavailable>> ParseUnavailable(std::string_view text);

}  // namespace moepack
