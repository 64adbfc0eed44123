"""Bad input is refused alone, with what is wrong, and the engine goes on working."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.served import GREEDY, PROMPTS, assert_idle, one

from pagedcore import LLM, SHIPPED_MODEL, InvalidArgument, QueueFull, SamplingParams


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", r"prompts\[0\] is empty; a prompt must have at least one token"),
        ([[]], r"prompts\[0\] is empty"),
        ("half a \ud83d pair", r"text must be valid Unicode, it holds '\\ud83d' at place 7"),
        ([PROMPTS[0], ""], r"prompts\[1\] is empty"),
        ([[1, 2, 99999]], r"prompts\[0\] holds token id 99999; ids must be from 0 to 2047"),
        ([[1, -3]], r"prompts\[0\] holds token id -3; ids must be from 0 to"),
        ([2**40], r"prompts\[0\] holds token id 1099511627776"),
        ([[1, 2.5]], r"prompts\[0\] must be a text or a list of token ids, it holds 2\.5"),
        ([["a", "b"]], r"prompts\[0\] must be a text or a list of token ids, it holds 'a'"),
        (5, "prompts must be a text, a list of token ids or a list of either, got 5"),
        (None, "prompts must be a text, a list of token ids or a list of either, got None"),
        ([np.array(3)], r"prompts\[0\] must be a text or a list of token ids, got array\(3\)"),
        (
            [[5] * 1025],
            r"prompts\[0\]: prompt must be shorter than max_model_len \(1024\).*got 1025",
        ),
    ],
)
def test_a_bad_prompt_is_refused(llm, prompts, message):
    with pytest.raises(InvalidArgument, match=message):
        llm.generate(prompts, GREEDY, use_tqdm=False)


def test_a_stream_of_what_is_no_prompt_is_refused(llm):
    with pytest.raises(InvalidArgument, match=r"prompts\[0\] must be a text or a list .* got 5"):
        llm.stream(5)


def test_a_stream_takes_its_parameters_in_a_list_of_one(llm):
    assert "".join(llm.stream(PROMPTS[0], [GREEDY])) == "".join(llm.stream(PROMPTS[0], GREEDY))


@pytest.mark.parametrize("name", ["tenant", "cache_salt"])
def test_half_a_surrogate_pair_in_a_name_is_refused(llm, name):
    with pytest.raises(InvalidArgument, match=rf"{name} must be valid Unicode, got"):
        llm.generate(PROMPTS[0], GREEDY, use_tqdm=False, **{name: "\ud83d"})


@pytest.mark.parametrize("quota", ["5", 5.5, 2**40, None])
def test_a_quota_that_is_no_number_of_blocks_is_refused(llm, quota):
    with pytest.raises(InvalidArgument, match="num_blocks must be"):
        llm.set_tenant_quota("guests", quota)


def test_a_conversation_that_is_no_list_is_refused(llm):
    with pytest.raises(InvalidArgument, match="messages must be a list like .* got 5"):
        llm.chat(5)


def test_one_bad_prompt_starts_none_of_its_batch(llm):
    with pytest.raises(InvalidArgument, match=r"prompts\[1\]"):
        llm.generate([PROMPTS[0], [5] * 1025], GREEDY, use_tqdm=False)
    assert_idle(llm)


def test_a_request_that_can_never_fit_is_refused_at_once_with_the_numbers():
    small = LLM(SHIPPED_MODEL, num_blocks=4, num_threads=1)
    with pytest.raises(InvalidArgument, match=r"prompts\[0\]: .*\b4\b"):
        small.generate([[5] * 200], GREEDY, use_tqdm=False)
    assert len(one(small, PROMPTS[0], max_tokens=8).outputs[0].token_ids) == 8
    assert_idle(small)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", float("nan"), "temperature must be a finite number of at least 0, got nan"),
        ("temperature", -1, "temperature must be a finite number of at least 0, got -1"),
        ("temperature", "hot", "temperature must be a number, got 'hot'"),
        ("top_p", 0, "top_p must be above 0 and at most 1, got 0"),
        ("top_p", 1.5, "top_p must be above 0 and at most 1, got 1.5"),
        ("top_k", -2, "top_k must be at least 1, or 0 or -1"),
        ("top_k", 2.5, "top_k must be a whole number, got 2.5"),
        ("top_k", 2**31, "top_k must be from -2147483648 to 2147483647"),
        ("min_p", 2, "min_p must be from 0 to 1, got 2"),
        ("n", 0, "n must be at least 1, got 0"),
        ("n", True, "n must be a whole number, got True"),
        ("best_of", 1.0, "best_of must be a whole number"),
        ("seed", "x", "seed must be a whole number, got 'x'"),
        ("max_tokens", 0, "max_tokens must be at least 1, got 0"),
        ("min_tokens", -1, "min_tokens must be at least 0, got -1"),
        ("min_tokens", 17, r"min_tokens must be at most max_tokens \(16\), got 17"),
        ("stop", 5, "stop must be a non-empty string or a list of them, got 5"),
        ("stop", [""], r"stop must be a non-empty string or a list of them, got \[''\]"),
        ("stop", b"x", "stop must be a non-empty string or a list of them, got b'x'"),
        ("stop_token_ids", [-1], "stop_token_ids must hold token ids from 0 to"),
        ("stop_token_ids", "abc", "stop_token_ids must be a list of token ids, got 'abc'"),
        ("ignore_eos", 1, "ignore_eos must be True or False, got 1"),
        ("logprobs", -2, "logprobs must be -1"),
        ("presence_penalty", 3, "presence_penalty must be from -2 to 2, got 3"),
        ("repetition_penalty", 0, "repetition_penalty must be a finite number above 0, got 0"),
        ("logit_bias", [1], r"logit_bias must map token ids to numbers, got \[1\]"),
        ("logit_bias", {1: float("inf")}, "logit_bias must be finite, got inf for token 1"),
        ("early_stopping", "soon", "early_stopping must be True, False or \"never\", got 'soon'"),
    ],
)
def test_a_bad_parameter_is_refused_when_it_is_written(field, value, message):
    with pytest.raises(InvalidArgument, match=message):
        SamplingParams(**{field: value})


def test_parameters_are_frozen_and_print_what_was_changed():
    params = SamplingParams(temperature=0.5, stop="x")
    assert repr(params) == "SamplingParams(temperature=0.5, stop='x')"
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0
    assert params == SamplingParams(temperature=0.5, stop="x")


def test_parameters_beyond_the_vocabulary_are_refused_by_the_model(llm):
    with pytest.raises(InvalidArgument, match=r"prompts\[0\]: stop_token_ids must hold .* 2047"):
        one(llm, PROMPTS[0], stop_token_ids=[5000])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be .*got 0"),
        ({"block_size": 24}, "block_size must be a power of two.*got 24"),
        ({"block_size": "x"}, "block_size has the wrong type or range, got 'x'"),
        ({"kv_cache_bytes": -1}, "kv_cache_bytes must be .*got -1"),
        ({"kv_cache_bytes": 100}, "kv_cache_bytes must be .*100"),
        ({"num_blocks": 8, "kv_cache_bytes": 10**6}, "kv_cache_bytes.*num_blocks"),
        ({"max_num_seqs": 0}, "max_num_seqs must be .*got 0"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be .*got 0"),
        ({"max_model_len": -1}, "max_model_len must be .*-1"),
        ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
        ({"device": "tpu"}, 'device must be "auto", "cpu", "cuda" or "cuda:N", got \'tpu\''),
        ({"dtype": "int3"}, "dtype must be one of auto, float32, .*got 'int3'"),
        ({"preemption_mode": "never"}, "preemption_mode must be .*never"),
        ({"isa": "sse2"}, "isa .*sse2"),
    ],
)
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        LLM(SHIPPED_MODEL, **{"num_blocks": None, **options})


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="blocksize"):
        LLM(SHIPPED_MODEL, blocksize=16)
    with pytest.raises(TypeError, match="blocksize"):
        LLM.from_tensors({}, {}, blocksize=16)


def test_a_full_queue_refuses_with_an_error_of_its_own():
    llm = LLM(SHIPPED_MODEL, num_blocks=64, num_threads=1, max_waiting=2)
    with pytest.raises(QueueFull):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert_idle(llm)
    assert len(llm.generate(PROMPTS[:2], GREEDY, use_tqdm=False)) == 2


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def test_an_unknown_architecture_is_refused_with_those_that_are_known(folder):
    change_config(folder, architectures=["MambaForCausalLM"])
    with pytest.raises(InvalidArgument, match=r"'MambaForCausalLM' is not supported.*LlamaForC"):
        LLM(folder)


def test_a_config_without_a_needed_key_is_refused(folder):
    change_config(folder, hidden_size=None)
    with pytest.raises(InvalidArgument, match=r"hidden_size"):
        LLM(folder)


def test_a_missing_tensor_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InvalidArgument, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        LLM(folder)


def test_a_mis_shaped_tensor_is_named_with_both_shapes(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InvalidArgument, match=r"model\.norm\.weight.*192.*191|.*191.*192"):
        LLM(folder)


def test_a_tensor_of_a_wrong_dtype_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(192, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InvalidArgument, match=r"model\.norm\.weight.*int32"):
        LLM(folder)


def test_a_model_without_tokenizer_takes_tokens_but_no_text(folder, llm):
    (folder / "tokenizer.json").unlink()
    bare = LLM(folder, num_blocks=64, num_threads=1)
    for call in (
        lambda: bare.generate("Once"),
        lambda: bare.stream([1, 2]),
        lambda: bare.generate([[5]], SamplingParams(stop="x")),
    ):
        with pytest.raises(InvalidArgument, match=r"no tokenizer\.json, so it takes no text; pass"):
            call()
    (ids,) = llm.tokenizer.encode(PROMPTS[:1])
    (output,) = bare.generate(ids, GREEDY, use_tqdm=False)
    assert output.outputs[0].token_ids == one(llm, ids, max_tokens=24).outputs[0].token_ids


def test_a_model_without_chat_template_says_so(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArgument, match="has no chat template .*use generate"):
        LLM(folder, num_blocks=64).chat([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("messages", [[], "hi", {"role": "user", "content": "x"}, [[]]])
def test_messages_must_be_a_conversation(llm, messages):
    with pytest.raises(InvalidArgument, match="messages must be a list like"):
        llm.chat(messages)


def test_a_stream_needs_one_prompt_and_one_sequence(llm):
    with pytest.raises(InvalidArgument, match="n must be 1 to stream, got 2"):
        llm.stream("x", SamplingParams(n=2))
    with pytest.raises(InvalidArgument, match="either prompt or messages"):
        llm.stream()
