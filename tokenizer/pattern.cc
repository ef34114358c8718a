#include "tokenizer/pattern.h"

#include <algorithm>

namespace moepack {
namespace {

constexpr uint32_t kMany = UINT32_MAX;

constexpr uint16_t Bit(Category category) { return static_cast<uint16_t>(1u << static_cast<unsigned>(category)); }
constexpr uint16_t kLetters = Bit(Category::kUpper) | Bit(Category::kLower) | Bit(Category::kTitle) |
                              Bit(Category::kModifier) | Bit(Category::kOtherLetter);

struct Property {
  std::string_view name;
  uint16_t categories;
};
constexpr Property kProperties[] = {
    {"L", kLetters},
    {"Lu", Bit(Category::kUpper)},
    {"Ll", Bit(Category::kLower)},
    {"Lt", Bit(Category::kTitle)},
    {"Lm", Bit(Category::kModifier)},
    {"Lo", Bit(Category::kOtherLetter)},
    {"M", Bit(Category::kMark)},
    {"N", Bit(Category::kNumber)},
    {"P", Bit(Category::kPunctuation)},
    {"S", Bit(Category::kSymbol)},
};

// Simple case folding of what contractions use; the long s folds to s.
char32_t Fold(char32_t code) {
  if (code == 0x17F) return 's';
  return code >= 'A' && code <= 'Z' ? code + ('a' - 'A') : code;
}

}  // namespace

SymbolText::SymbolText(std::string_view text) {
  codes_.reserve(text.size());
  categories_.reserve(text.size());
  offsets_.reserve(text.size() + 1);
  for (size_t i = 0; i < text.size();) {
    const CodePoint point = DecodeUtf8(text, i);
    codes_.push_back(point.code);
    categories_.push_back(CategoryOf(point.code));
    offsets_.push_back(i);
    i += point.length;
  }
  offsets_.push_back(text.size());
}

// Reads an expression that is known to be well formed: the constants of pre_tokenizer.cc.
class Pattern::Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::vector<Items> Run() {
    std::vector<Items> out(1);
    while (at_ < text_.size()) {
      if (Take("|")) {
        out.emplace_back();
        continue;
      }
      out.back().push_back(ReadItem());
    }
    return out;
  }

 private:
  bool Take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  char32_t Next() {
    const CodePoint point = DecodeUtf8(text_, at_);
    at_ += point.length;
    return point.code;
  }

  Item ReadItem() {
    Item item;
    if (Take("(?!\\S)")) {
      item.before_space = true;
      return item;
    }
    if (Take("(?i:")) {
      item.words.emplace_back();
      while (!Take(")")) {
        if (Take("|")) {
          item.words.emplace_back();
        } else {
          item.words.back().push_back(Next());
        }
      }
    } else if (Take("[")) {
      item.negated = Take("^");
      while (!Take("]")) ReadMember(&item, true);
    } else {
      ReadMember(&item, false);
    }
    ReadCount(&item);
    return item;
  }

  // One character, range or escape, added to the class.
  void ReadMember(Item* item, bool in_class) {
    if (Take("\\p{")) {
      const size_t close = text_.find('}', at_);
      const std::string_view name = text_.substr(at_, close - at_);
      for (const Property& property : kProperties) {
        if (property.name == name) item->categories |= property.categories;
      }
      at_ = close + 1;
      return;
    }
    if (Take("\\s")) {
      item->categories |= Bit(Category::kSpace);
      return;
    }
    const char32_t first = ReadCharacter();
    char32_t last = first;
    if (in_class && at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']') {
      ++at_;
      last = ReadCharacter();
    }
    item->ranges.push_back({first, last});
  }

  char32_t ReadCharacter() {
    if (Take("\\r")) return '\r';
    if (Take("\\n")) return '\n';
    (void)Take("\\");
    return Next();
  }

  uint32_t ReadNumber() {
    uint32_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9')
      value = value * 10 + static_cast<uint32_t>(text_[at_++] - '0');
    return value;
  }

  void ReadCount(Item* item) {
    if (Take("?")) {
      item->least = 0;
    } else if (Take("*")) {
      item->least = 0, item->most = kMany;
    } else if (Take("+")) {
      item->most = kMany;
    } else if (Take("{")) {
      item->least = item->most = ReadNumber();
      if (Take(",")) item->most = ReadNumber();
      (void)Take("}");
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

Pattern::Pattern(std::string_view expression) : alternatives_(Parser(expression).Run()) {}

bool Pattern::Has(const Item& item, char32_t code, Category category) {
  bool in = (item.categories & Bit(category)) != 0;
  for (const Range& range : item.ranges) in = in || (code >= range.first && code <= range.last);
  return in != item.negated;
}

bool Pattern::MatchWords(const Items& items, size_t index, const SymbolText& text, size_t at, size_t end, size_t* match) {
  for (const std::u32string& word : items[index].words) {
    if (word.size() > end - at) continue;
    bool same = true;
    for (size_t i = 0; i < word.size() && same; ++i) same = Fold(text.code(at + i)) == word[i];
    if (same && MatchItems(items, index + 1, text, at + word.size(), end, match)) return true;
  }
  return items[index].least == 0 && MatchItems(items, index + 1, text, at, end, match);
}

// Recursion is as deep as the expression has items.
bool Pattern::MatchItems(const Items& items, size_t index, const SymbolText& text, size_t at, size_t end, size_t* match) {
  if (index == items.size()) {
    *match = at;
    return true;
  }
  const Item& item = items[index];
  if (item.before_space) {
    const bool blocked = at < end && text.category(at) != Category::kSpace;
    return !blocked && MatchItems(items, index + 1, text, at, end, match);
  }
  if (!item.words.empty()) return MatchWords(items, index, text, at, end, match);
  size_t last = at;
  const size_t most = item.most == kMany ? end : std::min<size_t>(end, at + item.most);
  while (last < most && Has(item, text.code(last), text.category(last))) ++last;
  if (last - at < item.least) return false;
  for (;; --last) {
    if (MatchItems(items, index + 1, text, last, end, match)) return true;
    if (last - at <= item.least) return false;
  }
}

size_t Pattern::Match(const SymbolText& text, size_t begin, size_t end) const {
  for (const Items& items : alternatives_) {
    size_t match = begin;
    if (MatchItems(items, 0, text, begin, end, &match) && match > begin) return match;
  }
  return begin;
}

}  // namespace moepack
