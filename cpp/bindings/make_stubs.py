"""Writes python/pagedcore/_core.pyi from the built module: pybind11-stubgen, then made plain.

Run from the repository's root: PYTHONPATH=python python cpp/bindings/make_stubs.py
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUBS = Path("python/pagedcore/_core.pyi")

# What the signatures of Python objects built by hand cannot say.
_PLACES = "list[list[tuple[int, float, int]]] | None"
TYPES = {
    ("SequenceUpdate", "new_tokens"): "list[int]",
    ("SequenceUpdate", "logprobs"): _PLACES,
    ("SequenceUpdate", "prompt_logprobs"): _PLACES,
    ("SequenceUpdate", "finish_reason"): 'typing.Literal["stop", "length", "capacity"] | None',
    ("SequenceUpdate", "stop_token"): "int | None",
    ("SequenceUpdate", "explanation"): "str | None",
    ("SequenceUpdate", "metrics"): "RequestMetrics | None",
    ("RequestMetrics", "last_preemption"): "str | None",
    ("EngineConfig", "kv_dtype"): "str | None",
    ("Engine", "step"): "list[SequenceUpdate]",
}


def generate() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = ["pybind11_stubgen", "pagedcore._core", "-o", folder]
        subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
        return (Path(folder) / "pagedcore" / "_core.pyi").read_text()


def tidy(text: str) -> str:
    text = text.replace("typing.SupportsInt | typing.SupportsIndex", "int")
    text = text.replace("typing.SupportsFloat | typing.SupportsIndex", "float")
    text = re.sub(r"typing\.Annotated\[(numpy\.typing\.ArrayLike), [^]]*\]", r"\1", text)
    text = re.sub(  # what can be read and set is an attribute
        r"    @property\n    def (\w+)\(self\) -> (.*):\n        \.\.\.\n"
        r"    @\1\.setter\n    def \1\(self, .*\) -> None:\n        \.\.\.\n",
        r"    \1: \2\n",
        text,
    )
    text = re.sub(r"    @classmethod\n    def __new__\(cls, value\):\n        \.\.\.\n", "", text)
    text = re.sub(r": typing\.ClassVar\[\w+\]( = .*)?\n", " = ...\n", text)
    text = re.sub(r'^"""\n(.*)\n"""', r'"""\1"""', text)
    text = re.sub(r"\*\*kwargs\)", "**kwargs: typing.Any)", text)
    text = re.sub(r"\*args([,)])", r"*args: typing.Any\1", text)
    text = re.sub(r"^__all__.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=-> )(list|dict|tuple)(?=:)", r"\1[typing.Any]", text)
    text = re.sub(r"(?<=[:>] )(dict|tuple)(?=[,)])", r"\1[typing.Any, typing.Any]", text)
    text = text.replace("numpy.ndarray[", "numpy.typing.NDArray[")
    return "".join(typed_classes(text))


def typed_classes(text: str):
    current = ""
    for line in text.splitlines(keepends=True):
        if found := re.match(r"class (\w+)", line):
            current = found.group(1)
        name = re.match(r"    (?:def )?(\w+)(?=[:(])", line)
        if name and (kind := TYPES.get((current, name.group(1)))):
            line = re.sub(r"(-> |\w: )(?!.*(-> |\w: )).*?(:?)\n", rf"\1{kind}\3\n", line)
        yield line


def main() -> None:
    STUBS.write_text(tidy(generate()))
    subprocess.run(["ruff", "check", "-q", "--fix", "--select", "I,F401", STUBS], check=False)
    subprocess.run(["ruff", "format", "-q", STUBS], check=True)


if __name__ == "__main__":
    main()
