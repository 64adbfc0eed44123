"""Every family against transformers: same weights, same tokens."""

import numpy as np
import pytest
import torch
from support import models
from support.paged_model import PagedModel

LENGTHS = (1, 5, 16, 17, 33, 48, 64, 90)
STEPS = 64


def run(case, seed=0, **options):
    config = models.CASES[case]()
    model = models.build(config, seed)
    paged = PagedModel(models.config_json(config), model.state_dict(), **options)
    prompts = models.prompts(config.vocab_size, LENGTHS)
    sequences, logits = paged.generate(prompts, STEPS)
    return model, sequences, logits


@pytest.mark.parametrize("case", models.CASES)
def test_float32_logits_and_greedy_tokens_are_those_of_transformers(case):
    model, sequences, logits = run(case)
    expected = models.all_logits(model, [sequence[:-1] for sequence in sequences])
    for length, sequence, ours, theirs in zip(LENGTHS, sequences, logits, expected):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
        assert sequence[length:] == theirs[length - 1 :].argmax(axis=1).tolist()
        assert theirs.std() > 0.5  # the test would say nothing about a model that says nothing


def test_dynamic_rope_is_that_of_transformers_growing_token_by_token():
    config = models.scaled("dynamic", factor=4.0, max_position_embeddings=32)
    model = models.build(config)
    paged = PagedModel(models.config_json(config), model.state_dict(), max_positions=128)
    (prompt,) = models.prompts(config.vocab_size, [20])
    (sequence,), _ = paged.generate([prompt], 40)
    generated = model.generate(
        torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None
    )
    assert sequence == generated[0].tolist()


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def errors_of_16_bits(config, dtype, **changed_dtypes):
    """The errors of our and torch's logits, against float32 on the same 16-bit weights.

    Keywords give parts of tensors' names, and dtypes to which we get those converted.
    """
    sequences = models.prompts(config.vocab_size, (7, 40, 100))
    model = models.build(config, dtype=getattr(torch, dtype))
    theirs = np.concatenate(models.all_logits(model, sequences))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in tensors:
        for part, other in changed_dtypes.items():
            tensors[name] = tensors[name].to(other) if part in name else tensors[name]
    expected = np.concatenate(models.all_logits(models.cast(model, torch.float32), sequences))
    paged = PagedModel(models.config_json(config), tensors, cache_dtype=dtype)
    rows = paged.step(dict(enumerate(sequences)))
    ours = np.concatenate([rows[i] for i in range(len(sequences))])
    return ours - expected, theirs - expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "case",
    [
        "llama_grouped_queries",
        "llama_head_80_biases_tied",
        "qwen3",
        "opt_norm_after_with_projections",
        "gpt2",
    ],
)
def test_16_bit_logits_are_as_near_to_float32_as_those_of_torch(case, dtype):
    ours, theirs = errors_of_16_bits(models.CASES[case](), dtype)
    assert 0 < rms(ours) <= rms(theirs)
    assert np.abs(ours).max() <= np.abs(theirs).max()


def test_norms_and_lm_head_may_be_float32_beside_bfloat16_matrices():
    ours, theirs = errors_of_16_bits(
        models.llama(), "bfloat16", norm=torch.float32, lm_head=torch.float32
    )
    assert 0 < rms(ours) <= rms(theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["llama_grouped_queries", "mistral_window", "gpt2"])
def test_a_sequence_has_the_same_logits_alone_in_a_batch_in_chunks_and_in_any_blocks(case, dtype):
    config = models.CASES[case]()
    model = models.build(config, dtype=getattr(torch, dtype))
    sequences = models.prompts(config.vocab_size, (70, 9, 33, 64, 100))

    def logits(chunk, block_size, names):
        paged = PagedModel(
            models.config_json(config),
            model.state_dict(),
            cache_dtype=dtype,
            block_size=block_size,
            num_blocks=1024 // block_size,
        )
        rows = []
        for start in range(0, 70, chunk):
            spans = {i: sequences[i][start : start + chunk] for i in names}
            rows.append(paged.step({i: span for i, span in spans.items() if span})[0])
        return np.concatenate(rows).tobytes()

    alone = logits(chunk=70, block_size=16, names=[0])
    assert logits(chunk=70, block_size=16, names=[3, 0, 1, 4, 2]) == alone
    assert logits(chunk=7, block_size=16, names=[1, 0, 4]) == alone
    assert logits(chunk=1, block_size=1, names=[0, 2]) == alone
    assert logits(chunk=33, block_size=64, names=[0]) == alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", models.CASES)
def test_logits_of_some_tokens_are_those_of_a_step_that_gives_all(case, dtype):
    config = models.CASES[case]()
    model = models.build(config, dtype=getattr(torch, dtype))
    sequences = models.prompts(config.vocab_size, (40, 9, 33))

    def new_model():
        return PagedModel(models.config_json(config), model.state_dict(), cache_dtype=dtype)

    complete = new_model().step(dict(enumerate(sequences)))
    for last in ({0: 1, 1: 1, 2: 1}, {0: 0, 1: 9, 2: 2}):
        some = new_model().step(dict(enumerate(sequences)), last)
        for i, count in last.items():
            assert some[i].tobytes() == complete[i][len(sequences[i]) - count :].tobytes()

    paged = new_model()
    assert paged.step({0: sequences[0][:30]}, {0: 0})[0].size == 0
    rest = paged.step({0: sequences[0][30:]}, {0: 1})[0]
    assert rest.tobytes() == complete[0][-1:].tobytes()
