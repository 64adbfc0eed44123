"""pagedcore: serve language models from a library, with a paged KV cache.

`LLM` is the whole engine with text in and out. `BlockAllocator`, `BlockTable`, `PrefixCache` and
`Scheduler` are its block bookkeeping, usable without a model; `ops` are its kernels on arrays.
"""

from typing import TYPE_CHECKING, Any

from pagedcore._core import (
    BackendUnavailable,
    BlockAllocator,
    BlockTable,
    DeviceError,
    Error,
    InternalError,
    InvalidArgument,
    OutOfMemory,
    PrefixCache,
    QueueFull,
    Scheduler,
    SchedulerConfig,
    __version__,
)
from pagedcore.llm import LLM, SHIPPED_MODEL
from pagedcore.outputs import CompletionOutput, Logprob, RequestOutput
from pagedcore.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pagedcore import ops

__all__ = [
    "LLM",
    "SHIPPED_MODEL",
    "BackendUnavailable",
    "BlockAllocator",
    "BlockTable",
    "CompletionOutput",
    "DeviceError",
    "Error",
    "InternalError",
    "InvalidArgument",
    "Logprob",
    "OutOfMemory",
    "PrefixCache",
    "QueueFull",
    "RequestOutput",
    "SamplingParams",
    "Scheduler",
    "SchedulerConfig",
    "__version__",
    "ops",
]


def __getattr__(name: str) -> Any:
    """Imports `ops` where it is first used: it needs numpy, which serving token ids does not."""
    if name == "ops":
        import pagedcore.ops as module

        return module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
