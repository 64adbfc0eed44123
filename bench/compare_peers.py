r"""Serves the same work with pagedcore and every installed peer, interleaved, and prints a table.

    python bench/compare_peers.py S MODELS_DIR --rounds 2 \
        --engine pagedcore=python --engine openvino=/path/venv/bin/python

Each round runs every engine once, in a process of its own, after sampling the machine's limits
with bench_limits; a peer's figure is only ever compared with ours of the same round. Results are
appended as JSON lines to bench/results/; the table gives medians, shares of the limit measured in
the run, and the ratio to the best peer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

from model_limits import model_limits  # noqa: E402

LOWER_IS_BETTER = ("_s", "_mb")


def measure_limits(program: Path, threads: int) -> dict[str, float]:
    """{"dram_gb_s": .., "bf16_gflop_s": ..} of the best instruction set, measured now."""
    output = subprocess.run(
        [program, f"--threads={threads}"], check=True, capture_output=True, text=True
    ).stdout
    best = json.loads(output.splitlines()[-1])
    return {limit: best[limit] for limit in ("dram_gb_s", "bf16_gflop_s")}


def measure_engine(name: str, python: str, model: Path, args: argparse.Namespace) -> list[dict]:
    """Runs one engine once; its figures, or an empty list (said on stderr) if it fails."""
    command = [python, HERE / "peers" / "run_engine.py", name, model, "--metrics", args.metrics]
    command += ["--threads", str(args.threads), "--repetitions", str(args.repetitions)]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if run.returncode != 0:
        print(f"{name} failed:\n{run.stderr[-2000:]}", file=sys.stderr)
    lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


def table(results: list[dict], size: str, limits: dict[str, float]) -> str:
    """Markdown: one row a figure, one column an engine, and our ratio to the best peer."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        values[result["figure"]][result["engine"]] += result["values"]
    engines = list(dict.fromkeys(result["engine"] for result in results))
    bounds = model_limits(size, limits)
    lines = [
        f"| {size} | limit | " + " | ".join(engines) + " | ratio to best peer |",
        "|---" * (len(engines) + 3) + "|",
    ]
    for figure, by_engine in values.items():
        lower = figure.endswith(LOWER_IS_BETTER) and not figure.endswith("tok_s")
        medians = {name: statistics.median(v) for name, v in by_engine.items()}
        cells = []
        for name in engines:
            if name not in medians:
                cells.append("")
                continue
            share = ""
            if figure in bounds:
                ratio = bounds[figure] / medians[name]
                share = f" ({100 * (ratio if lower else 1 / ratio):.0f} %)"
            low, high = min(by_engine[name]), max(by_engine[name])
            cells.append(f"{medians[name]:.4g} [{low:.4g}-{high:.4g}]{share}")
        peers = [m for name, m in medians.items() if not name.startswith("pagedcore")]
        ratio = ""
        if peers and "pagedcore" in medians:
            best = min(peers) if lower else max(peers)
            gain = best / medians["pagedcore"] if lower else medians["pagedcore"] / best
            ratio = f"{gain:.2f}x"
        bound = f"{bounds[figure]:.4g}" if figure in bounds else ""
        lines.append(f"| {figure} | {bound} | " + " | ".join(cells) + f" | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=["S", "M"])
    parser.add_argument("models_dir", type=Path, help="what make_models.py wrote")
    parser.add_argument(
        "--engine",
        action="append",
        required=True,
        metavar="NAME=PYTHON",
        help="engine, interpreter",
    )
    parser.add_argument("--metrics", default="ttft,prefill,decode,parallel,prefix,trace")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limits", type=Path, default=HERE.parent / "build/cpu/bench/bench_limits")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "peers.jsonl")
    args = parser.parse_args()

    commit = subprocess.run(
        ["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    args.out.parent.mkdir(exist_ok=True)
    results: list[dict] = []
    samples: dict[str, list[float]] = defaultdict(list)
    with open(args.out, "a") as out:
        for round_index in range(args.rounds):
            for pair in args.engine:
                name, python = pair.split("=", 1)
                limits = measure_limits(args.limits, args.threads)
                for limit, value in limits.items():
                    samples[limit].append(value)
                load = os.getloadavg()[0]
                for result in measure_engine(name, python, args.models_dir / args.size, args):
                    result |= {"size": args.size, "round": round_index, "commit": commit}
                    result |= {"time": int(time.time()), "load": load, "limits": limits}
                    results.append(result)
                    out.write(json.dumps(result) + "\n")
                print(f"round {round_index} {name} done", file=sys.stderr, flush=True)
    medians = {limit: statistics.median(values) for limit, values in samples.items()}
    print("limits (median over the run): " + json.dumps(medians))
    print(table(results, args.size, medians))


if __name__ == "__main__":
    main()
