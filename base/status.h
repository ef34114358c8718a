// Status and Result<T>: how every moepack library reports failure. Libraries never throw, print or abort on bad input.
//
// An error is a stable numeric code plus one sentence for a person: file, field, offset, what was expected, what to do.
// code / 100 is the exit status of a command that ends with it (docs/errors.md lists all codes). Codes are part of the
// interface: they are never renumbered, tests and vectors name them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace moepack {

enum class ErrorCode : uint16_t {
  kOk = 0,

  kInternal = 100,   // a fault of ours
  kCancelled = 101,  // stopped by the user

  kUsage = 200,   // bad command line
  kRecipe = 201,  // recipe or policy text with an error in it

  kBadInput = 300,     // malformed input
  kUnsupported = 301,  // well formed, but something we do not implement
  kNotABundle = 302,   // magic does not match
  kMalformed = 303,    // malformed although its signature is right
  kUnknownFamily = 304,
  kUnknownKey = 305,  // config key neither honoured nor known to be inert
  kMissingTensor = 306,
  kShape = 307,       // tensor shape differs from what the configuration implies
  kNotFinite = 308,   // NaN or infinity in weights
  kTokenizer = 309,   // tokenizer malformed, unsupported, or not the model's
  kLimit = 310,       // a size or count above a documented cap
  kVersion = 311,     // format or semantics version this build does not know
  kUnsafePath = 312,  // external data outside its folder
  kNotFound = 313,    // input file does not exist

  kSignature = 400,    // signature does not verify
  kDigest = 401,       // digest mismatch
  kTruncated = 402,    // file shorter or longer than its envelope says
  kUntrusted = 403,    // no (or not enough) signatures by trusted keys
  kTrustRecord = 404,  // trust record unreadable
  kEnvelope = 405,     // damaged envelope

  kRollback = 500,  // security counter or key epoch below the floor
  kPolicy = 501,    // refused by policy (product, features, expiry)

  kGate = 600,  // size or quality target not met

  kNoSpace = 700,
  kNoMemory = 701,
  kAccess = 702,  // permission or other I/O failure
};

// Name without the k, e.g. "Digest"; "Unknown" for values outside the enum. Static storage.
const char* ErrorName(ErrorCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}
  static Status Ok() { return Status(); }

  bool ok() const { return code_ == ErrorCode::kOk; }
  ErrorCode code() const { return code_; }
  const std::string& message() const { return message_; }
  // Exit status of a command: 0 done, 1 fault, 2 usage, 3 input, 4 trust, 5 rollback or policy, 6 gate, 7 resources.
  int exit_status() const { return static_cast<int>(code_) / 100; }
  // The same error with "context: " before its message.
  Status With(const std::string& context) const;

 private:
  ErrorCode code_ = ErrorCode::kOk;
  std::string message_;
};

// A value or the error that kept it from being made. T must be movable.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) {}  // NOLINT: implicit on purpose
  Result(ErrorCode code, std::string message) : status_(code, std::move(message)) {}

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return std::move(*value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

// printf-style std::string. Needs no locale; used for messages.
[[gnu::format(printf, 1, 2)]] std::string StrFormat(const char* format, ...);

}  // namespace moepack

#define MOEPACK_CONCAT_INNER(a, b) a##b
#define MOEPACK_CONCAT(a, b) MOEPACK_CONCAT_INNER(a, b)

// Returns the error of `expr` from the enclosing function, if it is one.
#define MOEPACK_RETURN_IF_ERROR(expr)                                                              \
  do {                                                                                             \
    if (::moepack::Status moepack_status_ = (expr); !moepack_status_.ok()) return moepack_status_; \
  } while (0)

// Declares `decl` from the value of the Result `expr`, or returns its error.
#define MOEPACK_ASSIGN_OR_RETURN(decl, expr) \
  MOEPACK_ASSIGN_OR_RETURN_IMPL(MOEPACK_CONCAT(moepack_result_, __LINE__), decl, expr)
#define MOEPACK_ASSIGN_OR_RETURN_IMPL(tmp, decl, expr) \
  auto tmp = (expr);                                   \
  if (!tmp.ok()) return tmp.status();                  \
  decl = std::move(tmp).value()
