#include <pybind11/numpy.h>

#include <span>
#include <string>
#include <vector>

#include "cpp/bindings/bindings.h"
#include "pagedcore/scheduler_stats.h"
#include "pagedcore/stats.h"

namespace pagedcore::bindings {
namespace {

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

template <typename T, typename Get>
py::array_t<T> block_field(const KvMap& map, const Get& get) {
  py::array_t<T> result(static_cast<py::ssize_t>(map.blocks.size()));
  T* out = result.mutable_data();
  for (const BlockInfo& block : map.blocks) *out++ = static_cast<T>(get(block));
  return result;
}

std::string state_name(const SequenceInfo& sequence) {
  switch (sequence.state) {
    case GroupState::kWaiting:
      return "waiting";
    case GroupState::kRunning:
      return "running";
    case GroupState::kPreempted:
      return "preempted";
    case GroupState::kSwapped:
      return "swapped";
    case GroupState::kFinished:
      break;
  }
  return "held";
}

void bind_kv_map(py::module_& m) {
  py::class_<SequenceInfo>(m, "SequenceInfo")
      .def_readonly("id", &SequenceInfo::id)
      .def_readonly("request_id", &SequenceInfo::request_id)
      .def_property_readonly("state", &state_name)
      .def_readonly("num_tokens", &SequenceInfo::num_tokens)
      .def_readonly("num_computed", &SequenceInfo::num_computed)
      .def_property_readonly("table", [](const SequenceInfo& s) { return to_array(s.table); })
      .def_property_readonly("host_table",
                             [](const SequenceInfo& s) { return to_array(s.host_table); });

  py::class_<KvMap>(m, "KvMap")
      .def_readonly("step", &KvMap::step)
      .def_readonly("block_size", &KvMap::block_size)
      .def_readonly("sequences", &KvMap::sequences)
      .def_property_readonly("states",
                             [](const KvMap& map) {
                               return block_field<std::int8_t>(
                                   map, [](const BlockInfo& b) { return b.state; });
                             })
      .def_property_readonly("ref_counts",
                             [](const KvMap& map) {
                               return block_field<std::int32_t>(
                                   map, [](const BlockInfo& b) { return b.ref_count; });
                             })
      .def_property_readonly("findable_tokens",
                             [](const KvMap& map) {
                               return block_field<std::int32_t>(
                                   map, [](const BlockInfo& b) { return b.num_findable_tokens; });
                             })
      .def_property_readonly("hashes",
                             [](const KvMap& map) {
                               return block_field<std::int64_t>(
                                   map, [](const BlockInfo& b) { return b.hash; });
                             })
      .def_property_readonly("last_used",
                             [](const KvMap& map) {
                               return block_field<std::int64_t>(
                                   map, [](const BlockInfo& b) { return b.last_use; });
                             })
      .def_property_readonly("owners", [](const KvMap& map) {
        py::list owners(map.blocks.size());
        for (std::size_t i = 0; i < map.blocks.size(); ++i) owners[i] = map.blocks[i].owners;
        return owners;
      });
}

void bind_counters(py::module_& m) {
  py::class_<Stats>(m, "Stats")
      .def_readonly("num_waiting", &Stats::num_waiting)
      .def_readonly("num_running", &Stats::num_running)
      .def_readonly("num_preempted", &Stats::num_preempted)
      .def_readonly("num_held", &Stats::num_held)
      .def_readonly("num_blocks", &Stats::num_blocks)
      .def_readonly("used_blocks", &Stats::used_blocks)
      .def_readonly("cached_blocks", &Stats::cached_blocks)
      .def_readonly("free_blocks", &Stats::free_blocks)
      .def_readonly("used_slots", &Stats::used_slots)
      .def_readonly("token_slots", &Stats::token_slots)
      .def_readonly("saved_slots", &Stats::saved_slots)
      .def_readonly("used_host_blocks", &Stats::used_host_blocks)
      .def_readonly("num_steps", &Stats::num_steps)
      .def_readonly("num_requests", &Stats::num_requests)
      .def_readonly("num_prompt_tokens", &Stats::num_prompt_tokens)
      .def_readonly("num_output_tokens", &Stats::num_output_tokens)
      .def_readonly("num_computed_tokens", &Stats::num_computed_tokens)
      .def_readonly("num_prefix_queried_tokens", &Stats::num_prefix_queried_tokens)
      .def_readonly("num_prefix_hit_tokens", &Stats::num_prefix_hit_tokens)
      .def_readonly("num_recomputed_tokens", &Stats::num_recomputed_tokens)
      .def_readonly("num_tail_preemptions", &Stats::num_tail_preemptions)
      .def_readonly("num_recompute_preemptions", &Stats::num_recompute_preemptions)
      .def_readonly("num_swap_preemptions", &Stats::num_swap_preemptions)
      .def_readonly("num_copied_blocks", &Stats::num_copied_blocks)
      .def_readonly("num_swapped_out_blocks", &Stats::num_swapped_out_blocks)
      .def_readonly("num_swapped_in_blocks", &Stats::num_swapped_in_blocks)
      .def_readonly("step_host_us", &Stats::step_host_us)
      .def_readonly("step_device_us", &Stats::step_device_us)
      .def_readonly("total_host_us", &Stats::total_host_us)
      .def_readonly("total_device_us", &Stats::total_device_us)
      .def_property_readonly("waste", &Stats::waste)
      .def_property_readonly("shared_savings", &Stats::shared_savings);
}

}  // namespace

void bind_stats(py::module_& m) {
  bind_kv_map(m);
  bind_counters(m);
}

}  // namespace pagedcore::bindings
