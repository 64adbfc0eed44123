#include "pagedcore/scheduler.h"

#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpp/bindings/bindings.h"
#include "cpp/bindings/left_tower.h"
#include "cpp/bindings/record.h"
#include "pagedcore/contiguous_kv_manager.h"
#include "pagedcore/error.h"
#include "pagedcore/sequence.h"

namespace pagedcore::bindings {
namespace {

// A sequence by its id: asking one that has ended raises instead of reading freed memory.
struct PySequence {
  std::shared_ptr<Scheduler> scheduler;
  SequenceId id;

  Sequence& get() const {
    Sequence* sequence = scheduler->find(id);
    PAGEDCORE_REQUIRE(sequence != nullptr, "sequence ", id, " has ended");
    return *sequence;
  }
};

struct PySpan {
  SequenceId sequence_id;
  RequestId request_id;
  std::int32_t context_len;
  std::int32_t query_len;
  std::int32_t first_changed_block;
  bool reaches_end;
};

struct PyPlan {
  PyCopies swap_out;
  PyCopies swap_in;
  PyCopies copies;
  std::vector<PySpan> spans;
  std::int32_t num_tokens;
  std::vector<RequestId> preempted;
  std::vector<RequestId> capacity_exceeded;

  explicit PyPlan(const StepPlan& plan)
      : swap_out(to_pairs(plan.swap_out)),
        swap_in(to_pairs(plan.swap_in)),
        copies(to_pairs(plan.copies)),
        num_tokens(plan.num_tokens),
        preempted(plan.preempted),
        capacity_exceeded(plan.capacity_exceeded) {
    spans.reserve(plan.spans.size());
    for (const Span& span : plan.spans) {
      spans.push_back({span.sequence->id(), span.sequence->request_id(), span.context_len,
                       span.query_len, span.first_changed_block, span.reaches_end});
    }
  }
};

// The fields of a GroupSpec; the spec borrows from it.
struct PySpec {
  RequestId request_id;
  std::int32_t num_sequences;
  std::int32_t max_total_tokens;
  std::int32_t priority;
  std::string tenant;
  std::string cache_salt;
  bool read_prefix_cache;

