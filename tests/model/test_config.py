"""config.json to ModelConfig: defaults, both spellings of rope, windows, and what is refused."""

import pytest
from support import models

from pagedcore._core import (
    Activation,
    InvalidArgument,
    NormKind,
    PositionKind,
    RopeScalingKind,
    supported_architectures,
)
from pagedcore.config import model_config

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
}
OPT = {
    "architectures": ["OPTForCausalLM"],
    "vocab_size": 50272,
    "hidden_size": 1024,
    "ffn_dim": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
}


def of(architecture, **changes):
    return {**LLAMA, "architectures": [architecture], **changes}


def without(config, key):
    return {name: value for name, value in config.items() if name != key}


def test_every_supported_architecture_has_a_case_in_the_parity_tests():
    tested = {models.config_json(case())["architectures"][0] for case in models.CASES.values()}
    assert tested == set(supported_architectures())


def test_llama_sizes_and_defaults():
    config = model_config(LLAMA)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 2, 64)
    assert config.norm == NormKind.RMS
    assert config.activation == Activation.SILU
    assert config.position == PositionKind.ROPE
    assert config.rope_theta == 10000.0
    assert config.gated_mlp
    assert not (config.tied_embeddings or config.qkv_bias or config.mlp_bias or config.qk_norm)
    assert config.sliding_window == 0


def test_llama_without_grouped_queries_has_as_many_kv_heads_as_heads():
    assert model_config(without(LLAMA, "num_key_value_heads")).num_kv_heads == 8


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
    ],
)
def test_both_spellings_of_rope_mean_the_same(rope):
    config = model_config({**LLAMA, **rope})
    assert config.rope_theta == 5e5
    assert config.rope_scaling.kind == RopeScalingKind.LINEAR
    assert config.rope_scaling.factor == 4.0


def test_original_length_of_rope_scaling_falls_back_to_the_length_of_the_model():
    scaling = {"rope_type": "yarn", "factor": 4.0}
    config = model_config({**LLAMA, "rope_scaling": scaling})
    assert config.rope_scaling.original_max_position_embeddings == 4096
    inside = {**scaling, "original_max_position_embeddings": 1024}
    config = model_config({**LLAMA, "rope_scaling": inside})
    assert config.rope_scaling.original_max_position_embeddings == 1024
    config = model_config(
        {**LLAMA, "rope_scaling": inside, "original_max_position_embeddings": 512}
    )
    assert config.rope_scaling.original_max_position_embeddings == 512


def test_mistral_windows_every_layer_and_null_none():
    config = model_config(of("MistralForCausalLM", sliding_window=128))
    assert (config.sliding_window, config.layer_uses_window) == (128, [])
    assert model_config(of("MistralForCausalLM", sliding_window=None)).sliding_window == 0
    assert model_config(of("MistralForCausalLM")).sliding_window == 4096


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_qwen_windows_layers_from_max_window_layers_on_or_those_listed(architecture):
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}
    config = model_config(of(architecture, **window))
    assert config.sliding_window == 64
    assert config.layer_uses_window == [False, False, False, True]
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    config = model_config(of(architecture, **window, layer_types=types))
    assert config.layer_uses_window == [True, False, False, True]
    config = model_config(of(architecture, **{**window, "max_window_layers": 4}))
    assert config.sliding_window == 0
    config = model_config(of(architecture, **{**window, "use_sliding_window": False}))
    assert config.sliding_window == 0


def test_qwen2_has_biases_on_q_k_and_v_and_qwen3_norms_them():
    qwen2 = model_config(of("Qwen2ForCausalLM"))
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = model_config(of("Qwen3ForCausalLM"))
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.qk_norm) == (False, False, True)
    assert qwen3.head_dim == 128


def test_opt_350m_norms_after_the_add_and_projects_its_embeddings():
    config = model_config({**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 512})
    assert config.norm_after
    assert not config.final_norm
    assert (config.hidden_size, config.embedding_size) == (1024, 512)
    assert (config.position, config.position_offset) == (PositionKind.LEARNED, 2)
    assert config.activation == Activation.RELU
    assert config.tied_embeddings


