"""Weights of 8 and 4 bits: rounded at load, or read from GPTQ and AWQ checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import models
from support.paged_model import PagedModel, weights
from support.quantized import per_output, stored_numbers

from pagedcore import LLM, SHIPPED_MODEL, InvalidArgument, SamplingParams, _core
from pagedcore.checkpoint import checkpoint_from_tensors, load_checkpoint
from pagedcore.cli import main
from pagedcore.config import model_config
from pagedcore.quantization import make_weights

GREEDY = SamplingParams(temperature=0, max_tokens=12)
OPTIONS = {"num_blocks": 64, "num_threads": 2}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def logits_of(config, checkpoint_weights, prompts):
    """One array [length, vocab] a prompt; KV and what flows between ops in float32."""
    model = PagedModel(config, checkpoint_weights, num_blocks=64)
    rows = model.step(dict(enumerate(prompts)))
    return np.concatenate([rows[i] for i in range(len(prompts))])


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def is_matrix(name, tensor):
    return tensor.ndim == 2 and not any(part in name for part in ("emb", "wte", "wpe"))


# Rounded at load


def rounded(matrix, dtype, group_size, transposed):
    """The matrix that the kernels see, and the sum of squares of the most that rounding may err."""
    rows = matrix.T if transposed else matrix
    size = group_size
    while rows.shape[1] % size:
        size //= 2
    if size < 32:
        return matrix, 0.0
    array = np.ascontiguousarray(rows.numpy())
    data, scales = _core.ops.quantize_weight(array, dtype, size)
    steps = np.repeat(per_output(scales, len(array)), size, axis=0).T
    numbers = stored_numbers(data, dtype, len(array))
    seen = torch.from_numpy((numbers * steps).astype(np.float32))
    bound = steps * (0.5 if dtype == "int8" else 1.0)  # int4 has no 8
    return (seen.T if transposed else seen), float((bound**2).sum())


@pytest.mark.parametrize("dtype,group_size", [("int8", 32), ("int8", 128), ("int4", 32)])
@pytest.mark.parametrize(
    "case",
    [
        "llama_grouped_queries",
        "llama_head_80_biases_tied",
        "mistral_window",
        "qwen2_tied",
        "qwen3",
        "opt_norm_after_with_projections",
        "gpt2",
    ],
)
def test_rounded_models_of_every_family_err_as_their_scales_allow(case, dtype, group_size):
    config = models.CASES[case]()
    model = models.build(config)
    described = models.config_json(config)
    tensors = dict(model.state_dict())
    quantized = _core.quantize_weights(
        model_config(described), weights(tensors), dtype, group_size, 1
    )
    prompts = models.prompts(config.vocab_size, (1, 9, 30))
    found = logits_of(described, quantized, prompts)
    plain = np.concatenate(models.all_logits(model, prompts))

    tied, worst = config.tie_word_embeddings, 0.0
    for name, parameter in model.named_parameters():
        if not is_matrix(name, parameter):
            continue
        kind = "int8" if "lm_head" in name else dtype
        seen, squares = rounded(parameter.data, kind, group_size, case == "gpt2")
        worst += np.sqrt(squares) / np.linalg.norm(parameter.data.numpy())
        parameter.data = seen
    if tied:
        head, squares = rounded(model.lm_head.weight.data, "int8", group_size, False)
        worst += np.sqrt(squares) / np.linalg.norm(head.numpy())
        model.lm_head.weight = torch.nn.Parameter(head)
    exact = np.concatenate(models.all_logits(model, prompts))
    # Beside the rounded weights only x is rounded, to 1/127 of a group's largest: about half a
    # percent an op, and errors of about ten ops add like noise.
    assert relative_error(found, exact) < 0.04
    assert relative_error(exact, plain) < worst
    assert relative_error(found, plain) < worst + 0.04


def test_every_matrix_is_rounded_and_nothing_else():
    described = json.loads((SHIPPED_MODEL / "config.json").read_text())
    tensors = load_file(SHIPPED_MODEL / "model.safetensors")
    config = model_config(described)
    for dtype in ("int8", "int4"):
        shapes = _core.quantize_weights(config, weights(tensors), dtype).describe()
        plan = _core.plan_quantized_weights(config, weights(tensors), dtype).describe()
        assert shapes == plan
        for name, (kind, shape) in shapes.items():
            if name.endswith(".scales"):
                blocks, units, lanes, inputs = shapes[name.removesuffix(".scales")][1]
                assert (kind, shape) == ("float32", [blocks, units * inputs // 32, lanes])
            elif name == "lm_head.weight":
                assert kind == "int8"
            elif name.endswith("proj.weight"):
                outputs, inputs = tensors[name].shape
                n = 4 if dtype == "int8" else 8
                assert (kind, shape) == (dtype, [-(-outputs // 16), inputs // n, 16, n])
            else:
                assert kind == str(tensors[name].dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_bytes_are_those_foretold(dtype, capsys):
    llm = LLM(SHIPPED_MODEL, quantization=dtype, quantization_group_size=64, **OPTIONS)
    arguments = ["--quantization", dtype, "--quantization-group-size", "64", "--json"]
    assert main(["info", *arguments]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["memory"]["weights_bytes"] == llm.engine.memory_plan.weights_bytes
    assert facts["model"]["parameters"] == LLM(SHIPPED_MODEL, **OPTIONS).num_weights
    assert dtype in facts["model"]["dtype"]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_rounded_model_writes_readable_text(dtype):
    plain = LLM(SHIPPED_MODEL, **OPTIONS)
    llm = LLM(SHIPPED_MODEL, quantization=dtype, **OPTIONS)
    prompt = "Once upon a time, there was a little fox."
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

    def loss(model):
        (output,) = model.generate(prompt, params, use_tqdm=False)
        entries = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:])
        return -np.mean([place[token].logprob for token, place in entries])

    assert abs(loss(llm) - loss(plain)) < (0.02 if dtype == "int8" else 0.3)
    assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].outputs[0].text


def test_pages_of_the_file_are_let_go_while_rounding(tmp_path):
    config = models.llama(hidden_size=512, intermediate_size=2048, num_hidden_layers=4)
    models.build(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    tensor = next(iter(checkpoint.tensors.values()))
    np.sum(np.asarray(tensor.owner)[::4096])  # brings all pages of the file in

    def resident():
        pages, wanted = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                wanted = str(tmp_path) in line
            elif wanted and line.startswith("Rss:"):
                pages += int(line.split()[1])
        return pages / 1024

    before = resident()
    make_weights(model_config(checkpoint.config), checkpoint, "int4")
    assert before > 20
    assert resident() < 0.1 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int3"}, "quantization must be None, int8 or int4, got 'int3'"),
        (
            {"quantization": "int8", "quantization_group_size": 48},
            "quantization_group_size must be a power of two from 32 to 1024, got 48",
        ),
        ({"quantization_group_size": 64}, "needs quantization, got 64 without it"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        LLM(SHIPPED_MODEL, **options)


# GPTQ and AWQ: written here as their formats say, number by number


def pack(numbers, bits, axis, order=None):
    """int32 of 32 / bits numbers each along an axis, the first in the low bits."""
    count = 32 // bits
    moved = np.moveaxis(numbers, axis, -1).astype(np.uint64)
    groups = moved.reshape(*moved.shape[:-1], -1, count)
    if order is not None:
        groups = groups[..., order]
    packed = np.zeros(groups.shape[:-1], np.uint64)
    for i in range(count):
        packed |= groups[..., i] << np.uint64(bits * i)
    return np.ascontiguousarray(np.moveaxis(packed, -1, axis).astype(np.uint32).view(np.int32))


def quantize_as(weight, scheme, rng):
    """(tensors by part, the matrix [out, in] that they mean) of a weight [out, in]."""
    bits, asked, kind = scheme["bits"], scheme["group_size"], scheme["kind"]
    outputs, inputs = weight.shape
    size = inputs if asked == -1 else asked
    order = rng.permutation(inputs) if scheme.get("act_order") else np.arange(inputs)
    g_idx = np.empty(inputs, np.int32)
    g_idx[order] = np.arange(inputs) // size
    groups = inputs // size
    columns = weight.T  # [in, out]
    scales = np.empty((groups, outputs), np.float16)
    zeros = np.empty((groups, outputs), np.int64)
    most = 2**bits - 1
    for g in range(groups):
        part = columns[g_idx == g]
        if scheme["sym"]:
            scales[g] = np.abs(part).max(0) * 2 / most
            zeros[g] = 2 ** (bits - 1)
        else:
            low, high = np.minimum(part.min(0), 0), np.maximum(part.max(0), 0)
            scales[g] = (high - low) / most
            # The first GPTQ format stores zero points less 1, so none is 0.
            zeros[g] = np.clip(np.round(-low / scales[g]), 1, most)
    step, zero = scales.astype(np.float32)[g_idx], zeros[g_idx]
    numbers = np.clip(np.round(columns / step) + zero, 0, most).astype(np.int64)
    meant = ((numbers - zero) * step).T
    if kind == "awq":
        parts = {
            "qweight": pack(numbers, bits, 1, AWQ_ORDER),
            "qzeros": pack(zeros, bits, 1, AWQ_ORDER),
        }
    else:
        parts = {
            "qweight": pack(numbers, bits, 0),
            "qzeros": pack(zeros - (1 if kind == "gptq" else 0), bits, 1),
            "g_idx": g_idx,
        }
    return parts | {"scales": scales}, np.ascontiguousarray(meant, np.float32)


def scheme(kind, bits=4, group_size=128, sym=False, act_order=False):
    return {
        "kind": kind,
        "bits": bits,
        "group_size": group_size,
        "sym": sym,
        "act_order": act_order,
    }


SCHEMES = {
    "gptq_sym_128": scheme("gptq", sym=True),
    "gptq_asym_32": scheme("gptq", group_size=32),
    "gptq_act_order_64": scheme("gptq", group_size=64, act_order=True),
    "gptq_columns": scheme("gptq", group_size=-1),
    "gptq_8_bits": scheme("gptq", bits=8, group_size=32),
    "gptq_8_bits_sym_act_order": scheme("gptq", bits=8, sym=True, act_order=True),
    "gptq_v2": scheme("gptq_v2", group_size=128),
    "awq_128": scheme("awq"),
    "awq_32": scheme("awq", group_size=32),
}
CONFIG = {"hidden_size": 256, "intermediate_size": 384, "tie_word_embeddings": False}


def settings(scheme):
    if scheme["kind"] == "awq":
        keys = {"quant_method": "awq", "version": "gemm", "zero_point": True}
    else:
        keys = {"quant_method": "gptq", "desc_act": scheme["act_order"], "sym": scheme["sym"]}
        if scheme["kind"] == "gptq_v2":
            keys["checkpoint_format"] = "gptq_v2"
    return keys | {"bits": scheme["bits"], "group_size": scheme["group_size"]}


def quantized_model(scheme):
    """(config.json, the checkpoint's tensors, a model of the weights that they mean)."""
    config = models.llama(**CONFIG)
    model = models.build(config)
    tensors = {}
    for name, parameter in model.named_parameters():
        if not (is_matrix(name, parameter) and name.startswith("model.layers")):
            tensors[name] = parameter.data
            continue
        layer, part = name.split(".")[2], name.split(".")[-2]
        shared = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2}
        rng = np.random.default_rng([int(layer), shared.get(part, 3)])  # one order for one input
        parts, meant = quantize_as(parameter.data.numpy(), scheme, rng)
        parameter.data = torch.from_numpy(meant)
        for key, array in parts.items():
            tensors[f"{name.removesuffix('.weight')}.{key}"] = torch.from_numpy(array)
    described = models.config_json(config) | {"quantization_config": settings(scheme)}
    return described, tensors, model


