#pragma once

#include <cstddef>
#include <initializer_list>
#include <iosfwd>
#include <stdexcept>
#include <string>
#include <string_view>

#include "pagedcore/export.h"

namespace pagedcore {

// The base of everything that libpagedcore throws on purpose.
class PAGEDCORE_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller's mistake; the message names the argument, its value and the rule. ValueError in
// Python.
class PAGEDCORE_API InvalidArgument : public Error {
 public:
  using Error::Error;
};

// A bug in libpagedcore; the message gives file, line and the failed condition.
class PAGEDCORE_API InternalError : public Error {
 public:
  using Error::Error;
};

// The bounded waiting queue is full; nothing was added.
class PAGEDCORE_API QueueFull : public Error {
 public:
  using Error::Error;
};

// Memory could not be allocated; nothing was changed. MemoryError in Python.
class PAGEDCORE_API OutOfMemory : public Error {
 public:
  using Error::Error;
};

// A device call failed; the message gives the error's name, text and the call.
class PAGEDCORE_API DeviceError : public Error {
 public:
  using Error::Error;
};

// The asked-for backend is not in this build or finds no device; the message says how to get it.
class PAGEDCORE_API BackendUnavailable : public Error {
 public:
  using Error::Error;
};

namespace detail {

// A value that a message shows: text, which it borrows, or a number as std::ostream writes it.
class MessagePart {
 public:
  MessagePart(std::string_view text) : kind_(Kind::kText), text_(text.data()), size_(text.size()) {}
  MessagePart(const std::string& text) : MessagePart(std::string_view(text)) {}
  MessagePart(const char* text) : MessagePart(std::string_view(text)) {}
  MessagePart(char character) : kind_(Kind::kCharacter), integer_(character) {}
  MessagePart(int value) : kind_(Kind::kInteger), integer_(value) {}
  MessagePart(long value) : kind_(Kind::kInteger), integer_(value) {}
  MessagePart(long long value) : kind_(Kind::kInteger), integer_(value) {}
  MessagePart(unsigned value) : kind_(Kind::kNatural), natural_(value) {}
  MessagePart(unsigned long value) : kind_(Kind::kNatural), natural_(value) {}
  MessagePart(unsigned long long value) : kind_(Kind::kNatural), natural_(value) {}
  MessagePart(double value) : kind_(Kind::kReal), real_(value) {}

  PAGEDCORE_API void write(std::ostream& out) const;

 private:
  enum class Kind { kText, kCharacter, kInteger, kNatural, kReal };

  Kind kind_;
  union {
    const char* text_;
    long long integer_;
    unsigned long long natural_;
    double real_;
  };
  std::size_t size_ = 0;
};

// Checks stand in every function: what they compile to is this call and no templates.
using Message = std::initializer_list<MessagePart>;
PAGEDCORE_API std::string join(Message message);
[[noreturn]] PAGEDCORE_API void throw_invalid_argument(Message message);
[[noreturn]] PAGEDCORE_API void throw_internal_error(const char* file, int line,
                                                     const char* condition, Message values);

template <typename... Parts>
std::string concat(const Parts&... parts) {
  return join({parts...});
}

}  // namespace detail
}  // namespace pagedcore

// The caller's mistake: throws InvalidArgument built from the remaining arguments.
#define PAGEDCORE_REQUIRE(condition, ...)                         \
  do {                                                            \
    if (!(condition)) [[unlikely]]                                \
      ::pagedcore::detail::throw_invalid_argument({__VA_ARGS__}); \
  } while (false)

// Our bug: throws InternalError; always on. The remaining arguments, if any, give the values.
#define PAGEDCORE_CHECK(condition, ...)                                                         \
  do {                                                                                          \
    if (!(condition)) [[unlikely]]                                                              \
      ::pagedcore::detail::throw_internal_error(__FILE__, __LINE__, #condition, {__VA_ARGS__}); \
  } while (false)
