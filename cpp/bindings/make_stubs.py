"""Writes the stubs of pagedcore._core from the built module: pybind11-stubgen, then made plain.

Run from the repository's root: PYTHONPATH=python python cpp/bindings/make_stubs.py
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUBS = Path("python/pagedcore/_core")

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


def generate() -> dict[str, str]:
    """File names to stubs: one for the module, one for each module inside."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["pybind11_stubgen", "pagedcore._core", "-o", folder]
        subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
        found = Path(folder) / "pagedcore"
        if (found / "_core.pyi").is_file():
            return {"__init__.pyi": (found / "_core.pyi").read_text()}
        return {path.name: path.read_text() for path in (found / "_core").glob("*.pyi")}


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
    text = re.sub(r"(typing|collections\.abc)\.Sequence(?!\[)", "Sequence", text)  # our own class
    text = "\n".join(valid_parameters(line) for line in text.split("\n"))
    return "".join(typed_classes(text))


def valid_parameters(line: str) -> str:
    """Drops defaults that stand before a parameter without one, which Python does not allow."""
    found = re.match(r"( *def \w+\()(.*)(\) -> .*)", line)
    if not found or "*," in found.group(2):
        return line
    parameters = re.split(r", (?=\w+:|self)", found.group(2))
    required = [i for i, p in enumerate(parameters) if " = " not in p]
    kept = [
        p.split(" = ")[0] if i < max(required, default=0) else p for i, p in enumerate(parameters)
    ]
    return found.group(1) + ", ".join(kept) + found.group(3)


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
    STUBS.mkdir(exist_ok=True)
    for name, text in generate().items():
        (STUBS / name).write_text(tidy(text))
    subprocess.run(["ruff", "check", "-q", "--fix", "--select", "I,F401,UP", STUBS], check=False)
    subprocess.run(["ruff", "format", "-q", STUBS], check=True)


if __name__ == "__main__":
    main()
