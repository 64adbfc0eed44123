#include "pagedcore/scheduler_stats.h"

#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>

#include "cpp/bindings/bindings.h"

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
  py::class_<S>(m, "SchedulerStats")
      .def_readonly("total_slots", &S::total_slots)
      .def_readonly("used_slots", &S::used_slots)
      .def_readonly("reserved_slots", &S::reserved_slots)
      .def_readonly("cached_slots", &S::cached_slots)
      .def_readonly("free_slots", &S::free_slots)
      .def_readonly("logical_blocks", &S::logical_blocks)
      .def_readonly("physical_blocks", &S::physical_blocks)
      .def_readonly("held_sequences", &S::held_sequences)
      .def_readonly("host_blocks_used", &S::host_blocks_used)
      .def_readonly("running_groups", &S::running_groups)
      .def_readonly("running_sequences", &S::running_sequences)
      .def_readonly("resumed_groups", &S::resumed_groups)
      .def_readonly("waiting_groups", &S::waiting_groups)
      .def_readonly("num_steps", &S::num_steps)
      .def_readonly("scheduled_tokens", &S::scheduled_tokens)
      .def_readonly("prompt_tokens_queried", &S::prompt_tokens_queried)
      .def_readonly("prompt_tokens_hit", &S::prompt_tokens_hit)
      .def_readonly("tail_preemptions", &S::tail_preemptions)
      .def_readonly("recompute_preemptions", &S::recompute_preemptions)
      .def_readonly("swap_preemptions", &S::swap_preemptions)
      .def_readonly("preempted_tokens", &S::preempted_tokens)
      .def_readonly("recomputed_tokens", &S::recomputed_tokens)
      .def_readonly("swapped_out_blocks", &S::swapped_out_blocks)
      .def_readonly("swapped_in_blocks", &S::swapped_in_blocks)
      .def_readonly("copied_blocks", &S::copied_blocks)
      .def_property_readonly("waste", &S::waste)
      .def_property_readonly("shared_savings", &S::shared_savings);

  py::native_enum<BlockState>(m, "BlockState", "enum.Enum")
      .value("FREE", BlockState::kFree)
      .value("CACHED", BlockState::kCached)
      .value("HELD", BlockState::kHeld)
      .finalize();
  py::class_<BlockInfo>(m, "BlockInfo")
      .def_readonly("state", &BlockInfo::state)
      .def_readonly("ref_count", &BlockInfo::ref_count)
      .def_readonly("num_findable_tokens", &BlockInfo::num_findable_tokens)
      .def_readonly("hash", &BlockInfo::hash)
      .def_readonly("last_use", &BlockInfo::last_use)
      .def_readonly("owners", &BlockInfo::owners);
  py::class_<SequenceInfo>(m, "SequenceInfo")
      .def_readonly("id", &SequenceInfo::id)
      .def_readonly("request_id", &SequenceInfo::request_id)
      .def_readonly("state", &SequenceInfo::state)
      .def_readonly("num_tokens", &SequenceInfo::num_tokens)
      .def_readonly("num_computed", &SequenceInfo::num_computed)
      .def_readonly("table", &SequenceInfo::table)
      .def_readonly("host_table", &SequenceInfo::host_table);
  py::class_<KvMap>(m, "KvMap")
      .def_readonly("step", &KvMap::step)
      .def_readonly("block_size", &KvMap::block_size)
      .def_readonly("blocks", &KvMap::blocks)
      .def_readonly("sequences", &KvMap::sequences)
      .def_property_readonly("states", &block_array<&BlockInfo::state>)
      .def_property_readonly("ref_counts", &block_array<&BlockInfo::ref_count>)
      .def_property_readonly("findable_tokens", &block_array<&BlockInfo::num_findable_tokens>)
      .def_property_readonly("hashes", &block_array<&BlockInfo::hash>)
      .def_property_readonly("last_uses", &block_array<&BlockInfo::last_use>);
}

}  // namespace pagedcore::bindings
