"""Kernels are compiled once per instruction set: no function may leak from one into the library.

A weak symbol outside the set's own namespace is merged with its copies elsewhere by the linker,
which may keep the one with instructions that the processor lacks.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build"
FOLDERS = sorted(BUILD.glob("*/cpp/backend/cpu/CMakeFiles/pagedcore_cpu_*.dir"))


@pytest.mark.skipif(not FOLDERS or not shutil.which("nm"), reason="needs a CMake build and nm")
def test_kernel_objects_share_no_weak_symbols():
    for folder in FOLDERS:
        isa = folder.name.removeprefix("pagedcore_cpu_").removesuffix(".dir")
        objects = sorted(folder.glob("kernels/*.o"))
        assert objects, folder
        for path in objects:
            command = ["nm", "--demangle", "--defined-only", str(path)]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for line in lines.splitlines():
                _, kind, name = line.split(maxsplit=2)
                if name.startswith("DW.ref."):
                    continue  # an address that sanitized code looks up, the same in every copy
                assert kind not in "WVu" or f"cpu::{isa}::" in name, f"{path.name}: {name}"
