"""Tensors in memory that someone else owns: views, dtype checks and conversions."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING, Any, NamedTuple

from pagedcore._core import InvalidArgument, address_of

if TYPE_CHECKING:
    import numpy as np

DTYPES = ("float32", "float16", "bfloat16")  # that a model can run in
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "int32": 4, "int64": 8}
USABLE_DTYPES = tuple(ITEM_BYTES)
DTYPE_RULE = f"but a model's weights must be of {', '.join(DTYPES)} or int8"


class Tensor(NamedTuple):
    """A dense row-major tensor in memory that `owner` keeps alive.

    Attributes:
        address: Of the first element.
        dtype: "float32", "float16", "bfloat16", "int8", "int32" or "int64"; "int4": two to a byte.
        shape: Elements in each dimension.
        owner: What the tensor lies in: a mapped file, a numpy array, a torch tensor.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    owner: object


def check_dtype(dtype: str) -> None:
    """Raises InvalidArgument unless `dtype` is "auto" or a dtype that a model can run in."""
    if dtype not in ("auto", *DTYPES):
        raise InvalidArgument(f"dtype must be one of auto, {', '.join(DTYPES)}, got {dtype!r}")


def dtype_of(array: Any) -> str:
    """The name of an array's dtype: "float32" for numpy's and torch's alike."""
    return str(getattr(array, "dtype", type(array).__name__)).removeprefix("torch.")


def from_array(array: Any, name: str) -> Tensor:
    """A tensor over the memory of a numpy array or CPU torch tensor (copied only if not dense).

    Raises:
        InvalidArgument: It is neither, is on another device, or has a dtype that no model runs in.
    """
    import numpy as np

    dtype = dtype_of(array)
    if not hasattr(array, "dtype") or dtype not in USABLE_DTYPES:
        raise InvalidArgument(f"tensor {name} has dtype {dtype}, {DTYPE_RULE}")
    if isinstance(array, np.ndarray):
        array = np.ascontiguousarray(array)
        return Tensor(array.ctypes.data, dtype, tuple(array.shape), array)
    if not hasattr(array, "data_ptr") or array.device.type != "cpu":
        where = getattr(array, "device", type(array).__name__)
        raise InvalidArgument(f"tensor {name} must be a numpy array or CPU tensor, got {where}")
    array = array.detach().contiguous()
    return Tensor(array.data_ptr(), dtype, tuple(array.shape), array)


def convert(tensor: Tensor, dtype: str, name: str) -> Tensor:
    """A copy of `tensor` in another floating-point dtype, rounded to nearest, ties to even.

    It is `tensor` itself where `dtype` is "auto" or its own, or it holds integers.
    """
    if dtype in ("auto", tensor.dtype) or tensor.dtype not in DTYPES:
        return tensor
    import numpy as np

    source = as_array(tensor)
    if tensor.dtype == "bfloat16":
        wide = (source.astype(np.uint32) << 16).view(np.float32)
    else:
        wide = source.astype(np.float32)
    if dtype == "bfloat16":
        bits = wide.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        result = np.where(np.isnan(wide), 0x7FC0, rounded).astype(np.uint16)
    else:
        with np.errstate(over="ignore"):
            result = wide.astype(dtype)
        if dtype == "float16" and not np.isfinite(result).all() and np.isfinite(wide).all():
            raise InvalidArgument(
                f"tensor {name} holds {np.abs(wide).max():.4g}, more than float16 can; use bfloat16"
            )
    return Tensor(result.ctypes.data, dtype, tensor.shape, result)


def release_pages(tensor: Tensor) -> None:
    """Lets go of the pages of a tensor in a mapped file; a later reader fetches them again."""
    file = tensor.owner
    if not isinstance(file, mmap.mmap):
        return
    begin = tensor.address - address_of(file)
    end = begin + math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # the pages at the ends have other owners
    end = end // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end:
        file.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def as_array(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """A numpy view of a tensor; bfloat16 shows as uint16."""
    import numpy as np

    storage = np.dtype("uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
    if math.prod(tensor.shape) == 0:
        return np.empty(tensor.shape, storage)
    view = _ArrayInterface(tensor, storage.str)
    return np.asarray(view)


class _ArrayInterface:
    """Lets numpy view a tensor's memory and keep its owner alive."""

    def __init__(self, tensor: Tensor, typestr: str) -> None:
        self.owner = tensor.owner
        self.__array_interface__ = {
            "data": (tensor.address, True),
            "shape": tensor.shape,
            "typestr": typestr,
            "version": 3,
        }
