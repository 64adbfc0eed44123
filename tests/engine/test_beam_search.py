"""Beam search, token for token against transformers' generate(num_beams=k)."""

import functools

import numpy as np
import pytest
import torch
from support import models
from support.paged_model import weights
from support.tiny_models import make_engine, run

from pagedcore import _core
from pagedcore.config import model_config

EOS = [7, 11]
FAMILIES = ["llama_grouped_queries", "qwen3", "opt_norm_before", "gpt2"]


@functools.cache
def peer(family, seed):
    """A random model of transformers and the same one for an engine."""
    config = models.CASES[family]()
    model = models.build(config, seed)
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return model, (model_config(models.config_json(config)), weights(tensors))


def expected(model, prompt, *, eos, max_new_tokens, num_beams, n, **options):
    """Outputs and scores of transformers, the outputs cut after their first eos."""
    with torch.no_grad():
        result = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=n,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    outputs = []
    for sequence in result.sequences[:, len(prompt) :].tolist():
        ends = [i for i, token in enumerate(sequence) if token in (eos or [])]
        outputs.append(sequence[: ends[0] + 1] if ends else sequence)
    return outputs, result.sequences_scores.tolist()


def beam_params(*, eos, max_new_tokens, num_beams, n, **options):
    if "min_new_tokens" in options:
        options["min_tokens"] = options.pop("min_new_tokens")
    return _core.SamplingParams(
        beam_width=num_beams, n=n, max_tokens=max_new_tokens, stop_token_ids=eos or [], **options
    )


def check(family, seed, cases, **engine_options):
    model, for_engine = peer(family, seed)
    options = {"num_blocks": 500, "block_size": 4} | engine_options
    engine = make_engine(for_engine, **options)
    prompts = models.prompts(model.config.vocab_size, [3, 30], seed=seed)
    wanted, ids = [], []
    for prompt in prompts:
        for case in cases:
            wanted.append((case, *expected(model, prompt, **case)))
            ids.append(engine.add_request(prompt, beam_params(**case)))
    outputs = run(engine)
    for request, (case, tokens, scores) in zip(ids, wanted):
        got = [outputs[request, i] for i in range(case["n"])]
        assert [output.tokens for output in got] == tokens, case
        # Sums of up to 24 float32 logprobs of models that agree to 1e-4.
        assert np.allclose([output.update.score for output in got], scores, atol=2e-3), case
    assert engine.stats().used_blocks == 0
    return engine


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_beams_are_those_of_transformers(family, early_stopping):
    base = {"early_stopping": early_stopping, "max_new_tokens": 14}
    check(
        family,
        2,
        [
            base | {"eos": EOS, "num_beams": 4, "n": 4, "length_penalty": 1.0},
            base | {"eos": EOS, "num_beams": 3, "n": 2, "length_penalty": 0.0},
            base | {"eos": EOS, "num_beams": 2, "n": 1, "length_penalty": -1.5},
            base | {"eos": list(range(0, 60, 3)), "num_beams": 5, "n": 5, "length_penalty": 2.0},
            base | {"eos": list(range(0, 60, 3)), "num_beams": 4, "n": 3, "length_penalty": 0.6},
            base | {"eos": None, "num_beams": 6, "n": 6, "length_penalty": 1.0},
        ],
    )


def test_beams_wait_with_eos_until_min_tokens():
    eos = list(range(0, 200, 2))
    case = {"eos": eos, "num_beams": 3, "n": 3, "max_new_tokens": 12, "min_new_tokens": 6}
    check("llama_grouped_queries", 4, [case])


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 1, "num_blocks": 2000},
        {"block_size": 16},
        {"max_num_batched_tokens": 7},
        {"enable_prefix_caching": False},
        {"num_blocks": 22},
    ],
    ids=str,
)
def test_beams_are_the_same_under_every_schedule(options):
    cases = [
        {"eos": EOS, "num_beams": k, "n": k, "max_new_tokens": 16, "length_penalty": p}
        for k, p in ((4, 1.0), (2, 0.3), (6, 1.4))
    ]
    engine = check("llama_grouped_queries", 5, cases, **options)
    stats = engine.stats()
    if options.get("num_blocks") == 22:
        assert stats.num_tail_preemptions > 0 and stats.num_recomputed_tokens > 0


def test_a_fork_copies_at_most_one_block():
    engine = check(
        "llama_grouped_queries",
        6,
        [{"eos": None, "num_beams": 4, "n": 4, "max_new_tokens": 24}],
        block_size=16,
        num_blocks=200,
    )
    assert 0 < engine.stats().num_copied_blocks <= 3 * 24 * 3
