"""libpagedcore for Python. The public names are those of the package pagedcore."""

from __future__ import annotations

import collections.abc
import enum
import typing

import numpy
import numpy.typing

class Error(RuntimeError):
    pass

class InternalError(Error):
    pass

class QueueFull(Error):
    pass

class DeviceError(Error):
    pass

class BackendUnavailable(Error):
    pass

class InvalidArgument(Error, ValueError):
    pass

class OutOfMemory(Error, MemoryError):
    pass

class Backend:
    @property
    def allocated_bytes(self) -> int: ...
    @property
    def description(self) -> str: ...
    @property
    def is_host(self) -> bool: ...

class NormKind(enum.Enum):
    LAYER = ...
    RMS = ...

class Activation(enum.Enum):
    GELU = ...
    GELU_TANH = ...
    RELU = ...
    SILU = ...

class PositionKind(enum.Enum):
    LEARNED = ...
    ROPE = ...

class RopeScalingKind(enum.Enum):
    DYNAMIC = ...
    LINEAR = ...
    LLAMA3 = ...
    NONE = ...
    YARN = ...

class RopeScaling:
    kind: RopeScalingKind
    truncate: bool
    def __init__(self) -> None: ...
    attention_factor: float
    beta_fast: float
    beta_slow: float
    factor: float
    high_freq_factor: float
    low_freq_factor: float
    mscale: float
    mscale_all_dim: float
    original_max_position_embeddings: int

class ModelConfig:
    activation: Activation
    architecture: str
    attention_scale_by_layer: bool
    final_norm: bool
    gated_mlp: bool
    mlp_bias: bool
    norm: NormKind
    norm_affine: bool
    norm_after: bool
    output_bias: bool
    position: PositionKind
    qk_norm: bool
    qkv_bias: bool
    rope_scaling: RopeScaling
    tied_embeddings: bool
    def __init__(self) -> None: ...
    def validate(self) -> None: ...
    attention_scale: float
    attention_softcap: float
    embedding_size: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    layer_uses_window: list[bool]
    max_position_embeddings: int
    norm_epsilon: float
    num_heads: int
    num_kv_heads: int
    num_layers: int
    position_offset: int
    rope_theta: float
    rotary_dim: int
    sliding_window: int
    vocab_size: int

class Weights:
    def __init__(
        self,
        tensors: collections.abc.Mapping[
            str, tuple[int, str, collections.abc.Sequence[int], typing.Any]
        ],
    ) -> None: ...
    def __len__(self) -> int: ...

class Decoder:
    @staticmethod
    def workspace_bytes(
        config: ModelConfig,
        weights: Weights,
        backend: Backend,
        max_tokens: int,
        max_logit_rows: int,
        max_positions: int = 0,
    ) -> int: ...
    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        backend: Backend,
        max_tokens: int,
        max_logit_rows: int,
        max_positions: int = 0,
    ) -> None: ...
    def forward(
        self,
        backend: Backend,
        *,
        tokens: numpy.typing.ArrayLike,
        positions: numpy.typing.ArrayLike,
        slots: numpy.typing.ArrayLike,
        query_starts: numpy.typing.ArrayLike,
        context_lens: numpy.typing.ArrayLike,
        block_tables: numpy.typing.ArrayLike,
        logit_rows: numpy.typing.ArrayLike,
        cache: numpy.ndarray,
        cache_dtype: str,
    ) -> numpy.typing.NDArray[numpy.float32]: ...

class SamplingParams:
    early_stopping: bool | str
    ignore_eos: bool
    def __init__(self, **kwargs: typing.Any) -> None: ...
    def validate(self, vocab_size: int) -> None: ...
    allowed_token_ids: list[int]
    bad_token_ids: list[int]
    beam_width: int
    best_of: int
    frequency_penalty: float
    length_penalty: float
    logit_bias: list[tuple[int, float]]
    logprobs: int
    max_tokens: int | None
    min_p: float
    min_tokens: int
    n: int
    presence_penalty: float
    prompt_logprobs: int
    repetition_penalty: float
    seed: int | None
    stop_token_ids: list[int]
    temperature: float
    top_k: int
    top_p: float

class SampleRow:
    def __init__(self, **kwargs: typing.Any) -> None: ...
    allowed: list[int]
    banned: list[int]
    bias: list[tuple[int, float]]
    frequency_penalty: float
    given_token: int
    logit_row: int
    min_p: float
    num_top: int
    position: int
    presence_penalty: float
    repetition_penalty: float
    seed: int
    seen: list[tuple[int, int]]
    temperature: float
    top_k: int
    top_p: float

