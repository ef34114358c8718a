#include "tokenizer/tokenizer_blob.h"

#include <algorithm>
#include <unordered_map>

#include "tokenizer/chat_blob.h"

namespace moepack {
namespace {

constexpr uint32_t kMagic = 0x4B4F544Du;  // "MTOK"
constexpr uint16_t kVersion = 1;

Status Broken(size_t offset, const std::string& what) {
  return Status(ErrorCode::kTokenizer, StrFormat("tokenizer blob, offset %zu: %s", offset, what.c_str()));
}

constexpr uint8_t kNfcFlag = 1, kSpacePrefixFlag = 2, kWholePiecesFlag = 4, kBeginningFlag = 8, kPrefixUnlessThereFlag = 16,
                  kChatFlag = 32, kAllFlags = 63;
constexpr uint32_t kMaxBeginning = 16;

uint8_t PrefixFlag(SpacePrefix prefix) {
  if (prefix == SpacePrefix::kNone) return 0;
  return prefix == SpacePrefix::kAlways ? kSpacePrefixFlag : kPrefixUnlessThereFlag;
}

struct Header {
  PreTokenizer pre_tokenizer = PreTokenizer::kQwen2;
  uint8_t flags = 0;
  uint32_t tokens = 0, merges = 0, special = 0, end_of_text = 0;
};

Result<Header> ReadHeader(ByteReader* reader) {
  if (reader->U32() != kMagic) return Broken(0, "T1: expected the magic MTOK");
  const uint16_t version = reader->U16();
  if (!reader->ok() || version != kVersion) return Broken(4, StrFormat("T1: version %u, expected %u", version, kVersion));
  Header header;
  const uint8_t pre_tokenizer = reader->U8();
  header.flags = reader->U8();
  if (pre_tokenizer < 1 || pre_tokenizer > kLastPreTokenizer) {
    return Broken(6, StrFormat("T2: unknown pre-tokenizer %u", pre_tokenizer));
  }
  constexpr uint8_t kBothPrefixes = kSpacePrefixFlag | kPrefixUnlessThereFlag;
  if (header.flags > kAllFlags || (header.flags & kBothPrefixes) == kBothPrefixes) {
    return Broken(7, StrFormat("T2: unknown flags %u", header.flags));
  }
  header.pre_tokenizer = static_cast<PreTokenizer>(pre_tokenizer);
  header.tokens = reader->U32();
  header.merges = reader->U32();
  header.special = reader->U32();
  header.end_of_text = reader->U32();
  if (!reader->ok()) return Broken(reader->offset(), "T5: ends inside its header");
  if (header.tokens < 256 || header.tokens > kMaxTokens || header.merges > kMaxMerges || header.special > header.tokens ||
      header.end_of_text > header.tokens) {
    return Broken(8, StrFormat("T3: %u tokens, %u merges, %u special, %u end of text: out of range", header.tokens,
                               header.merges, header.special, header.end_of_text));
  }
  return header;
}

Status ReadTokens(ByteReader* reader, uint32_t count, std::vector<std::string>* tokens) {
  const size_t begin = reader->offset();
  ByteReader lengths(reader->Take(size_t{2} * count));
  if (!reader->ok()) return Broken(begin, "T5: ends inside the token lengths");
  tokens->reserve(count);
  for (uint32_t id = 0; id < count; ++id) {
    const uint16_t length = lengths.U16();
    if (length > kMaxTokenBytes) return Broken(begin + size_t{2} * id, StrFormat("T4: token %u has %u bytes", id, length));
    const ByteSpan bytes = reader->Take(length);
    if (!reader->ok()) return Broken(reader->offset(), StrFormat("T5: ends inside token %u", id));
    tokens->emplace_back(AsText(bytes));
  }
  return Status::Ok();
}

Status ReadMerges(ByteReader* reader, const Header& header, std::vector<std::pair<uint32_t, uint32_t>>* merges) {
  const size_t begin = reader->offset();
  ByteReader pairs(reader->Take(size_t{8} * header.merges));
  if (!reader->ok()) return Broken(begin, "T5: ends inside the merges");
  merges->reserve(header.merges);
  for (uint32_t rank = 0; rank < header.merges; ++rank) {
    const uint32_t left = pairs.U32(), right = pairs.U32();
    if (left >= header.tokens || right >= header.tokens) {
      return Broken(begin + size_t{8} * rank,
                    StrFormat("T6: merge %u joins tokens %u and %u of %u", rank, left, right, header.tokens));
    }
    merges->emplace_back(left, right);
  }
  return Status::Ok();
}

// Ids below the token count, in any order.
Status ReadAnyIds(ByteReader* reader, uint32_t count, uint32_t tokens, const char* name, std::vector<uint32_t>* ids) {
  const size_t begin = reader->offset();
  ByteReader values(reader->Take(size_t{4} * count));
  if (!reader->ok()) return Broken(begin, StrFormat("T5: ends inside the %s ids", name));
  ids->reserve(count);
  for (uint32_t i = 0; i < count; ++i) {
    ids->push_back(values.U32());
    if (ids->back() >= tokens)
      return Broken(begin + size_t{4} * i, StrFormat("T6: %s id %u of %u tokens", name, ids->back(), tokens));
  }
  return Status::Ok();
}

Status ReadIds(ByteReader* reader, uint32_t count, uint32_t tokens, const char* name, std::vector<uint32_t>* ids) {
  const size_t begin = reader->offset();
  MOEPACK_RETURN_IF_ERROR(ReadAnyIds(reader, count, tokens, name, ids));
  for (uint32_t i = 1; i < count; ++i) {
    if ((*ids)[i] > (*ids)[i - 1]) continue;
    return Broken(begin + size_t{4} * i, StrFormat("T7: %s ids do not increase at %u", name, (*ids)[i]));
  }
  return Status::Ok();
}

Status ReadBeginning(ByteReader* reader, const Header& header, std::vector<uint32_t>* ids) {
  if ((header.flags & kBeginningFlag) == 0) return Status::Ok();
  const size_t offset = reader->offset();
  const uint32_t count = reader->U32();
  if (!reader->ok()) return Broken(offset, "T5: ends inside the beginning");
  if (count == 0 || count > kMaxBeginning) return Broken(offset, StrFormat("T3: a beginning of %u tokens", count));
  return ReadAnyIds(reader, count, header.tokens, "beginning", ids);
}

using TokenIds = std::unordered_map<std::string_view, uint32_t>;

// The ordinary tokens by their bytes.
Result<TokenIds> OrdinaryTokens(const TokenizerData& data) {
  TokenIds ids;
  ids.reserve(data.tokens.size());
  std::vector<bool> of_byte(data.tokens.size(), false);
  for (const uint32_t id : data.bytes) of_byte[id] = true;
  for (uint32_t id = 0; id < data.tokens.size(); ++id) {
    if (data.tokens[id].empty() || of_byte[id] || std::binary_search(data.special.begin(), data.special.end(), id)) continue;
    const auto [it, added] = ids.emplace(data.tokens[id], id);
    if (!added) {
      return Status(ErrorCode::kTokenizer, StrFormat("tokenizer: T9: tokens %u and %u are the same text", it->second, id));
    }
  }
  return ids;
}

Status AddMerge(const TokenizerData& data, const TokenIds& ids, uint32_t rank, MergeTable* table) {
  const auto [left, right] = data.merges[rank];
  for (uint32_t id : {left, right}) {
    const auto it = ids.find(data.tokens[id]);
    if (it == ids.end() || it->second != id) {
      return Status(ErrorCode::kTokenizer,
                    StrFormat("tokenizer: T10: merge %u joins token %u, which no text produces", rank, id));
    }
  }
  const auto merged = ids.find(data.tokens[left] + data.tokens[right]);
  if (merged == ids.end()) {
    return Status(ErrorCode::kTokenizer,
                  StrFormat("tokenizer: T10: merge %u of tokens %u and %u gives no token", rank, left, right));
  }
  if (!table->Insert({left, right, rank, merged->second})) {
    return Status(ErrorCode::kTokenizer, StrFormat("tokenizer: T11: merge %u repeats tokens %u and %u", rank, left, right));
  }
  return Status::Ok();
}

}  // namespace

Bytes SerializeTokenizer(const TokenizerData& data) {
  ByteWriter writer;
  writer.U32(kMagic);
  writer.U16(kVersion);
  writer.U8(static_cast<uint8_t>(data.pre_tokenizer));
  writer.U8(static_cast<uint8_t>((data.normalizer == Normalizer::kNfc ? kNfcFlag : 0) | PrefixFlag(data.space_prefix) |
                                 (data.whole_pieces ? kWholePiecesFlag : 0) | (data.beginning.empty() ? 0 : kBeginningFlag) |
                                 (data.chat ? kChatFlag : 0)));
  writer.U32(static_cast<uint32_t>(data.tokens.size()));
  writer.U32(static_cast<uint32_t>(data.merges.size()));
  writer.U32(static_cast<uint32_t>(data.special.size()));
  writer.U32(static_cast<uint32_t>(data.end_of_text.size()));
  for (const std::string& token : data.tokens) writer.U16(static_cast<uint16_t>(token.size()));
  for (const std::string& token : data.tokens) writer.Append(AsBytes(token));
  for (const auto& [left, right] : data.merges) {
    writer.U32(left);
    writer.U32(right);
  }
  for (uint32_t id : data.special) writer.U32(id);
  for (uint32_t id : data.end_of_text) writer.U32(id);
  if (!data.beginning.empty()) writer.U32(static_cast<uint32_t>(data.beginning.size()));
  for (uint32_t id : data.beginning) writer.U32(id);
  for (uint32_t id : data.bytes) writer.U32(id);
  if (data.chat) AppendChatTemplate(*data.chat, &writer);
  return writer.Release();
}

Result<TokenizerData> ParseTokenizerBlob(ByteSpan blob) {
  ByteReader reader(blob);
  MOEPACK_ASSIGN_OR_RETURN(const Header header, ReadHeader(&reader));
  TokenizerData data;
  data.pre_tokenizer = header.pre_tokenizer;
  data.normalizer = (header.flags & kNfcFlag) != 0 ? Normalizer::kNfc : Normalizer::kNone;
  if ((header.flags & kSpacePrefixFlag) != 0) data.space_prefix = SpacePrefix::kAlways;
  if ((header.flags & kPrefixUnlessThereFlag) != 0) data.space_prefix = SpacePrefix::kUnlessThere;
  data.whole_pieces = (header.flags & kWholePiecesFlag) != 0;
  MOEPACK_RETURN_IF_ERROR(ReadTokens(&reader, header.tokens, &data.tokens));
  MOEPACK_RETURN_IF_ERROR(ReadMerges(&reader, header, &data.merges));
  MOEPACK_RETURN_IF_ERROR(ReadIds(&reader, header.special, header.tokens, "special", &data.special));
  MOEPACK_RETURN_IF_ERROR(ReadIds(&reader, header.end_of_text, header.tokens, "end-of-text", &data.end_of_text));
  MOEPACK_RETURN_IF_ERROR(ReadBeginning(&reader, header, &data.beginning));
  if (header.pre_tokenizer == PreTokenizer::kSentencePiece) {
    MOEPACK_RETURN_IF_ERROR(ReadAnyIds(&reader, 256, header.tokens, "byte", &data.bytes));
  }
  if ((header.flags & kChatFlag) != 0) {
    MOEPACK_ASSIGN_OR_RETURN(data.chat, ReadChatTemplate(&reader, header.tokens));
  }
  if (reader.remaining() != 0) return Broken(reader.offset(), StrFormat("T5: %zu bytes after its end", reader.remaining()));
  return data;
}

Result<EncodingTables> BuildEncodingTables(const TokenizerData& data) {
  MOEPACK_ASSIGN_OR_RETURN(TokenIds ids, OrdinaryTokens(data));
  EncodingTables tables;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    const std::string_view bytes(&text, 1);
    if (data.bytes.empty()) {
      const auto it = ids.find(bytes);
      if (it == ids.end()) return Status(ErrorCode::kTokenizer, StrFormat("tokenizer: T8: no token for byte 0x%02x", byte));
      tables.byte_token[byte] = it->second;
    } else {
      tables.byte_token[byte] = data.bytes[byte];
      if (data.tokens[data.bytes[byte]] != bytes)
        return Status(ErrorCode::kTokenizer,
                      StrFormat("tokenizer: T8: token %u is not byte 0x%02x", data.bytes[byte], byte));
    }
  }
  tables.merges = MergeTable(data.merges.size());
  for (uint32_t rank = 0; rank < data.merges.size(); ++rank) {
    MOEPACK_RETURN_IF_ERROR(AddMerge(data, ids, rank, &tables.merges));
  }
  tables.ordinary = std::move(ids);
  return tables;
}

}  // namespace moepack
