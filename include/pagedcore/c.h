/* The engine for C and for languages that call C. Every function but the pagedcore_*_destroy ones
 * and pagedcore_last_error returns a status; on failure nothing has changed, and
 * pagedcore_last_error() has the message. An engine and its options belong to one thread at a time.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "pagedcore/export.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum pagedcore_status {
  PAGEDCORE_OK = 0,
  PAGEDCORE_INVALID_ARGUMENT = 1,
  PAGEDCORE_QUEUE_FULL = 2,
  PAGEDCORE_OUT_OF_MEMORY = 3,
  PAGEDCORE_BACKEND_UNAVAILABLE = 4,
  PAGEDCORE_DEVICE_ERROR = 5,
  PAGEDCORE_INTERNAL_ERROR = 6
} pagedcore_status;

/* The message of this thread's last failed call; valid until its next call. */
PAGEDCORE_API const char* pagedcore_last_error(void);

/* Named settings. Names and meanings are the fields of the C++ structs. */
typedef struct pagedcore_options pagedcore_options;
/* "model" (ModelConfig), "engine" (EngineConfig), "sampling" (SamplingParams) or "request"
 * (RequestOptions, but for hold). */
PAGEDCORE_API pagedcore_status pagedcore_options_create(const char* kind, pagedcore_options** out);
PAGEDCORE_API void pagedcore_options_destroy(pagedcore_options* options);
/* For numbers, booleans (0 or 1) and enumerations (their position). */
PAGEDCORE_API pagedcore_status pagedcore_options_set_number(pagedcore_options* options,
                                                            const char* name, double value);
PAGEDCORE_API pagedcore_status pagedcore_options_set_text(pagedcore_options* options,
                                                          const char* name, const char* value);
PAGEDCORE_API pagedcore_status pagedcore_options_set_tokens(pagedcore_options* options,
                                                            const char* name, const int32_t* tokens,
                                                            size_t count);

/* A dense row-major tensor of the checkpoint. */
typedef struct pagedcore_tensor {
  const char* name;
  const char* dtype; /* "float32", "bfloat16", ... */
  const void* data;  /* must stay until the engine is destroyed */
  int32_t rank;
  int64_t shape[4];
} pagedcore_tensor;

typedef struct pagedcore_engine pagedcore_engine;
/* `device` is "cpu", "cuda" or "cuda:N"; `num_threads` 0 takes as many as the process may use. */
PAGEDCORE_API pagedcore_status pagedcore_engine_create(const pagedcore_options* model,
                                                       const pagedcore_tensor* tensors,
                                                       size_t num_tensors, const char* device,
                                                       int32_t num_threads,
                                                       const pagedcore_options* engine,
                                                       pagedcore_engine** out);
PAGEDCORE_API void pagedcore_engine_destroy(pagedcore_engine* engine);

/* `request` may be null, for the defaults. */
PAGEDCORE_API pagedcore_status pagedcore_add_request(pagedcore_engine* engine,
                                                     const int32_t* prompt, size_t prompt_length,
                                                     const pagedcore_options* sampling,
                                                     const pagedcore_options* request,
                                                     int64_t* request_id);
/* Requests of a tenant together hold at most so many KV blocks; 0: no limit. */
PAGEDCORE_API pagedcore_status pagedcore_set_tenant_quota(pagedcore_engine* engine,
                                                          const char* tenant, int32_t num_blocks);
PAGEDCORE_API pagedcore_status pagedcore_abort(pagedcore_engine* engine, int64_t request_id);
/* 1 while requests are unfinished. */
PAGEDCORE_API pagedcore_status pagedcore_has_unfinished(const pagedcore_engine* engine,
                                                        int32_t* out);

/* What one step added to one sequence of a request. */
typedef struct pagedcore_update {
  int64_t request_id;
  int32_t index;
  const int32_t* new_tokens;
  size_t num_new_tokens;
  double cumulative_logprob;
  const char* finish_reason; /* "stop", "length", "capacity"; null while it goes on */
  int32_t stop_token;        /* -1: none */
} pagedcore_update;

/* One iteration. The updates are valid until the engine's next call. */
PAGEDCORE_API pagedcore_status pagedcore_step(pagedcore_engine* engine,
                                              const pagedcore_update** updates,
                                              size_t* num_updates);

#ifdef __cplusplus
}
#endif
