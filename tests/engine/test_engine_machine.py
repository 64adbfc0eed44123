"""Random mixes of all that a caller can do, under forced pressure, against each request run alone.

Two engines over one model differ in block size, pool and preemption; snapshots pass between them.
verify() follows each step. PAGEDCORE_MACHINE_EXAMPLES and PAGEDCORE_MACHINE_STEPS raise the number
of runs and the operations in each; `pytest -rP` shows what the runs came to.
"""

import contextlib
import copy
import functools
import os
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.tiny_models import make_engine, tiny_llama

from pagedcore import _core

VOCAB_SIZE = 31
MODEL = tiny_llama(vocab_size=VOCAB_SIZE, hidden=16, heads=2, kv_heads=1, inner=24, seed=3)
LENGTH = 48  # max_model_len
BLOCK_BYTES_PER_TOKEN = 2 * 2 * 1 * 8 * 4
STOPS = [1, 2, 3, 4, 5]
TOKENS = st.integers(0, VOCAB_SIZE - 1)
PROMPTS = st.integers(1, 24).flatmap(lambda n: st.lists(TOKENS, min_size=n, max_size=n))
EXAMPLES = int(os.environ.get("PAGEDCORE_MACHINE_EXAMPLES", 25))
OPERATIONS = int(os.environ.get("PAGEDCORE_MACHINE_STEPS", 40))
TOTALS = Counter()  # over all runs: what the engines did

# What a request asks: each is a kind of group, of drawing, or of stopping.
FORMS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_p": 0.8, "repetition_penalty": 1.3, "logprobs": 1},
    {"temperature": 1.0, "n": 3, "stop_token_ids": STOPS},
    {"temperature": 0.9, "n": 2, "frequency_penalty": 0.4, "prompt_logprobs": 1},
    {"temperature": 1.0, "n": 2, "best_of": 4, "stop_token_ids": STOPS, "logprobs": 1},
    {"temperature": 1.0, "n": 1, "best_of": 2, "min_tokens": 2},
    {"beam_width": 3, "n": 2, "stop_token_ids": STOPS},
    {"beam_width": 2, "n": 2, "length_penalty": 0.0, "min_tokens": 3, "stop_token_ids": STOPS},
    {"beam_width": 4, "n": 1, "early_stopping": "never", "stop_token_ids": STOPS},
]


def results_alone(prompt, params):
    """What each sequence of a request gives in a large engine of its own."""
    engine = make_engine(MODEL, num_blocks=200, block_size=16, max_model_len=LENGTH)
    engine.add_request(list(prompt), params)
    results = {}
    while engine.has_unfinished():
        for update in engine.step():
            results.setdefault(update.index, Result()).take(update)
    return results


@functools.cache
def alone(prompt, form, seed, max_tokens):
    return results_alone(prompt, params_of(form, seed, max_tokens))


@functools.cache
def samples_alone(prompt, form, seed, max_tokens):
    """Those of a request with best_of before they are ranked."""
    params = params_of(form, seed, max_tokens)
    params.n, params.best_of = max(params.n, params.best_of), 0
    return results_alone(prompt, params)


def params_of(form, seed, max_tokens):
    options = FORMS[form] | {"max_tokens": max(max_tokens, FORMS[form].get("min_tokens", 1))}
    return _core.SamplingParams(seed=seed, **options)


@dataclass
class Result:
    tokens: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    reason: str | None = None
    score: float = 0.0

    def take(self, update):
        assert self.reason is None, "an update after the last one"
        self.tokens = self.tokens + update.new_tokens
        self.logprobs = self.logprobs + (update.logprobs or [])
        self.reason, self.score = update.finish_reason, update.score


@dataclass
class Asked:
    """A request, what it has reported, and what the caller did to it."""

    prompt: tuple
    form: int
    seed: int
    max_tokens: int
    results: dict = field(default_factory=dict)
    dropped: set = field(default_factory=set)  # sequences that the caller ended
    is_held: bool = False
    # A sibling that goes on alone, as sequence 0: what it should still give.
    wanted: Result | None = None

    @property
    def has_beams(self):
        return "beam_width" in FORMS[self.form]

    @property
    def is_ranked(self):
        return self.wanted is None and (self.has_beams or "best_of" in FORMS[self.form])

    @property
    def has_finished(self):
        num_reported = 1 if self.wanted is not None else FORMS[self.form].get("n", 1)
        ended = {i for i, result in self.results.items() if result.reason is not None}
        return all(i in self.dropped | ended for i in range(num_reported))

    def expected(self, index):
        if self.wanted is not None:
            return self.wanted
        return alone(self.prompt, self.form, self.seed, self.max_tokens).get(index)

    def sibling(self, index, num_known):
        """The request that goes on with one sequence of which `num_known` tokens are known."""
        samples = samples_alone(self.prompt, self.form, self.seed, self.max_tokens)
        whole, begin = samples[index], num_known - len(self.prompt)
        rest = Result(whole.tokens[begin:], whole.logprobs[begin:], whole.reason)
        return Asked(self.prompt, self.form, self.seed, self.max_tokens, wanted=rest)


