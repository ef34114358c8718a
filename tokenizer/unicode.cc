#include "tokenizer/unicode.h"

#include <algorithm>
#include <array>
#include <vector>

#include "tokenizer/unicode_tables.h"

namespace moepack {
namespace {

// Every code point below is in NFC and has combining class 0.
constexpr char32_t kFirstCombining = 0x300;

// Hangul syllables by arithmetic (Unicode Standard, section 3.12).
constexpr char32_t kSBase = 0xAC00, kLBase = 0x1100, kVBase = 0x1161, kTBase = 0x11A7;
constexpr char32_t kLCount = 19, kVCount = 21, kTCount = 28, kSCount = kLCount * kVCount * kTCount;

struct Mark {
  char32_t code;
  uint8_t combining;
};

// The entry of a sorted table of [first, last] ranges that holds `code`, or null.
template <typename Range>
const Range* FindRange(const Range* table, size_t count, char32_t code) {
  const Range* end = table + count;
  const Range* it = std::upper_bound(table, end, code, [](char32_t c, const Range& r) { return c < r.first; });
  if (it == table || code > (it - 1)->last) return nullptr;
  return it - 1;
}

Category SearchCategory(char32_t code) {
  const CategoryRange* range = FindRange(kCategoryRanges, kCategoryRangesCount, code);
  return range == nullptr ? Category::kOther : range->value;
}

uint8_t CombiningClass(char32_t code) {
  if (code < kFirstCombining) return 0;
  const CombiningRange* range = FindRange(kCombiningRanges, kCombiningRangesCount, code);
  return range == nullptr ? 0 : range->value;
}

void AppendDecomposed(char32_t code, std::vector<Mark>* out) {
  if (code >= kSBase && code < kSBase + kSCount) {
    const char32_t index = code - kSBase;
    out->push_back({kLBase + index / (kVCount * kTCount), 0});
    out->push_back({kVBase + index % (kVCount * kTCount) / kTCount, 0});
    if (index % kTCount != 0) out->push_back({kTBase + index % kTCount, 0});
    return;
  }
  const Decomposition* end = kDecompositions + kDecompositionsCount;
  const Decomposition* it =
      std::lower_bound(kDecompositions, end, code, [](const Decomposition& d, char32_t c) { return d.code < c; });
  if (it == end || it->code != code) {
    out->push_back({code, CombiningClass(code)});
    return;
  }
  for (uint32_t i = 0; i < it->count; ++i) {
    const char32_t part = kDecompositionPool[it->begin + i];
    out->push_back({part, CombiningClass(part)});
  }
}

// Canonical ordering: every run of marks sorted by combining class, stable.
void OrderMarks(std::vector<Mark>* marks) {
  auto run = marks->begin();
  while (run != marks->end()) {
    if (run->combining == 0) {
      ++run;
      continue;
    }
    auto end = std::find_if(run, marks->end(), [](const Mark& m) { return m.combining == 0; });
    std::stable_sort(run, end, [](const Mark& a, const Mark& b) { return a.combining < b.combining; });
    run = end;
  }
}

// The primary composite of a pair, or 0.
char32_t Compose(char32_t first, char32_t second) {
  if (first >= kLBase && first < kLBase + kLCount && second >= kVBase && second < kVBase + kVCount) {
    return kSBase + ((first - kLBase) * kVCount + (second - kVBase)) * kTCount;
  }
  if (first >= kSBase && first < kSBase + kSCount && (first - kSBase) % kTCount == 0 && second > kTBase &&
      second < kTBase + kTCount) {
    return first + (second - kTBase);
  }
  const Composition* end = kCompositions + kCompositionsCount;
  const Composition* it = std::lower_bound(kCompositions, end, second, [first](const Composition& c, char32_t s) {
    return c.first != first ? c.first < first : c.second < s;
  });
  return it != end && it->first == first && it->second == second ? it->composite : 0;
}

// Joins each character to the last starter before it unless a character between them blocks it.
void ComposeMarks(std::vector<Mark>* marks) {
  constexpr size_t kNoStarter = static_cast<size_t>(-1);
  size_t starter = kNoStarter, size = 0;
  for (size_t i = 0; i < marks->size(); ++i) {
    const Mark mark = (*marks)[i];
    const bool adjacent = starter != kNoStarter && starter + 1 == size;
    if (starter != kNoStarter && (adjacent || (*marks)[size - 1].combining < mark.combining)) {
      if (const char32_t composite = Compose((*marks)[starter].code, mark.code); composite != 0) {
        (*marks)[starter].code = composite;
        continue;
      }
    }
    if (mark.combining == 0) starter = size;
    (*marks)[size++] = mark;
  }
  marks->resize(size);
}

bool IsNormalizedLatin(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const CodePoint point = DecodeUtf8(text, i);
    if (point.code >= kFirstCombining && point.code < kInvalidByte) return false;
    i += point.length;
  }
  return true;
}

}  // namespace

CodePoint DecodeUtf8(std::string_view text, size_t position) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[position + i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const CodePoint invalid{kInvalidByte + lead, 1};
  if (lead < 0xC2 || lead > 0xF4) return invalid;
  const uint32_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (length > text.size() - position) return invalid;
  char32_t code = lead & (0xFFu >> (length + 1));
  for (uint32_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return invalid;
    code = (code << 6) | (byte(i) & 0x3Fu);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  if (overlong || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return invalid;
  return {code, length};
}

void AppendUtf8(char32_t code, std::string* out) {
  const auto push = [out](char32_t byte) { out->push_back(static_cast<char>(static_cast<uint8_t>(byte))); };
  if (code >= kInvalidByte) {
    push(code - kInvalidByte);
  } else if (code < 0x80) {
    push(code);
  } else if (code < 0x800) {
    push(0xC0 | (code >> 6));
    push(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    push(0xE0 | (code >> 12));
    push(0x80 | ((code >> 6) & 0x3F));
    push(0x80 | (code & 0x3F));
  } else {
    push(0xF0 | (code >> 18));
    push(0x80 | ((code >> 12) & 0x3F));
    push(0x80 | ((code >> 6) & 0x3F));
    push(0x80 | (code & 0x3F));
  }
}

std::string MarksToSpaces(std::string_view text) {
  constexpr std::string_view kMark = "\xE2\x96\x81";
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const bool mark = text.substr(at, kMark.size()) == kMark;
    out.push_back(mark ? ' ' : text[at]);
    at += mark ? kMark.size() : 1;
  }
  return out;
}

Category CategoryOf(char32_t code) {
  static const std::array<Category, 128> kAscii = [] {
    std::array<Category, 128> table;
    for (char32_t c = 0; c < 128; ++c) table[c] = SearchCategory(c);
    return table;
  }();
  return code < 128 ? kAscii[code] : SearchCategory(code);
}

std::string NormalizeNfc(std::string_view text) {
  if (IsNormalizedLatin(text)) return std::string(text);
  std::vector<Mark> marks;
  marks.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const CodePoint point = DecodeUtf8(text, i);
    AppendDecomposed(point.code, &marks);
    i += point.length;
  }
  OrderMarks(&marks);
  ComposeMarks(&marks);
  std::string out;
  out.reserve(text.size());
  for (const Mark& mark : marks) AppendUtf8(mark.code, &out);
  return out;
}

}  // namespace moepack
