"""Reads a Hugging Face config.json into a ModelConfig, by the defaults of each architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from pagedcore._core import (
    Activation,
    InvalidArgument,
    ModelConfig,
    NormKind,
    PositionKind,
    RopeScalingKind,
    supported_architectures,
)

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "relu": Activation.RELU,
}

_ROPE_KINDS = {
    "default": RopeScalingKind.NONE,
    "linear": RopeScalingKind.LINEAR,
    "dynamic": RopeScalingKind.DYNAMIC,
    "yarn": RopeScalingKind.YARN,
    "llama3": RopeScalingKind.LLAMA3,
}

_REQUIRED = object()


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """The model that a config.json describes.

    Both spellings of rotary embeddings are read: `rope_theta` with `rope_scaling`, and the
    `rope_parameters` of transformers 5.

    Args:
        config: The object that config.json holds.

    Returns:
        A validated configuration.

    Raises:
        InvalidArgument: The architecture is unknown, a key that it needs is missing, or a value is
            malformed or not supported; the message names the key and the architecture.
    """
    result = ModelConfig()
    result.architecture = _architecture(config)
    keys = _Keys(config, result.architecture)
    _READERS[result.architecture](keys, result)
    result.validate()
    return result


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise InvalidArgument(
            f"config.json must name its architecture in 'architectures', got {names!r}"
        )
    if names[0] not in _READERS:
        known = ", ".join(supported_architectures())
        raise InvalidArgument(f"architecture {names[0]!r} is not supported; supported are {known}")
    return str(names[0])


class _Keys:
    """A config.json whose values are checked as they are read."""

    def __init__(self, config: Mapping[str, Any], architecture: str, path: str = "") -> None:
        self.architecture = architecture
        self._config = config
        self._path = path  # of the object inside config.json: "rope_scaling."

    def integer(self, *names: str, default: Any = _REQUIRED) -> int:
        return int(self._read(names, default, lambda v: type(v) is int, "an integer"))

    def number(self, *names: str, default: Any = _REQUIRED) -> float:
        return float(self._read(names, default, lambda v: type(v) in (int, float), "a number"))

    def flag(self, name: str, default: bool) -> bool:
        return bool(self._read((name,), default, lambda v: type(v) is bool, "true or false"))

    def activation(self, name: str, default: str) -> Activation:
        value = self._read((name,), default, lambda v: isinstance(v, str), "a string")
        if value not in _ACTIVATIONS:
            self.fail(f"{name} must be one of {', '.join(_ACTIVATIONS)}, got {value!r}")
        return _ACTIVATIONS[value]

    def get(self, name: str) -> Any:
        return self._config.get(name)

    def is_null(self, name: str) -> bool:
        return name in self._config and self._config[name] is None

    def fail(self, message: str) -> NoReturn:
        raise InvalidArgument(f"config.json of {self.architecture}: {self._path}{message}")

    def inside(self, name: str) -> _Keys:
        """The keys of an object in this one; none where it is missing or null."""
        values = self._config.get(name)
        if values is not None and not isinstance(values, Mapping):
            self.fail(f"{name} must be an object or null, got {values!r}")
        return _Keys(values or {}, self.architecture, f"{self._path}{name}.")

    def _read(
        self, names: tuple[str, ...], default: Any, valid: Callable[[Any], bool], kind: str
    ) -> Any:
        """The first of `names` that is there and not null."""
        for name in names:
            value = self._config.get(name)
            if value is None:
                continue
            if not valid(value):
                self.fail(f"{name} must be {kind}, got {value!r}")
            return value
        if default is _REQUIRED:
            self.fail(f"{names[0]} is missing")
        return default


def _read_sizes(keys: _Keys, result: ModelConfig) -> None:
    result.vocab_size = keys.integer("vocab_size")
    result.hidden_size = result.embedding_size = keys.integer("hidden_size", "n_embd")
    result.num_layers = keys.integer("num_hidden_layers", "n_layer")
    result.num_heads = result.num_kv_heads = keys.integer("num_attention_heads", "n_head")
    result.max_position_embeddings = keys.integer("max_position_embeddings", "n_positions")
    if result.num_heads < 1:
        keys.fail(f"num_attention_heads must be at least 1, got {result.num_heads}")


def _even_head_dim(keys: _Keys, result: ModelConfig) -> int:
    if result.hidden_size % result.num_heads != 0:
        keys.fail(
            f"hidden_size must be a multiple of num_attention_heads ({result.num_heads}), "
            f"got {result.hidden_size}"
        )
    return result.hidden_size // result.num_heads


def _read_llama_like(keys: _Keys, result: ModelConfig) -> None:
    _read_sizes(keys, result)
    result.intermediate_size = keys.integer("intermediate_size")
    # Llama's checkpoints from before grouped queries have no such key; the others' defaults in
    # transformers are those of one model, so that a missing key there is a mistake.
    if keys.architecture == "LlamaForCausalLM" or keys.is_null("num_key_value_heads"):
        result.num_kv_heads = keys.integer("num_key_value_heads", default=result.num_heads)
    else:
        result.num_kv_heads = keys.integer("num_key_value_heads")
    if keys.architecture == "Qwen3ForCausalLM":
        result.head_dim = keys.integer("head_dim", default=128)
    else:
        result.head_dim = keys.integer("head_dim", default=0) or _even_head_dim(keys, result)
    result.norm = NormKind.RMS
    result.norm_epsilon = keys.number("rms_norm_eps", default=1e-6)
    result.activation = keys.activation("hidden_act", "silu")
    result.gated_mlp = True
    result.tied_embeddings = keys.flag("tie_word_embeddings", False)
    _read_rope(keys, result)


def _read_llama(keys: _Keys, result: ModelConfig) -> None:
    _read_llama_like(keys, result)
    result.qkv_bias = result.output_bias = keys.flag("attention_bias", False)
    result.mlp_bias = keys.flag("mlp_bias", False)


def _read_mistral(keys: _Keys, result: ModelConfig) -> None:
    _read_llama_like(keys, result)
    if keys.get("layer_types") is not None:
        keys.fail("layer_types is not supported; every layer of this architecture is alike")
    if not keys.is_null("sliding_window"):
        result.sliding_window = keys.integer("sliding_window", default=4096)


def _read_qwen2(keys: _Keys, result: ModelConfig) -> None:
    _read_llama_like(keys, result)
    _read_qwen_window(keys, result)
    result.qkv_bias = True


def _read_qwen3(keys: _Keys, result: ModelConfig) -> None:
    _read_llama_like(keys, result)
    _read_qwen_window(keys, result)
    result.qk_norm = True
    result.qkv_bias = result.output_bias = keys.flag("attention_bias", False)


def _read_qwen_window(keys: _Keys, result: ModelConfig) -> None:
    """Layers from max_window_layers on slide, unless layer_types says which do."""
    if not keys.flag("use_sliding_window", False) or keys.is_null("sliding_window"):
        return
    types = keys.get("layer_types")
    if types is None:
        first = keys.integer("max_window_layers", default=28)
        uses_window = [i >= first for i in range(result.num_layers)]
    else:
        for layer_type in types:
            if layer_type not in ("full_attention", "sliding_attention"):
                keys.fail(
                    "layer_types must hold 'full_attention' or 'sliding_attention', "
                    f"got {layer_type!r}"
                )
        if len(types) != result.num_layers:
            keys.fail(
                f"layer_types must have num_hidden_layers ({result.num_layers}) entries, "
                f"got {len(types)}"
            )
        uses_window = [layer_type == "sliding_attention" for layer_type in types]
    if any(uses_window):
        result.sliding_window = keys.integer("sliding_window", default=4096)
        result.layer_uses_window = uses_window


def _read_rope(keys: _Keys, result: ModelConfig) -> None:
    result.position = PositionKind.ROPE
    rope = keys.inside("rope_parameters" if keys.get("rope_parameters") else "rope_scaling")
    theta = keys.number("rope_theta", default=10000.0)
    result.rope_theta = rope.number("rope_theta", default=theta)
    partial = keys.number("partial_rotary_factor", default=1.0)
    if rope.number("partial_rotary_factor", default=partial) != 1.0:
        keys.fail(f"partial_rotary_factor must be 1, got {partial}")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _ROPE_KINDS:
        rope.fail(f"rope_type must be one of {', '.join(_ROPE_KINDS)}, got {kind!r}")
    if kind != "default":
        _read_rope_scaling(keys, rope, _ROPE_KINDS[kind], result)


def _read_rope_scaling(
    keys: _Keys, rope: _Keys, kind: RopeScalingKind, result: ModelConfig
) -> None:
    scaling = result.rope_scaling
    scaling.kind = kind
    length = result.max_position_embeddings
    if kind in (RopeScalingKind.YARN, RopeScalingKind.LLAMA3):
        # A key outside of the object goes before one inside, as in transformers.
        inside = rope.integer("original_max_position_embeddings", default=length)
        length = keys.integer("original_max_position_embeddings", default=inside)
    scaling.original_max_position_embeddings = length
    if kind == RopeScalingKind.YARN and rope.is_null("factor"):
        scaling.factor = result.max_position_embeddings / max(length, 1)
    else:
        scaling.factor = rope.number("factor")
    if kind == RopeScalingKind.LLAMA3:
        scaling.low_freq_factor = rope.number("low_freq_factor")
        scaling.high_freq_factor = rope.number("high_freq_factor")
    if kind == RopeScalingKind.YARN:
        scaling.beta_fast = rope.number("beta_fast", default=32) or 32
        scaling.beta_slow = rope.number("beta_slow", default=1) or 1
        scaling.attention_factor = rope.number("attention_factor", default=0)
        scaling.mscale = rope.number("mscale", default=0)
        scaling.mscale_all_dim = rope.number("mscale_all_dim", default=0)
        scaling.truncate = rope.flag("truncate", True)


def _read_opt(keys: _Keys, result: ModelConfig) -> None:
    _read_sizes(keys, result)
    result.intermediate_size = keys.integer("ffn_dim")
    result.embedding_size = keys.integer("word_embed_proj_dim", default=result.hidden_size)
    result.head_dim = _even_head_dim(keys, result)
    result.norm = NormKind.LAYER
    result.norm_epsilon = 1e-5
    result.norm_affine = keys.flag("layer_norm_elementwise_affine", True)
    result.norm_after = not keys.flag("do_layer_norm_before", True)
    result.final_norm = not result.norm_after and not keys.flag("_remove_final_layer_norm", False)
    result.position = PositionKind.LEARNED
    result.position_offset = 2  # rows 0 and 1 stood for padding in the training code
    result.activation = keys.activation("activation_function", "relu")
    result.gated_mlp = False
    result.qkv_bias = result.output_bias = result.mlp_bias = keys.flag("enable_bias", True)
    result.tied_embeddings = keys.flag("tie_word_embeddings", True)


def _read_gpt2(keys: _Keys, result: ModelConfig) -> None:
    _read_sizes(keys, result)
    result.intermediate_size = keys.integer("n_inner", default=4 * result.hidden_size)
    result.head_dim = _even_head_dim(keys, result)
    result.norm = NormKind.LAYER
    result.norm_epsilon = keys.number("layer_norm_epsilon", default=1e-5)
    result.position = PositionKind.LEARNED
    result.activation = keys.activation("activation_function", "gelu_new")
    result.gated_mlp = False
    result.qkv_bias = result.output_bias = result.mlp_bias = True
    result.tied_embeddings = keys.flag("tie_word_embeddings", True)
    if not keys.flag("scale_attn_weights", True):
        result.attention_scale = 1.0
    result.attention_scale_by_layer = keys.flag("scale_attn_by_inverse_layer_idx", False)
    if keys.flag("add_cross_attention", False):
        keys.fail("add_cross_attention must be false, got true")


_READERS: dict[str, Callable[[_Keys, ModelConfig], None]] = {
    "GPT2LMHeadModel": _read_gpt2,
    "LlamaForCausalLM": _read_llama,
    "MistralForCausalLM": _read_mistral,
    "OPTForCausalLM": _read_opt,
    "Qwen2ForCausalLM": _read_qwen2,
    "Qwen3ForCausalLM": _read_qwen3,
}
