#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

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

inline std::string concat() { return {}; }

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

[[noreturn]] PAGEDCORE_API void throw_invalid_argument(const std::string& message);
[[noreturn]] PAGEDCORE_API void throw_internal_error(const char* file, int line,
                                                     const char* condition,
                                                     const std::string& values);

}  // namespace detail
}  // namespace pagedcore

// The caller's mistake: throws InvalidArgument built from the remaining arguments.
#define PAGEDCORE_REQUIRE(condition, ...)                                                    \
  do {                                                                                       \
    if (!(condition)) [[unlikely]]                                                           \
      ::pagedcore::detail::throw_invalid_argument(::pagedcore::detail::concat(__VA_ARGS__)); \
  } while (false)

// Our bug: throws InternalError; always on. The remaining arguments, if any, give the values.
#define PAGEDCORE_CHECK(condition, ...)                                                    \
  do {                                                                                     \
    if (!(condition)) [[unlikely]]                                                         \
      ::pagedcore::detail::throw_internal_error(__FILE__, __LINE__, #condition,            \
                                                ::pagedcore::detail::concat(__VA_ARGS__)); \
  } while (false)
