"""Reads GPTQ and AWQ checkpoints, as published on the hub, into the form that the kernels take.

Both store a matrix `[in, out]` as whole numbers q, with a scale s and a zero point z for each group
of inputs: a weight is (q - z) * s. They pack eight 4-bit or four 8-bit numbers into an int32:

- GPTQ (Frantar et al. 2022): `qweight` [in / 8, out] packs consecutive inputs, `qzeros`
  [groups, out / 8] consecutive outputs and, in its first format, z - 1. With activation order
  (`desc_act`), `g_idx` [in] is the group of each input, in any order.
- AWQ (Lin et al. 2023), its "gemm" version: `qweight` [in, out / 8] and `qzeros` [groups, out / 8]
  pack outputs, even ones of each eight before odd ones.

The kernels take blocks of outputs, see `LinearWeight` in pagedcore/linear_ops.h. Groups that are
no power of two up to 1024, such as whole columns, become several groups with the same scale; inputs
are sorted by their groups, and `x_order` tells where each was.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pagedcore._core import InvalidArgument
from pagedcore.quantization_config import Settings
from pagedcore.tensors import Tensor, as_array, from_array, release_pages

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output whose number is the i-th of an int32, low first
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_LARGEST_GROUP = 1024
_BLOCK_OUTPUTS = 16

Array = NDArray[Any]


def repack(
    tensors: Mapping[str, Tensor], settings: Settings
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Splits a checkpoint's tensors into those to use as they are and quantised ones, repacked.

    Returns:
        The first, by name; and for each matrix "m.qweight", "m.weight" with its scales, and its
        zero points and order of inputs where it has them, as `pagedcore/tensor.h` names them.

    Raises:
        InvalidArgument: A part is missing, has the wrong shape or breaks the format.
    """
    names = sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))
    if not names:
        raise InvalidArgument(
            f"the checkpoint says that it is quantised by {settings.method}, but has no tensor "
            "that ends in .qweight"
        )
    parts = {f"{name}.{part}" for name in names for part in _PARTS}
    plain = {name: tensor for name, tensor in tensors.items() if name not in parts}
    quantized: dict[str, Tensor] = {}
    quiet = not sys.stderr.isatty()
    for name in tqdm(names, desc="Repacking weights", unit=" matrices", delay=1.0, disable=quiet):
        matrix = {part: tensors[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in tensors}
        for suffix, array in _repack_matrix(name, matrix, settings).items():
            quantized[f"{name}.weight{suffix}"] = array
        for tensor in matrix.values():
            release_pages(tensor)
    return plain, quantized


def _repack_matrix(
    name: str, matrix: Mapping[str, Tensor], settings: Settings
) -> dict[str, Tensor]:
    """A matrix by the ends of its tensors' names: "", ".scales", ..."""
    for part in ("qweight", "scales"):
        if part not in matrix:
            raise InvalidArgument(f"tensor {name}.{part} is missing; {settings.method} needs it")
    per_int32 = 32 // settings.bits
    rows, columns = _integers(f"{name}.qweight", matrix["qweight"]).shape
    by_inputs = settings.method == "gptq"
    num_inputs, num_outputs = (
        (rows * per_int32, columns) if by_inputs else (rows, columns * per_int32)
    )
    size = num_inputs if settings.group_size == -1 else settings.group_size
    num_groups = -(-num_inputs // size)
    scales = _checked(f"{name}.scales", matrix["scales"], (num_groups, num_outputs))
    zeros = _zeros(name, matrix, settings, (num_groups, num_outputs))
    order = _order(name, matrix, size, num_inputs)

    packed = _integers(f"{name}.qweight", matrix["qweight"])
    numbers = _unpack_inputs(packed, settings.bits) if by_inputs else _unpack_awq(packed)
    data = _pack_blocks(numbers if order is None else numbers[order], settings.bits)
    shape = (*data.shape[:3], per_int32)

    parts = _split_groups(f"{name}.qweight", size)

    def per_group(numbers: Array) -> Array:
        return _blocks(np.repeat(numbers, parts, axis=0))

    result = {
        "": Tensor(data.ctypes.data, f"int{settings.bits}", shape, data),
        ".scales": from_array(per_group(scales), f"{name}.scales"),
    }
    if zeros.any():
        result[".zero_points"] = from_array(per_group(zeros), f"{name}.qzeros")
    if order is not None:
        result[".x_order"] = from_array(order.astype(np.int32), f"{name}.g_idx")
    return result


def _integers(name: str, tensor: Tensor) -> Array:
    if tensor.dtype != "int32" or len(tensor.shape) != 2:
        raise InvalidArgument(
            f"tensor {name} must be an int32 matrix, got {tensor.dtype}{list(tensor.shape)}"
        )
    return as_array(tensor)


def _checked(name: str, tensor: Tensor, shape: tuple[int, int]) -> Array:
    """Floating-point numbers of a shape, in float32."""
    if tensor.shape != shape:
        raise InvalidArgument(
            f"tensor {name} must have shape {list(shape)}, got {list(tensor.shape)}"
        )
    if tensor.dtype not in ("float32", "float16", "bfloat16"):
        raise InvalidArgument(f"tensor {name} must be of floating point, got {tensor.dtype}")
    numbers = as_array(tensor)
    if tensor.dtype == "bfloat16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32)


def _zeros(
    name: str, matrix: Mapping[str, Tensor], settings: Settings, shape: tuple[int, int]
) -> Array:
    """Zero points [groups, outputs] of signed numbers, as int8."""
    if "qzeros" not in matrix:
        return np.zeros(shape, np.int8)
    packed = _integers(f"{name}.qzeros", matrix["qzeros"])
    if (packed.shape[0], packed.shape[1] * (32 // settings.bits)) != shape:
        raise InvalidArgument(
            f"tensor {name}.qzeros must have shape {[shape[0], shape[1] * settings.bits // 32]}, "
            f"got {list(packed.shape)}"
        )
    if settings.method == "awq":
        stored = _unpack_awq(packed)
    else:
        stored = _unpack_inputs(np.ascontiguousarray(packed.T), settings.bits).T
    zeros = stored.astype(np.int16) + settings.zero_offset - (1 << (settings.bits - 1))
    if zeros.max(initial=0) > 127:
        raise InvalidArgument(f"tensor {name}.qzeros holds a zero point of 256; at most 255 is one")
    return zeros.astype(np.int8)


def _order(
    name: str, matrix: Mapping[str, Tensor], size: int, num_inputs: int
) -> NDArray[np.int64] | None:
    """The inputs sorted by their groups; None where they are."""
    if num_inputs % size != 0:
        raise InvalidArgument(
            f"tensor {name}.qweight has {num_inputs} inputs, no multiple of its group_size {size}"
        )
    if "g_idx" not in matrix:
        return None
    groups = as_array(matrix["g_idx"])
    expected = np.arange(num_inputs) // size
    if np.array_equal(groups, expected):
        return None
    order = np.argsort(groups, kind="stable")
    if groups.shape != (num_inputs,) or not np.array_equal(groups[order], expected):
        raise InvalidArgument(
            f"tensor {name}.g_idx must give each group {size} of the {num_inputs} inputs"
        )
    return order


def _unpack_inputs(packed: Array, bits: int) -> Array:
    """From int32 [n / k, m] of k numbers each, low bits first, to uint8 [n, m]."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    mask = np.uint32((1 << bits) - 1)
    numbers = np.empty((packed.shape[0], len(shifts), packed.shape[1]), np.uint8)
    for i, shift in enumerate(shifts):
        numbers[:, i] = (packed.view(np.uint32) >> shift) & mask
    return numbers.reshape(-1, packed.shape[1])


def _unpack_awq(packed: Array) -> Array:
    """From int32 [n, m / 8] to uint8 [n, m]."""
    numbers = np.empty((*packed.shape, 8), np.uint8)
    for i, output in enumerate(_AWQ_ORDER):
        numbers[..., output] = (packed.view(np.uint32) >> np.uint32(4 * i)) & np.uint32(15)
    return numbers.reshape(len(packed), -1)


def _blocks(rows: Array) -> Array:
    """From [n, outputs] to [blocks, n, 16]; zeros behind the last output."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % _BLOCK_OUTPUTS)))
    blocks = padded.reshape(len(rows), -1, _BLOCK_OUTPUTS).transpose(1, 0, 2)
    return np.ascontiguousarray(blocks)


def _pack_blocks(numbers: Array, bits: int) -> Array:
    """From uint8 [inputs, outputs] to bytes [blocks, inputs * bits / 32, 16, 4]."""
    units = numbers.reshape(-1, 32 // bits, numbers.shape[1])
    quads = units if bits == 8 else units[:, :4] | (units[:, 4:] << 4)
    blocks = _blocks(quads.reshape(-1, numbers.shape[1]))
    return np.ascontiguousarray(
        blocks.reshape(len(blocks), -1, 4, _BLOCK_OUTPUTS).transpose(0, 1, 3, 2)
    )


def _split_groups(name: str, size: int) -> int:
    """Into how many of the kernels' groups one group is split."""
    power = min(size & -size, _LARGEST_GROUP)  # the largest power of two that divides it
    if power < 32:
        raise InvalidArgument(f"tensor {name} has groups of {size} inputs, no multiple of 32")
    return size // power
