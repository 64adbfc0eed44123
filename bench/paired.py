"""One linear op in several builds of the library, in turns of milliseconds.

    python bench/paired.py OLD/cpp NEW/cpp --weights int8 --rows 64 --outputs 1024 --inputs 2048

On a machine whose speed changes by the second only what runs within the same moment compares: each
build, named by the folder of its libpagedcore.so, runs in a process of its own (LD_LIBRARY_PATH),
which stands still except in its turns. Prints JSON lines: the fastest call, the median of the
turns' fastest, and the median of the ratios to the first build in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np


def bfloat16(shape: tuple[int, int]) -> np.ndarray:
    """Normal numbers, cut to bfloat16."""
    numbers = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def make_op(args: argparse.Namespace) -> Callable[[], None]:
    """The op on weights and inputs of its own."""
    from pagedcore import _core

    backend = _core.make_cpu_backend(args.threads, args.isa)
    x = bfloat16((args.rows, args.inputs))
    weight = bfloat16((args.outputs, args.inputs))
    y = np.zeros((args.rows, args.outputs), np.float32)
    if args.weights == "bfloat16":
        return lambda: _core.ops.linear(
            backend, x, [weight], y, x_dtype="bfloat16", weight_dtype="bfloat16"
        )
    size = args.group_size
    data, scales = _core.ops.quantize_weight(weight, args.weights, size, "bfloat16")
    return lambda: _core.ops.linear_quantized(
        backend, x, data, scales, y, args.weights, size, None, x_dtype="bfloat16"
    )


def serve(args: argparse.Namespace) -> None:
    """Answers every line of stdin with the seconds of the fastest of some calls."""
    op = make_op(args)
    op()
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(args.calls):
            start = time.perf_counter()
            op()
            seconds.append(time.perf_counter() - start)
        print(min(seconds), flush=True)


def start(library: str) -> subprocess.Popen[str]:
    """This script as a server, with the library in that folder."""
    process = subprocess.Popen(
        [sys.executable, *sys.argv, "--serve"],
        env=dict(os.environ, LD_LIBRARY_PATH=library, OPENBLAS_NUM_THREADS="1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def turn(process: subprocess.Popen[str]) -> float:
    """Seconds of the fastest call in one turn."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="+")
    parser.add_argument("--weights", choices=["bfloat16", "int8", "int4"], default="bfloat16")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--outputs", type=int, default=576)
    parser.add_argument("--inputs", type=int, default=576)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default="")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=10, help="in a turn")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)

    processes = {library: start(library) for library in args.libraries}
    seconds: dict[str, list[float]] = {library: [] for library in args.libraries}
    for i in range(args.rounds):
        for library in args.libraries if i % 2 else reversed(args.libraries):
            seconds[library].append(turn(processes[library]))
    first = seconds[args.libraries[0]]
    for library, found in seconds.items():
        facts = {
            "library": library,
            "fastest_us": round(1e6 * min(found), 1),
            "median_us": round(1e6 * statistics.median(found), 1),
            "speedup": round(statistics.median(a / b for a, b in zip(first, found)), 3),
        }
        print(json.dumps(facts))
    for process in processes.values():
        process.communicate()


if __name__ == "__main__":
    main()
