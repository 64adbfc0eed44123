#include "pagedcore/stats.h"

#include "cpp/bindings/bindings.h"
#include "cpp/bindings/record.h"

namespace pagedcore::bindings {
void bind_stats(py::module_& m) {
  Record<Stats>(m, "Stats")
      .read("num_waiting", &Stats::num_waiting)
      .read("num_running", &Stats::num_running)
      .read("num_preempted", &Stats::num_preempted)
      .read("num_held", &Stats::num_held)
      .read("num_blocks", &Stats::num_blocks)
      .read("used_blocks", &Stats::used_blocks)
      .read("cached_blocks", &Stats::cached_blocks)
      .read("free_blocks", &Stats::free_blocks)
      .read("used_host_blocks", &Stats::used_host_blocks)
      .read("total_slots", &Stats::total_slots)
      .read("used_slots", &Stats::used_slots)
      .read("reserved_slots", &Stats::reserved_slots)
      .read("cached_slots", &Stats::cached_slots)
      .read("free_slots", &Stats::free_slots)
      .read("saved_slots", &Stats::saved_slots)
      .read("num_steps", &Stats::num_steps)
      .read("num_requests", &Stats::num_requests)
      .read("num_prompt_tokens", &Stats::num_prompt_tokens)
      .read("num_output_tokens", &Stats::num_output_tokens)
      .read("num_computed_tokens", &Stats::num_computed_tokens)
      .read("num_prefix_queried_tokens", &Stats::num_prefix_queried_tokens)
      .read("num_prefix_hit_tokens", &Stats::num_prefix_hit_tokens)
      .read("num_recomputed_tokens", &Stats::num_recomputed_tokens)
      .read("num_tail_preemptions", &Stats::num_tail_preemptions)
      .read("num_recompute_preemptions", &Stats::num_recompute_preemptions)
      .read("num_swap_preemptions", &Stats::num_swap_preemptions)
      .read("num_copied_blocks", &Stats::num_copied_blocks)
      .read("num_swapped_out_blocks", &Stats::num_swapped_out_blocks)
      .read("num_swapped_in_blocks", &Stats::num_swapped_in_blocks)
      .read("step_host_us", &Stats::step_host_us)
      .read("step_device_us", &Stats::step_device_us)
      .read("total_host_us", &Stats::total_host_us)
      .read("total_device_us", &Stats::total_device_us)
      .def_property_readonly("waste", &Stats::waste)
      .def_property_readonly("shared_savings", &Stats::shared_savings);
}

}  // namespace pagedcore::bindings
