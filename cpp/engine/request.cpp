#include "pagedcore/request.h"

namespace pagedcore {

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCapacity:
      return "capacity";
    case FinishReason::kNone:
      break;
  }
  return "";
}

}  // namespace pagedcore
