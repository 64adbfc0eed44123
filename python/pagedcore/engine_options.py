"""From the arguments of `LLM` to a backend and the engine's configuration."""

from __future__ import annotations

from typing import Any

from pagedcore import _core
from pagedcore._core import InvalidArgument


def make_backend(
    device: str = "auto", num_threads: int | None = None, isa: str | None = None
) -> _core.Backend:
    """The backend that a device name means; arguments and errors as for `LLM`."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (
        number and not (kind == "cuda" and number.isdigit())
    ):
        raise InvalidArgument(f'device must be "auto", "cpu", "cuda" or "cuda:N", got {device!r}')
    if num_threads is not None and num_threads < 1:
        raise InvalidArgument(f"num_threads must be at least 1, got {num_threads}")
    if kind == "cuda":
        return _core.make_cuda_backend(int(number or 0))
    if kind == "auto":
        try:
            return _core.make_cuda_backend(0)
        except _core.BackendUnavailable:
            pass
    return _core.make_cpu_backend(num_threads or 0, isa or "")


def engine_config(**options: Any) -> _core.EngineConfig:
    """The engine's configuration; None keeps a default. Errors as for `LLM`."""
    config = _core.EngineConfig()
    for name, value in options.items():
        if not hasattr(config, name) or name == "eos_token_ids":
            raise TypeError(f"LLM got an unexpected keyword argument {name!r}")
        if value is None:
            continue
        try:
            setattr(config, name, value)
        except TypeError:
            raise InvalidArgument(f"{name} has the wrong type or range, got {value!r}") from None
    config.validate()
    return config
