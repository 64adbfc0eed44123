"""Rotary tables against those that transformers computes."""

import numpy as np
import pytest
import torch
from support import models
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pagedcore import _core
from pagedcore.config import model_config

# Two libraries' pow differ by one unit in the last place of a frequency at most; times a position
# below 2048 that is an angle of 2048 * 2^-24.
TOLERANCE = 2048 * 2.0**-24

CASES = {
    "default": models.llama,
    "theta": lambda: models.llama(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    **{name: case for name, case in models.CASES.items() if "rope" in name},
    "yarn_attention_factor": lambda: models.scaled(
        "yarn", factor=2.0, original_max_position_embeddings=32, attention_factor=0.8
    ),
    "yarn_low_beyond_high": lambda: models.scaled(
        "yarn", factor=2.0, original_max_position_embeddings=32, beta_fast=1.0, beta_slow=1.0
    ),
    "llama3_of_3_2": lambda: models.llama(
        head_dim=64,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
}


def their_table(embedding, positions):
    cos, sin = embedding(torch.zeros(1), torch.tensor([positions]))
    half = cos.shape[-1] // 2
    return torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=1).numpy()


@pytest.mark.parametrize("case", CASES)
def test_table_is_that_of_transformers(case):
    config = CASES[case]()
    expected = their_table(LlamaRotaryEmbedding(config), list(range(2048)))
    table = _core.rope_table(model_config(models.config_json(config)), 2048)
    np.testing.assert_allclose(table, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(table[:64], expected[:64], rtol=0, atol=TOLERANCE / 32)


def test_dynamic_table_is_exact_to_the_original_length_and_then_that_of_a_growing_sequence():
    config = models.scaled("dynamic", factor=4.0, max_position_embeddings=64)
    table = _core.rope_table(model_config(models.config_json(config)), 192)
    embedding = LlamaRotaryEmbedding(config)
    expected = their_table(embedding, list(range(64)))
    np.testing.assert_allclose(table[:64], expected, rtol=0, atol=TOLERANCE / 32)
    for position in range(64, 192):
        expected = their_table(embedding, [position])
        np.testing.assert_allclose(table[[position]], expected, rtol=0, atol=TOLERANCE / 8)
