// Renders a chat template for a conversation, as far as its Jinja is of the subset of jinja_syntax.h.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "model/chat/jinja_syntax.h"
#include "model/chat/jinja_value.h"

namespace moepack::jinja {

struct RenderContext {
  Value::Map globals;
  // Strings that hold this are contents of messages. A template that takes them apart (length, index, loop) is refused.
  std::string content_mark;
  // Out: literals that contents were searched for or compared with, kMaxNeedles + 1 at most; and whether one was longer than
  // kMaxChatExclusionText.
  std::set<std::string> needles;
  bool long_needle = false;
  // Out: bytes of values made, copied and looked through, of all renderings so far.
  uint64_t work = 0;
};

inline constexpr size_t kMaxNeedles = 16;
// What one rendering may take and all with one context together: time and memory are bounded by it. The templates of
// reduce_test.cc, one in the style of each family, take at most 0.6 MB and 44 MB.
inline constexpr uint64_t kMostWork = uint64_t{1} << 26, kMostWorkOfAll = uint64_t{1} << 32;

// kUnsupported with "line N: " for what is not supported, for raise_exception and strftime_now, and for templates that take
// or write too much.
Result<std::string> Render(const Body& body, RenderContext* context);

}  // namespace moepack::jinja
