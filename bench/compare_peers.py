r"""Serves the same work with pagedcore and every installed peer, interleaved, and prints a table.

    bench/peers/install.sh PEERS                     engines, models and their exports, once
    python bench/compare_peers.py S --peers PEERS    everything, about 12 minutes
    python bench/compare_peers.py M --peers PEERS --weights int8,int4 --only decode
    python bench/compare_peers.py S --tables --document bench/README.md    measures nothing

Engines of one width of weights are loaded side by side and stand still between their turns. A round
of a figure gives every engine one turn, in rotating order, between two measurements of the
machine's limits; a peer's figure is compared with ours of the same round only. Who takes more than
--patience times as long as the fastest of a round, or than --budget, is ended, and sits out the
rest of that figure.
One JSON line a turn is appended to --out; the tables have medians, ranges, shares of the limits and
the ratio to the best peer, of every figure in --out as the newest run that measured it found it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

from engines import ENGINES  # noqa: E402
from model_limits import BITS  # noqa: E402
from process import EngineError, EngineProcess, find_installations  # noqa: E402
from quiet import Quiet  # noqa: E402
from shapes import SHAPES  # noqa: E402
from table import Table, write_into  # noqa: E402
from workload import FIGURES  # noqa: E402

BRIEF = {
    "ttft": ["ttft_128_s"],
    "prefill": ["prefill_512_tok_s", "prefill_2048_tok_s"],
    "decode": ["decode_b1_tok_s", "decode_b8_tok_s", "decode_b32_tok_s"],
}
LONG = {"parallel": ["parallel_8x8_s"], "prefix": ["prefix_s"], "trace": ["trace_s"]}
METRICS = ["start", *BRIEF, *LONG, "host"]
SINGLE_FIGURES = [figure for figures in (BRIEF | LONG).values() for figure in figures]
REPETITIONS = {"ttft_128_s": 3, "prefill_512_tok_s": 3}  # in one turn
RUNNING = (256, 1024)  # sequences of the host's step
DECODE_TOKENS = 128
SLOW_START_S = 5.0  # a load that is timed once only
LEAST_PATIENCE_S = 20.0


class Comparison:
    """One run, and the time that is left of it.

    Its JSON lines are one a turn, with "value", or with "over_s" where patience ended.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._run = int(time.time())
        self._installations = find_installations(args.peers)
        self._quiet = Quiet(args.lock)
        self._deadline = time.monotonic() + args.budget
        self._round_seconds: dict[str, float] = {}
        self._sat_out: set[tuple[str, str]] = set()
        commit = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
        self._commit = subprocess.check_output(commit, text=True).strip()

    def run(self) -> None:
        """Measures all that was asked for; weights of few bits, which have less to do, first."""
        if "host" in self._args.only:
            self._measure_host()
        for weights in reversed(self._args.weights):
            self._round_seconds.clear()
            self._sat_out.clear()
            self._quiet.release()
            with contextlib.ExitStack() as closing:
                fleet = self._start_fleet(weights, closing)
                self._measure(BRIEF, weights, fleet)
                if weights == "bf16":
                    self._measure(LONG, weights, fleet)

    def close(self) -> None:
        """Lets others use the machine again."""
        self._quiet.release()

    def _start_fleet(self, weights: str, closing: contextlib.ExitStack) -> list[EngineProcess]:
        """Loads every installed engine that has these weights."""
        fleet = []
        for name in self._args.engines:
            if weights not in ENGINES[name].weights or name not in self._installations:
                continue
            model_dir = self._args.models / self._args.size
            log = self._args.peers / f"{name}-{weights}.log"
            installation = self._installations[name]
            engine = EngineProcess(name, installation, weights, model_dir, self._args.threads, log)
            closing.callback(engine.close)
            try:
                self._start(engine, weights)
                fleet.append(engine)
            except EngineError as error:
                say(str(error))
        return fleet

    def _start(self, engine: EngineProcess, weights: str) -> None:
        """Loads one engine: alone and once a round, if short, where that time is asked for."""
        if "start" not in self._args.only:
            engine.start()
            return
        for index in range(self._args.rounds):
            engine.close()
            self._hold_quiet()
            limits = self._limits()
            seconds = engine.start()
            turn = {"engine": engine.name, "figure": "first_token_s", "value": seconds}
            self._record([turn], weights, index, limits)
            if seconds > SLOW_START_S:
                break

    def _measure(
        self, metrics: dict[str, list[str]], weights: str, fleet: list[EngineProcess]
    ) -> None:
        """All rounds of these metrics, as far as the budget goes."""
        only = self._args.only
        asked = [f for metric, fs in metrics.items() for f in fs if metric in only or f in only]
        for index in range(self._args.rounds):
            for figure in asked:
                left = self._deadline - time.monotonic()
                if left < self._round_seconds.get(figure, 0):
                    say(f"round {index} of {figure} left out: {left:.0f} s left")
                    continue
                self._hold_quiet()
                started = time.monotonic()
                self._round(figure, weights, index, fleet)
                self._round_seconds[figure] = time.monotonic() - started

    def _round(self, figure: str, weights: str, index: int, fleet: list[EngineProcess]) -> None:
        """One turn of every engine, between two measurements of the limits."""
        before = self._limits()
        turns: list[dict] = []
        fastest = float("inf")
        for engine in fleet[index % len(fleet) :] + fleet[: index % len(fleet)]:
            if (engine.name, figure) in self._sat_out:
                continue
            patience = min(self._args.budget, max(LEAST_PATIENCE_S, self._args.patience * fastest))
            started = time.monotonic()
            turns += self._turn(engine, figure, index, patience)
            fastest = min(fastest, time.monotonic() - started)
        after = self._limits()
        limits = {limit: (before[limit] + after[limit]) / 2 for limit in before}
        self._record(turns, weights, index, limits)
        for engine in fleet:
            if not engine.running:
                self._quiet.release()
                engine.start()

    def _turn(self, engine: EngineProcess, figure: str, index: int, patience: float) -> list[dict]:
        """What one engine has to show for one turn."""
        turn = {"engine": engine.name, "figure": figure}
        if figure == "trace_s":
            engine.reset_peak_memory()
        try:
            values = engine.measure(
                figure,
                REPETITIONS.get(figure, 1),
                seed=1_000 * index + list(FIGURES).index(figure),
                decode_tokens=DECODE_TOKENS,
                limit_s=patience,
            )
        except EngineError as error:
            say(str(error))
            self._sat_out.add((engine.name, figure))
            return [turn | {"over_s": patience}]
        turns = [turn | {"value": statistics.median(values)}]
        if figure == "trace_s":
            turns.append(turn | {"figure": "trace_peak_mb", "value": engine.peak_memory_mb()})
        return turns

    def _measure_host(self) -> None:
        """Host time of a decode step: our whole step without kernels, vLLM's scheduler alone."""
        vllm = self._installations.get("vllm")
        for index in range(self._args.rounds):
            turns = []
            self._hold_quiet()
            limits = self._limits()
            for running in RUNNING:
                program = self._args.build / "bench_engine_step"
                (line,) = json_lines([program, f"--seqs={running}", "--context=128"])
                turns.append(host_turn("pagedcore", running, line["host_us_median"]))
            if vllm and index == 0:
                scheduler = [vllm.python, HERE / "peers" / "vllm_scheduler.py"]
                scheduler += [self._args.models / self._args.size, *map(str, RUNNING)]
                (line,) = json_lines(scheduler, vllm.environment)
                turns += [host_turn("vllm", int(n), us) for n, us in line.items()]
            self._record(turns, "bf16", index, limits)

    def _limits(self) -> dict[str, float]:
        """What the machine reaches at this moment with the best instruction set."""
        program = self._args.build / "bench_limits"
        best = json_lines([program, f"--threads={self._args.threads}", "--isa="])[-1]
        return {limit: best[limit] for limit in ("dram_gb_s", "bf16_gflop_s")}

    def _record(
        self, turns: list[dict], weights: str, index: int, limits: dict[str, float]
    ) -> None:
        """Completes the lines of a round and appends them to the file."""
        common = {"size": self._args.size, "weights": weights, "round": index, "limits": limits}
        common |= {"threads": self._args.threads, "commit": self._commit, "run": self._run}
        with open(self._args.out, "a") as out:
            out.writelines(json.dumps(turn | common) + "\n" for turn in turns)
        for turn in turns:
            say(f"round {index} {weights} " + " ".join(map(str, turn.values())))

    def _hold_quiet(self) -> None:
        """Waits until the machine is ours; that costs no budget."""
        self._deadline += self._quiet.hold()


