"""What a checkpoint says of how it is quantised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedcore._core import InvalidArgument

QUANTIZED_PARTS = (".weight.scales", ".weight.zero_points", ".weight.x_order")
"""Ends of the names of what goes with a quantised matrix."""


@dataclass(frozen=True)
class Settings:
    """What a quantization_config says.

    Attributes:
        method: "gptq" or "awq".
        bits: 4 or 8.
        group_size: Inputs of a group; -1: all of them.
        zero_offset: What is added to a stored zero point.
    """

    method: str
    bits: int
    group_size: int
    zero_offset: int


def read_settings(config: Mapping[str, Any], folder: Path | None = None) -> Settings | None:
    """How a checkpoint is quantised; None where it is not.

    config.json tells; older checkpoints have quantize_config.json (GPTQ) or quant_config.json.
    """
    found = config.get("quantization_config")
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if not found and folder and (folder / name).is_file():
            try:
                found = {"quant_method": method} | json.loads((folder / name).read_text("utf-8"))
            except (ValueError, TypeError) as error:
                raise InvalidArgument(f"{folder / name} is malformed: {error}") from None
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise InvalidArgument(f"quantization_config must be an object, got {found!r}")
    method = str(found.get("quant_method", found.get("quant_type", ""))).lower()
    if method not in ("gptq", "awq"):
        _fail(f"quant_method must be gptq or awq, got {found.get('quant_method')!r}")
    bits = found.get("bits", found.get("w_bit"))
    group_size = found.get("group_size", found.get("q_group_size"))
    if bits not in ((4, 8) if method == "gptq" else (4,)):
        _fail(f"bits must be {'4 or 8' if method == 'gptq' else '4'} for {method}, got {bits!r}")
    if type(group_size) is not int or (group_size != -1 and (group_size < 32 or group_size % 32)):
        _fail(f"group_size must be -1 or a multiple of 32, got {group_size!r}")
    if found.get("dynamic"):
        _fail("dynamic (other settings for some layers) is not supported")
    if method == "awq":
        version = str(found.get("version", "gemm")).lower()
        if version != "gemm":
            _fail(f"version must be gemm for awq, got {version!r}")
        return Settings(method, bits, group_size, zero_offset=0)
    form = "marlin" if found.get("is_marlin_format") else found.get("checkpoint_format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        _fail(f"checkpoint_format must be gptq or gptq_v2, got {form!r}")
    return Settings(method, bits, group_size, zero_offset=1 if form == "gptq" else 0)


def _fail(message: str) -> None:
    raise InvalidArgument(f"quantization_config of the checkpoint: {message}")
