"""Reads Hugging Face checkpoints: JSON files, and weights that are mapped and never copied."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagedcore._core import InvalidArgument
from pagedcore.quantization_config import QUANTIZED_PARTS, read_settings
from pagedcore.safetensors_file import read_safetensors
from pagedcore.tensors import USABLE_DTYPES, Tensor, check_dtype, convert, dtype_of, from_array

_WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class Checkpoint:
    """What a model folder holds.

    Attributes:
        config: config.json.
        generation_config: generation_config.json; empty where there is none.
        tensors: The weights by name.
        folder: Where they were read; None for tensors that the caller had in memory.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    generation_config: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def num_weights(self) -> int:
        """Numbers in the tensors; what goes with quantised ones is not counted."""
        return sum(
            math.prod(tensor.shape)
            for name, tensor in self.tensors.items()
            if not name.endswith(QUANTIZED_PARTS)
        )


def load_checkpoint(model: str | os.PathLike[str], dtype: str = "auto") -> Checkpoint:
    """Reads a checkpoint; weights of the right dtype stay in their mapped files.

    Args:
        model: A folder, or a hub id such as "HuggingFaceTB/SmolLM2-135M".
        dtype: "auto" keeps each tensor's dtype; "float32", "float16" or "bfloat16" converts the
            floating-point tensors that differ.

    Raises:
        InvalidArgument: The folder, a file or a tensor in it is missing or malformed; the message
            names the file.
    """
    check_dtype(dtype)
    folder = resolve_model(model)
    config = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    tensors, quantized = _split(_read_weights(folder), config, folder)
    tensors = {name: convert(tensor, dtype, name) for name, tensor in tensors.items()}
    return Checkpoint(
        config=config,
        tensors=tensors | quantized,
        generation_config=read_json(generation) if generation.is_file() else {},
        folder=folder,
    )


def checkpoint_from_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, Any], dtype: str = "auto"
) -> Checkpoint:
    """A checkpoint of numpy arrays or torch tensors; what is dense and of the dtype is not copied.

    Args:
        config: What config.json would hold.
        tensors: Name to array, with the names that a checkpoint of this architecture uses.
        dtype: As in `load_checkpoint`.

    Raises:
        InvalidArgument: A value is neither a numpy array nor a torch tensor on the CPU.
    """
    check_dtype(dtype)
    usable = {name: from_array(array, name) for name, array in tensors.items()}
    usable, quantized = _split(usable, config)
    converted = {name: convert(tensor, dtype, name) for name, tensor in usable.items()}
    return Checkpoint(config=dict(config), tensors=converted | quantized)


def resolve_model(model: str | os.PathLike[str]) -> Path:
    """The folder of a model: itself, or the local snapshot of a hub id (downloaded at need)."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InvalidArgument(f"model must be a folder or a hub id, got the file {str(model)!r}")
    name = str(model)
    if isinstance(model, os.PathLike) or name.count("/") != 1 or name[0] in "./~":
        raise InvalidArgument(f"model folder {name!r} does not exist")
    return _download(name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        InvalidArgument: The file is missing, is not JSON or is not an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidArgument(f"{path} does not exist; a model folder needs it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidArgument(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.jinja"])
        )
        if not any(folder.glob("*.safetensors")):
            snapshot_download(hub_id, allow_patterns=["pytorch_model*.bin"])
        return folder
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InvalidArgument(
            f"model {hub_id!r} is not a folder here and could not be fetched from the Hugging Face "
            f"hub ({type(error).__name__}: {reason}). Offline, download it elsewhere and pass the "
            f"folder that holds config.json: LLM('/path/to/{hub_id.split('/')[1]}')"
        ) from None


def _split(
    tensors: dict[str, Tensor], config: Mapping[str, Any], folder: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors to use as they are, and those of quantised matrices, repacked."""
    settings = read_settings(config, folder)
    if settings is None:
        return tensors, {}
    from pagedcore.quantized_checkpoint import repack

    return repack(tensors, settings)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    found = next((name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise InvalidArgument(
            f"{folder} has no weights: expected one of {', '.join(_WEIGHT_FILES)}, found {there}"
        )
    read_file = read_torch_file if "pytorch" in found else read_safetensors
    if found.endswith(".index.json"):
        return _read_shards(folder / found, read_file)
    return read_file(folder / found)


def _read_shards(
    index_path: Path, read_file: Callable[[Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors that an index lists, each from the shard that it names."""
    weight_map = read_json(index_path).get("weight_map")
    if not weight_map or not isinstance(weight_map, dict):
        raise InvalidArgument(f"{index_path} has no weight_map")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InvalidArgument(f"{index_path} must map names of tensors to names of files")
    tensors: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for shard in sorted(set(weight_map.values())):
        path = index_path.parent / shard
        if not path.is_file():
            raise InvalidArgument(f"{path} does not exist, but {index_path.name} lists it")
        for name, tensor in read_file(path).items():
            if name in tensors:
                raise InvalidArgument(f"tensor {name} is in both {source[name]} and {shard}")
            tensors[name], source[name] = tensor, shard
    for name, shard in weight_map.items():
        if source.get(name) != shard:
            where = f"it is in {source[name]}" if name in source else "it is in no shard"
            raise InvalidArgument(f"{index_path} places tensor {name} in {shard}, but {where}")
    return tensors


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a pytorch_model*.bin file, mapped by torch.

    Raises:
        InvalidArgument: torch is not installed, or cannot read the file.
    """
    try:
        import torch
    except ImportError:
        raise InvalidArgument(
            f"{path} needs torch to be read: pip install torch, or convert it to safetensors"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InvalidArgument(f"{path} cannot be read by torch: {reason}") from None
    floats = ("float64", "complex64")  # refused by name; masks and other buffers are left out
    usable = (*USABLE_DTYPES, *floats)
    return {name: from_array(t, name) for name, t in state.items() if dtype_of(t) in usable}
