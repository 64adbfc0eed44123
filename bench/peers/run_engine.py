"""Holds one engine and measures what it is asked for, one JSON line each way.

python bench/peers/run_engine.py pagedcore MODEL_DIR --threads 2

Asked ``{"figure": "prefill_512_tok_s", "repetitions": 3, "seed": 1, "decode_tokens": 128}`` on
stdin, it answers ``{"values": [...]}`` on stdout. Two lines come unasked: ``{"ready": true}`` when
the first token of a 128-token prompt is there, ``{"warm": true}`` when it waits for work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from engines import ENGINES, Batch


def answers_only() -> int:
    """A file descriptor for answers; what engines print to stdout goes to stderr from now on."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("model_dir")
    parser.add_argument("--weights", default="bf16", choices=["bf16", "int8", "int4"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    answers = answers_only()

    def answer(line: dict) -> None:
        os.write(answers, (json.dumps(line) + "\n").encode())

    engine = ENGINES[args.engine](args.weights)
    engine.load(args.model_dir, args.threads)
    engine.generate(Batch([list(range(300, 428))], [1]))
    answer({"ready": True})

    from workload import Work  # imports numpy: not part of the time to the first token

    Work(engine, seed=0).warm_up()
    answer({"warm": True})
    for line in sys.stdin:
        asked = json.loads(line)
        work = Work(engine, asked["seed"], asked["decode_tokens"])
        answer({"values": work.measure(asked["figure"], asked["repetitions"])})


if __name__ == "__main__":
    main()
