#include "model/chat/reduce.h"

#include <algorithm>
#include <array>
#include <set>

#include "model/chat/jinja.h"

namespace moepack {
namespace {

constexpr size_t kMaxTemplate = 1 << 18;
constexpr size_t kMostTurns = 4;
constexpr char kMark[] = "\xEE\x84\xA3";  // U+E123, of a private range: no template writes it

Status Unsupported(const std::string& what) { return Status(ErrorCode::kUnsupported, what); }

using Conversation = std::vector<ChatMessage>;

// `turns` questions with the answers between them; contents are marked and all different.
Conversation Talk(bool system, size_t turns) {
  Conversation out;
  const auto add = [&](ChatRole role) {
    out.push_back({role, kMark + std::string(ChatRoleName(role)) + StrFormat("%zu.", out.size())});
  };
  if (system) add(ChatRole::kSystem);
  for (size_t turn = 0; turn < turns; ++turn) {
    if (turn > 0) add(ChatRole::kAssistant);
    add(ChatRole::kUser);
  }
  return out;
}

// What contents may look like, for messages.
struct Style {
  const char* name;
  std::string before, after;
};

const std::vector<Style>& Styles() {
  static const std::vector<Style> kStyles = {
      {"plain", "", ""},
      {"white space around", " \n\t", "\t \n\n"},
      {"several lines", "one\n\ntwo ", "\n  three"},
      {"long", std::string(3000, 'x'), std::string(3000, 'y')},
      {"marked-up", "# <b>{{ a }}</b> {% if %} ```", "``` \"quoted\" \\n {\"a\": [1]}"},
      {"other scripts'", "\xC3\xA9\xE4\xBD\xA0 ", " \xF0\x9F\x99\x82\xC2\xA0."},
  };
  return kStyles;
}

class Reducer {
 public:
  Reducer(jinja::Body body, const std::map<std::string, std::string>& tokens) : body_(std::move(body)) {
    context_.content_mark = kMark;
    for (const auto& [name, text] : tokens) context_.globals[name] = jinja::Value::Of(std::string_view(text));
    context_.globals["add_generation_prompt"] = jinja::Value::Of(true);
    for (const char* absent : {"tools", "documents"}) context_.globals[absent] = jinja::Value::None();
  }

  // The template for conversations with a system message, or for those without.
  Result<ChatTemplate> Reduce(bool system) {
    context_.needles.clear();
    context_.long_needle = false;
    ChatTemplate chat;
    (system ? chat.with_system : chat.without_system) = true;
    MOEPACK_RETURN_IF_ERROR(FindPieces(system, &chat));
    MOEPACK_RETURN_IF_ERROR(FindTrims(system, &chat));
    for (const Style& style : Styles()) MOEPACK_RETURN_IF_ERROR(Confirm(system, style, chat));
    MOEPACK_RETURN_IF_ERROR(FindExclusions(system, &chat));
    // Then a conversation may have been called different for want of time.
    if (context_.work >= jinja::kMostWorkOfAll) return Unsupported("it takes too much time or memory");
    return chat;
  }

 private:
  Result<std::string> Render(const Conversation& messages) {
    jinja::Value::List list;
    for (const ChatMessage& message : messages) {
      list.push_back(jinja::Value::Of(jinja::Value::Map{{"role", jinja::Value::Of(ChatRoleName(message.role))},
                                                        {"content", jinja::Value::Of(std::string_view(message.content))}}));
    }
    context_.globals["messages"] = jinja::Value::Of(std::move(list));
    return jinja::Render(body_, &context_);
  }

  // Whether the parts give what the template gives. `chat` has no exclusions yet.
  Result<bool> Agrees(const ChatTemplate& chat, const Conversation& messages) {
    MOEPACK_ASSIGN_OR_RETURN(const std::string expected, Render(messages));
    MOEPACK_ASSIGN_OR_RETURN(const std::vector<ChatPiece> pieces, JoinConversation(chat, messages));
    return expected == (pieces.empty() ? "" : pieces[0].text);
  }

