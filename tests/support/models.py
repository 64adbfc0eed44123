"""Small random models of every family, their checkpoints, and transformers' answers."""

import json
import math
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers

torch.set_num_threads(1)  # the models are small, and the machine may be busy

ROPE = {"rope_theta": 10000.0}
LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 503,
    "tie_word_embeddings": False,
}
OPT = {
    "hidden_size": 256,
    "ffn_dim": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "vocab_size": 331,
    "word_embed_proj_dim": 256,
}
GPT2 = {"n_embd": 192, "n_layer": 2, "n_head": 3, "n_positions": 256, "vocab_size": 401}


def llama(**changes):
    return transformers.LlamaConfig(**{**LLAMA, **changes})


def scaled(rope_type, max_position_embeddings=256, **parameters):
    return llama(
        max_position_embeddings=max_position_embeddings,
        rope_parameters={**ROPE, "rope_type": rope_type, **parameters},
    )


# Name to a function that gives the configuration. Sequences of the tests reach 160 tokens.
CASES = {
    "llama_grouped_queries": llama,
    "llama_head_80_biases_tied": lambda: llama(
        hidden_size=320,
        num_key_value_heads=1,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        vocab_size=257,
    ),
    "llama_head_128": lambda: llama(
        num_attention_heads=2, rope_parameters={**ROPE, "rope_theta": 5e5, "rope_type": "default"}
    ),
    "llama_rope_linear": lambda: scaled("linear", factor=3.0),
    "llama_rope_yarn": lambda: scaled("yarn", factor=4.0, original_max_position_embeddings=64),
    "llama_rope_yarn_mscale": lambda: scaled(
        "yarn",
        factor=4.0,
        original_max_position_embeddings=64,
        mscale=0.7,
        mscale_all_dim=0.4,
        beta_fast=16.0,
        beta_slow=2.0,
        truncate=False,
    ),
    "llama_rope_llama3": lambda: scaled(
        "llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
    "mistral_window": lambda: transformers.MistralConfig(
        **{**LLAMA, "hidden_size": 192, "head_dim": 64, "sliding_window": 11, "vocab_size": 509}
    ),
    "mistral_no_window": lambda: transformers.MistralConfig(**{**LLAMA, "sliding_window": None}),
    "qwen2_window_in_late_layers": lambda: transformers.Qwen2Config(
        **{**LLAMA, "use_sliding_window": True, "sliding_window": 13, "max_window_layers": 1}
    ),
    "qwen2_tied": lambda: transformers.Qwen2Config(**{**LLAMA, "tie_word_embeddings": True}),
    "qwen3": lambda: transformers.Qwen3Config(**{**LLAMA, "hidden_size": 128, "head_dim": 128}),
    "opt_norm_before": lambda: transformers.OPTConfig(**OPT),
    "opt_norm_after_with_projections": lambda: transformers.OPTConfig(
        **{**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 72}
    ),
    "opt_projections_no_final_norm_gelu": lambda: transformers.OPTConfig(
        **{
            **OPT,
            "word_embed_proj_dim": 72,
            "_remove_final_layer_norm": True,
            "activation_function": "gelu",
        }
    ),
    "opt_no_bias_plain_norms": lambda: transformers.OPTConfig(
        **{**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False}
    ),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2_scaled_by_layer": lambda: transformers.GPT2Config(
        **{**GPT2, "n_inner": 320, "scale_attn_by_inverse_layer_idx": True}
    ),
}


def build(config, seed=0, dtype=torch.float32):
    """A model with weights large enough that every part of it moves the logits."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if parameter.dim() == 1:
            is_gain = name.endswith("weight")
            parameter.data = 0.2 * noise + (1.0 if is_gain else 0.0)
        elif "emb" in name or "wte" in name or "wpe" in name:
            parameter.data = noise * 2 / math.sqrt(parameter.shape[1])
        else:
            parameter.data = noise * 1.5 / math.sqrt(max(parameter.shape))
    return cast(model.eval(), dtype)


def cast(model, dtype):
    """Converts the parameters in place; the rotary frequencies stay float32, as when loading."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def config_json(config):
    """What save_pretrained writes into config.json."""
    architecture = type(transformers.AutoModelForCausalLM.from_config(config)).__name__
    return {**json.loads(config.to_json_string()), "architectures": [architecture]}


def all_logits(model, sequences):
    """One array [length, vocab] a sequence: the logits after each of its tokens, in float32."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    # Causal: what is right of a token, the filling included, does not reach it.
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits.float().numpy()
    return [logits[row, : len(sequence)] for row, sequence in enumerate(sequences)]


def prompts(vocab_size, lengths, seed=1):
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab_size, n).tolist() for n in lengths]