@dataclass
class Saved:
    """A snapshot, the request that goes on from it, and the tokens where it is of one sequence."""

    snapshot: bytes
    asked: Asked | None  # None: it goes on under new parameters only
    tokens: list | None


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        block_sizes=st.permutations([1, 2, 4, 8]),
        mode=st.sampled_from(["recompute", "swap", "auto"]),
        caching=st.booleans(),
        budget=st.sampled_from([6, 17, 64]),
        slots=st.sampled_from([56, 80, 120]),
        max_waiting=st.sampled_from([0, 0, 0, 6]),
    )
    def start(self, block_sizes, mode, caching, budget, slots, max_waiting):
        self.engines = []
        for block_size, num_slots in [(block_sizes[0], slots), (block_sizes[1], 400)]:
            swap_space = 0 if mode == "recompute" else 160 * BLOCK_BYTES_PER_TOKEN
            engine = make_engine(
                MODEL,
                num_blocks=num_slots // block_size,
                block_size=block_size,
                max_model_len=LENGTH,
                max_num_seqs=8,
                max_num_batched_tokens=budget,
                enable_prefix_caching=caching,
                preemption_mode=mode,
                swap_space_bytes=swap_space,
                max_waiting=max_waiting,
            )
            self.engines.append(engine)
        self.asked = [{}, {}]
        self.snapshots = []

    def draw_request(self, data, prompt):
        form = data.draw(st.integers(0, len(FORMS) - 1), label="form")
        seed = data.draw(st.integers(0, 3), label="seed")
        max_tokens = data.draw(st.sampled_from([1, 6, 12, 20]), label="max_tokens")
        asked = Asked(tuple(prompt), form, seed, max_tokens)
        return asked, params_of(form, seed, max_tokens)

    def options(self, data):
        return {
            "priority": data.draw(st.sampled_from([0, 0, 1, -1]), label="priority"),
            "tenant": data.draw(st.sampled_from(["", "a", "b"]), label="tenant"),
            "hold": data.draw(st.booleans(), label="hold"),
        }

    def start_request(self, which, asked, options, call):
        """Makes a request by call(**options), unless the engine has no room for it."""
        asked.is_held = options["hold"]
        try:
            self.asked[which][call(**options)] = asked
        except _core.QueueFull:
            TOTALS["refused by a full queue"] += 1
        except _core.InvalidArgument as error:
            assert "can never fit" in str(error)
            TOTALS["refused as too large"] += 1
        self.check(which)

    def pick(self, data, which=None, accept=lambda asked: True):
        """A known request that has not been dropped: (engine, id, Asked), or None."""
        known = [
            (w, request, asked)
            for w in ([0, 1] if which is None else [which])
            for request, asked in self.asked[w].items()
            if accept(asked)
        ]
        return data.draw(st.sampled_from(known), label="request") if known else None

    @rule(data=st.data(), prompt=PROMPTS)
    def add(self, data, prompt):
        which = data.draw(st.sampled_from([0, 0, 1]), label="engine")
        asked, params = self.draw_request(data, prompt)
        options = self.options(data)
        salt = data.draw(st.sampled_from(["", "a"]), label="salt")
        add = functools.partial(self.engines[which].add_request, prompt, params, cache_salt=salt)
        self.start_request(which, asked, options, add)

    @rule(data=st.data(), more=st.lists(TOKENS, max_size=4))
    def fork(self, data, more):
        if (picked := self.pick(data)) is None:
            return
        which, request, _ = picked
        engine = self.engines[which]
        index, tokens = self.pick_sequence(data, engine, request)
        if tokens is None:
            return
        at = data.draw(st.integers(1, len(tokens)), label="at")
        prompt = tokens[:at] + more
        if len(prompt) >= LENGTH:
            return
        asked, params = self.draw_request(data, prompt)
        fork = functools.partial(
            engine.fork, request, params, index=index, at_token=at, more_tokens=more
        )
        self.start_request(which, asked, self.options(data), fork)
        TOTALS["forks"] += 1

    @rule(which=st.sampled_from([0, 0, 1]), tenant=st.sampled_from("ab"), data=st.data())
    def set_quota(self, which, tenant, data):
        num_slots = data.draw(st.sampled_from([0, 32, 64]), label="slots")
        engine = self.engines[which]
        engine.set_tenant_quota(tenant, -(-num_slots // engine.config.block_size))

    @rule(data=st.data())
    def abort(self, data):
        if (picked := self.pick(data)) is not None:
            which, request, _ = picked
            self.engines[which].abort(request)
            self.engines[which].release(request)
            del self.asked[which][request]
            self.check(which)

    @rule(data=st.data(), index=st.integers(0, 2))
    def finish_sequence(self, data, index):
        if (picked := self.pick(data, accept=lambda asked: not asked.is_ranked)) is None:
            return
        which, request, asked = picked
        try:
            self.engines[which].finish_sequence(request, index)
        except _core.InvalidArgument as error:
            assert "part with their first tokens" in str(error)
            return
        asked.dropped.add(index)
        if not self.engines[which].metrics(request) and not asked.is_held:
            self.forget_finished(which, request)
        self.check(which)

    @rule(data=st.data(), hold=st.booleans())
    def hold_or_release(self, data, hold):
        if (picked := self.pick(data)) is not None:
            which, request, asked = picked
            (self.engines[which].hold if hold else self.engines[which].release)(request)
            asked.is_held = hold
            self.check(which)

    @rule(data=st.data())
    def save(self, data):
        if (picked := self.pick(data, accept=lambda asked: not asked.has_finished)) is None:
            return
        which, request, asked = picked
        self.snapshots.append(Saved(self.engines[which].save(request), copy.deepcopy(asked), None))
        self.check(which)
        TOTALS["whole requests saved"] += 1

    @rule(data=st.data())
    def save_one(self, data):
        if (picked := self.pick(data, accept=lambda asked: asked.wanted is None)) is None:
            return
        which, request, asked = picked
        engine = self.engines[which]
        index, tokens = self.pick_sequence(data, engine, request)
        if tokens is None:
            return
        is_over = asked.has_finished or index in asked.dropped
        goes_on = not asked.has_beams and not is_over and not self.has_ended(asked, index, tokens)
        saved = engine.save(request, index)
        sibling = asked.sibling(index, len(tokens)) if goes_on else None
        self.snapshots.append(Saved(saved, sibling, tokens))
        self.check(which)
        TOTALS["sequences saved"] += 1

    def has_ended(self, asked, index, tokens):
        """Whether a sample is at its end, though its request may not have told of it yet."""
        return not asked.sibling(index, len(tokens)).wanted.tokens

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data(), anew=st.booleans())
    def load(self, data, anew):
        which = data.draw(st.sampled_from([0, 1, 1]), label="engine")
        saved = data.draw(st.sampled_from(self.snapshots), label="snapshot")
        asked, params = copy.deepcopy(saved.asked), None
        if asked is None or (anew and saved.tokens is not None):
            if len(saved.tokens) >= LENGTH:
                return
            asked, params = self.draw_request(data, saved.tokens)
        load = functools.partial(self.engines[which].load, saved.snapshot, params)
        self.start_request(which, asked, self.options(data), load)
        TOTALS["loads"] += 1

    @rule(which=st.sampled_from([0, 0, 1]), count=st.integers(1, 16))
    def steps(self, which, count):
        for _ in range(count):
            self.step(which)

    def pick_sequence(self, data, engine, request):
        """(index, its tokens) of one that can be gone on from; (-1, None) where there is none."""
        known = {}
        for index in range(4):
            with contextlib.suppress(_core.InvalidArgument):
                known[index] = engine.tokens(request, index)
        if not known:
            return -1, None
        index = data.draw(st.sampled_from(sorted(known)), label="index")
        return index, known[index]

    def step(self, which):
        TOTALS["steps"] += 1
        for update in self.engines[which].step():
            asked = self.asked[which][update.request_id]
            asked.results.setdefault(update.index, Result()).take(update)
            if update.finish_reason is not None:
                self.compare(asked, update)
        for request in list(self.asked[which]):
            self.forget_finished(which, request)
        self.check(which)

    def compare(self, asked, update):
        got, wanted = asked.results[update.index], asked.expected(update.index)
        if update.explanation is not None:
            # What others hold leaves it too little; a ranked group tells of what it had.
            if not asked.is_ranked:
                assert got.tokens == wanted.tokens[: len(got.tokens)]
            return
        assert got == wanted, (asked, update.index)
        TOTALS["sequences compared"] += 1

    def forget_finished(self, which, request):
        """Drops what is neither live nor held."""
        asked = self.asked[which][request]
        if asked.is_held or self.engines[which].metrics(request) is not None:
            return
        del self.asked[which][request]

    def check(self, which):
        assert self.engines[which].verify() == []

    def teardown(self):
        if not hasattr(self, "engines"):
            return
        for which, engine in enumerate(self.engines):
            for request, asked in self.asked[which].items():
                engine.release(request)
                asked.is_held = False
            steps = 0
            while engine.has_unfinished():
                self.step(which)
                steps += 1
                assert steps < 10000
            for request in list(self.asked[which]):
                engine.release(request)
            stats = engine.stats()
            for kind in COUNTED:
                TOTALS[kind] += getattr(stats, kind)
            assert (stats.used_blocks, stats.used_host_blocks, stats.num_held) == (0, 0, 0)
            assert engine.verify() == []


COUNTED = [
    "num_tail_preemptions",
    "num_recompute_preemptions",
    "num_swap_preemptions",
    "num_recomputed_tokens",
    "num_swapped_out_blocks",
    "num_swapped_in_blocks",
    "num_copied_blocks",
    "num_prefix_hit_tokens",
]


def test_no_mix_of_calls_changes_an_answer_or_loses_a_block():
    runs = settings(
        max_examples=EXAMPLES,
        stateful_step_count=OPERATIONS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(EngineMachine, settings=runs)
    for what, count in sorted(TOTALS.items()):
        print(f"{what:<28} {count:>9,}")
    if EXAMPLES >= 200:
        assert all(TOTALS[kind] > 0 for kind in COUNTED)
