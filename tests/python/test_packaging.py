"""What is installed can be found, linked and run by a C++ project of somebody else."""

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import pagedcore

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(pagedcore.__file__).resolve().parent
INSTALLED = PACKAGE / "lib" / "cmake"
CLEAN = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CMAKE_PREFIX_PATH")}

needs_install = pytest.mark.skipif(
    not INSTALLED.is_dir(), reason="pagedcore is used from its source folder, not installed"
)


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_and_run(prefix, folder):
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run(
        "cmake",
        "-S",
        ROOT / "tests/embed",
        "-B",
        folder,
        f"-DCMAKE_PREFIX_PATH={prefix}",
        *generator,
    )
    run("cmake", "--build", folder)
    return run(folder / "embed")


def check_output(text):
    lines = text.splitlines()
    assert [len(line.split()) for line in lines[:2]] == [2 + 8, 2 + 8]
    assert lines[2].startswith("refused: prompt")


@needs_install
def test_an_embedder_builds_and_runs_against_the_installed_package(tmp_path):
    prefix = run(sys.executable, "-m", "pagedcore", "--prefix", env=CLEAN, cwd=tmp_path).strip()
    assert Path(prefix) == PACKAGE
    check_output(build_and_run(prefix, tmp_path))


def test_an_embedder_builds_and_runs_against_an_install_tree(tmp_path, install_tree):
    check_output(build_and_run(install_tree, tmp_path))


@needs_install
def test_the_package_is_small_and_brings_no_torch():
    files = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    code = [p for p in files if "shipped_model" not in p.parts]
    packed = sum(len(zlib.compress(p.read_bytes())) for p in code)
    assert packed < 5e6, f"the wheel without its model would take {packed} bytes"
    names = {p.relative_to(PACKAGE).as_posix() for p in files}
    stubs = "_core/__init__.pyi"
    assert {"lib/libpagedcore.so", "include/pagedcore/engine.h", "py.typed", stubs} <= names
    out = run(
        sys.executable,
        "-c",
        "import pagedcore, sys; print('torch' in sys.modules, 'transformers' in sys.modules)",
    )
    assert out.split() == ["False", "False"]
