// A chat template in Jinja -> what stands before, between and behind the messages (tokenizer/chat_template.h).
//
// The template is rendered for conversations with marked contents; the text around the marks is what is kept. Then further
// conversations (one to four turns, contents with white space around them, with line ends, long ones, with what the template
// searches for) must give what the parts give, or the template is refused.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tokenizer/chat_template.h"

namespace moepack {

struct ReducedChat {
  ChatTemplate chat;               // every piece is text
  std::vector<std::string> notes;  // what of the template is left out, and why
};

// `special_tokens`: bos_token and so on, by name. Without tools, documents or a date: what a template does with those is
// left out. kUnsupported with the line, or with the conversation whose text its parts do not give.
Result<ReducedChat> ReduceChatTemplate(std::string_view jinja, const std::map<std::string, std::string>& special_tokens);

}  // namespace moepack
