// The pre-tokenizers of the closed list, written out as scanners: what a regular expression of tokenizer.json matches.
#pragma once

#include <cstddef>
#include <string_view>

namespace moepack {

// End of the piece that begins at text[begin] (begin < text.size()); always > begin. Linear over a whole text. Equals
//   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// with leftmost, first-alternative matching. Every byte of a text is in exactly one piece.
size_t Qwen2PieceEnd(std::string_view text, size_t begin);

}  // namespace moepack
