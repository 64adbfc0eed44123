"""Engines as processes that stand still (SIGSTOP) except while they are asked something."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TCMALLOC = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")
START_LIMIT_S = 600.0


@dataclass(frozen=True)
class Installation:
    """How one engine is started."""

    python: str
    environment: dict[str, str]


def find_installations(folder: Path) -> dict[str, Installation]:
    """Every engine that install.sh left in ``folder``, by its name in engines.py."""
    found = {}
    for name in ("pagedcore", "openvino", "vllm", "transformers"):
        python = folder / name / "bin" / "python"
        if python.exists():
            found[name] = Installation(str(python), {"HF_HUB_OFFLINE": "1"})
    if "vllm" in found:
        openmp = folder / "vllm" / "lib" / "libiomp5.so"
        preload = [str(library) for library in (TCMALLOC, openmp) if library.exists()]
        found["vllm"].environment["LD_PRELOAD"] = ":".join(preload)
    server = folder / "llama.cpp" / "bin" / "llama-server"
    if server.exists():
        found["llama.cpp"] = Installation(sys.executable, {"LLAMA_SERVER": str(server)})
    return found


class EngineError(RuntimeError):
    """The engine's process ended or took too long; the message says which."""


class EngineProcess:
    """One engine, loaded by ``start``.

    Attributes:
        name: Of the engine, as in engines.py.

    Raises:
        EngineError: By ``start`` and ``measure``; the process is gone then.
    """

    def __init__(
        self,
        name: str,
        installation: Installation,
        weights: str,
        model_dir: Path,
        threads: int,
        log: Path,
    ) -> None:
        self.name = name
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = os.environ | installation.environment
        self._command = [installation.python, str(HERE / "run_engine.py"), name, str(model_dir)]
        self._command += ["--weights", weights, "--threads", str(threads)]

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def start(self) -> float:
        """Seconds from the start of the process to the first token of a 128-token prompt."""
        with open(self._log, "w") as stderr:
            start = time.perf_counter()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self._environment,
                start_new_session=True,
                bufsize=0,
            )
        self._answer(START_LIMIT_S)
        seconds = time.perf_counter() - start
        self._answer(START_LIMIT_S)
        self._signal(signal.SIGSTOP)
        return seconds

    def measure(
        self, figure: str, repetitions: int, seed: int, decode_tokens: int, limit_s: float
    ) -> list[float]:
        """Values of a figure of workload.py."""
        asked = {"figure": figure, "repetitions": repetitions}
        asked |= {"seed": seed, "decode_tokens": decode_tokens}
        self._signal(signal.SIGCONT)
        assert self._process.stdin
        self._process.stdin.write((json.dumps(asked) + "\n").encode())
        values = self._answer(limit_s)["values"]
        self._signal(signal.SIGSTOP)
        return values

    def reset_peak_memory(self) -> None:
        """Lets ``peak_memory_mb`` count from now."""
        for pid in self._pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_memory_mb(self) -> float:
        """Peak resident memory of the engine and its children, summed, in 2**20 bytes."""
        peaks = (
            int(line.split()[1])
            for pid in self._pids()
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        return sum(peaks) / 1024

    def close(self) -> None:
        """Ends the process and its children, if there are any."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def _pids(self) -> Iterator[int]:
        todo = [self._process.pid]
        while todo:
            pid = todo.pop()
            yield pid
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                todo += map(int, children.read_text().split())

    def _answer(self, limit_s: float) -> dict:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        line = self._process.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        if ready:
            tail = self._log.read_text()[-2000:]
            reason = f"{self.name} ended with status {self._process.wait()}:\n{tail}"
        else:
            reason = f"{self.name} took more than {limit_s:.0f} s"
        self.close()
        raise EngineError(reason)
