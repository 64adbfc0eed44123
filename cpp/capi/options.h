#pragma once

#include <string_view>
#include <variant>

#include "pagedcore/engine_config.h"
#include "pagedcore/model_config.h"
#include "pagedcore/request.h"
#include "pagedcore/sampling_params.h"

// The settings behind a C handle: one of the structs that they are named after.
struct pagedcore_options {
  std::variant<pagedcore::ModelConfig, pagedcore::EngineConfig, pagedcore::SamplingParams,
               pagedcore::RequestOptions>
      value;
};

namespace pagedcore::capi {

// Sets the field of that name. Throw InvalidArgument for a name that the struct does not have with
// that type, and for a value that the field cannot hold.
void set_number(pagedcore_options& options, std::string_view name, double value);
void set_text(pagedcore_options& options, std::string_view name, std::string_view value);
std::vector<TokenId>& token_list(pagedcore_options& options, std::string_view name);

}  // namespace pagedcore::capi
