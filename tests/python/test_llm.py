"""`LLM` on the shipped model: results, text, streams, and every bad input with its message."""

import dataclasses
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pagedcore import LLM, SHIPPED_MODEL, InvalidArgument, QueueFull, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=24)
PROMPTS = ["Once upon a time", "The little fox", "One day, Maya"]


@pytest.fixture(scope="module")
def llm():
    return LLM(SHIPPED_MODEL, num_blocks=256, num_threads=1)


@pytest.fixture
def folder(tmp_path):
    for path in SHIPPED_MODEL.iterdir():
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_lost(request):
    """After every test that used it, the engine is idle, consistent and has all its blocks."""
    yield
    if "llm" in request.fixturenames:
        llm = request.getfixturevalue("llm")
        assert_idle(llm)


def assert_idle(llm):
    assert not llm.engine.has_unfinished()
    assert llm.engine.verify() == []
    stats = llm.engine.stats()
    assert stats.used_blocks == 0
    assert stats.num_running == stats.num_waiting == 0
    assert stats.free_blocks + stats.cached_blocks == stats.num_blocks


def texts(outputs: list[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def one(llm, prompt, **params) -> RequestOutput:
    return llm.generate(prompt, SamplingParams(**{"temperature": 0, **params}), use_tqdm=False)[0]


def test_greedy_text_is_that_of_transformers():
    llm = LLM(SHIPPED_MODEL, dtype="float32", num_blocks=64, num_threads=1)
    model = AutoModelForCausalLM.from_pretrained(SHIPPED_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_MODEL)
    for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, GREEDY, use_tqdm=False)):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected = model.generate(ids, do_sample=False, max_new_tokens=24, top_p=None)[0]
        assert output.prompt_token_ids == ids[0].tolist()
        assert output.outputs[0].token_ids == expected[ids.shape[1] :].tolist()
        whole = tokenizer.decode(expected, skip_special_tokens=True)
        assert output.prompt + output.outputs[0].text == whole


def test_prompts_come_as_text_tokens_or_lists_of_either(llm):
    (ids,) = llm.tokenizer.encode(PROMPTS[:1])
    expected = texts(llm.generate(PROMPTS[0], GREEDY, use_tqdm=False))
    for prompts in (ids, [ids], PROMPTS[:1], np.array(ids), [np.array(ids)], (tuple(ids),)):
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
        assert texts(outputs) == expected
        assert outputs[0].prompt_token_ids == ids
    mixed = llm.generate([PROMPTS[1], ids], GREEDY, use_tqdm=False)
    assert texts(mixed)[1:] == expected
    assert llm.generate([], GREEDY, use_tqdm=False) == []


def test_each_prompt_may_have_parameters_of_its_own(llm):
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 5, 9)]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [1, 5, 9]
    assert [o.outputs[0].finish_reason for o in outputs] == ["length"] * 3
    with pytest.raises(InvalidArgument, match=r"as many as prompts \(3\), got 2"):
        llm.generate(PROMPTS, params[:2])


def test_a_batch_gives_the_texts_that_each_prompt_gives_alone(llm):
    params = [SamplingParams(seed=i, max_tokens=30) for i in range(3)]
    together = llm.generate(PROMPTS, params, use_tqdm=False)
    alone = [llm.generate(p, s, use_tqdm=False)[0] for p, s in zip(PROMPTS, params)]
    assert texts(together) == texts(alone)
    assert len(set(texts(together))) == 3


def test_no_parameters_means_those_that_the_checkpoint_suggests(llm):
    suggested = json.loads((SHIPPED_MODEL / "generation_config.json").read_text())
    assert llm.default_sampling_params.temperature == suggested["temperature"]
    assert llm.default_sampling_params.max_tokens == suggested["max_new_tokens"]


def test_n_sequences_are_returned_in_order(llm):
    params = SamplingParams(n=3, seed=1, max_tokens=12)
    (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert [o.index for o in output.outputs] == [0, 1, 2]
    assert len({tuple(o.token_ids) for o in output.outputs}) == 3


def test_logprobs_name_the_token_taken_and_the_likeliest(llm):
    output = one(llm, PROMPTS[0], max_tokens=4, logprobs=2, prompt_logprobs=1)
    completion = output.outputs[0]
    assert len(completion.logprobs) == 4
    for token, place in zip(completion.token_ids, completion.logprobs):
        assert place[token].rank == 1
        assert place[token].logprob == max(entry.logprob for entry in place.values())
        assert place[token].decoded_token == llm.tokenizer.decode([token])
        assert len(place) == 2
    taken = sum(p[t].logprob for t, p in zip(completion.token_ids, completion.logprobs))
    assert completion.cumulative_logprob == pytest.approx(taken, abs=1e-5)
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token, place in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:]):
        assert token in place
    assert one(llm, PROMPTS[0], max_tokens=1).outputs[0].logprobs is None


