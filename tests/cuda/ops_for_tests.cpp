#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pagedcore/backend.h"

namespace {

using namespace pagedcore;

// Reads numbers in the order in which a test put them.
struct Reader {
  const std::int64_t* ints;
  const double* floats;
  std::int64_t i() { return *ints++; }
  std::int32_t i32() { return static_cast<std::int32_t>(*ints++); }
  float f() { return static_cast<float>(*floats++); }
  template <typename E>
  E e() {
    return static_cast<E>(*ints++);
  }
  template <typename T = void>
  T* p() {
    return reinterpret_cast<T*>(*ints++);
  }
  template <typename T>
  std::span<T> span() {
    T* data = p<T>();
    return {data, static_cast<std::size_t>(i())};
  }
};

struct Handle {
  std::unique_ptr<Backend> backend;
  ForwardBatch batch;
  std::string text;
};

KvCacheView read_cache(Reader& r) {
  KvCacheView c;
  c.data = r.p();
  c.dtype = r.e<DType>();
  c.num_blocks = r.i(), c.num_layers = r.i(), c.num_kv_heads = r.i();
  c.block_size = r.i(), c.head_dim = r.i();
  c.k_scale = r.f(), c.v_scale = r.f();
  return c;
}

void embed(Handle& h, Reader& r) {
  EmbedParams p;
  p.num_tokens = r.i(), p.width = r.i(), p.ids = r.p<std::int32_t>(), p.id_offset = r.i();
  p.table = r.p(), p.table_dtype = r.e<DType>(), p.table_rows = r.i(), p.accumulate = r.i() != 0;
  p.y = r.p(), p.y_dtype = r.e<DType>();
  h.backend->embed(p);
}

void norm(Handle& h, Reader& r) {
  NormParams p;
  p.kind = r.e<NormKind>(), p.num_rows = r.i(), p.width = r.i();
  p.x = r.p(), p.x_dtype = r.e<DType>(), p.rows = r.p<std::int32_t>();
  p.weight = r.p(), p.bias = r.p(), p.weight_dtype = r.e<DType>();
  p.y = r.p(), p.y_dtype = r.e<DType>(), p.epsilon = r.f();
  h.backend->norm(p);
}

LinearParams read_linear(Reader& r) {
  LinearParams p;
  p.num_rows = r.i(), p.in_features = r.i();
  p.x = r.p(), p.x_dtype = r.e<DType>(), p.x_stride = r.i();
  p.num_weights = r.i32(), p.epilogue = r.e<LinearEpilogue>(), p.activation = r.e<Activation>();
  p.y = r.p(), p.y_dtype = r.e<DType>(), p.y_stride = r.i();
  for (int n = 0; n < p.num_weights; ++n) {
    LinearWeight& w = p.weights[n];
    w.data = r.p(), w.dtype = r.e<DType>(), w.layout = r.e<WeightLayout>();
    w.out_features = r.i(), w.bias = r.p(), w.bias_dtype = r.e<DType>();
  }
  p.norm.weight = r.p(), p.norm.weight_dtype = r.e<DType>();
  p.norm.scaled = r.p(), p.norm.squares = r.p<float>();
  p.x_squares = r.p<float>();
  if (p.x_squares != nullptr) p.x_epsilon = r.f();
  return p;
}

void linear(Handle& h, Reader& r) { h.backend->linear(read_linear(r)); }

// Several, one behind the other: the first number is how many.
void linears(Handle& h, Reader& r) {
  for (std::int64_t n = r.i(); n > 0; --n) linear(h, r);
}

RopeAndCacheParams read_rope_and_cache(Reader& r) {
  RopeAndCacheParams p;
  p.num_tokens = r.i(), p.num_heads = r.i(), p.qkv = r.p(), p.qkv_dtype = r.e<DType>();
  p.positions = r.p<std::int32_t>(), p.slots = r.p<std::int64_t>();
  p.cos_sin = r.p<float>(), p.rotary_dim = r.i();
  p.q_norm = r.p(), p.k_norm = r.p(), p.norm_dtype = r.e<DType>();
  p.query = r.p(), p.query_dtype = r.e<DType>(), p.layer = r.i();
  p.epsilon = r.f();
  p.cache = read_cache(r);
  return p;
}

void rope_and_cache(Handle& h, Reader& r) { h.backend->rope_and_cache(read_rope_and_cache(r)); }

void linear_rope_and_cache(Handle& h, Reader& r) {
  const LinearParams qkv = read_linear(r);
  h.backend->linear_rope_and_cache(qkv, read_rope_and_cache(r));
}

void paged_attention(Handle& h, Reader& r) {
  // 0: called as it is; n: called n times, over successive layers, in a step that may be replayed.
  const std::int64_t in_step = r.i();
  PagedAttentionParams p;
  p.num_heads = r.i(), p.query = r.p(), p.query_dtype = r.e<DType>();
  p.layer = r.i(), p.sliding_window = r.i32(), p.out = r.p(), p.out_dtype = r.e<DType>();
  p.scale = r.f(), p.softcap = r.f();
  p.cache = read_cache(r);
  if (in_step == 0) return h.backend->paged_attention(h.batch, p);
  const std::int64_t first = p.layer;
  h.backend->run(h.batch, [&] {
    for (std::int64_t n = 0; n < in_step; ++n) {
      p.layer = (first + n) % p.cache.num_layers;
      h.backend->paged_attention(h.batch, p);
    }
  });
}

void gated_activation(Handle& h, Reader& r) {
  GatedActivationParams p;
  p.num_rows = r.i(), p.width = r.i(), p.gate_up = r.p(), p.dtype = r.e<DType>();
  p.activation = r.e<Activation>(), p.y = r.p(), p.y_dtype = r.e<DType>();
  h.backend->gated_activation(p);
}

void reserve_steps(Handle& h, Reader& r) {
  StepLimits limits;
  limits.max_tokens = r.i32(), limits.max_seqs = r.i32(), limits.table_stride = r.i();
  h.backend->reserve_steps(limits);
}

void stage(Handle& h, Reader& r) {
  ForwardBatch b;
  b.num_tokens = r.i32(), b.num_seqs = r.i32(), b.num_logit_rows = r.i32();
  b.max_query_len = r.i32(), b.max_context_len = r.i32();
  b.tokens = r.p<TokenId>(), b.positions = r.p<std::int32_t>(), b.slots = r.p<std::int64_t>();
  b.query_starts = r.p<std::int32_t>(), b.context_lens = r.p<std::int32_t>();
  b.table_rows = r.p<std::int32_t>(), b.table_stride = r.i();
  b.logit_rows = r.p<std::int32_t>();
  b.table_updates = r.span<const TableUpdate>();
  b.block_tables = r.p<const BlockId>(), b.block_size = r.i32();
  h.batch = h.backend->stage(b);
}

void copies(Handle& h, Reader& r) {
  const std::int64_t what = r.i();  // 0: copy, 1: out, 2: in
  void* host = r.p();
  const std::int64_t host_blocks = r.i();
  const std::span<const BlockCopy> list = r.span<const BlockCopy>();
  const KvCacheView cache = read_cache(r);
  if (what == 0) h.backend->copy_blocks(cache, list);
  if (what == 1) h.backend->swap_out(cache, host, host_blocks, list);
  if (what == 2) h.backend->swap_in(cache, host, host_blocks, list);
}

void sample(Handle& h, Reader& r) {
  SampleParams p;
  p.logits = r.p<float>(), p.num_rows = r.i(), p.vocab_size = r.i();
  p.outputs.tokens = r.span<TokenId>();
  p.outputs.logprobs = r.span<float>();
  p.outputs.ranks = r.span<std::int32_t>();
  p.outputs.max_top = r.i32();
  p.outputs.top_tokens = r.span<TokenId>();
  p.outputs.top_logprobs = r.span<float>();
  std::vector<SampleRow> rows(r.i());
  for (SampleRow& row : rows) {
    row.logit_row = r.i32(), row.top_k = r.i32(), row.num_top = r.i32(), row.given_token = r.i32();
    row.seed = r.i(), row.position = r.i();
    row.seen = r.span<const SeenToken>(), row.bias = r.span<const LogitBias>();
    row.allowed = r.span<const TokenId>(), row.banned = r.span<const TokenId>();
    row.temperature = r.f(), row.top_p = r.f(), row.min_p = r.f();
    row.repetition_penalty = r.f(), row.presence_penalty = r.f(), row.frequency_penalty = r.f();
  }
  p.samples = rows;
  p.workspace_bytes =
      h.backend->sample_workspace_bytes(p.vocab_size, static_cast<std::int32_t>(rows.size()));
  const Buffer workspace(*h.backend, p.workspace_bytes);
  p.workspace = workspace.data();
  h.backend->sample(p);
}

using Op = void (*)(Handle&, Reader&);
Op find_op(std::string_view name) {
  if (name == "embed") return embed;
  if (name == "norm") return norm;
  if (name == "linear") return linear;
  if (name == "linears") return linears;
  if (name == "rope_and_cache") return rope_and_cache;
  if (name == "linear_rope_and_cache") return linear_rope_and_cache;
  if (name == "paged_attention") return paged_attention;
  if (name == "gated_activation") return gated_activation;
  if (name == "reserve_steps") return reserve_steps;
  if (name == "stage") return stage;
  if (name == "copies") return copies;
  if (name == "sample") return sample;
  return nullptr;
}

template <typename F>
int guarded(Handle& h, F&& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    h.text = error.what();
    return 1;
  }
}

}  // namespace

