"""The shipped model as a fixture, and where an outside C++ project finds pagedcore."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support.served import assert_idle

import pagedcore
from pagedcore import LLM, SHIPPED_MODEL

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(pagedcore.__file__).resolve().parent


@pytest.fixture(scope="session")
def build_tree():
    """A CMake build of this repository, or None."""
    found = (ROOT / "build/ci/cpu", ROOT / "build/cpu")
    return next((path for path in found if (path / "build.ninja").is_file()), None)


@pytest.fixture(scope="session")
def install_tree(build_tree, tmp_path_factory):
    """The prefix of a `cmake --install`."""
    if build_tree is None:
        pytest.skip("there is no build tree (cmake --preset cpu && cmake --build --preset cpu)")
    prefix = tmp_path_factory.mktemp("prefix")
    command = ["cmake", "--install", build_tree, "--prefix", prefix]
    subprocess.run(command, check=True, capture_output=True)
    return prefix


@pytest.fixture(scope="session")
def pagedcore_prefix(request):
    """The prefix of the installed package, else of an install tree."""
    if (PACKAGE / "lib/cmake").is_dir():
        return PACKAGE
    return request.getfixturevalue("install_tree")


@pytest.fixture(scope="module")
def llm():
    return LLM(SHIPPED_MODEL, num_blocks=256, num_threads=1)


@pytest.fixture
def folder(tmp_path):
    for path in SHIPPED_MODEL.iterdir():
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_lost(request):
    """After every test that used it, the engine is idle, consistent and has all its blocks."""
    llm = request.getfixturevalue("llm") if "llm" in request.fixturenames else None
    yield
    if llm is not None:
        assert_idle(llm)