def write_tables(args: argparse.Namespace) -> None:
    """Prints the tables of --out, and puts them into --document: of peers_X.jsonl at X."""
    results = [json.loads(line) for line in args.out.read_text().splitlines()]
    for weights in BITS:
        if any((line["size"], line["weights"]) == (args.size, weights) for line in results):
            table = Table(results, args.size, weights).markdown()
            print(table + "\n")
            if args.document:
                place = args.out.stem.removeprefix("peers_")
                write_into(args.document, f"{place}, {weights}", table)


def host_turn(engine: str, running: int, microseconds: float) -> dict:
    """A turn of the host's step."""
    return {"engine": engine, "figure": f"step_{running}_host_us", "value": microseconds}


def json_lines(command: list, environment: dict[str, str] | None = None) -> list[dict]:
    """What a program prints, one object a line; lines of other kinds are skipped."""
    output = subprocess.check_output(
        list(map(str, command)), text=True, env=os.environ | (environment or {})
    )
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def comma_list(known: list[str]) -> Callable[[str], list[str]]:
    """An argument's type: names out of ``known``, in its order."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not in {', '.join(known)}")
        return [name for name in known if name in names]

    return parse


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=list(SHAPES), default="S", nargs="?")
    parser.add_argument("--peers", type=Path, help="where install.sh put engines")
    parser.add_argument("--models", type=Path, help="models and exports; PEERS/models")
    parser.add_argument("--engines", type=comma_list(list(ENGINES)), default=list(ENGINES))
    parser.add_argument("--weights", type=comma_list(list(BITS)), default=list(BITS))
    parser.add_argument(
        "--only",
        type=comma_list(METRICS + SINGLE_FIGURES),
        default=METRICS,
        help="metrics or single figures",
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--budget",
        type=float,
        default=720,
        help="seconds; then no more rounds, and the longest turn",
    )
    parser.add_argument("--patience", type=float, default=2.5, help="times the fastest's turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--build", type=Path, default=HERE.parent / "build" / "cpu" / "bench")
    parser.add_argument("--out", type=Path, help="bench/results/peers_SIZE.jsonl")
    parser.add_argument("--document", type=Path, help="where the tables have their places")
    parser.add_argument("--tables", action="store_true", help="of --out; measure nothing")
    parser.add_argument("--lock", type=Path, nargs="*", default=[], help="files to flock in turns")
    args = parser.parse_args()
    args.out = args.out or HERE / "results" / f"peers_{args.size}.jsonl"
    if not args.tables:
        if args.peers is None:
            parser.error("--peers is needed to measure")
        args.models = args.models or args.peers / "models"
    return args


def measure(args: argparse.Namespace) -> None:
    """One run, after which the machine and the memory are free again, however it ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    comparison = Comparison(args)
    try:
        comparison.run()
    finally:
        comparison.close()


def main() -> None:
    args = parse_arguments()
    if not args.tables:
        measure(args)
    write_tables(args)


if __name__ == "__main__":
    main()