def test_metrics_tell_time_and_cached_tokens(llm):
    one(llm, PROMPTS[0] * 8, max_tokens=2)
    metrics = one(llm, PROMPTS[0] * 8, max_tokens=2).metrics
    assert 0 <= metrics.queue_us <= metrics.first_token_us <= metrics.total_us
    assert metrics.num_cached_tokens > 0


# Stopping


def test_a_stop_string_across_token_borders_ends_the_text_before_it(llm):
    whole = one(llm, PROMPTS[0], max_tokens=24).outputs[0]
    stop = whole.text[9:16]
    cut = one(llm, PROMPTS[0], max_tokens=24, stop=["never in it", stop]).outputs[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert stop in llm.tokenizer.decode(cut.token_ids)
    assert stop not in llm.tokenizer.decode(cut.token_ids[:-1])
    included = one(llm, PROMPTS[0], max_tokens=24, stop=stop, include_stop_str_in_output=True)
    assert included.outputs[0].text == cut.text + stop


def test_a_stop_string_ends_only_its_own_sequence_of_a_group(llm):
    params = SamplingParams(n=3, seed=5, max_tokens=20)
    (whole,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    stop = whole.outputs[1].text[10:18]
    (cut,) = llm.generate(PROMPTS[0], dataclasses.replace(params, stop=stop), use_tqdm=False)
    for before, after in zip(whole.outputs, cut.outputs):
        assert after.text == before.text.split(stop)[0]
    assert cut.outputs[1].stop_reason == stop


def test_stop_tokens_and_the_end_of_text(llm):
    whole = one(llm, PROMPTS[0], max_tokens=24).outputs[0]
    token = whole.token_ids[6]
    cut = one(llm, PROMPTS[0], max_tokens=24, stop_token_ids=[token]).outputs[0]
    first = whole.token_ids.index(token)
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", token)
    assert (
        cut.text
        == llm.tokenizer.decode([*llm.tokenizer.encode(PROMPTS[:1])[0], *cut.token_ids[:-1]])[
            len(PROMPTS[0]) :
        ]
    )
    ended = one(llm, PROMPTS[0], max_tokens=600).outputs[0]
    if ended.finish_reason == "stop":
        assert ended.stop_reason is None
        assert ended.token_ids[-1] == llm.tokenizer.token_id("<|end|>")
        assert "<|end|>" not in ended.text
        longer = one(llm, PROMPTS[0], max_tokens=len(ended.token_ids) + 5, ignore_eos=True)
        assert len(longer.outputs[0].token_ids) == len(ended.token_ids) + 5


# Streams


def test_a_stream_yields_the_text_of_generate(llm):
    pieces = list(llm.stream(PROMPTS[0], GREEDY))
    assert len(pieces) > 5
    assert "".join(pieces) == texts(llm.generate(PROMPTS[0], GREEDY, use_tqdm=False))[0]


def test_a_stream_shows_no_beginning_of_a_stop_string(llm):
    whole = texts(llm.generate(PROMPTS[0], GREEDY, use_tqdm=False))[0]
    stop = whole[12:20]
    params = dataclasses.replace(GREEDY, stop=stop)
    assert "".join(llm.stream(PROMPTS[0], params)) == whole[: whole.index(stop)]


def test_closing_a_stream_ends_its_request(llm):
    stream = llm.stream(PROMPTS[0], SamplingParams(max_tokens=500))
    next(stream)
    stream.close()
    assert_idle(llm)
    assert stream.request.result().outputs[0].finish_reason == "abort"
    llm.stream(PROMPTS[0], SamplingParams(max_tokens=500))  # dropped without being read
    assert_idle(llm)


def test_streams_and_batches_interleave(llm):
    expected = texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS[:2]]
    begun = [next(stream) for stream in streams]
    assert texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == expected
    assert [b + "".join(stream) for b, stream in zip(begun, streams)] == expected[:2]


def test_several_threads_may_generate_at_once(llm):
    expected = texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    found = {}

    def work(i):
        found[i] = texts(llm.generate(PROMPTS[i], GREEDY, use_tqdm=False))[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(3)] == expected


# Chat


def test_chat_uses_the_template_of_the_checkpoint(llm):
    talk = [{"role": "user", "content": "Tell me about a fox."}]
    prompt = llm.chat_prompt(talk)
    assert prompt.endswith("<|assistant|>")
    (output,) = llm.chat(talk, GREEDY, use_tqdm=False)
    assert output.prompt == prompt
    (ids,) = llm.tokenizer.encode([prompt], add_special_tokens=False)
    assert output.prompt_token_ids == ids
    two = llm.chat([talk, talk], GREEDY, use_tqdm=False)
    assert texts(two) == texts([output]) * 2
    assert "".join(llm.stream(messages=talk, sampling_params=GREEDY)) == texts([output])[0]


# Ctrl-C


def interrupt_soon(delay=0.15):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_ctrl_c_ends_generate_and_leaves_the_engine_working(llm):
    expected = texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    stream = llm.stream(PROMPTS[0], GREEDY)
    begun = next(stream)
    params = SamplingParams(max_tokens=900, ignore_eos=True)
    timer = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        while True:  # however fast the machine is
            llm.generate(PROMPTS * 20, params, use_tqdm=False)
    timer.join()
    assert begun + "".join(stream) == expected[0]  # another caller's request loses nothing
    assert_idle(llm)
    assert texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == expected


# Tensors in memory


def test_tensors_in_memory_serve_like_the_folder(llm):
    config = json.loads((SHIPPED_MODEL / "config.json").read_text())
    tensors = load_file(SHIPPED_MODEL / "model.safetensors")
    options = {"num_blocks": 64, "num_threads": 1}
    same = LLM.from_tensors(config, tensors, tokenizer=SHIPPED_MODEL, **options)
    expected = texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    assert texts(same.generate(PROMPTS, GREEDY, use_tqdm=False)) == expected
    del tensors
    assert texts(same.generate(PROMPTS, GREEDY, use_tqdm=False)) == expected
    bare = LLM.from_tensors(config, load_file(SHIPPED_MODEL / "model.safetensors"), **options)
    (ids,) = llm.tokenizer.encode(PROMPTS[:1])
    (output,) = bare.generate(ids, GREEDY, use_tqdm=False)
    assert output.outputs[0].token_ids == llm.generate(ids, GREEDY)[0].outputs[0].token_ids
    assert output.outputs[0].text == ""


# Bad input: each is refused alone with what is wrong, and the engine goes on working.


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", r"prompts\[0\] is empty; a prompt must have at least one token"),
        ([[]], r"prompts\[0\] is empty"),
        ([PROMPTS[0], ""], r"prompts\[1\] is empty"),
        ([[1, 2, 99999]], r"prompts\[0\] holds token id 99999; ids must be from 0 to 2047"),
        ([[1, -3]], r"prompts\[0\] holds token id -3; ids must be from 0 to"),
        ([2**40], r"prompts\[0\] holds token id 1099511627776"),
        ([[1, 2.5]], r"prompts\[0\] must be a text or a list of token ids, it holds 2\.5"),
        ([["a", "b"]], r"prompts\[0\] must be a text or a list of token ids, it holds 'a'"),
        (5, "prompts must be a text, a list of token ids or a list of either, got 5"),
        (None, "prompts must be a text, a list of token ids or a list of either, got None"),
        (
            [[5] * 1025],
            r"prompts\[0\]: prompt must be shorter than max_model_len \(1024\).*got 1025",
        ),
    ],
)
def test_a_bad_prompt_is_refused(llm, prompts, message):
    with pytest.raises(InvalidArgument, match=message):
        llm.generate(prompts, GREEDY, use_tqdm=False)


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


def test_loading_copies_no_weights(folder):
    before = time.perf_counter()
    llm = LLM(folder, num_blocks=8, num_threads=1)
    assert time.perf_counter() - before < 5
    plan = llm.engine.memory_plan
    assert llm.engine.allocated_bytes == plan.total_bytes
    assert plan.kv_cache_bytes == 8 * plan.block_bytes
