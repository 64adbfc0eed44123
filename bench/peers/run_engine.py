"""Measures one engine in this process and prints one JSON line a figure.

python bench/peers/run_engine.py pagedcore MODEL_DIR [--metrics prefill,decode] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import time

from engines import ENGINES
from workload import METRICS, Suite, peak_memory_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("model_dir")
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()

    def report(figure: str, values: list[float]) -> None:
        line = {"engine": args.engine, "dtype": engine.dtype, "figure": figure, "values": values}
        print("RESULT " + json.dumps(line), flush=True)

    start = time.perf_counter()
    engine = ENGINES[args.engine]()
    engine.load(args.model_dir, args.threads)
    loaded = time.perf_counter()
    engine.generate([list(range(300, 428))], 1)
    report("import_and_load_s", [loaded - start])
    report("import_to_first_token_s", [time.perf_counter() - start])
    suite = Suite(engine, args.repetitions)
    for figure, values in suite.run(tuple(args.metrics.split(","))):
        report(figure, values)
    report("peak_memory_mb", [peak_memory_mb(getattr(engine, "pid", "self"))])


if __name__ == "__main__":
    main()