def test_opt_from_before_its_final_norm_was_found_missing_has_none():
    assert model_config(OPT).final_norm
    assert not model_config({**OPT, "_remove_final_layer_norm": True}).final_norm


def test_gpt2_names_its_sizes_in_its_own_way():
    config = model_config(GPT2)
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (768, 3072, 64)
    assert config.activation == Activation.GELU_TANH
    assert config.tied_embeddings
    assert config.qkv_bias and config.output_bias and config.mlp_bias
    assert model_config({**GPT2, "scale_attn_weights": False}).attention_scale == 1.0


@pytest.mark.parametrize(
    ("config", "key"),
    [(LLAMA, key) for key in LLAMA if key.startswith(("vocab", "hidden_s", "inter", "max"))]
    + [(LLAMA, "num_hidden_layers"), (LLAMA, "num_attention_heads")]
    + [(of("MistralForCausalLM"), "num_key_value_heads")]
    + [(OPT, "ffn_dim"), (OPT, "max_position_embeddings"), (GPT2, "vocab_size")],
)
def test_a_missing_key_is_named_with_the_architecture(config, key):
    with pytest.raises(InvalidArgument, match=f"{config['architectures'][0]}.*{key} is missing"):
        model_config(without(config, key))


def test_an_unknown_architecture_is_named_with_those_supported():
    with pytest.raises(InvalidArgument, match=r"'MambaForCausalLM'.*LlamaForCausalLM.*Qwen3") as e:
        model_config({"architectures": ["MambaForCausalLM"]})
    assert all(name in str(e.value) for name in supported_architectures())


@pytest.mark.parametrize("names", [None, [], "LlamaForCausalLM"])
def test_a_config_that_names_no_architecture_is_refused(names):
    with pytest.raises(InvalidArgument, match="architectures"):
        model_config({**LLAMA, "architectures": names})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "hidden_size": "512"}, "hidden_size must be an integer, got '512'"),
        ({**LLAMA, "vocab_size": True}, "vocab_size must be an integer"),
        ({**LLAMA, "rms_norm_eps": "x"}, "rms_norm_eps must be a number"),
        ({**LLAMA, "attention_bias": 1}, "attention_bias must be true or false"),
        ({**LLAMA, "hidden_act": "mish"}, "hidden_act must be one of .*silu.*got 'mish'"),
        ({**LLAMA, "num_key_value_heads": 3}, "multiple of num_kv_heads, got 8 and 3"),
        ({**LLAMA, "num_attention_heads": 7}, "hidden_size must be a multiple"),
        ({**LLAMA, "num_attention_heads": 0}, "num_attention_heads must be at least 1"),
        ({**LLAMA, "num_hidden_layers": 0}, "num_layers must be from 1"),
        ({**LLAMA, "head_dim": 63}, "head_dim must be a multiple of 8"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1, got 0.5"),
        ({**LLAMA, "rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({**LLAMA, "rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({**LLAMA, "rope_scaling": {"type": "longrope"}}, "rope_scaling.rope_type.*'longrope'"),
        (
            {**LLAMA, "rope_parameters": {"rope_type": "llama3", "factor": 8}},
            "rope_parameters.low_freq_factor is missing",
        ),
        (of("MistralForCausalLM", layer_types=["full_attention"]), "layer_types"),
        (
            of("Qwen2ForCausalLM", use_sliding_window=True, layer_types=["x"] * 4),
            "layer_types must hold",
        ),
        (
            of("Qwen2ForCausalLM", use_sliding_window=True, layer_types=["full_attention"]),
            "4.*entries, got 1",
        ),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention must be false"),
    ],
)
def test_a_value_that_is_malformed_or_not_supported_is_named(config, message):
    with pytest.raises(InvalidArgument, match=message):
        model_config(config)
