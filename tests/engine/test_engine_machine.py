"""Random mixes of all that a caller can do, under forced pressure, against each request run alone.

Two engines over one model differ in block size, pool and preemption; snapshots pass between them.
verify() follows each step. PAGEDCORE_MACHINE_EXAMPLES and PAGEDCORE_MACHINE_STEPS raise the number
of runs and the operations in each.
"""

import functools
import os
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.tiny_models import make_engine, tiny_llama

from pagedcore import _core

VOCAB_SIZE = 31
MODEL = tiny_llama(vocab_size=VOCAB_SIZE, hidden=16, heads=2, kv_heads=1, inner=24, seed=3)
LENGTH = 48  # max_model_len
BLOCK_BYTES_PER_TOKEN = 2 * 2 * 1 * 8 * 4
STOPS = [1, 2, 3, 4, 5]
TOKENS = st.integers(0, VOCAB_SIZE - 1)

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


@functools.cache
def alone(prompt, form, seed, max_tokens):
    """What each sequence of a request gives in a large engine of its own."""
    engine = make_engine(MODEL, num_blocks=200, block_size=16, max_model_len=LENGTH)
    engine.add_request(list(prompt), params_of(form, seed, max_tokens))
    results = {}
    while engine.has_unfinished():
        for update in engine.step():
            results.setdefault(update.index, Result()).take(update)
    return results


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
    def has_finished(self):
        reported = range(FORMS[self.form].get("n", 1))
        ended = {i for i, result in self.results.items() if result.reason is not None}
        return all(i in self.dropped | ended for i in reported)

    def expected(self, index):
        if self.wanted is not None:
            return self.wanted
        return alone(self.prompt, self.form, self.seed, self.max_tokens).get(index)


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        block_sizes=st.permutations([1, 2, 4, 8]),
        mode=st.sampled_from(["recompute", "swap", "auto"]),
        caching=st.booleans(),
        budget=st.sampled_from([6, 17, 64]),
        slots=st.sampled_from([96, 128, 160]),
    )
    def start(self, block_sizes, mode, caching, budget, slots):
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
            )
            self.engines.append(engine)
        self.asked = [{}, {}]
        self.snapshots = []

    def draw_request(self, data, prompt):
        form = data.draw(st.integers(0, len(FORMS) - 1), label="form")
        seed = data.draw(st.integers(0, 3), label="seed")
        max_tokens = data.draw(st.sampled_from([1, 4, 9, 16]), label="max_tokens")
        asked = Asked(tuple(prompt), form, seed, max_tokens)
        return asked, params_of(form, seed, max_tokens)

    def options(self, data):
        return {
            "priority": data.draw(st.sampled_from([0, 0, 1, -1]), label="priority"),
            "tenant": data.draw(st.sampled_from(["", "tenant"]), label="tenant"),
            "hold": data.draw(st.booleans(), label="hold"),
        }

    def note(self, which, request, asked, options):
        asked.is_held = options["hold"]
        self.asked[which][request] = asked
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

    @rule(data=st.data(), prompt=st.lists(TOKENS, min_size=1, max_size=24))
    def add(self, data, prompt):
        which = data.draw(st.sampled_from([0, 0, 1]), label="engine")
        asked, params = self.draw_request(data, prompt)
        options = self.options(data) | {"salt": data.draw(st.sampled_from(["", "a"]))}
        salt = options.pop("salt")
        request = self.engines[which].add_request(prompt, params, cache_salt=salt, **options)
        self.note(which, request, asked, options)

    @rule(data=st.data(), more=st.lists(TOKENS, max_size=4))
    def fork(self, data, more):
        if (picked := self.pick(data)) is None:
            return
        which, request, _ = picked
        engine = self.engines[which]
        if (tokens := self.tokens_of(engine, request, 0)) is None:
            return
        at = data.draw(st.integers(1, len(tokens)), label="at")
        prompt = tokens[:at] + more
        if len(prompt) >= LENGTH:
            return
        asked, params = self.draw_request(data, prompt)
        options = self.options(data)
        fork = engine.fork(request, params, at_token=at, more_tokens=more, **options)
        self.note(which, fork, asked, options)

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
        streams = lambda asked: not {"best_of", "beam_width"} & FORMS[asked.form].keys()  # noqa: E731
        if (picked := self.pick(data, accept=streams)) is None:
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
        if (picked := self.pick(data, accept=lambda asked: asked.wanted is None)) is None:
            return
        which, request, asked = picked
        if asked.has_finished:
            return
        engine = self.engines[which]
        before = {i: Result(r.tokens, r.logprobs, r.reason) for i, r in asked.results.items()}
        copy = Asked(asked.prompt, asked.form, asked.seed, asked.max_tokens, before)
        copy.dropped = set(asked.dropped)
        self.snapshots.append((engine.save(request), copy))
        self.check(which)

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def load(self, data):
        which = data.draw(st.sampled_from([0, 1, 1]), label="engine")
        snapshot, saved = data.draw(st.sampled_from(self.snapshots), label="snapshot")
        options = self.options(data)
        try:
            request = self.engines[which].load(snapshot, **options)
        except _core.InvalidArgument as error:
            assert "can never fit" in str(error)
            return
        results = {i: Result(r.tokens, r.logprobs, r.reason) for i, r in saved.results.items()}
        asked = Asked(saved.prompt, saved.form, saved.seed, saved.max_tokens, results)
        asked.dropped = set(saved.dropped)
        self.note(which, request, asked, options)

    @rule(which=st.sampled_from([0, 0, 1]), count=st.integers(1, 6))
    def steps(self, which, count):
        for _ in range(count):
            self.step(which)

    def tokens_of(self, engine, request, index):
        try:
            return engine.tokens(request, index)
        except _core.InvalidArgument:
            return None

    def step(self, which):
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
            if "best_of" not in FORMS[asked.form] and "beam_width" not in FORMS[asked.form]:
                assert got.tokens == wanted.tokens[: len(got.tokens)]
            return
        assert got == wanted, (asked, update.index)

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
            assert (stats.used_blocks, stats.used_host_blocks, stats.num_held) == (0, 0, 0)
            assert engine.verify() == []


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=int(os.environ.get("PAGEDCORE_MACHINE_EXAMPLES", 25)),
    stateful_step_count=int(os.environ.get("PAGEDCORE_MACHINE_STEPS", 40)),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