#define TEST_API extern "C" __attribute__((visibility("default")))

// Null where there is no backend; `text` then says why.
TEST_API void* ops_open(const char* device, char* text, std::int64_t text_size) {
  auto handle = std::make_unique<Handle>();
  const int failed = guarded(*handle, [&] {
    handle->backend = std::string_view(device) == "cuda" ? make_cuda_backend() : make_cpu_backend();
    handle->text = handle->backend->description();
  });
  handle->text.copy(text, text_size - 1);
  text[std::min<std::int64_t>(text_size - 1, handle->text.size())] = 0;
  return failed ? nullptr : handle.release();
}
TEST_API void ops_close(void* handle) { delete static_cast<Handle*>(handle); }
TEST_API const char* ops_error(void* handle) { return static_cast<Handle*>(handle)->text.c_str(); }
// Calls the op `repeats` times and waits for it; 0: done.
TEST_API int ops_call(void* handle, const char* op, const std::int64_t* ints, const double* floats,
                      int repeats) {
  Handle& h = *static_cast<Handle*>(handle);
  return guarded(h, [&] {
    for (int i = 0; i < repeats; ++i) {
      Reader reader{ints, floats};
      find_op(op)(h, reader);
    }
    h.backend->synchronize();
  });
}
TEST_API void* ops_allocate_host(void* handle, std::int64_t bytes) {
  return static_cast<Handle*>(handle)->backend->allocate_host(bytes);
}
TEST_API void ops_free_host(void* handle, void* data) {
  static_cast<Handle*>(handle)->backend->free_host(data);
}
