"""Rounds the weights of a model to 8 or 4 bits when it is loaded."""

from __future__ import annotations

import sys

from pagedcore import _core
from pagedcore._core import InvalidArgument
from pagedcore.checkpoint import Checkpoint
from pagedcore.tensors import release_pages

QUANTIZATIONS = ("int8", "int4")
DEFAULT_GROUP_SIZE = 32


def check_quantization(
    quantization: str | None, group_size: int | None, backend: _core.Backend
) -> None:
    """Raises InvalidArgument for what `LLM` cannot do, before a long load."""
    if quantization is None:
        if group_size is not None:
            raise InvalidArgument(
                f"quantization_group_size needs quantization, got {group_size!r} without it"
            )
        return
    if quantization not in QUANTIZATIONS:
        raise InvalidArgument(f"quantization must be None, int8 or int4, got {quantization!r}")
    if group_size is not None and group_size not in (32, 64, 128, 256, 512, 1024):
        raise InvalidArgument(
            f"quantization_group_size must be a power of two from 32 to 1024, got {group_size!r}"
        )
    if not backend.is_host:
        raise InvalidArgument(
            f"quantization runs on the CPU only, got the device {backend.description}"
        )


def make_weights(
    model: _core.ModelConfig,
    checkpoint: Checkpoint,
    quantization: str | None = None,
    group_size: int | None = None,
    num_threads: int | None = None,
) -> _core.Weights:
    """A checkpoint's weights as the engine takes them, rounded where that is asked for.

    Each matrix is rounded on its own, and its pages of a mapped file are let go: at its peak this
    takes the rounded weights and one matrix.
    """
    weights = _core.Weights(checkpoint.tensors)
    if quantization is None:
        return weights
    _check_unquantized(checkpoint, quantization)
    from tqdm import tqdm

    with tqdm(
        desc=f"Rounding to {quantization}",
        unit=" weights",
        unit_scale=True,
        delay=1.0,
        disable=not sys.stderr.isatty(),
    ) as progress:

        def show(name: str, done: int, total: int) -> None:
            if name in checkpoint.tensors:
                release_pages(checkpoint.tensors[name])
            progress.total = total
            progress.update(done - progress.n)

        return _core.quantize_weights(
            model, weights, quantization, group_size or DEFAULT_GROUP_SIZE, num_threads or 0, show
        )


def plan_weights(
    model: _core.ModelConfig,
    checkpoint: Checkpoint,
    quantization: str | None = None,
    group_size: int | None = None,
) -> _core.Weights:
    """What `make_weights` gives, without data: for plans."""
    weights = _core.Weights(checkpoint.tensors)
    if quantization is None:
        return weights
    _check_unquantized(checkpoint, quantization)
    size = group_size or DEFAULT_GROUP_SIZE
    return _core.plan_quantized_weights(model, weights, quantization, size)


def _check_unquantized(checkpoint: Checkpoint, quantization: str) -> None:
    if any(name.endswith(".weight.scales") for name in checkpoint.tensors):
        raise InvalidArgument(
            f"quantization must be None for a checkpoint that is quantised already, "
            f"got {quantization!r}"
        )