  // Cuts the text of a conversation with one answer at its contents.
  Status FindPieces(bool system, ChatTemplate* chat) {
    const Conversation messages = Talk(system, 2);
    MOEPACK_ASSIGN_OR_RETURN(const std::string text, Render(messages));
    std::vector<ChatPlace> places = {ChatPlace::kBeforeUser, ChatPlace::kUserToAssistant, ChatPlace::kAssistantToUser};
    if (system) {
      places[0] = ChatPlace::kSystemToUser;
      places.insert(places.begin(), ChatPlace::kBeforeSystem);
    }
    size_t at = 0;
    for (size_t i = 0; i < messages.size(); ++i) {
      const std::string& content = messages[i].content;
      const size_t found = text.find(content, at);
      if (found == std::string::npos || text.find(content) != found || text.find(content, found + 1) != std::string::npos) {
        return Unsupported(
            StrFormat("the content of message %zu (%s) is not there once, in its place", i, ChatRoleName(messages[i].role)));
      }
      MOEPACK_RETURN_IF_ERROR(SetPiece(places[i], text.substr(at, found - at), chat));
      at = found + content.size();
    }
    return SetPiece(ChatPlace::kUserToAnswer, text.substr(at), chat);
  }

  static Status SetPiece(ChatPlace place, std::string text, ChatTemplate* chat) {
    if (text.size() > kMaxChatText) return Unsupported(StrFormat("a text of more than %u bytes", kMaxChatText));
    if (!text.empty()) chat->pieces[static_cast<size_t>(place)] = {ChatPiece{std::move(text)}};
    return Status::Ok();
  }

  // Whether the parts hold when contents of one role have this white space around them.
  Result<bool> HoldsPadded(bool system, ChatRole role, const std::string& padding, const ChatTemplate& chat) {
    Conversation messages = Talk(system, 2);
    for (ChatMessage& message : messages) {
      if (message.role == role) message.content = padding + message.content + padding;
    }
    return Agrees(chat, messages);
  }

  Status FindTrims(bool system, ChatTemplate* chat) {
    for (size_t r = system ? 0 : 1; r < kChatRoles; ++r) {
      const auto role = static_cast<ChatRole>(r);
      MOEPACK_ASSIGN_OR_RETURN(const bool kept, HoldsPadded(system, role, " ", *chat));
      chat->trims[r] = !kept;
      for (const char* padding : {" ", "\n", "\t\n "}) {
        MOEPACK_ASSIGN_OR_RETURN(const bool agrees, HoldsPadded(system, role, padding, *chat));
        if (agrees) continue;
        return Unsupported(std::string("white space around contents of the ") + ChatRoleName(role) +
                           " is neither kept nor taken away whole");
      }
    }
    return Status::Ok();
  }

  Status Confirm(bool system, const Style& style, const ChatTemplate& chat) {
    for (size_t turns = 1; turns <= kMostTurns; ++turns) {
      Conversation messages = Talk(system, turns);
      for (ChatMessage& message : messages) message.content = style.before + message.content + style.after;
      MOEPACK_ASSIGN_OR_RETURN(const bool agrees, Agrees(chat, messages));
      if (agrees) continue;
      return Unsupported(
          StrFormat("its text is not the sum of its parts for a conversation of %zu messages with %s contents",
                    messages.size(), style.name));
    }
    return Status::Ok();
  }

  // Whether the parts hold when messages of this role have such a content, at every place.
  bool Holds(bool system, ChatRole role, const std::string& content, const ChatTemplate& chat) {
    const Conversation talk = Talk(system, 3);
    for (size_t i = 0; i < talk.size(); ++i) {
      if (talk[i].role != role) continue;
      Conversation messages = talk;
      messages[i].content = content;
      const Result<bool> agrees = Agrees(chat, messages);
      if (!agrees.ok() || !*agrees) return false;
    }
    return true;
  }

  bool HoldsWith(bool system, ChatRole role, const std::string& needle, const ChatTemplate& chat) {
    if (needle.empty()) return Holds(system, role, "", chat) && Holds(system, role, " \n", chat);
    const std::string mark = kMark;
    for (const std::string& content : {needle, needle + mark, mark + needle, mark + needle + mark, needle + mark + needle}) {
      if (!Holds(system, role, content, chat)) return false;
    }
    const std::set<std::string> others = context_.needles;
    return std::all_of(others.begin(), others.end(), [&](const std::string& other) {
      return Holds(system, role, needle + mark + other, chat) && Holds(system, role, other + mark + needle, chat);
    });
  }

