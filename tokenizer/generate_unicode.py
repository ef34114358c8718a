"""Writes unicode_tables.cc: the categories and normalisation tables of the running Python's Unicode database.

Standard library only. Usage: generate_unicode.py OUTPUT
"""

import sys
import unicodedata

CODE_POINTS = range(0x110000)
HANGUL_SYLLABLES = range(0xAC00, 0xAC00 + 11172)  # composed by arithmetic, not by table


LETTERS = {"Lu": "kUpper", "Ll": "kLower", "Lt": "kTitle", "Lm": "kModifier", "Lo": "kOtherLetter"}
MAJOR = {"M": "kMark", "N": "kNumber", "P": "kPunctuation", "S": "kSymbol"}


def category_name(code):
    """The Category of a code point, or None for those that no expression names."""
    category = unicodedata.category(chr(code))
    # White_Space: all separators and the control characters that PropList.txt lists.
    if category[0] == "Z" or 0x09 <= code <= 0x0D or code == 0x85:
        return "kSpace"
    return LETTERS.get(category) or MAJOR.get(category[0])


def ranges(value_of):
    """[first, last, value] of every maximal run of code points with one value that is not None."""
    runs = []
    for code in CODE_POINTS:
        value = value_of(code)
        if value is None:
            continue
        if runs and runs[-1][1] == code - 1 and runs[-1][2] == value:
            runs[-1][1] = code
        else:
            runs.append([code, code, value])
    return runs


def decompositions():
    """code point -> its full canonical decomposition, Hangul left out."""
    table = {}
    for code in CODE_POINTS:
        if code in HANGUL_SYLLABLES or 0xD800 <= code <= 0xDFFF:
            continue
        full = unicodedata.normalize("NFD", chr(code))
        if full != chr(code):
            table[code] = [ord(c) for c in full]
    return table


def compositions():
    """(first, second) -> composite, composition exclusions left out."""
    table = {}
    for code in CODE_POINTS:
        mapping = unicodedata.decomposition(chr(code))
        if not mapping or mapping.startswith("<"):
            continue
        parts = [int(p, 16) for p in mapping.split()]
        if len(parts) == 2 and unicodedata.normalize("NFC", chr(code)) == chr(code):
            table[tuple(parts)] = code
    return table


def array(out, kind, name, rows):
    out.append("const %s %s[] = {" % (kind, name))
    out.extend("    {%s}," % ", ".join(hex(x) if isinstance(x, int) else x for x in row) for row in rows)
    out.append("};")
    out.append("const size_t %sCount = %d;" % (name, len(rows)))


def main():
    out = [
        "// Made by tokenizer/generate_unicode.py from Unicode %s." % unicodedata.unidata_version,
        '#include "tokenizer/unicode_tables.h"',
        "namespace moepack {",
    ]
    array(out, "CategoryRange", "kCategoryRanges", [(a, b, "Category::" + c) for a, b, c in ranges(category_name)])
    array(out, "CombiningRange", "kCombiningRanges", ranges(lambda c: unicodedata.combining(chr(c)) or None))
    pool = []
    rows = []
    for code, parts in sorted(decompositions().items()):
        rows.append((code, len(pool), len(parts)))
        pool.extend(parts)
    array(out, "Decomposition", "kDecompositions", rows)
    out.append("const char32_t kDecompositionPool[] = {%s};" % ", ".join(map(hex, pool)))
    array(out, "Composition", "kCompositions", [(a, b, c) for (a, b), c in sorted(compositions().items())])
    out.append("}  // namespace moepack")
    with open(sys.argv[1], "w", encoding="ascii") as file:
        file.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
