"""Every quick start in README.md runs as it is printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def test_the_first_two_commands_install_generate_and_test():
    first, second = blocks("sh")[:2]
    assert re.fullmatch(r'pip install \. && (pagedcore generate ".*")\n', first)
    assert re.fullmatch(r"pip install '\.\[test\]' && python -m pytest\n", second)


@pytest.mark.parametrize("line", [line for text in blocks("sh") for line in text.splitlines()])
def test_commands_print_what_they_promise(line):
    if (command := line.split(" && ")[-1]).startswith("python -m pytest"):
        pytest.skip("this is it")
    command = command.replace("pagedcore", f"{sys.executable} -m pagedcore", 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 10


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_quick_starts_run(number):
    code = blocks("python")[number]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_cpp_quick_start_builds_and_runs(tmp_path, pagedcore_prefix):
    project = tmp_path / "embed"
    shutil.copytree(ROOT / "tests" / "embed", project)
    (project / "main.cpp").write_text(
        '#include "random_llama.h"\n'
        "#include <pagedcore/backend.h>\n"
        f"{blocks('cpp')[0]}\n"
        "int main() {\n"
        "  const ModelConfig model = small_llama();\n"
        "  return complete(model, random_weights(model), {1, 2, 3}).size() == 8 ? 0 : 1;\n"
        "}\n"
    )
    prefix = f"-DCMAKE_PREFIX_PATH={pagedcore_prefix}"
    for command in (
        ["cmake", "-S", project, "-B", project / "build", prefix],
        ["cmake", "--build", project / "build"],
        [project / "build" / "embed"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_the_layer_list_names_folders_that_exist():
    for folder in set(re.findall(r"\b(?:cpp|python|cuda)/[\w/]*\w", README)):
        if folder in ("cpp/capi",):
            continue
        assert (ROOT / folder).exists(), folder
