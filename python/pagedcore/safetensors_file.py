"""Reads the safetensors format: a checked header over a mapped file."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from pathlib import Path
from typing import Any

from pagedcore._core import InvalidArgument, address_of
from pagedcore.tensors import DTYPE_RULE, ITEM_BYTES, USABLE_DTYPES, Tensor

# safetensors' names of dtypes: ours, and the bits of an element.
_SAFETENSORS_DTYPES = {
    "F32": ("float32", 32),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I8": ("int8", 8),
    "I32": ("int32", 32),
    "I64": ("int64", 64),
    "F64": ("float64", 64),
    "F8_E4M3": ("float8_e4m3", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "U32": ("uint32", 32),
    "U64": ("uint64", 64),
}
_UNUSABLE_FLOATS = ("float64", "float8_e4m3", "float8_e5m2")
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Maps a safetensors file and checks its whole header.

    Format: eight bytes of header length, little-endian; a JSON header of name to dtype, shape and
    [begin, end) bytes in the rest of the file; the tensors, which fill the rest without gaps.

    Raises:
        InvalidArgument: The file is truncated or corrupt, or a tensor has a dtype that no model
            runs in.
    """
    data = _map_file(path)
    entries, base = _read_header(path, data)
    tensors_address = address_of(data) + base
    tensors = {}
    for name, dtype, shape, begin, end in _checked_entries(path, entries, len(data) - base):
        if dtype in _UNUSABLE_FLOATS:
            raise InvalidArgument(f"{path}: tensor {name} has dtype {dtype}, {DTYPE_RULE}")
        if dtype not in USABLE_DTYPES:
            continue  # masks and other buffers that no model reads
        owner: object = data
        address = tensors_address + begin
        if address % ITEM_BYTES[dtype]:  # written before the format asked for padding
            owner = bytearray(data[base + begin : base + end])
            address = address_of(owner)
        tensors[name] = Tensor(address, dtype, shape, owner)
    return tensors


def _map_file(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise InvalidArgument(
                f"{path} is truncated: {size} bytes, a safetensors file has at least 8"
            )
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Large pages read up to twice as fast; not every kernel and file system has them for files.
    with contextlib.suppress(OSError):
        data.madvise(mmap.MADV_HUGEPAGE)
    data.madvise(mmap.MADV_WILLNEED)
    return data


def _read_header(path: Path, data: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header's entries, and where the tensors begin."""
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER_BYTES:
        raise InvalidArgument(
            f"{path} is not a safetensors file, or is corrupt: it declares a header of "
            f"{length} bytes, more than {_MAX_HEADER_BYTES}"
        )
    if 8 + length > len(data):
        raise InvalidArgument(
            f"{path} is truncated: its header needs {8 + length} bytes, the file has {len(data)}"
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidArgument(f"{path} is corrupt: its header holds {twice!r} twice")
        return entries

    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidArgument(f"{path} is corrupt: its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise InvalidArgument(f"{path} is corrupt: its header is not a JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _checked_entries(
    path: Path, header: dict[str, Any], data_bytes: int
) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """Each tensor's (name, dtype, shape, begin, end), in the order of the file."""
    entries = []
    for name, entry in header.items():
        try:
            shape = tuple(_natural(n) for n in entry["shape"])
            begin, end = (_natural(n) for n in entry["data_offsets"])
            code = str(entry["dtype"])
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidArgument(
                f"{path} is corrupt: the header entry of tensor {name} is malformed ({error!r})"
            ) from None
        if code not in _SAFETENSORS_DTYPES:
            raise InvalidArgument(f"{path}: tensor {name} has dtype {code}, {DTYPE_RULE}")
        dtype, bits = _SAFETENSORS_DTYPES[code]
        if end - begin != math.prod(shape) * bits // 8:
            raise InvalidArgument(
                f"{path} is corrupt: tensor {name} ({dtype}{list(shape)}) needs "
                f"{math.prod(shape) * bits // 8} bytes, its offsets [{begin}, {end}) give "
                f"{end - begin}"
            )
        entries.append((name, dtype, shape, begin, end))
    entries.sort(key=lambda entry: entry[3:])
    expected, previous = 0, "the header"
    for name, _, _, begin, end in entries:
        if end > data_bytes:
            raise InvalidArgument(
                f"{path} is truncated: tensor {name} ends at byte {end} of the data, the file has "
                f"{data_bytes}"
            )
        if begin != expected:
            fault = "overlaps" if begin < expected else "leaves a gap after"
            raise InvalidArgument(f"{path} is corrupt: tensor {name} {fault} {previous}")
        expected, previous = end, name
    if expected != data_bytes:
        raise InvalidArgument(
            f"{path} is corrupt: its tensors end at byte {expected} of the data, the file has "
            f"{data_bytes}"
        )
    return entries


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a natural number")
    return value
