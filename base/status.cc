#include "base/status.h"

#include <cstdarg>
#include <cstdio>

namespace moepack {

const char* ErrorName(ErrorCode code) {
  switch (code) {
    case ErrorCode::kOk:
      return "Ok";
    case ErrorCode::kInternal:
      return "Internal";
    case ErrorCode::kCancelled:
      return "Cancelled";
    case ErrorCode::kUsage:
      return "Usage";
    case ErrorCode::kRecipe:
      return "Recipe";
    case ErrorCode::kBadInput:
      return "BadInput";
    case ErrorCode::kUnsupported:
      return "Unsupported";
    case ErrorCode::kNotABundle:
      return "NotABundle";
    case ErrorCode::kMalformed:
      return "Malformed";
    case ErrorCode::kUnknownFamily:
      return "UnknownFamily";
    case ErrorCode::kUnknownKey:
      return "UnknownKey";
    case ErrorCode::kMissingTensor:
      return "MissingTensor";
    case ErrorCode::kShape:
      return "Shape";
    case ErrorCode::kNotFinite:
      return "NotFinite";
    case ErrorCode::kTokenizer:
      return "Tokenizer";
    case ErrorCode::kLimit:
      return "Limit";
    case ErrorCode::kVersion:
      return "Version";
    case ErrorCode::kUnsafePath:
      return "UnsafePath";
    case ErrorCode::kNotFound:
      return "NotFound";
    case ErrorCode::kSignature:
      return "Signature";
    case ErrorCode::kDigest:
      return "Digest";
    case ErrorCode::kTruncated:
      return "Truncated";
    case ErrorCode::kUntrusted:
      return "Untrusted";
    case ErrorCode::kTrustRecord:
      return "TrustRecord";
    case ErrorCode::kEnvelope:
      return "Envelope";
    case ErrorCode::kRollback:
      return "Rollback";
    case ErrorCode::kPolicy:
      return "Policy";
    case ErrorCode::kGate:
      return "Gate";
    case ErrorCode::kNoSpace:
      return "NoSpace";
    case ErrorCode::kNoMemory:
      return "NoMemory";
    case ErrorCode::kAccess:
      return "Access";
  }
  return "Unknown";
}

Status Status::With(const std::string& context) const { return Status(code_, context + ": " + message_); }

std::string StrFormat(const char* format, ...) {
  va_list args;
  va_start(args, format);
  va_list copy;
  va_copy(copy, args);
  const int length = std::vsnprintf(nullptr, 0, format, copy);
  va_end(copy);
  std::string out(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  if (length > 0) std::vsnprintf(out.data(), out.size() + 1, format, args);
  va_end(args);
  return out;
}

}  // namespace moepack
