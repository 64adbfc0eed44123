"""KV memory waste under overload: paging beside contiguous managers, and what sharing saves.

Figures 2 and 15 of Kwon et al. 2023, with integers and a step-time model; no model runs.

    PYTHONPATH=python python bench/kv_waste.py [lengths] [--seconds 900] [--rate 4]

`lengths` has one "prompt output" pair of token counts a line. Token share is of all slots of the
pool, averaged over the steps after a third of the run, as in the paper. Prints JSON lines on
stdout and a table on stderr.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

from pagedcore._core import (
    ContiguousKvManager,
    HeadroomPolicy,
    Reservation,
    Scheduler,
    SchedulerConfig,
)

SLOTS = 15728  # of the KV cache that a 40 GB A100 leaves beside OPT-13B
MAX_MODEL_LEN = 2048
MAX_NUM_SEQS = 256
# Steps of 2023 on an A100: weights, arithmetic, attention and host, in seconds.
WEIGHTS_S, TOKEN_S, CONTEXT_S, STEP_S, SEQUENCE_S = 18.6e-3, 0.151e-3, 0.63e-6, 1e-3, 0.40e-3


def step_seconds(num_tokens, num_context_tokens, num_sequences):
    compute = max(WEIGHTS_S, TOKEN_S * num_tokens)
    return compute + CONTEXT_S * num_context_tokens + STEP_S + SEQUENCE_S * num_sequences


class Run:
    """One trace through one scheduler, in simulated time."""

    def __init__(self, scheduler, pairs, *, rate, seconds, seed, knows_lengths, n=1, beam=False):
        self.scheduler = scheduler
        self.pairs = pairs
        self.rate = rate
        self.seconds = seconds
        self.random = random.Random(seed)
        self.knows_lengths = knows_lengths
        self.n = n
        self.beam = beam
        self.now = 0.0
        self.next_arrival = 0.0
        self.next_request = 0
        self.limits = {}  # request -> (prompt, output)
        self.output_tokens = 0
        self.samples = []
        self.savings = []

    def arrive(self):
        while self.next_arrival <= self.now:
            prompt, output = self.pairs[self.next_request % len(self.pairs)]
            # Tokens of a request are its own: nothing here is shared between requests.
            tokens = range(self.next_request * 4096, self.next_request * 4096 + prompt)
            self.scheduler.add(
                list(tokens),
                request_id=self.next_request,
                num_sequences=self.n,
                max_total_tokens=prompt + output if self.knows_lengths else MAX_MODEL_LEN,
            )
            self.limits[self.next_request] = (prompt, output)
            self.next_request += 1
            self.next_arrival += self.random.expovariate(self.rate)

    def step(self):
        plan = self.scheduler.schedule()
        if plan.num_tokens == 0:
            self.scheduler.commit()
            self.now = max(self.now, self.next_arrival)
            return
        context = sum(span.context_len + span.query_len for span in plan.spans)
        self.now += step_seconds(plan.num_tokens, context, len(plan.spans))
        self.scheduler.commit()
        if self.now > self.seconds / 3:
            stats = self.scheduler.stats()
            self.samples.append(stats.used_slots / stats.total_slots)
            if stats.logical_blocks:
                self.savings.append(stats.logical_blocks / stats.physical_blocks)
        groups = {}
        for span in plan.spans:
            if span.reaches_end:
                groups.setdefault(span.request_id, []).append(span)
        for request, spans in groups.items():
            self.sample(request, spans)
        for request in plan.capacity_exceeded:
            self.scheduler.abort(request)

    def sample(self, request, spans):
        prompt, output = self.limits[request]
        length = spans[0].context_len + spans[0].query_len + 1
        self.output_tokens += len(spans)
        if length >= prompt + output:
            for span in spans:
                self.scheduler.finish(span.sequence_id)
            return
        live = [span.sequence_id for span in spans]
        if self.beam:
            # Every beam's parent is drawn among all: what beam search does when candidates are
            # exchangeable. Parents without a child end before others fork.
            parents = [self.random.choice(live) for _ in range(self.n)]
            for sequence in live:
                if sequence not in parents:
                    self.scheduler.finish(sequence)
            live = [sequence for sequence in live if sequence in parents]
            forks = list(parents)
            for sequence in live:
                forks.remove(sequence)
        else:
            forks = live[:1] * (self.n - len(live))
        for parent in forks:
            live.append(self.scheduler.fork(parent, length - 1).id)
        for sequence in live:
            self.scheduler.append_token(sequence, self.random.randrange(50000))

    def run(self):
        started = time.perf_counter()
        while self.now < self.seconds:
            self.arrive()
            self.step()
        stats = self.scheduler.stats()
        return {
            "tokens_percent": 100 * sum(self.samples) / len(self.samples),
            "savings_percent": 100 * (1 - len(self.savings) / sum(self.savings)),
            "output_tokens_per_s": self.output_tokens / self.now,
            "tail_preemptions": stats.tail_preemptions,
            "recompute_preemptions": stats.recompute_preemptions,
            "preempted_tokens": stats.preempted_tokens,
            "recomputed_tokens": stats.recomputed_tokens,
            "steps": stats.num_steps,
            "host_s": round(time.perf_counter() - started, 1),
        }


def paged(block_size=16, **options):
    defaults = {"max_num_batched_tokens": 2560, "max_num_seqs": MAX_NUM_SEQS}
    return Scheduler(
        SchedulerConfig(
            num_blocks=SLOTS // block_size,
            block_size=block_size,
            max_model_len=MAX_MODEL_LEN,
            **defaults | options,
        )
    )


def contiguous(reservation):
    num_blocks = SLOTS // 16
    config = SchedulerConfig(
        num_blocks=num_blocks,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=2560,
    )
    return Scheduler(config, ContiguousKvManager(num_blocks, 16, MAX_MODEL_LEN, reservation))


def watermark(share, **options):
    return paged(headroom=HeadroomPolicy.WATERMARK, watermark=share, **options)


# name -> (scheduler, whether the manager is told the output length, the paper's percentage)
WHOLE_ONLY = {"partial_admission": False, "tail_preemption": False}
MANAGERS = {
    "orca_max": (lambda: contiguous(Reservation.MAX), True, 20.4),
    "orca_pow2": (lambda: contiguous(Reservation.POW2), True, 26.8),
    "orca_oracle": (lambda: contiguous(Reservation.ORACLE), True, 38.2),
    "exact": (lambda: contiguous(Reservation.EXACT), True, None),
    "paged_as_published": (lambda: watermark(0.01, **WHOLE_ONLY), False, 96.3),
    "paged_default": (paged, False, None),
    "paged_watermark_1": (lambda: watermark(0.01), False, None),
    "paged_watermark_0": (lambda: watermark(0), False, None),
    "paged_growth_4": (lambda: paged(headroom_tokens=4), False, None),
    "paged_growth_8": (lambda: paged(headroom_tokens=8), False, None),
    "paged_growth_32": (lambda: paged(headroom_tokens=32), False, None),
    "paged_block_8": (lambda: paged(8), False, None),
    "paged_block_4": (lambda: paged(4), False, None),
    "paged_block_4_growth_4": (lambda: paged(4, headroom_tokens=4), False, None),
    "paged_block_1_growth_4": (lambda: paged(1, headroom_tokens=4), False, None),
}


def read_pairs(path, seed):
    pairs = [tuple(map(int, line.split())) for line in path.read_text().splitlines()]
    random.Random(seed).shuffle(pairs)
    return pairs


def report(experiment, name, result, paper=None):
    print(json.dumps({"bench": "kv_waste", "experiment": experiment, "name": name, **result}))
    sys.stdout.flush()
    if experiment == "E1":
        line = (
            f"{name:24} tokens {result['tokens_percent']:5.1f} %  waste "
            f"{100 - result['tokens_percent']:5.2f} %  {result['output_tokens_per_s']:6.1f} tok/s  "
            f"preempted {result['tail_preemptions']:5}t {result['recompute_preemptions']:4}r  "
            f"recomputed {result['recomputed_tokens']:7}"
        )
    else:
        line = f"{name:24} saves {result['savings_percent']:5.1f} % of blocks"
    print(line + (f"  (paper {paper} %)" if paper else ""), file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lengths", nargs="?", default="../shared/data/sharegpt_lengths.txt")
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--rate", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of managers; default all")
    parser.add_argument("--no-sharing", action="store_true", help="leave out E11")
    args = parser.parse_args()
    pairs = read_pairs(Path(args.lengths), args.seed)
    common = {"pairs": pairs, "rate": args.rate, "seconds": args.seconds, "seed": args.seed}
    for name, (make, knows_lengths, paper) in MANAGERS.items():
        if args.only and name not in args.only:
            continue
        result = Run(make(), knows_lengths=knows_lengths, **common).run()
        report("E1", name, result, paper)
    if args.no_sharing:
        return
    for beam, paper in ((False, ("16.2", "-", "30.5")), (True, ("44.3", "-", "66.3"))):
        for n, published in zip((2, 4, 6), paper):
            result = Run(paged(), knows_lengths=False, n=n, beam=beam, **common).run()
            report("E11", f"{'beam' if beam else 'parallel'}_{n}", result, published)


if __name__ == "__main__":
    main()