def seen_by_kernels(tensors, name, shape):
    """The matrix [out, in] that a repacked one means, in the original order of inputs."""
    data, (outputs, inputs) = tensors[name], shape
    raw = stored_numbers(np.asarray(data.owner), data.dtype, outputs)
    scales = per_output(np.asarray(tensors[f"{name}.scales"].owner), outputs)
    size = inputs // len(scales)
    zeros = tensors.get(f"{name}.zero_points")
    if zeros is not None:
        raw -= np.repeat(per_output(np.asarray(zeros.owner), outputs), size, axis=0).T
    sorted_inputs = raw * np.repeat(scales, size, axis=0).T
    order = tensors.get(f"{name}.x_order")
    if order is None:
        return sorted_inputs
    result = np.empty_like(sorted_inputs)
    result[:, np.asarray(order.owner)] = sorted_inputs
    return result


@pytest.mark.parametrize("name", SCHEMES)
def test_a_published_format_means_the_weights_that_its_numbers_give(name):
    described, tensors, model = quantized_model(SCHEMES[name])
    repacked = checkpoint_from_tensors(described, tensors).tensors
    for key, parameter in model.named_parameters():
        if key.endswith("proj.weight"):
            assert np.array_equal(
                seen_by_kernels(repacked, key, parameter.shape), parameter.data.numpy()
            )
    has_order = any(key.endswith(".x_order") for key in repacked)
    assert has_order == SCHEMES[name]["act_order"]
    assert any(key.endswith(".zero_points") for key in repacked) != SCHEMES[name]["sym"]