  // Contents with what the template searches for, and empty ones.
  Status FindExclusions(bool system, ChatTemplate* chat) {
    std::set<std::pair<ChatRole, std::string>> excluded;
    for (size_t role = system ? 0 : 1; role < kChatRoles; ++role) {
      std::set<std::string> tried;
      std::set<std::string> next = {""};
      while (!next.empty()) {
        for (const std::string& needle : next) {
          tried.insert(needle);
          if (!HoldsWith(system, static_cast<ChatRole>(role), needle, *chat))
            excluded.emplace(static_cast<ChatRole>(role), needle);
        }
        if (context_.needles.size() > jinja::kMaxNeedles) return Unsupported("contents are searched for too many texts");
        next.clear();
        std::set_difference(context_.needles.begin(), context_.needles.end(), tried.begin(), tried.end(),
                            std::inserter(next, next.end()));
      }
    }
    if (context_.long_needle) return Unsupported("contents are searched for a long text");
    for (const auto& [role, text] : excluded) {
      chat->exclusions.push_back({role, text});
    }
    return excluded.size() > kMaxChatExclusions ? Unsupported("too many contents are treated in another way") : Status::Ok();
  }

  const jinja::Body body_;
  jinja::RenderContext context_;
};

// Joins what holds for conversations with a system message and for those without; false when the common parts differ.
bool Merge(const ChatTemplate& with, ChatTemplate* chat) {
  const auto at = [](ChatPlace place) { return static_cast<size_t>(place); };
  for (const ChatPlace place : {ChatPlace::kUserToAssistant, ChatPlace::kAssistantToUser, ChatPlace::kUserToAnswer}) {
    if (with.pieces[at(place)] != chat->pieces[at(place)]) return false;
  }
  for (const ChatRole role : {ChatRole::kUser, ChatRole::kAssistant}) {
    if (with.trims[static_cast<size_t>(role)] != chat->trims[static_cast<size_t>(role)]) return false;
  }
  std::vector<ChatExclusion> both = chat->exclusions;
  both.insert(both.end(), with.exclusions.begin(), with.exclusions.end());
  std::sort(both.begin(), both.end(), [](const ChatExclusion& a, const ChatExclusion& b) {
    return a.role != b.role ? a.role < b.role : a.text < b.text;
  });
  both.erase(std::unique(both.begin(), both.end()), both.end());
  if (both.size() > kMaxChatExclusions) return false;
  chat->exclusions = std::move(both);
  chat->with_system = true;
  chat->trims[0] = with.trims[0];
  for (const ChatPlace place : {ChatPlace::kBeforeSystem, ChatPlace::kSystemToUser}) {
    chat->pieces[at(place)] = with.pieces[at(place)];
  }
  return true;
}

}  // namespace

Result<ReducedChat> ReduceChatTemplate(std::string_view jinja, const std::map<std::string, std::string>& special_tokens) {
  if (jinja.size() > kMaxTemplate) return Unsupported(StrFormat("more than %zu bytes", kMaxTemplate));
  if (jinja.find(kMark) != std::string_view::npos) return Unsupported("it writes U+E123, which marks contents");
  MOEPACK_ASSIGN_OR_RETURN(jinja::Body body, jinja::Parse(jinja));
  Reducer reducer(std::move(body), special_tokens);
  const Result<ChatTemplate> without = reducer.Reduce(false), with = reducer.Reduce(true);
  if (!without.ok() && !with.ok()) return without.status();
  ReducedChat out;
  out.chat = without.ok() ? *without : *with;
  if (!with.ok()) {
    out.notes.push_back("no system message: " + with.status().message());
  } else if (!without.ok()) {
    out.notes.push_back("only with a system message: " + without.status().message());
  } else if (!Merge(*with, &out.chat)) {
    out.notes.push_back("no system message: with one the text around the others is another");
  }
  return out;
}

}  // namespace moepack