class EngineConfig:
    enable_prefix_caching: bool
    preemption_mode: str
    def __init__(self, **kwargs: typing.Any) -> None: ...
    def validate(self) -> None: ...
    block_size: int
    eos_token_ids: list[int]
    kv_cache_bytes: int | None
    kv_dtype: str | None
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    max_waiting: int
    num_blocks: int | None
    seed: int
    swap_space_bytes: int

class MemoryPlan:
    @property
    def block_bytes(self) -> int: ...
    @property
    def kv_cache_bytes(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_host_blocks(self) -> int: ...
    @property
    def swap_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...

class RequestMetrics:
    @property
    def first_token_us(self) -> int: ...
    @property
    def last_preemption(self) -> str | None: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_recomputed_tokens(self) -> int: ...
    @property
    def queue_us(self) -> int: ...
    @property
    def total_us(self) -> int: ...

class SequenceUpdate:
    @property
    def cumulative_logprob(self) -> float: ...
    @property
    def explanation(self) -> str | None: ...
    @property
    def finish_reason(self) -> typing.Literal["stop", "length", "capacity"] | None: ...
    @property
    def index(self) -> int: ...
    @property
    def logprobs(self) -> list[list[tuple[int, float, int]]] | None: ...
    @property
    def metrics(self) -> RequestMetrics | None: ...
    @property
    def new_tokens(self) -> list[int]: ...
    @property
    def prompt_logprobs(self) -> list[list[tuple[int, float, int]]] | None: ...
    @property
    def request_id(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def stop_token(self) -> int | None: ...

class Stats:
    @property
    def cached_blocks(self) -> int: ...
    @property
    def free_blocks(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_computed_tokens(self) -> int: ...
    @property
    def num_copied_blocks(self) -> int: ...
    @property
    def num_held(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...
    @property
    def num_preempted(self) -> int: ...
    @property
    def num_prefix_hit_tokens(self) -> int: ...
    @property
    def num_prefix_queried_tokens(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_recompute_preemptions(self) -> int: ...
    @property
    def num_recomputed_tokens(self) -> int: ...
    @property
    def num_requests(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_swap_preemptions(self) -> int: ...
    @property
    def num_swapped_in_blocks(self) -> int: ...
    @property
    def num_swapped_out_blocks(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def saved_slots(self) -> int: ...
    @property
    def shared_savings(self) -> float: ...
    @property
    def step_device_us(self) -> float: ...
    @property
    def step_host_us(self) -> float: ...
    @property
    def token_slots(self) -> int: ...
    @property
    def total_device_us(self) -> float: ...
    @property
    def total_host_us(self) -> float: ...
    @property
    def used_blocks(self) -> int: ...
    @property
    def used_host_blocks(self) -> int: ...
    @property
    def used_slots(self) -> int: ...
    @property
    def waste(self) -> float: ...

class Engine:
    @staticmethod
    def plan_memory(
        model: ModelConfig, weights: Weights, backend: Backend, config: EngineConfig
    ) -> MemoryPlan: ...
    def __init__(
        self, model: ModelConfig, weights: Weights, backend: Backend, config: EngineConfig
    ) -> None: ...
    def abort(self, request_id: int) -> None: ...
    def add_request(
        self,
        prompt: collections.abc.Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        tenant: str = "",
        cache_salt: str = "",
        hold: bool = False,
    ) -> int: ...
    def finish_sequence(self, request_id: int, index: int) -> None: ...
    def has_unfinished(self) -> bool: ...
    def metrics(self, request_id: int) -> RequestMetrics | None: ...
    def stats(self) -> Stats: ...
    def step(self) -> list[SequenceUpdate]: ...
    def verify(self) -> list[str]: ...
    @property
    def allocated_bytes(self) -> int: ...
    @property
    def backend_description(self) -> str: ...
    @property
    def config(self) -> EngineConfig: ...
    @property
    def memory_plan(self) -> MemoryPlan: ...
    @property
    def model_config(self) -> ModelConfig: ...

def make_cpu_backend(num_threads: int = 0, isa: str = "") -> Backend: ...
def make_cuda_backend(device: int = 0) -> Backend: ...
def rope_table(config: ModelConfig, num_positions: int) -> numpy.typing.NDArray[numpy.float32]: ...
def sample(
    backend: Backend,
    logits: numpy.typing.ArrayLike,
    rows: collections.abc.Sequence[SampleRow],
    max_top: int = 0,
) -> tuple[typing.Any]: ...
def supported_architectures() -> list[str]: ...

__version__: str = "0.1.0"
