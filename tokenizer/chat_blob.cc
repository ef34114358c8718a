#include "tokenizer/chat_blob.h"

namespace moepack {
namespace {

constexpr uint8_t kWithSystemFlag = 1, kWithoutSystemFlag = 2, kSpaceAtStartFlag = 4, kFirstTrimFlag = 8, kAllFlags = 63;
constexpr uint8_t kTextKind = 0, kTokenKind = 1, kStripsBefore = 2, kStripsAfter = 4, kAllKinds = 7;

Status Broken(size_t offset, const std::string& what) {
  return Status(ErrorCode::kTokenizer, StrFormat("tokenizer blob, offset %zu: %s", offset, what.c_str()));
}

Status CutOff(const ByteReader& reader) { return Broken(reader.offset(), "T5: ends inside the chat template"); }

Status ReadFlags(ByteReader* reader, ChatTemplate* chat) {
  const size_t offset = reader->offset();
  const uint8_t flags = reader->U8();
  if (!reader->ok()) return CutOff(*reader);
  chat->with_system = (flags & kWithSystemFlag) != 0;
  chat->without_system = (flags & kWithoutSystemFlag) != 0;
  chat->space_at_start_only = (flags & kSpaceAtStartFlag) != 0;
  for (size_t role = 0; role < kChatRoles; ++role) chat->trims[role] = (flags & (kFirstTrimFlag << role)) != 0;
  const bool known = flags <= kAllFlags && (chat->with_system || chat->without_system);
  return known ? Status::Ok() : Broken(offset, StrFormat("T12: unknown chat flags %u", flags));
}

Result<ChatPiece> ReadPiece(ByteReader* reader, uint32_t tokens) {
  const size_t offset = reader->offset();
  ChatPiece piece;
  const uint8_t kind = reader->U8();
  if (reader->ok() && kind != kTextKind && (kind > kAllKinds || (kind & kTokenKind) == 0)) {
    return Broken(offset, StrFormat("T12: a chat piece of kind %u", kind));
  }
  if (kind == kTextKind) {
    const uint16_t length = reader->U16();
    if (reader->ok() && (length == 0 || length > kMaxChatText)) {
      return Broken(offset, StrFormat("T12: a chat text of %u bytes", length));
    }
    piece.text = std::string(AsText(reader->Take(length)));
  } else {
    piece.token = reader->U32();
    piece.strips_before = (kind & kStripsBefore) != 0;
    piece.strips_after = (kind & kStripsAfter) != 0;
    if (reader->ok() && piece.token >= tokens) {
      return Broken(offset, StrFormat("T6: chat id %u of %u tokens", piece.token, tokens));
    }
  }
  if (!reader->ok()) return CutOff(*reader);
  return piece;
}

Status ReadPlace(ByteReader* reader, uint32_t tokens, bool needed, std::vector<ChatPiece>* pieces) {
  const size_t offset = reader->offset();
  const uint8_t count = reader->U8();
  if (!reader->ok()) return CutOff(*reader);
  if (count > kMaxChatPieces || (count > 0 && !needed)) return Broken(offset, StrFormat("T12: %u chat pieces", count));
  for (uint8_t i = 0; i < count; ++i) {
    const size_t begin = reader->offset();
    MOEPACK_ASSIGN_OR_RETURN(ChatPiece piece, ReadPiece(reader, tokens));
    if (i > 0 && !piece.is_token() && !pieces->back().is_token()) return Broken(begin, "T12: two chat texts in a row");
    pieces->push_back(std::move(piece));
  }
  return Status::Ok();
}

Status ReadExclusions(ByteReader* reader, std::vector<ChatExclusion>* exclusions) {
  const size_t offset = reader->offset();
  const uint8_t count = reader->U8();
  if (!reader->ok()) return CutOff(*reader);
  if (count > kMaxChatExclusions) return Broken(offset, StrFormat("T12: %u chat exclusions", count));
  for (uint8_t i = 0; i < count; ++i) {
    const size_t begin = reader->offset();
    const uint8_t role = reader->U8(), length = reader->U8();
    const ByteSpan text = reader->Take(length);
    if (!reader->ok()) return CutOff(*reader);
    if (role >= kChatRoles) return Broken(begin, StrFormat("T12: a chat exclusion of role %u", role));
    ChatExclusion next = {static_cast<ChatRole>(role), std::string(AsText(text))};
    const bool rises = exclusions->empty() || exclusions->back().role < next.role ||
                       (exclusions->back().role == next.role && exclusions->back().text < next.text);
    if (!rises) return Broken(begin, "T12: chat exclusions do not increase");
    exclusions->push_back(std::move(next));
  }
  return Status::Ok();
}

}  // namespace

void AppendChatTemplate(const ChatTemplate& chat, ByteWriter* writer) {
  uint8_t flags = 0;
  if (chat.with_system) flags |= kWithSystemFlag;
  if (chat.without_system) flags |= kWithoutSystemFlag;
  if (chat.space_at_start_only) flags |= kSpaceAtStartFlag;
  for (size_t role = 0; role < kChatRoles; ++role) {
    if (chat.trims[role]) flags = static_cast<uint8_t>(flags | (kFirstTrimFlag << role));
  }
  writer->U8(flags);
  for (const std::vector<ChatPiece>& pieces : chat.pieces) {
    writer->U8(static_cast<uint8_t>(pieces.size()));
    for (const ChatPiece& piece : pieces) {
      if (piece.is_token()) {
        writer->U8(static_cast<uint8_t>(kTokenKind + (piece.strips_before ? kStripsBefore : 0) +
                                        (piece.strips_after ? kStripsAfter : 0)));
        writer->U32(piece.token);
      } else {
        writer->U8(kTextKind);
        writer->U16(static_cast<uint16_t>(piece.text.size()));
        writer->Append(AsBytes(piece.text));
      }
    }
  }
  writer->U8(static_cast<uint8_t>(chat.exclusions.size()));
  for (const ChatExclusion& exclusion : chat.exclusions) {
    writer->U8(static_cast<uint8_t>(exclusion.role));
    writer->U8(static_cast<uint8_t>(exclusion.text.size()));
    writer->Append(AsBytes(exclusion.text));
  }
}

Result<ChatTemplate> ReadChatTemplate(ByteReader* reader, uint32_t tokens) {
  ChatTemplate chat;
  MOEPACK_RETURN_IF_ERROR(ReadFlags(reader, &chat));
  for (size_t place = 0; place < kChatPlaces; ++place) {
    const auto at = static_cast<ChatPlace>(place);
    const bool for_system = at == ChatPlace::kBeforeSystem || at == ChatPlace::kSystemToUser;
    const bool needed = for_system ? chat.with_system : at != ChatPlace::kBeforeUser || chat.without_system;
    MOEPACK_RETURN_IF_ERROR(ReadPlace(reader, tokens, needed, &chat.pieces[place]));
  }
  MOEPACK_RETURN_IF_ERROR(ReadExclusions(reader, &chat.exclusions));
  return chat;
}

}  // namespace moepack