  GroupSpec with_prompt(const TokenArray& prompt) const {
    return {request_id, to_span(prompt), num_sequences, max_total_tokens,
            priority,   tenant,          cache_salt,    read_prefix_cache};
  }
};

// Defines a method whose last parameters are those of a GroupSpec, by keyword.
template <typename Class, typename Function, typename... Args>
void def_with_spec(Class& type, const char* name, Function function, const Args&... args) {
  type.def(name, function, args..., py::kw_only(), py::arg("request_id"),
           py::arg("num_sequences") = 1, py::arg("max_total_tokens") = 0, py::arg("priority") = 0,
           py::arg("tenant") = "", py::arg("cache_salt") = "", py::arg("read_prefix_cache") = true);
}

void bind_scheduler_enums(py::module_& m) {
  py::native_enum<PreemptionMode>(m, "PreemptionMode", "enum.Enum")
      .value("RECOMPUTE", PreemptionMode::kRecompute)
      .value("SWAP", PreemptionMode::kSwap)
      .value("AUTO", PreemptionMode::kAuto)
      .finalize();
  py::native_enum<HeadroomPolicy>(m, "HeadroomPolicy", "enum.Enum")
      .value("WATERMARK", HeadroomPolicy::kWatermark)
      .value("GROWTH", HeadroomPolicy::kGrowth)
      .finalize();
  py::native_enum<GroupState>(m, "GroupState", "enum.Enum")
      .value("WAITING", GroupState::kWaiting)
      .value("RUNNING", GroupState::kRunning)
      .value("PREEMPTED", GroupState::kPreempted)
      .value("SWAPPED", GroupState::kSwapped)
      .value("FINISHED", GroupState::kFinished)
      .finalize();
  py::native_enum<PreemptionKind>(m, "PreemptionKind", "enum.Enum")
      .value("NONE", PreemptionKind::kNone)
      .value("TAIL", PreemptionKind::kTail)
      .value("RECOMPUTE", PreemptionKind::kRecompute)
      .value("SWAP", PreemptionKind::kSwap)
      .finalize();
  py::native_enum<Reservation>(m, "Reservation", "enum.Enum")
      .value("MAX", Reservation::kMax)
      .value("POW2", Reservation::kPow2)
      .value("ORACLE", Reservation::kOracle)
      .value("EXACT", Reservation::kExact)
      .finalize();
}

void bind_scheduler_config(py::module_& m) {
  using C = SchedulerConfig;
  Record<C>(m, "SchedulerConfig")
      .keyword_init()
      .read_write("num_blocks", &C::num_blocks)
      .read_write("block_size", &C::block_size)
      .read_write("max_num_seqs", &C::max_num_seqs)
      .read_write("max_num_batched_tokens", &C::max_num_batched_tokens)
      .read_write("max_model_len", &C::max_model_len)
      .read_write("enable_prefix_caching", &C::enable_prefix_caching)
      .read_write("num_host_blocks", &C::num_host_blocks)
      .read_write("preemption_mode", &C::preemption_mode)
      .read_write("tail_preemption", &C::tail_preemption)
      .read_write("partial_admission", &C::partial_admission)
      .read_write("headroom", &C::headroom)
      .read_write("watermark", &C::watermark)
      .read_write("headroom_tokens", &C::headroom_tokens)
      .read_write("max_waiting", &C::max_waiting);
  py::class_<KvManager, std::shared_ptr<KvManager>>(m, "KvManager");
  py::class_<ContiguousKvManager, KvManager, std::shared_ptr<ContiguousKvManager>>(
      m, "ContiguousKvManager")
      .def(py::init<std::int32_t, std::int32_t, std::int32_t, Reservation>(), py::arg("num_blocks"),
           py::arg("block_size"), py::arg("max_model_len"), py::arg("reservation"));
}

void bind_plan(py::module_& m) {
  Record<PySpan>(m, "Span")
      .read("sequence_id", &PySpan::sequence_id)
      .read("request_id", &PySpan::request_id)
      .read("context_len", &PySpan::context_len)
      .read("query_len", &PySpan::query_len)
      .read("first_changed_block", &PySpan::first_changed_block)
      .read("reaches_end", &PySpan::reaches_end);
  Record<PyPlan>(m, "StepPlan")
      .read("swap_out", &PyPlan::swap_out)
      .read("swap_in", &PyPlan::swap_in)
      .read("copies", &PyPlan::copies)
      .read("spans", &PyPlan::spans)
      .read("num_tokens", &PyPlan::num_tokens)
      .read("preempted", &PyPlan::preempted)
      .read("capacity_exceeded", &PyPlan::capacity_exceeded);
}

void bind_sequence(py::module_& m) {
  using S = PySequence;
  const auto read = [](auto getter) {
    return [getter](const S& self) { return std::invoke(getter, self.get()); };
  };
  const auto read_group = [](auto getter) {
    return [getter](const S& self) { return std::invoke(getter, self.get().group()); };
  };
  Record<S>(m, "Sequence")
      .read("id", &S::id)
      .def_property_readonly("request_id", read(&Sequence::request_id))
      .def_property_readonly("index", read(&Sequence::index))
      .def_property_readonly("tokens", read([](const Sequence& s) { return to_list(s.tokens()); }))
      .def_property_readonly("num_tokens", read(&Sequence::num_tokens))
      .def_property_readonly("num_prompt_tokens", read(&Sequence::num_prompt_tokens))
      .def_property_readonly("num_computed", read(&Sequence::num_computed))
      .def_property_readonly("table", read([](const Sequence& s) { return to_list(s.table()); }))
      .def_property_readonly("state", read_group(&SequenceGroup::state))
      .def_property_readonly("num_preemptions", read_group(&SequenceGroup::num_preemptions))
      .def_property_readonly("last_preemption", read_group(&SequenceGroup::last_preemption))
      .def_property_readonly("num_queue_steps", read_group(&SequenceGroup::num_queue_steps))
      .def_property_readonly("siblings", [](const S& self) {
        std::vector<S> siblings;
        for (const auto& sibling : self.get().group().sequences()) {
          siblings.push_back({self.scheduler, sibling->id()});
        }
        return siblings;
      });
}

void bind_class(py::module_& m) {
  using Self = const std::shared_ptr<Scheduler>&;
  py::class_<Scheduler, std::shared_ptr<Scheduler>> type(m, "Scheduler");
  type.def(py::init([](const SchedulerConfig& config,
                       const std::optional<std::shared_ptr<KvManager>>& kv) {
             return kv ? std::make_shared<Scheduler>(config, *kv)
                       : std::make_shared<Scheduler>(config);
           }),
           py::arg("config"), py::arg("kv_manager") = py::none())
      .def("schedule", [](Self self) { return PyPlan(self->schedule()); })
      .def("commit", &Scheduler::commit)
      .def("abandon", &Scheduler::abandon)
      .def(
          "sequence", [](Self self, SequenceId id) { return PySequence{self, id}; }, py::arg("id"))
      .def(
          "append_token",
          [](Self self, SequenceId id, TokenId token) {
            self->append_token(PySequence{self, id}.get(), token);
          },
          py::arg("id"), py::arg("token"))
      .def(
          "fork",
          [](Self self, SequenceId id, std::int32_t num_tokens) {
            return PySequence{self, self->fork(PySequence{self, id}.get(), num_tokens).id()};
          },
          py::arg("id"), py::arg("num_tokens"))
      .def(
          "finish", [](Self self, SequenceId id) { self->finish(PySequence{self, id}.get()); },
          py::arg("id"))
      .def(
          "hold", [](Self self, SequenceId id) { self->hold(PySequence{self, id}.get()); },
          py::arg("id"))
      .def(
          "release", [](Self self, SequenceId id) { self->release(PySequence{self, id}.get()); },
          py::arg("id"))
      .def("abort", &Scheduler::abort, py::arg("request_id"))
      .def_property_readonly("has_unfinished", &Scheduler::has_unfinished)
      .def("set_tenant_quota", &Scheduler::set_tenant_quota, py::arg("tenant"),
           py::arg("num_blocks"))
      .def(
          "set_costs",
          [](Self self, double prefill_tokens_per_s, double swap_blocks_per_s, double min_step_s) {
            self->set_costs({prefill_tokens_per_s, swap_blocks_per_s, min_step_s});
          },
          py::kw_only(), py::arg("prefill_tokens_per_s"), py::arg("swap_blocks_per_s"),
          py::arg("min_step_s") = 0.0)
      .def("stats", &Scheduler::stats)
      .def("kv_map", &Scheduler::kv_map)
      .def("check_invariants", &Scheduler::check_invariants);
  def_with_spec(
      type, "add",
      [](Self self, const TokenArray& prompt, RequestId request_id, std::int32_t num_sequences,
         std::int32_t max_total_tokens, std::int32_t priority, std::string tenant,
         std::string cache_salt, bool read_prefix_cache) {
        const PySpec spec{request_id, num_sequences, max_total_tokens, priority,
                          tenant,     cache_salt,    read_prefix_cache};
        return PySequence{self, self->add(spec.with_prompt(prompt)).id()};
      },
      py::arg("prompt"));
  def_with_spec(
      type, "fork_request",
      [](Self self, SequenceId id, std::int32_t num_tokens, const TokenArray& prompt,
         RequestId request_id, std::int32_t num_sequences, std::int32_t max_total_tokens,
         std::int32_t priority, std::string tenant, std::string cache_salt,
         bool read_prefix_cache) {
        const PySpec spec{request_id, num_sequences, max_total_tokens, priority,
                          tenant,     cache_salt,    read_prefix_cache};
        Sequence& parent = PySequence{self, id}.get();
        return PySequence{self,
                          self->fork_request(parent, num_tokens, spec.with_prompt(prompt)).id()};
      },
      py::arg("id"), py::arg("num_tokens"), py::arg("prompt"));
  def_with_spec(
      type, "restore",
      [](Self self, const TokenArray& prompt, const TokenArray& tokens, std::int32_t num_computed,
         RequestId request_id, std::int32_t num_sequences, std::int32_t max_total_tokens,
         std::int32_t priority, std::string tenant, std::string cache_salt,
         bool read_prefix_cache) {
        const PySpec spec{request_id, num_sequences, max_total_tokens, priority,
                          tenant,     cache_salt,    read_prefix_cache};
        const SequenceSpec sequence{.tokens = to_span(tokens), .num_computed = num_computed};
        const SequenceGroup& group =
            self->restore(spec.with_prompt(prompt), std::span(&sequence, 1));
        return PySequence{self, group.sequences()[0]->id()};
      },
      py::arg("prompt"), py::arg("tokens"), py::arg("num_computed"));
}

}  // namespace

void bind_scheduler_stats(py::module_& m);

void bind_scheduler(py::module_& m) {
  bind_scheduler_enums(m);
  bind_scheduler_config(m);
  bind_plan(m);
  bind_sequence(m);
  bind_scheduler_stats(m);
  bind_class(m);
}

}  // namespace pagedcore::bindings
