#include "pagedcore/stats.h"

#include "cpp/bindings/bindings.h"

namespace pagedcore::bindings {
void bind_stats(py::module_& m) {
  py::class_<Stats>(m, "Stats")
      .def_readonly("num_waiting", &Stats::num_waiting)
      .def_readonly("num_running", &Stats::num_running)
      .def_readonly("num_preempted", &Stats::num_preempted)
      .def_readonly("num_held", &Stats::num_held)
      .def_readonly("num_blocks", &Stats::num_blocks)
      .def_readonly("used_blocks", &Stats::used_blocks)
      .def_readonly("cached_blocks", &Stats::cached_blocks)
      .def_readonly("free_blocks", &Stats::free_blocks)
      .def_readonly("used_host_blocks", &Stats::used_host_blocks)
      .def_readonly("total_slots", &Stats::total_slots)
      .def_readonly("used_slots", &Stats::used_slots)
      .def_readonly("reserved_slots", &Stats::reserved_slots)
      .def_readonly("cached_slots", &Stats::cached_slots)
      .def_readonly("free_slots", &Stats::free_slots)
      .def_readonly("saved_slots", &Stats::saved_slots)
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

}  // namespace pagedcore::bindings
