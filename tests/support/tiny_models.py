"""Random models small enough for a test, and engines over them."""

import copy

import numpy as np

from pagedcore import _core


def tiny_llama(
    vocab_size=97,
    hidden=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    inner=48,
    seed=0,
    positions=512,
):
    """A Llama's (ModelConfig, Weights); its logits spread enough that greedy outputs vary."""
    config = _core.ModelConfig()
    config.architecture = "LlamaForCausalLM"
    config.vocab_size, config.hidden_size, config.intermediate_size = vocab_size, hidden, inner
    config.num_layers, config.num_heads, config.num_kv_heads = layers, heads, kv_heads
    config.head_dim, config.embedding_size = head_dim, hidden
    config.max_position_embeddings = positions
    rng = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": (vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab_size, hidden),
    }
    for i in range(layers):
        prefix = f"model.layers.{i}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (heads * head_dim, hidden),
            prefix + "self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            prefix + "self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, heads * head_dim),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    tensors = {}
    for name, shape in shapes.items():
        scale = 1.0 if len(shape) == 1 else 2.0 / np.sqrt(shape[1])
        array = rng.standard_normal(shape) * scale + (len(shape) == 1)
        array = np.ascontiguousarray(array, np.float32)
        tensors[name] = (array.ctypes.data, "float32", list(shape), array)
    return config, _core.Weights(tensors)


def quantized(model, dtype, group_size=32):
    """The same model with its matrices rounded."""
    config, weights = model
    return config, _core.quantize_weights(config, weights, dtype, group_size)


def make_engine(model=None, *, num_threads=1, isa="", **config):
    """An engine over a tiny model."""
    model_config, weights = model or tiny_llama()
    backend = _core.make_cpu_backend(num_threads=num_threads, isa=isa)
    return _core.Engine(model_config, weights, backend, _core.EngineConfig(**config))


class Output:
    """What one sequence of a request came to."""

    def __init__(self):
        self.tokens, self.logprobs, self.reason, self.update = [], [], None, None
        self.prompt_logprobs = None

    def __repr__(self):
        return f"Output({self.tokens}, {self.reason})"


def run(engine, outputs=None, *, max_steps=100000, verify=True):
    """Steps until all is done; gives {(request_id, index): Output}."""
    outputs = {} if outputs is None else outputs
    for _ in range(max_steps):
        if not engine.has_unfinished():
            return outputs
        collect(outputs, engine.step())
        if verify:
            assert engine.verify() == []
    raise AssertionError(f"not done after {max_steps} steps")


def collect(outputs, updates):
    for update in updates:
        output = outputs.setdefault((update.request_id, update.index), Output())
        assert output.reason is None, "an update after the last one"
        output.tokens += update.new_tokens
        output.logprobs += update.logprobs or []
        output.prompt_logprobs = output.prompt_logprobs or update.prompt_logprobs
        output.reason, output.update = update.finish_reason, update


def results(outputs, request):
    """All that a request reported, of each of its sequences."""
    return {
        index: (
            o.tokens,
            o.logprobs,
            o.prompt_logprobs,
            o.reason,
            o.update.cumulative_logprob,
            o.update.score,
        )
        for (owner, index), o in outputs.items()
        if owner == request
    }


def clone(output):
    """What a sequence had come to, to be gone on with apart."""
    other = copy.copy(output)
    other.tokens, other.logprobs = output.tokens[:], output.logprobs[:]
    return other


def generate(engine, prompts, params):
    """Tokens of the first sequence of each request."""
    params = params if isinstance(params, list) else [params] * len(prompts)
    ids = [engine.add_request(p, q) for p, q in zip(prompts, params)]
    outputs = run(engine)
    return [outputs[i, 0].tokens for i in ids]
