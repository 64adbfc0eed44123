#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "cpp/bindings/array_arg.h"
#include "cpp/bindings/bindings.h"
#include "pagedcore/backend.h"
#include "pagedcore/error.h"

namespace pagedcore::bindings {
namespace {

using OptionalArray = std::optional<py::object>;

KvCacheView cache_view(const ArrayArg& array) {
  array.require_shape({-1, -1, 2, -1, -1, -1});
  KvCacheView view;
  view.data = array.data();
  view.dtype = array.dtype();
  view.num_blocks = array.shape()[0];
  view.num_layers = array.shape()[1];
  view.num_kv_heads = array.shape()[3];
  view.block_size = array.shape()[4];
  view.head_dim = array.shape()[5] - view.row_scale_bytes();
  return view;
}

ArrayArg::Memory memory_of(const Backend& backend) {
  return backend.is_host() ? ArrayArg::Memory::kHost : ArrayArg::Memory::kCuda;
}

// The batch where the backend's ops can read it; a device gets all table entries that are in use.
ForwardBatch stage(Backend& backend, ForwardBatch batch) {
  if (backend.is_host()) return backend.stage(batch);
  backend.reserve_steps({.max_tokens = batch.num_tokens,
                         .max_seqs = batch.num_seqs,
                         .table_stride = batch.table_stride});
  const std::vector<std::int32_t> zeros(batch.num_tokens);
  const std::vector<std::int64_t> no_slots(batch.num_tokens, -1);
  batch.tokens = zeros.data();
  if (batch.positions == nullptr) batch.positions = zeros.data();
  if (batch.slots == nullptr) batch.slots = no_slots.data();
  std::vector<TableUpdate> updates;
  for (std::int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    const std::int64_t length =
        batch.context_lens[seq] + batch.query_starts[seq + 1] - batch.query_starts[seq];
    for (std::int32_t i = 0; std::int64_t{i} * batch.block_size < length; ++i) {
      updates.push_back({seq, i, batch.block_tables[seq * batch.table_stride + i]});
    }
  }
  batch.table_updates = updates;
  batch = backend.stage(batch);
  batch.table_updates = {};
  return batch;
}

// What tables say of each sequence must fit the arrays: kernels trust it.
void check_batch(const ForwardBatch& batch, const KvCacheView& cache) {
  PAGEDCORE_REQUIRE(batch.query_starts[0] == 0, "query_starts must begin with 0, got ",
                    batch.query_starts[0]);
  PAGEDCORE_REQUIRE(batch.query_starts[batch.num_seqs] == batch.num_tokens,
                    "query_starts must end with the number of query rows ", batch.num_tokens,
                    ", got ", batch.query_starts[batch.num_seqs]);
  for (std::int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    const std::int64_t query_len = batch.query_starts[seq + 1] - batch.query_starts[seq];
    PAGEDCORE_REQUIRE(query_len >= 0, "query_starts must not fall, as it does at ", seq + 1);
    const std::int64_t context_len = batch.context_lens[seq];
    PAGEDCORE_REQUIRE(context_len >= 0, "context_lens must not be negative, got ", context_len);
    if (query_len == 0) continue;
    const std::int64_t blocks = (context_len + query_len + cache.block_size - 1) / cache.block_size;
    PAGEDCORE_REQUIRE(blocks <= batch.table_stride, "block_tables must have ", blocks,
                      " entries for sequence ", seq, " of ", context_len + query_len,
                      " tokens, got ", batch.table_stride);
    const BlockId* table = batch.block_tables + seq * batch.table_stride;
    for (std::int64_t i = 0; i < blocks; ++i) {
      PAGEDCORE_REQUIRE(table[i] >= 0 && table[i] < cache.num_blocks, "block_tables[", seq, ", ", i,
                        "] must be from 0 to ", cache.num_blocks - 1, ", got ", table[i]);
    }
  }
}

void paged_attention(Backend& backend, const py::object& query, const py::object& kv_cache,
                     const py::object& block_tables, const py::object& context_lens,
                     const py::object& query_starts, const py::object& out,
                     const std::string& query_dtype, const std::string& out_dtype,
                     const std::string& cache_dtype, std::int64_t layer, float scale,
                     std::int32_t sliding_window, float softcap) {
  const ArrayArg::Memory memory = memory_of(backend);
  const KvCacheView cache = cache_view(ArrayArg(kv_cache, "kv_cache", cache_dtype, false, memory));
  const ArrayArg q(query, "query", query_dtype, false, memory);
  const ArrayArg y(out, "out", out_dtype, true, memory);
  const ArrayArg tables(block_tables, "block_tables", "int32");
  const ArrayArg contexts(context_lens, "context_lens", "int32");
  const ArrayArg starts(query_starts, "query_starts", "int32");
  q.require_shape({-1, -1, cache.head_dim});
  y.require_shape(q.shape());
  tables.require_shape({-1, -1});
  const std::int64_t num_seqs = tables.shape()[0];
  contexts.require_shape({num_seqs});
  starts.require_shape({num_seqs + 1});

  ForwardBatch batch;
  batch.num_tokens = static_cast<std::int32_t>(q.shape()[0]);
  batch.num_seqs = static_cast<std::int32_t>(num_seqs);
  batch.query_starts = starts.as<std::int32_t>();
  batch.context_lens = contexts.as<std::int32_t>();
  batch.block_tables = tables.as<BlockId>();
  batch.table_stride = tables.shape()[1];
  batch.block_size = static_cast<std::int32_t>(cache.block_size);
  check_batch(batch, cache);
  std::vector<std::int32_t> table_rows(num_seqs);
  for (std::int32_t seq = 0; seq < batch.num_seqs; ++seq) {
    const std::int32_t query_len = batch.query_starts[seq + 1] - batch.query_starts[seq];
    table_rows[seq] = seq;
    batch.max_query_len = std::max(batch.max_query_len, query_len);
    batch.max_context_len = std::max(batch.max_context_len, batch.context_lens[seq] + query_len);
  }
  batch.table_rows = table_rows.data();

  PagedAttentionParams params;
  params.num_heads = q.shape()[1];
  params.query = q.data();
  params.query_dtype = q.dtype();
  params.cache = cache;
  params.layer = layer;
  params.scale = scale;
  params.sliding_window = sliding_window;
  params.softcap = softcap;
  params.out = y.data();
  params.out_dtype = y.dtype();
  const py::gil_scoped_release no_gil;
  backend.paged_attention(stage(backend, batch), params);
}

void check_slots(const ArrayArg& slots, std::int64_t num_tokens, const KvCacheView& cache) {
  slots.require_shape({num_tokens});
  const std::int64_t num_slots = cache.num_blocks * cache.block_size;
  for (std::int64_t i = 0; i < num_tokens; ++i) {
    const std::int64_t slot = slots.as<std::int64_t>()[i];
    PAGEDCORE_REQUIRE(slot >= -1 && slot < num_slots, "slots[", i, "] must be from -1 to ",
                      num_slots - 1, ", got ", slot);
  }
}

void rope_and_cache(Backend& backend, const py::object& qkv, const py::object& slots,
                    const py::object& kv_cache, const OptionalArray& query,
                    const OptionalArray& positions, const OptionalArray& cos_sin,
                    const OptionalArray& q_norm, const OptionalArray& k_norm,
                    const std::string& dtype, const std::string& cache_dtype, std::int64_t layer,
                    std::int64_t rotary_dim, float epsilon) {
  const ArrayArg::Memory memory = memory_of(backend);
  RopeAndCacheParams params;
  params.cache = cache_view(ArrayArg(kv_cache, "kv_cache", cache_dtype, true, memory));
  const ArrayArg x(qkv, "qkv", dtype, false, memory);
  const std::int64_t head_dim = params.cache.head_dim;
  x.require_shape({-1, -1, head_dim});
  params.num_tokens = x.shape()[0];
  params.num_heads = x.shape()[1] - 2 * params.cache.num_kv_heads;
  params.qkv = x.data();
  params.qkv_dtype = x.dtype();
  const ArrayArg slot_array(slots, "slots", "int64");
  check_slots(slot_array, params.num_tokens, params.cache);
  ForwardBatch batch;
  const std::int32_t no_starts = 0;
  batch.num_tokens = static_cast<std::int32_t>(params.num_tokens);
  batch.query_starts = &no_starts;
  batch.slots = slot_array.as<std::int64_t>();
  params.layer = layer;
  params.rotary_dim = rotary_dim;
  params.epsilon = epsilon;
  if (query) {
    const ArrayArg array(*query, "query", "", true, memory);
    array.require_shape({params.num_tokens, params.num_heads, head_dim});
    params.query = array.data();
    params.query_dtype = array.dtype();
  }
  if (cos_sin) {
    const ArrayArg table(*cos_sin, "cos_sin", "float32", false, memory);
    const ArrayArg at(positions.value_or(py::none()), "positions", "int32");
    table.require_shape({-1, rotary_dim});
    at.require_shape({params.num_tokens});
    batch.positions = at.as<std::int32_t>();
    for (std::int64_t i = 0; i < params.num_tokens; ++i) {
      PAGEDCORE_REQUIRE(batch.positions[i] >= 0 && batch.positions[i] < table.shape()[0],
                        "positions[", i, "] must be from 0 to ", table.shape()[0] - 1, ", got ",
                        batch.positions[i]);
    }
    params.cos_sin = table.as<float>();
  }
  const auto norm_weight = [&](const OptionalArray& weight, const char* name) -> const void* {
    if (!weight) return nullptr;
    const ArrayArg array(*weight, name, dtype, false, memory);
    params.norm_dtype = array.require_shape({head_dim}).dtype();
    return array.data();
  };
  params.q_norm = norm_weight(q_norm, "q_norm");
  params.k_norm = norm_weight(k_norm, "k_norm");
  const py::gil_scoped_release no_gil;
  batch = stage(backend, batch);
  params.slots = batch.slots;
  params.positions = batch.positions;
  backend.rope_and_cache(params);
}

void embed(Backend& backend, const py::object& ids, const py::object& table, const py::object& y,
           const std::string& dtype, const std::string& y_dtype, std::int64_t id_offset,
           bool accumulate) {
  const ArrayArg rows(table, "table", dtype);
  const ArrayArg tokens(ids, "ids", "int32");
  const ArrayArg out(y, "y", y_dtype, true);
  rows.require_shape({-1, -1});
  tokens.require_shape({-1});
  EmbedParams params;
  params.num_tokens = tokens.size();
  params.width = rows.shape()[1];
  out.require_shape({params.num_tokens, params.width});
  params.ids = tokens.as<std::int32_t>();
  params.id_offset = id_offset;
  params.table = rows.data();
  params.table_dtype = rows.dtype();
  params.table_rows = rows.shape()[0];
  params.accumulate = accumulate;
  params.y = out.data();
  params.y_dtype = out.dtype();
  backend.embed(params);
}

void norm(Backend& backend, std::optional<NormKind> kind, const py::object& x,
          const OptionalArray& weight, const OptionalArray& bias, const OptionalArray& rows,
          const py::object& y, const std::string& x_dtype, const std::string& weight_dtype,
          const std::string& y_dtype, float epsilon) {
  const ArrayArg input(x, "x", x_dtype);
  const ArrayArg out(y, "y", y_dtype, true);
  input.require_shape({-1, -1});
  NormParams params;
  params.kind = kind.value_or(NormKind::kNone);
  params.num_rows = out.shape()[0];
  params.width = input.shape()[1];
  out.require_shape({-1, params.width});
  params.x = input.data();
  params.x_dtype = input.dtype();
  const auto affine = [&](const OptionalArray& values, const char* name) -> const void* {
    if (!values) return nullptr;
    const ArrayArg array(*values, name, weight_dtype);
    params.weight_dtype = array.require_shape({params.width}).dtype();
    return array.data();
  };
  params.weight = affine(weight, "weight");
  params.bias = affine(bias, "bias");
  if (rows) params.rows = ArrayArg(*rows, "rows", "int32").as<std::int32_t>();
  params.epsilon = epsilon;
  params.y = out.data();
  params.y_dtype = out.dtype();
  backend.norm(params);
}

void gated_activation(Backend& backend, std::optional<Activation> activation,
                      const py::object& gate_up, const py::object& y, const std::string& dtype,
                      const std::string& y_dtype) {
  const ArrayArg input(gate_up, "gate_up", dtype);
  const ArrayArg out(y, "y", y_dtype, true);
  out.require_shape({-1, -1});
  GatedActivationParams params;
  params.num_rows = out.shape()[0];
  params.width = out.shape()[1];
  input.require_shape({params.num_rows, 2 * params.width});
  params.gate_up = input.data();
  params.dtype = input.dtype();
  params.activation = activation.value_or(Activation::kNone);
  params.y = out.data();
  params.y_dtype = out.dtype();
  backend.gated_activation(params);
}

void copy_blocks(Backend& backend, const py::object& kv_cache, const py::object& copies,
                 const std::string& cache_dtype) {
  const KvCacheView cache =
      cache_view(ArrayArg(kv_cache, "kv_cache", cache_dtype, true, memory_of(backend)));
  const ArrayArg pairs(copies, "copies", "int32");
  pairs.require_shape({-1, 2});
  std::vector<BlockCopy> list(pairs.shape()[0]);
  for (std::size_t i = 0; i < list.size(); ++i) {
    list[i] = {pairs.as<BlockId>()[2 * i], pairs.as<BlockId>()[2 * i + 1]};
  }
  const py::gil_scoped_release no_gil;
  backend.copy_blocks(cache, list);
}

}  // namespace

void bind_ops(py::module_& m) {
  auto ops = m.def_submodule("ops", "The ops of a Backend on arrays; pagedcore.ops is the face.");
  ops.def("paged_attention", &paged_attention);
  ops.def("rope_and_cache", &rope_and_cache, py::arg("backend"), py::arg("qkv"), py::arg("slots"),
          py::arg("kv_cache"), py::arg("query") = py::none(), py::arg("positions") = py::none(),
          py::arg("cos_sin") = py::none(), py::arg("q_norm") = py::none(),
          py::arg("k_norm") = py::none(), py::arg("dtype") = "", py::arg("cache_dtype") = "",
          py::arg("layer") = 0, py::arg("rotary_dim") = 0, py::arg("epsilon") = 1e-6f);
  ops.def("embed", &embed, py::arg("backend"), py::arg("ids"), py::arg("table"), py::arg("y"),
          py::arg("dtype") = "", py::arg("y_dtype") = "", py::arg("id_offset") = 0,
          py::arg("accumulate") = false);
  ops.def("norm", &norm, py::arg("backend"), py::arg("kind"), py::arg("x"),
          py::arg("weight") = py::none(), py::arg("bias") = py::none(),
          py::arg("rows") = py::none(), py::arg("y"), py::arg("x_dtype") = "",
          py::arg("weight_dtype") = "", py::arg("y_dtype") = "", py::arg("epsilon") = 1e-5f);
  ops.def("gated_activation", &gated_activation, py::arg("backend"), py::arg("activation"),
          py::arg("gate_up"), py::arg("y"), py::arg("dtype") = "", py::arg("y_dtype") = "");
  ops.def("copy_blocks", &copy_blocks);
  bind_linear(ops);
}

}  // namespace pagedcore::bindings