@pytest.mark.parametrize("name", SCHEMES)
def test_a_published_format_gives_the_logits_of_its_dequantised_weights(name):
    described, tensors, model = quantized_model(SCHEMES[name])
    prompts = models.prompts(described["vocab_size"], (1, 9, 30))
    checkpoint = checkpoint_from_tensors(described, tensors)
    found = logits_of(described, _core.Weights(checkpoint.tensors), prompts)
    expected = np.concatenate(models.all_logits(model, prompts))
    assert relative_error(found, expected) < 0.04  # x is rounded, see above


@pytest.mark.parametrize("name", ["gptq_act_order_64", "gptq_sym_128", "awq_128"])
@pytest.mark.parametrize("settings_file", [False, True])
def test_a_published_checkpoint_runs_as_it_is(name, settings_file, tmp_path):
    described, tensors, model = quantized_model(SCHEMES[name])
    save_file(tensors, tmp_path / "model.safetensors")
    if settings_file:
        is_awq = name.startswith("awq")
        found = described.pop("quantization_config")
        found.pop("quant_method")
        if is_awq:
            found = {"w_bit": 4, "q_group_size": found["group_size"], "version": "GEMM"}
        file_name = "quant_config.json" if is_awq else "quantize_config.json"
        (tmp_path / file_name).write_text(json.dumps(found))
    (tmp_path / "config.json").write_text(json.dumps(described))
    prompts = models.prompts(described["vocab_size"], (3, 20, 41))
    params = SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=0)
    together = LLM(tmp_path, **OPTIONS).generate(prompts, params, use_tqdm=False)
    alone = LLM(tmp_path, max_num_batched_tokens=7, block_size=8, **OPTIONS)
    for prompt, output in zip(prompts, together):
        (again,) = alone.generate([prompt], params, use_tqdm=False)
        assert again.outputs[0].token_ids == output.outputs[0].token_ids
        assert again.prompt_logprobs == output.prompt_logprobs
        expected = torch.log_softmax(torch.tensor(models.all_logits(model, [prompt])[0]), -1)
        for i, token in enumerate(prompt[1:]):
            difference = output.prompt_logprobs[i + 1][token].logprob - expected[i, token].item()
            assert abs(difference) < 0.2  # 4 % of logits that spread over a few units
    with pytest.raises(InvalidArgument, match="quantised already, got 'int8'"):
        LLM(tmp_path, quantization="int8", **OPTIONS)


