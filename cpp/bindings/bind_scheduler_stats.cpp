#include "pagedcore/scheduler_stats.h"

#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>

#include "cpp/bindings/bindings.h"
#include "cpp/bindings/record.h"

namespace pagedcore::bindings {
namespace {

// One field of every block as a numpy array [num_blocks].
template <auto Field>
auto block_array(const KvMap& map) {
  using Value = std::remove_cvref_t<decltype(std::declval<BlockInfo>().*Field)>;
  using Element = std::conditional_t<std::is_enum_v<Value>, std::int8_t, Value>;
  py::array_t<Element> result(static_cast<py::ssize_t>(map.blocks.size()));
  Element* out = result.mutable_data();
  for (const BlockInfo& block : map.blocks) *out++ = static_cast<Element>(block.*Field);
  return result;
}

}  // namespace

void bind_scheduler_stats(py::module_& m) {
  using S = SchedulerStats;
  Record<S>(m, "SchedulerStats")
      .read("total_slots", &S::total_slots)
      .read("used_slots", &S::used_slots)
      .read("reserved_slots", &S::reserved_slots)
      .read("cached_slots", &S::cached_slots)
      .read("free_slots", &S::free_slots)
      .read("logical_blocks", &S::logical_blocks)
      .read("physical_blocks", &S::physical_blocks)
      .read("held_sequences", &S::held_sequences)
      .read("host_blocks_used", &S::host_blocks_used)
      .read("running_groups", &S::running_groups)
      .read("running_sequences", &S::running_sequences)
      .read("resumed_groups", &S::resumed_groups)
      .read("waiting_groups", &S::waiting_groups)
      .read("num_steps", &S::num_steps)
      .read("scheduled_tokens", &S::scheduled_tokens)
      .read("prompt_tokens_queried", &S::prompt_tokens_queried)
      .read("prompt_tokens_hit", &S::prompt_tokens_hit)
      .read("tail_preemptions", &S::tail_preemptions)
      .read("recompute_preemptions", &S::recompute_preemptions)
      .read("swap_preemptions", &S::swap_preemptions)
      .read("preempted_tokens", &S::preempted_tokens)
      .read("recomputed_tokens", &S::recomputed_tokens)
      .read("swapped_out_blocks", &S::swapped_out_blocks)
      .read("swapped_in_blocks", &S::swapped_in_blocks)
      .read("copied_blocks", &S::copied_blocks)
      .def_property_readonly("waste", &S::waste)
      .def_property_readonly("shared_savings", &S::shared_savings);

  py::native_enum<BlockState>(m, "BlockState", "enum.Enum")
      .value("FREE", BlockState::kFree)
      .value("CACHED", BlockState::kCached)
      .value("HELD", BlockState::kHeld)
      .finalize();
  Record<BlockInfo>(m, "BlockInfo")
      .read("state", &BlockInfo::state)
      .read("ref_count", &BlockInfo::ref_count)
      .read("num_findable_tokens", &BlockInfo::num_findable_tokens)
      .read("hash", &BlockInfo::hash)
      .read("last_use", &BlockInfo::last_use)
      .read("owners", &BlockInfo::owners);
  Record<SequenceInfo>(m, "SequenceInfo")
      .read("id", &SequenceInfo::id)
      .read("request_id", &SequenceInfo::request_id)
      .read("state", &SequenceInfo::state)
      .read("num_tokens", &SequenceInfo::num_tokens)
      .read("num_computed", &SequenceInfo::num_computed)
      .read("table", &SequenceInfo::table)
      .read("host_table", &SequenceInfo::host_table);
  Record<KvMap>(m, "KvMap")
      .read("step", &KvMap::step)
      .read("block_size", &KvMap::block_size)
      .read("blocks", &KvMap::blocks)
      .read("sequences", &KvMap::sequences)
      .def_property_readonly("states", &block_array<&BlockInfo::state>)
      .def_property_readonly("ref_counts", &block_array<&BlockInfo::ref_count>)
      .def_property_readonly("findable_tokens", &block_array<&BlockInfo::num_findable_tokens>)
      .def_property_readonly("hashes", &block_array<&BlockInfo::hash>)
      .def_property_readonly("last_uses", &block_array<&BlockInfo::last_use>);
}

}  // namespace pagedcore::bindings
