#include "pagedcore/sequence.h"

#include <algorithm>
#include <utility>

namespace pagedcore {

Sequence::Sequence(SequenceId id, SequenceGroup& group, std::vector<TokenId> tokens,
                   std::int32_t num_prompt_tokens, BlockTable table, BlockTable host_table)
    : tokens_(std::move(tokens)),
      group_(&group),
      id_(id),
      num_prompt_tokens_(num_prompt_tokens),
      table_(std::move(table)),
      host_table_(std::move(host_table)) {}

void Sequence::drop_host_tail() {
  const std::int64_t num_stored = table_.num_slots();
  num_computed_ = static_cast<std::int32_t>(std::min<std::int64_t>(num_computed_, num_stored));
  host_table_.clear();
}

bool SequenceGroup::has_host_blocks() const {
  return std::ranges::any_of(sequences_,
                             [](const auto& sequence) { return !sequence->host_table().empty(); });
}

}  // namespace pagedcore