def refusal(name="gptq_asym_32", changes=(), tensors=lambda tensors: tensors):
    described, parts, _ = quantized_model(SCHEMES[name])
    described["quantization_config"] |= dict(changes)
    with pytest.raises(InvalidArgument) as error:
        LLM.from_tensors(described, tensors(parts), **OPTIONS)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method must be gptq or awq, got 'bitsandbytes'"),
        ({"bits": 3}, "bits must be 4 or 8 for gptq, got 3"),
        ({"group_size": 16}, "group_size must be -1 or a multiple of 32, got 16"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format must be gptq or gptq_v2"),
        ({"dynamic": {"x": {}}}, "dynamic (other settings for some layers) is not supported"),
        ({"quant_method": "awq", "version": "gemv"}, "version must be gemm for awq, got 'gemv'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_key(changes, message):
    assert message in refusal(changes=changes)


def test_broken_parts_are_refused_by_name():
    q = "model.layers.0.self_attn.q_proj"
    without = {f"{q}.scales"}
    drop = lambda t: {k: v for k, v in t.items() if k not in without}  # noqa: E731
    assert f"tensor {q}.scales is missing; gptq needs it" in refusal(tensors=drop)
    assert f"{q}.scales must have shape [8, 256], got [2, 256]" in refusal(
        tensors=lambda t: t | {f"{q}.scales": t[f"{q}.scales"][:2]}
    )
    assert f"{q}.qweight must be an int32 matrix, got float32" in refusal(
        tensors=lambda t: t | {f"{q}.qweight": t[f"{q}.qweight"].float()}
    )
    assert f"{q}.g_idx must give each group 32 of the 256 inputs" in refusal(
        tensors=lambda t: t | {f"{q}.g_idx": torch.zeros(256, dtype=torch.int32)}
    )
    turned = refusal(
        "gptq_act_order_64",
        tensors=lambda t: t | {f"{q}.g_idx": t[f"{q}.g_idx"].flip(0)},
    )
    assert "must be that of the matrices that read the same inputs" in turned
    none = {k: v for k, v in quantized_model(SCHEMES["awq_128"])[1].items() if "qweight" not in k}
    assert "has no tensor that ends in .qweight" in refusal(tensors=lambda t: none)
