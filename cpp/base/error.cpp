#include "pagedcore/error.h"

#include <sstream>

namespace pagedcore::detail {

void MessagePart::write(std::ostream& out) const {
  switch (kind_) {
    case Kind::kText:
      out << std::string_view(text_, size_);
      return;
    case Kind::kCharacter:
      out << static_cast<char>(integer_);
      return;
    case Kind::kInteger:
      out << integer_;
      return;
    case Kind::kNatural:
      out << natural_;
      return;
    case Kind::kReal:
      out << real_;
      return;
  }
}

std::string join(Message message) {
  std::ostringstream out;
  for (const MessagePart& part : message) part.write(out);
  return out.str();
}

void throw_invalid_argument(Message message) { throw InvalidArgument(join(message)); }

void throw_internal_error(const char* file, int line, const char* condition, Message values) {
  const std::string shown = join(values);
  throw InternalError(
      concat(file, ":", line, ": check failed: ", condition, shown.empty() ? "" : ": ", shown));
}

}  // namespace pagedcore::detail
