#include <pybind11/numpy.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cpp/bindings/bindings.h"
#include "cpp/bindings/left_tower.h"
#include "cpp/bindings/record.h"
#include "pagedcore/block_allocator.h"
#include "pagedcore/block_table.h"
#include "pagedcore/error.h"
#include "pagedcore/prefix_cache.h"

namespace pagedcore::bindings {
namespace {

template <typename Owner>
void require_id(const Owner& owner, BlockId block) {
  PAGEDCORE_REQUIRE(block >= 0 && block < owner.num_blocks(), "block must be in [0, ",
                    owner.num_blocks(), "), got ", block);
}

// A getter of one block, with its id checked.
template <typename Owner, typename Result>
auto read_block(Result (Owner::*method)(BlockId) const) {
  return [method](const Owner& self, BlockId block) {
    require_id(self, block);
    return (self.*method)(block);
  };
}

void bind_allocator(py::module_& m) {
  using A = BlockAllocator;
  py::class_<A, std::shared_ptr<A>>(m, "BlockAllocator")
      .def(py::init([](std::int32_t num_blocks) {
             PAGEDCORE_REQUIRE(num_blocks >= 1, "num_blocks must be at least 1, got ", num_blocks);
             return std::make_shared<A>(num_blocks);
           }),
           py::arg("num_blocks"))
      .def_property_readonly("num_blocks", &A::num_blocks)
      .def_property_readonly("num_free", &A::num_free)
      .def_property_readonly("num_cached", &A::num_cached)
      .def_property_readonly("num_held", &A::num_held)
      .def_property_readonly("num_available", &A::num_available)
      .def("ref_count", read_block(&A::ref_count), py::arg("block"))
      .def("is_held", read_block(&A::is_held), py::arg("block"))
      .def("is_reusable", read_block(&A::is_reusable), py::arg("block"))
      .def("try_allocate", py::overload_cast<>(&A::try_allocate))
      .def("try_allocate_block", py::overload_cast<BlockId>(&A::try_allocate), py::arg("block"))
      .def("retain", &A::retain, py::arg("block"))
      .def("release", &A::release, py::arg("block"))
      .def("pin", &A::pin, py::arg("block"))
      .def("unpin", &A::unpin, py::arg("block"))
      .def("set_reusable", &A::set_reusable, py::arg("block"), py::arg("reusable"))
      .def("check_invariants", &A::check_invariants);
}

// A table with its allocator, which must outlive it.
struct PyTable {
  std::shared_ptr<BlockAllocator> allocator;
  BlockTable table;
};

void bind_table(py::module_& m) {
  using T = PyTable;
  py::class_<T>(m, "BlockTable")
      .def(py::init([](std::shared_ptr<BlockAllocator> allocator, std::int32_t block_size) {
             BlockTable table(*allocator, block_size);
             return T{std::move(allocator), std::move(table)};
           }),
           py::arg("allocator"), py::arg("block_size"))
      .def_property_readonly("blocks", [](const T& t) { return to_list(t.table.blocks()); })
      .def_property_readonly("num_blocks", [](const T& t) { return t.table.num_blocks(); })
      .def_property_readonly("num_slots", [](const T& t) { return t.table.num_slots(); })
      .def_property_readonly("block_size", [](const T& t) { return t.table.block_size(); })
      .def(
          "slot", [](const T& t, std::int64_t position) { return t.table.slot(position); },
          py::arg("position"))
      .def(
          "try_reserve", [](T& t, std::int64_t n) { return t.table.try_reserve(n); },
          py::arg("num_tokens"))
      .def(
          "append_shared", [](T& t, BlockId block) { t.table.append_shared(block); },
          py::arg("block"))
      .def(
          "replace", [](T& t, std::int32_t index, BlockId block) { t.table.replace(index, block); },
          py::arg("index"), py::arg("block"))
      .def(
          "try_prepare_write",
          [](T& t, std::int64_t begin, std::int64_t end) -> std::optional<PyCopies> {
            std::vector<BlockCopy> copies;
            if (!t.table.try_prepare_write(begin, end, copies)) return std::nullopt;
            return to_pairs(copies);
          },
          py::arg("begin"), py::arg("end"))
      .def(
          "truncate", [](T& t, std::int64_t n) { t.table.truncate(n); }, py::arg("num_tokens"))
      .def("clear", [](T& t) { t.table.clear(); })
      .def(
          "fork", [](const T& t, std::int64_t n) { return T{t.allocator, t.table.fork(n)}; },
          py::arg("num_tokens"));
}

void bind_cache(py::module_& m) {
  using C = PrefixCache;
  Record<PrefixMatch>(m, "PrefixMatch")
      .read("num_tokens", &PrefixMatch::num_tokens)
      .read("blocks", &PrefixMatch::blocks)
      .read("partial_block", &PrefixMatch::partial_block)
      .read("partial_tokens", &PrefixMatch::partial_tokens);
  py::class_<C>(m, "PrefixCache")
      .def(py::init<BlockAllocator&, std::int32_t, int>(), py::arg("allocator"),
           py::arg("block_size"), py::arg("hash_bits") = 64, py::keep_alive<1, 2>())
      .def_property_readonly("num_entries", &C::num_entries)
      .def(
          "match",
          [](const C& self, const TokenArray& tokens, const std::string& salt) {
            return self.match(to_span(tokens), std::string_view(salt));
          },
          py::arg("tokens"), py::arg("salt") = "")
      .def(
          "try_acquire",
          [](C& self, const PrefixMatch& match, PyTable& table) -> std::optional<PyCopies> {
            std::vector<BlockCopy> copies;
            if (!self.try_acquire(match, table.table, copies)) return std::nullopt;
            return to_pairs(copies);
          },
          py::arg("match"), py::arg("table"))
      .def(
          "insert",
          [](C& self, const TokenArray& tokens, PyTable& table, const std::string& salt) {
            self.insert(to_span(tokens), table.table, salt);
          },
          py::arg("tokens"), py::arg("table"), py::arg("salt") = "")
      .def(
          "before_write",
          [](C& self, BlockId block, std::int32_t offset) {
            require_id(self, block);
            self.before_write(block, offset);
          },
          py::arg("block"), py::arg("offset"))
      .def(
          "forget",
          [](C& self, BlockId block) {
            require_id(self, block);
            self.forget(block);
          },
          py::arg("block"))
      .def("num_registered_tokens", read_block(&C::num_registered_tokens), py::arg("block"))
      .def("block_hash", read_block(&C::block_hash), py::arg("block"))
      .def("check_invariants", &C::check_invariants);
}

}  // namespace

void bind_memory(py::module_& m) {
  bind_allocator(m);
  bind_table(m);
  bind_cache(m);
}

}  // namespace pagedcore::bindings
