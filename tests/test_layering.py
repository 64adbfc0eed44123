"""Reads every #include and every Python import, and fails on one that points up or across.

The rules are those of the layer list in README.md.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each C++ module may include, besides itself and the standard library.
RIGHT_TOWER = ["base", "tensor"]
MAY_INCLUDE = {
    "base": [],
    "memory": ["base"],
    "scheduler": ["base", "memory"],
    "tensor": ["base"],
    "backend": RIGHT_TOWER,
    "cuda": [*RIGHT_TOWER, "backend"],
    "model": [*RIGHT_TOWER, "backend"],
    "engine": ["base", "memory", "scheduler", "tensor", "backend", "model"],
}
MAY_INCLUDE["bindings"] = MAY_INCLUDE["capi"] = [*MAY_INCLUDE["engine"], "engine"]

# The module that each public header belongs to.
PUBLIC_HEADERS = {
    "base": ["error.h", "export.h", "types.h", "version.h"],
    "memory": ["block_allocator.h", "block_table.h", "prefix_cache.h"],
    "scheduler": [
        *("contiguous_kv_manager.h", "kv_manager.h", "scheduler.h", "scheduler_config.h"),
        *("scheduler_stats.h", "sequence.h", "step_plan.h"),
    ],
    "tensor": ["dtype.h", "quantize.h", "tensor.h"],
    "backend": [
        "backend.h",
        "cpu_limits.h",
        "forward_batch.h",
        "kv_cache.h",
        "linear_ops.h",
        "ops.h",
        "sampling_ops.h",
    ],
    "model": ["decoder.h", "model_config.h", "quantize_weights.h"],
    "engine": ["engine.h", "engine_config.h", "request.h", "sampling_params.h", "stats.h"],
    "capi": ["c.h"],
}
MODULE_OF_HEADER = {h: module for module, headers in PUBLIC_HEADERS.items() for h in headers}

# Python modules from the bottom up; one may import only from the rows above its own.
PYTHON_LAYERS = [
    ["_core"],
    [
        *("background", "interrupts", "outputs", "quantization_config", "sampling_params"),
        *("template_sandbox", "tensors", "text"),
    ],
    [
        "chat_template",
        "config",
        "engine_options",
        "live_request",
        "ops",
        "prompts",
        "quantized_checkpoint",
        "safetensors_file",
    ],
    ["checkpoint", "progress", "text_pieces"],
    ["quantization"],
    ["llm"],
    ["cli"],
    ["__main__"],
]

CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
CPP_FILES = sorted(
    path
    for folder in ("include", "cpp", "cuda", "tests/native", "bench")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in CPP_SUFFIXES
)
LIBRARY_FILES = [p for p in CPP_FILES if p.relative_to(ROOT).parts[0] in ("include", "cpp", "cuda")]
PYTHON_FILES = sorted((ROOT / "python" / "pagedcore").rglob("*.py"))

TEMPLATE_FOLDERS = ("kernels", "simd", "common")  # whose headers are sources
DEVICE_LINES = 520  # a kernel and its launcher stay together
HEADER_LINES, SOURCE_LINES, COLUMNS = 160, 420, 100  # "about" 150 and 400, and 100 exactly


def relative(path):
    return path.relative_to(ROOT).as_posix()


def read(path):
    return path.read_text(encoding="utf-8")


def includes(path):
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', read(path), re.MULTILINE)


def module_of_file(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] == "include":
        return MODULE_OF_HEADER.get(parts[-1])
    return "cuda" if parts[0] == "cuda" else parts[1]


def module_of_include(include):
    """The module that an include path belongs to, or None where there is no such module."""
    first, _, rest = include.partition("/")
    if first == "pagedcore":
        return MODULE_OF_HEADER.get(rest)
    if first == "cpp":
        return rest.partition("/")[0]
    return "cuda" if first == "cuda" else None


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=relative)
def test_includes_point_only_down_their_own_tower(path):
    module = module_of_file(path)
    assert module in MAY_INCLUDE, f"{relative(path)}: give it a module in the tables of this test"
    for include in includes(path):
        target = module_of_include(include)
        assert target is not None, f'{relative(path)}: "{include}" is not a path from the root'
        allowed = [module, *MAY_INCLUDE[module]]
        assert target in allowed, (
            f'{relative(path)}: {module} may not include {target} ("{include}")'
        )


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=relative)
def test_public_headers_include_only_public_headers(path):
    if path.relative_to(ROOT).parts[0] == "include":
        assert all(include.startswith("pagedcore/") for include in includes(path))


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=relative)
def test_a_source_includes_its_own_header_first(path):
    own = [f"pagedcore/{path.stem}.h", f"cpp/{path.parent.name}/{path.stem}.h"]
    found = includes(path)
    if path.suffix == ".cpp" and (hits := [name for name in found if name in own]):
        first = re.search(r'^\s*#\s*include\s+["<]([^">]+)', read(path), re.MULTILINE)
        assert first and first.group(1) == hits[0]


# Device code must ask which architecture it is compiled for.
HOST_FILES = [path for path in CPP_FILES if path.relative_to(ROOT).parts[0] != "cuda"]


@pytest.mark.parametrize("path", HOST_FILES, ids=relative)
def test_no_conditional_compilation(path):
    text = read(path).replace("#ifdef __cplusplus", "") if path.name == "c.h" else read(path)
    found = re.search(r"^\s*#\s*(if|ifdef|ifndef|elif|else)\b.*$", text, re.MULTILINE)
    assert not found, f"{relative(path)}: {found.group(0)}"


@pytest.mark.parametrize("path", [*CPP_FILES, *PYTHON_FILES], ids=relative)
def test_files_stay_short_narrow_and_ascii(path):
    lines = read(path).splitlines()
    is_interface = path.suffix in (".h", ".cuh") and path.parent.name not in TEMPLATE_FOLDERS
    is_device = path.relative_to(ROOT).parts[0] == "cuda"
    limit = HEADER_LINES if is_interface else DEVICE_LINES if is_device else SOURCE_LINES
    assert len(lines) <= limit, f"{relative(path)} has {len(lines)} lines, more than {limit}"
    wide = [i for i, line in enumerate(lines, 1) if len(line) > COLUMNS]
    assert not wide, f"{relative(path)}: lines {wide} are wider than {COLUMNS} columns"
    if path.suffix in CPP_SUFFIXES:
        assert read(path).isascii(), f"{relative(path)} is not ASCII"


def python_module(path):
    """'llm' for pagedcore/llm.py, 'cli' for anything under pagedcore/cli/."""
    return Path(*path.relative_to(ROOT / "python" / "pagedcore").parts[:1]).stem


def python_imports(path):
    """Names of the pagedcore modules that a file imports, as python_module gives them."""
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("pagedcore."))


@pytest.mark.parametrize("path", PYTHON_FILES, ids=relative)
def test_python_imports_point_only_down(path):
    layer_of = {name: i for i, layer in enumerate(PYTHON_LAYERS) for name in layer}
    module = python_module(path)
    if module in ("__init__", "shipped_model"):  # __init__ gathers what the package exports
        return
    assert module in layer_of, f"{relative(path)}: give it a layer in PYTHON_LAYERS"
    for name in python_imports(path):
        below = layer_of.get(name, -1) < layer_of[module]
        assert below or name == module, f"{relative(path)}: {module} may not import {name}"


def test_the_core_never_imports_python_packages():
    for path in CPP_FILES:
        assert "py::module_::import" not in read(path) or module_of_file(path) == "bindings"
