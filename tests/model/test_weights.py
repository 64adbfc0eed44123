"""Binding a checkpoint's tensors: names, shapes, dtypes, and exact memory."""

import re

import numpy as np
import pytest
import torch
from support import models
from support.paged_model import PagedModel, weights

from pagedcore import _core
from pagedcore.config import model_config


def checkpoint(case="llama_grouped_queries"):
    config = models.CASES[case]()
    return models.config_json(config), dict(models.build(config).state_dict())


def decoder(config, tensors, backend=None, **limits):
    limits = {"max_tokens": 64, "max_logit_rows": 16, **limits}
    backend = backend or _core.make_cpu_backend(1)
    return _core.Decoder(model_config(config), weights(tensors), backend, **limits)


def refusal(config, tensors):
    with pytest.raises(_core.InvalidArgument) as error:
        decoder(config, tensors)
    return str(error.value)


@pytest.mark.parametrize("case", models.CASES)
def test_each_tensor_that_a_model_needs_is_missed_by_name(case):
    config, tensors = checkpoint(case)
    tied = config["tie_word_embeddings"]
    for name in tensors:
        if (tied and name == "lm_head.weight") or ".layers.1." in name or ".h.1." in name:
            continue
        left = {other: tensor for other, tensor in tensors.items() if other != name}
        assert f"tensor '{name}' is missing" in refusal(config, left)


def test_a_tensor_of_another_shape_is_named_with_both_shapes():
    config, tensors = checkpoint()
    name = "model.layers.1.self_attn.k_proj.weight"
    message = refusal(config, {**tensors, name: tensors[name][:64]})
    assert message == f"tensor '{name}' must have shape [128, 256], got [64, 256]"


def test_a_transposed_matrix_of_gpt2_is_refused():
    config, tensors = checkpoint("gpt2")
    name = "transformer.h.0.attn.c_attn.weight"
    message = refusal(config, {**tensors, name: tensors[name].T.contiguous()})
    assert message == f"tensor '{name}' must have shape [192, 576], got [576, 192]"


def test_a_tensor_of_integers_is_refused():
    config, tensors = checkpoint()
    name = "model.layers.0.mlp.up_proj.weight"
    message = refusal(config, {**tensors, name: tensors[name].to(torch.int8)})
    assert message == f"tensor '{name}' must be float32, float16 or bfloat16, got int8"


def test_matrices_of_two_dtypes_are_refused():
    config, tensors = checkpoint()
    name = "model.layers.0.mlp.up_proj.weight"
    message = refusal(config, {**tensors, name: tensors[name].half()})
    first = "model.layers.0.self_attn.q_proj.weight"
    assert message == f"tensor '{name}' must be float32 like '{first}', got float16"


def test_a_norm_whose_bias_has_another_dtype_is_refused():
    config, tensors = checkpoint("gpt2")
    name = "transformer.ln_f.bias"
    message = refusal(config, {**tensors, name: tensors[name].half()})
    assert re.match(f"tensor '{name}' must be float32 .* got float16", message)


@pytest.mark.parametrize(
    ("case", "prefix", "replacement"),
    [
        ("gpt2", "transformer.", ""),
        ("llama_head_80_biases_tied", "model.", ""),
        ("opt_norm_before", "model.decoder.", "decoder."),
    ],
)
def test_names_may_lack_the_prefix_of_the_whole_model(case, prefix, replacement):
    config, tensors = checkpoint(case)
    bare = {name.replace(prefix, replacement): tensor for name, tensor in tensors.items()}
    assert set(bare) != set(tensors)
    prompt = {0: [5, 6, 7]}
    expected = PagedModel(config, tensors).step(prompt)[0]
    np.testing.assert_array_equal(PagedModel(config, bare).step(prompt)[0], expected)


def test_tied_embeddings_need_no_lm_head():
    config, tensors = checkpoint("qwen2_tied")
    del tensors["lm_head.weight"]
    decoder(config, tensors)


@pytest.mark.parametrize("case", ["llama_head_128", "opt_norm_after_with_projections", "gpt2"])
def test_the_bytes_taken_are_those_foretold_and_all_come_back(case):
    config, tensors = checkpoint(case)
    limits = {"max_tokens": 100, "max_logit_rows": 7, "max_positions": 50}
    backend = _core.make_cpu_backend(1)
    foretold = _core.Decoder.workspace_bytes(
        model_config(config), weights(tensors), backend, **limits
    )
    made = decoder(config, tensors, backend, **limits)
    assert backend.allocated_bytes == foretold > 0
    del made
    assert backend.allocated_bytes == 0


def test_weights_outlive_the_names_that_the_caller_dropped():
    config, tensors = checkpoint()
    prompt = {0: [1, 2, 3, 4]}
    expected = PagedModel(config, tensors).step(prompt)[0]
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    paged = PagedModel(config, copies)
    del copies
    junk = [torch.full_like(tensor, float("nan")) for tensor in tensors.values()]
    np.testing.assert_array_equal(paged.step(prompt)[0], expected)
    assert junk


@pytest.mark.parametrize(
    ("case", "limits", "message"),
    [
        ("gpt2", {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ("gpt2", {"max_logit_rows": 0}, "max_logit_rows must be at least 1, got 0"),
        ("gpt2", {"max_positions": -1}, "max_positions must not be negative, got -1"),
        ("gpt2", {"max_positions": 257}, r"at most max_position_embeddings \(256\)"),
    ],
)
def test_limits_that_no_step_can_keep_are_refused(case, limits, message):
    config, tensors = checkpoint(case)
    with pytest.raises(_core.InvalidArgument, match=message):
        decoder(config, tensors, **limits)


def test_a_step_beyond_the_limits_is_refused_and_the_next_one_runs():
    config, tensors = checkpoint()
    paged = PagedModel(config, tensors, max_positions=20)
    with pytest.raises(_core.InvalidArgument, match="at most 20 tokens, got 21"):
        paged.step({0: [1] * 21})
    with pytest.raises(_core.InvalidArgument, match="at most 512 tokens, got 540"):
        paged.step({name: [1] * 18 for name in range(30)})
    fresh = PagedModel(config, tensors)
    expected = fresh.step({"a": [3, 4]})["a"]
    np.testing.assert_array_equal(paged.step({"a": [3, 4]})["a"], expected)


def test_a_cache_of_another_model_is_refused():
    config, tensors = checkpoint()
    paged = PagedModel(config, tensors)
    paged.cache = paged.cache[:, :1].copy()
    with pytest.raises(_core.InvalidArgument, match="must have 2 layers of 2 heads of 64, got 1"):
        paged.step({0: [1]})
