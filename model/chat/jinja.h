// Renders a chat template for a conversation, as far as its Jinja is of the subset of jinja_syntax.h.
#pragma once

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
  // Out: literals that contents were searched for or compared with.
  std::set<std::string> needles;
};

// kUnsupported with "line N: " for what is not supported, for raise_exception and strftime_now, and for templates that run
// too long or write too much.
Result<std::string> Render(const Body& body, RenderContext* context);

}  // namespace moepack::jinja
