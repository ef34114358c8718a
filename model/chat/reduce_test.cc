// Templates in the style of each family, written after their documented formats; the expected texts are those formats.
#include "model/chat/reduce.h"

#include <gtest/gtest.h>

namespace moepack {
namespace {

const std::map<std::string, std::string> kTokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};

ChatMessage System(std::string text) { return {ChatRole::kSystem, std::move(text)}; }
ChatMessage User(std::string text) { return {ChatRole::kUser, std::move(text)}; }
ChatMessage Assistant(std::string text) { return {ChatRole::kAssistant, std::move(text)}; }

ReducedChat Reduced(std::string_view jinja) {
  const auto reduced = ReduceChatTemplate(jinja, kTokens);
  EXPECT_TRUE(reduced.ok()) << reduced.status().message();
  return reduced.ok() ? *reduced : ReducedChat();
}

std::string Refusal(std::string_view jinja) {
  const auto reduced = ReduceChatTemplate(jinja, kTokens);
  EXPECT_FALSE(reduced.ok());
  EXPECT_EQ(reduced.status().code(), ErrorCode::kUnsupported);
  return reduced.status().message();
}

// The prompt of a conversation, or why there is none.
std::string Prompt(const ChatTemplate& chat, const std::vector<ChatMessage>& messages) {
  const auto pieces = JoinConversation(chat, messages);
  if (!pieces.ok()) return "refused: " + pieces.status().message();
  return pieces->empty() ? "" : pieces->at(0).text;
}

bool Has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

constexpr char kChatMl[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

TEST(ReduceChatTest, Qwen2HasASystemMessageOfItsOwn) {
  const ReducedChat out = Reduced(kChatMl);
  EXPECT_TRUE(out.notes.empty());
  EXPECT_TRUE(out.chat.exclusions.empty());
  EXPECT_EQ(
      Prompt(out.chat, {User("Hi")}),
      "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(Prompt(out.chat, {System("S"), User("A"), Assistant("B"), User(" C ")}),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
            "<|im_start|>user\n C <|im_end|>\n<|im_start|>assistant\n");
}

// Thoughts of earlier answers are taken away, so an answer that holds them is refused; tools are not asked for.
constexpr char kQwen3[] = R"({%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(open=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- set text = message.content %}
    {%- if ns.open and message.role == "user" and not(text.startswith('<tool>') and text.endswith('</tool>')) %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %})";

TEST(ReduceChatTest, Qwen3RefusesAnswersWithThoughts) {
  const ReducedChat out = Reduced(kQwen3);
  EXPECT_TRUE(out.notes.empty());
  EXPECT_EQ(Prompt(out.chat, {User("A"), Assistant("B"), User("C")}),
            "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(Prompt(out.chat, {System("S"), User("A")}),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_TRUE(
      Has(Prompt(out.chat, {User("A"), Assistant("<think>x</think>B"), User("C")}), "refused: message 1 (assistant)"));
  EXPECT_FALSE(Has(Prompt(out.chat, {User("what is </think>?")}), "refused"));
}

TEST(ReduceChatTest, MixtralHasNoSystemMessage) {
  const ReducedChat out = Reduced(
      "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
      "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
      "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
      "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
      "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}");
  ASSERT_EQ(out.notes.size(), 1u);
  EXPECT_TRUE(Has(out.notes[0], "no system message: line 1: raise_exception: Conversation roles must alternate"))
      << out.notes[0];
  EXPECT_EQ(Prompt(out.chat, {User("A"), Assistant("B"), User("C")}), "<s>[INST] A [/INST]B</s>[INST] C [/INST]");
  EXPECT_TRUE(Has(Prompt(out.chat, {System("S"), User("A")}), "refused: the model's chat template has no system message"));
}

TEST(ReduceChatTest, MistralPutsTheSystemMessageIntoTheFirstQuestion) {
  const ReducedChat out = Reduced(R"({%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- " [INST] " + system_message + "\n\n" + message["content"] + " [/INST]" }}
        {%- else %}
            {{- " [INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token}}
    {%- endif %}
{%- endfor %}
)");
  EXPECT_TRUE(out.notes.empty());
  EXPECT_EQ(Prompt(out.chat, {System("S"), User("A"), Assistant("B"), User("C")}),
            "<s> [INST] S\n\nA [/INST] B</s> [INST] C [/INST]");
  EXPECT_EQ(Prompt(out.chat, {User("A")}), "<s> [INST] A [/INST]");
}

TEST(ReduceChatTest, ASystemMessageThatMovesIsLeftOut) {
  const ReducedChat out = Reduced(
      "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set messages = messages[1:] %}{%- "
      "endif %}"
      "{{ bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{ '[INST] ' }}{%- if loop.last and system is "
      "defined %}"
      "{{ system + '\\n' }}{%- endif %}{{ m.content + '[/INST]' }}{%- else %}{{ m.content + eos_token }}{%- endif %}{%- "
      "endfor %}");
  ASSERT_EQ(out.notes.size(), 1u);
  EXPECT_TRUE(Has(out.notes[0], "no system message: the content of message")) << out.notes[0];
  EXPECT_EQ(Prompt(out.chat, {User("A")}), "<s>[INST] A[/INST]");
}

TEST(ReduceChatTest, Llama3TrimsContents) {
  const ReducedChat out = Reduced(
      "{% set loop_messages = messages %}{% for message in loop_messages %}"
      "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + "
      "'<|eot_id|>' %}"
      "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}");
  EXPECT_TRUE(out.notes.empty());
  EXPECT_EQ(
      Prompt(out.chat, {System(" S\n"), User("\t A \xC2\xA0")}),
      "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(ReduceChatTest, OlmoeEndsTheLastAnswerInAnotherWay) {
  const ReducedChat out = Reduced(
      "{{ bos_token }}{% for message in messages %}\n{% if message['role'] == 'system' %}\n{{ '<|system|>\n' + "
      "message['content'] + '\n' }}\n"
      "{% elif message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + '\n' }}\n"
      "{% elif message['role'] == 'assistant' %}\n{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] + "
      "eos_token + '\n' }}"
      "{% else %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}\n{% endif %}\n"
      "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>\n' }}\n{% endif %}\n{% endfor %}");
  EXPECT_EQ(Prompt(out.chat, {User("A"), Assistant("B"), User("C")}),
            "<s><|user|>\nA\n\n<|assistant|>\nB</s>\n<|user|>\nC\n\n<|assistant|>\n\n");
}

TEST(ReduceChatTest, PhiLeavesOutEmptySystemMessages) {
  const ReducedChat out = Reduced(
      "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
      "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
      "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
      "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}");
  EXPECT_EQ(Prompt(out.chat, {System("S"), User("A")}), "<|system|>\nS<|end|>\n<|user|>\nA<|end|>\n<|assistant|>\n");
  EXPECT_TRUE(Has(Prompt(out.chat, {System(""), User("A")}), "refused: message 0 (system) is empty"));
  EXPECT_EQ(Prompt(out.chat, {User("")}), "<|user|>\n<|end|>\n<|assistant|>\n");
}

TEST(ReduceChatTest, GraniteNeedsASystemMessageWhereItsOwnHasADate) {
  const ReducedChat out = Reduced(
      "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}{%- set loop_messages = "
      "messages[1:] %}"
      "{%- else %}{%- set system_message = \"Today's Date: \" + strftime_now('%B %d, %Y') + \".\" %}{%- set loop_messages = "
      "messages %}{%- endif %}"
      "{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}"
      "{%- for message in loop_messages %}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + "
      "message['content'] + '<|end_of_text|>\\n' }}"
      "{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant' }}{{- '<|end_of_role|>' }}{%- endif "
      "%}{%- endfor %}");
  ASSERT_EQ(out.notes.size(), 1u);
  EXPECT_TRUE(Has(out.notes[0], "only with a system message: line 1: strftime_now")) << out.notes[0];
  EXPECT_EQ(Prompt(out.chat, {System("S"), User("A")}),
            "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>A<|end_of_text|>\n"
            "<|start_of_role|>assistant<|end_of_role|>");
  EXPECT_TRUE(Has(Prompt(out.chat, {User("A")}), "needs a system message"));
}

TEST(ReduceChatTest, DeepSeek) {
  const ReducedChat out = Reduced(
      "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
      "{% set ns = namespace(is_tool=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}"
      "{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + "
      "message['content'] %}"
      "{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + "
      "message['content'] %}{%- endif %}"
      "{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}"
      "{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}"
      "{%- if message['role'] == 'assistant' and message['tool_calls'] is defined and message['tool_calls'] is not none %}"
      "{{ message['tool_calls'][0]['type'] }}{%- endif %}"
      "{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{% set content = message['content'] %}"
      "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
      "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
      "{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}");
  EXPECT_TRUE(out.notes.empty());
  EXPECT_EQ(Prompt(out.chat, {System("S"), User("A"), Assistant("B"), User("C")}),
            "<s>S<｜User｜>A<｜Assistant｜>B<｜end▁of▁sentence｜><｜User｜>C<｜Assistant｜>");
}

TEST(ReduceChatTest, MacrosAsInGlm) {
  const ReducedChat out = Reduced(R"([gMASK]<sop>
{%- macro visible_text(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}{{- item.text }}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{{ visible_text(m.content) }}
{{- '/nothink' if (thinking is defined and not thinking and not visible_text(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set content = visible_text(m.content) %}
{{- '\n<think></think>' -}}
{%- if content.strip() -%}
{{ '\n' + content.strip() }}
{%- endif -%}
{%- elif m.role == 'system' -%}
<|system|>
{{ visible_text(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>
{%- endif -%})");
  EXPECT_TRUE(out.notes.empty());
  EXPECT_EQ(Prompt(out.chat, {System("S"), User(" A"), Assistant(" B\n"), User("C")}),
            "[gMASK]<sop><|system|>\nS<|user|>\n A<|assistant|>\n<think></think>\nB<|user|>\nC<|assistant|>");
  EXPECT_TRUE(Has(Prompt(out.chat, {User("A"), Assistant(" "), User("C")}), "refused: message 1 (assistant) is empty"));
}

TEST(ReduceChatTest, RefusesWithLineAndReason) {
  const auto in_loop = [](const std::string& body) {
    return Refusal("{{ bos_token }}\n{% for m in messages %}\n" + body + "\n{% endfor %}");
  };
  // gpt-oss writes the date into every prompt.
  EXPECT_TRUE(
      Has(Refusal("<|start|>system<|message|>\nCurrent date: {{ strftime_now('%Y-%m-%d') }}"), "line 2: strftime_now"));
  EXPECT_TRUE(Has(in_loop("{{ m.content[:10] }}"), "line 3: the output depends on contents of messages (a slice"));
  EXPECT_TRUE(Has(in_loop("{% for c in m.content %}{{ c }}{% endfor %}"), "(a loop over one)"));
  EXPECT_TRUE(Has(in_loop("{% if m.content|length > 5 %}{{ m.content }}{% endif %}"), "(the length of one)"));
  EXPECT_TRUE(Has(in_loop("{{ m.content | upper }}"), "(upper of one)"));
  EXPECT_TRUE(Has(in_loop("{{ m.content | tojson }}"), "filter 'tojson' is not supported"));
  EXPECT_TRUE(Has(in_loop("{{ m.content }}{{ m.content }}"), "is not there once"));
  EXPECT_TRUE(Has(in_loop("{{ m.role }}"), "is not there once"));
  EXPECT_TRUE(Has(in_loop("{{ m.content.strip('\\n') }}"), "neither kept nor taken away whole"));
  EXPECT_TRUE(Has(in_loop("{{ loop.index }}{{ m.content }}"),
                  "is not the sum of its parts for a conversation of 5 messages with plain contents"));
  EXPECT_TRUE(Has(in_loop("{{ m.content }}{% if loop.length > 3 %}!{% endif %}"), "is not the sum of its parts"));
  EXPECT_TRUE(Has(in_loop("{% include 'x' %}"), "line 3: {% include %} is not supported"));
  EXPECT_TRUE(Has(in_loop("{{ m.content | wordwrap }}"), "line 3: filter 'wordwrap' is not supported"));
  EXPECT_TRUE(Has(in_loop("{{ f(m.content) }}"), "line 3: function 'f' is not supported"));
  EXPECT_TRUE(Has(Refusal("{% for m in messages %}{{ m.content }}"), "expected {% endfor %}"));
  EXPECT_TRUE(Has(Refusal("{{ 'x }}"), "line 1: a string that does not end"));
  EXPECT_TRUE(Has(Refusal("{% for m in messages %}{{ raise_exception('never') }}{% endfor %}"), "raise_exception: never"));
}

std::string Repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

TEST(ReduceChatTest, HostileTemplatesEnd) {
  EXPECT_TRUE(Has(Refusal("{% for a in range(8000) %}{% for b in range(8000) %}x{% endfor %}{% endfor %}"), "too m"));
  EXPECT_TRUE(
      Has(Refusal("{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"),
          "a string that is too long"));
  const std::string kilobytes =
      "{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(13) %}{% set ns.s = ns.s + ns.s %}{% endfor %}";
  EXPECT_TRUE(Has(Refusal(kilobytes + "{{ ns.s.replace('x', ns.s) }}"), "a string that is too long"));
  EXPECT_TRUE(Has(Refusal(kilobytes + "{{ ns.s.split('x')|length }}"), "a list that is too long"));
  EXPECT_TRUE(Has(Refusal(kilobytes + "{{ (ns.s + 'y') in ns.s }}"), "too much time or memory"));
  EXPECT_TRUE(Has(Refusal(kilobytes + "{% for a in range(5000) %}{% set b = ns.s + 'a' %}{% endfor %}"), "too much time"));
  const std::string doubled =
      "{% set a = [1] %}{% set b = [1] %}" + Repeated("{% set a = [a, a] %}{% set b = [b, b] %}", 40);
  EXPECT_TRUE(Has(Refusal(doubled + "{{ a == b }}"), "too much time or memory"));
  EXPECT_TRUE(Has(Refusal("{% set a = [] %}" + Repeated("{% set a = [a] %}", 100)), "lists in lists go too deep"));
  EXPECT_TRUE(
      Has(Refusal(kilobytes + "{% set a = [ns.s] %}" + Repeated("{% set a = a + a %}", 13)), "too much time or memory"));
  // Values that hold each other, or each the last one.
  EXPECT_TRUE(Has(Refusal("{% set n = namespace() %}{% set n.m = n.get %}"), "a namespace that holds a function"));
  EXPECT_TRUE(
      Has(Refusal("{% set n = {}.get %}" + Repeated("{% set n = {'': n}.get %}", 100)), "lists in lists go too deep"));
  // What is copied or looked through beside the values of expressions.
  const std::string rows =
      kilobytes + "{% set l = [[" + Repeated("ns.s, ", 199) + "ns.s]] %}" + Repeated("{% set l = l + l %}", 10);
  std::string names = "n0";
  for (int i = 1; i < 200; ++i) names += ", n" + std::to_string(i);
  EXPECT_TRUE(Has(Refusal(rows + "{% for " + names + " in l %}{% endfor %}"), "too much time or memory"));
  const std::string maps = kilobytes + "{% set l = [{'a': ns.s}] %}" + Repeated("{% set l = l + l %}", 12);
  EXPECT_TRUE(Has(Refusal(maps + "{{ l | selectattr('a') | length }}"), "too much time or memory"));
  EXPECT_TRUE(Has(
      Refusal("{% macro f(" + Repeated("a, ", 20000) + "a) %}{% endmacro %}{% for i in range(8000) %}{{ f() }}{% endfor %}"),
      "too much time or memory"));
  EXPECT_TRUE(Has(Refusal("{{ " + std::string(1000, 'x') + " }}"), "a name of more than 256 characters"));
  std::string tree = "a";
  for (int i = 0; i < 90; ++i) tree = "(" + tree + ")" + Repeated(".a", 150) + Repeated(" * a", 150) + Repeated(" + a", 150);
  EXPECT_TRUE(Has(Refusal("{{ " + tree + " }}"), "an expression that is too deep"));
  EXPECT_TRUE(Has(Refusal("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "too deep"));
  EXPECT_TRUE(Has(Refusal("{{ " + std::string(100000, '(') + "a" + std::string(100000, ')') + " }}"), "too deep"));
  EXPECT_TRUE(Has(Refusal("{{ a" + std::string(100000, '.') + " }}"), "expected a name"));
  std::string chain = "{{ a";
  for (int i = 0; i < 100000; ++i) chain += ".a";
  EXPECT_TRUE(Has(Refusal(chain + " }}"), "too long"));
  EXPECT_TRUE(Has(Refusal(std::string(300000, 'x')), "more than 262144 bytes"));
}

TEST(ReduceChatTest, ContentsThatItComparesAreExcludedOnlyWhereItMatters) {
  const ReducedChat out = Reduced(
      "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' and m.content == 'reset' %}RESET{% else %}{{ m.content "
      "}}{% endif %}"
      "{% endfor %}<answer>");
  EXPECT_EQ(out.chat.exclusions, (std::vector<ChatExclusion>{{ChatRole::kUser, "reset"}}));
}

}  // namespace
}  // namespace moepack
