// Regular expressions of the pre-tokenizers on the closed list, compiled once. Not a general engine: alternatives of items
// with greedy counts, tried from the most to the fewest, first alternative that matches. The expressions are constants of
// this library; texts may be anything.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/unicode.h"

namespace moepack {

// A text cut into code points, an invalid byte being one of its own. Built once for all patterns.
class SymbolText {
 public:
  explicit SymbolText(std::string_view text);
  size_t size() const { return codes_.size(); }
  char32_t code(size_t i) const { return codes_[i]; }
  Category category(size_t i) const { return categories_[i]; }
  // Byte at which symbol i begins; i may be size().
  size_t offset(size_t i) const { return offsets_[i]; }

 private:
  std::vector<char32_t> codes_;
  std::vector<Category> categories_;
  std::vector<size_t> offsets_;
};

class Pattern {
 public:
  // Syntax: alternatives of items. An item is a character, an escape (\r \n \s \S \p{..} or a quoted character), a class, or
  // (?i:a|b|c) of plain ASCII; each with ? * + {m} {m,n} or nothing. (?!\S) may follow.
  explicit Pattern(std::string_view expression);
  // End of the match that begins at `begin` and ends at most at `end`; `begin` when there is none. Empty matches are none.
  size_t Match(const SymbolText& text, size_t begin, size_t end) const;

 private:
  struct Range {
    char32_t first, last;
  };
  struct Item {
    uint16_t categories = 0;  // bit of each Category
    std::vector<Range> ranges;
    bool negated = false;
    std::vector<std::u32string> words;  // not empty: one of these, whatever the case, instead of a class
    bool before_space = false;          // (?!\S)
    uint32_t least = 1, most = 1;
  };
  using Items = std::vector<Item>;

  class Parser;
  static bool Has(const Item& item, char32_t code, Category category);
  static bool MatchItems(const Items& items, size_t index, const SymbolText& text, size_t at, size_t end, size_t* match);
  static bool MatchWords(const Items& items, size_t index, const SymbolText& text, size_t at, size_t end, size_t* match);

  std::vector<Items> alternatives_;
};

}  // namespace moepack
