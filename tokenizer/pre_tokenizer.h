// The pre-tokenizers of the closed list: how a text is cut into the pieces in which tokens are joined.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string_view>

#include "tokenizer/tokenizer.h"

namespace moepack {

// The expressions of a pre-tokenizer, as tokenizer.json writes them. Each cuts the pieces that the one before it left: its
// matches are pieces, and so is what lies between them. Empty for those that do not cut.
std::span<const std::string_view> PreTokenizerPatterns(PreTokenizer kind);

// Calls `piece` with every piece of the text, in order; together they are the text.
void CutIntoPieces(PreTokenizer kind, std::string_view text, const std::function<void(std::string_view)>& piece);

}  // namespace moepack
