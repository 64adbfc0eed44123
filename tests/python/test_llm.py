"""`LLM` on the shipped model: results, text, streams, chats, interrupts."""

import dataclasses
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.served import GREEDY, PROMPTS, assert_idle, one, texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from pagedcore import LLM, SHIPPED_MODEL, InvalidArgument, QueueFull, SamplingParams


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


def test_prompts_run_in_the_order_of_their_priorities():
    llm = LLM(SHIPPED_MODEL, num_blocks=64, num_threads=1, max_num_seqs=1)
    alone = texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    outputs = llm.generate(PROMPTS, GREEDY, priority=[2, 1, np.int64(0)], use_tqdm=False)
    assert texts(outputs) == alone
    waited = [output.metrics.queue_us for output in outputs]
    assert waited[2] < waited[1] < waited[0]


def test_the_prompts_of_a_tenant_wait_for_its_quota_and_others_pass():
    llm = LLM(SHIPPED_MODEL, num_blocks=64, num_threads=1)
    llm.set_tenant_quota("a", 4)  # blocks of 16 tokens: room for one prompt of 40 and its output
    prompts = [[token] * 40 for token in (5, 6, 7)]
    outputs = llm.generate(prompts, GREEDY, tenant=["a", "a", "b"], use_tqdm=False)
    waited = [output.metrics.queue_us for output in outputs]
    first_token = [output.metrics.first_token_us for output in outputs]
    assert waited[1] > first_token[0] and waited[2] < first_token[0]
    llm.set_tenant_quota("a", 0)
    again = llm.generate(prompts, GREEDY, tenant="a", use_tqdm=False)
    assert texts(again) == texts(outputs)
    assert max(output.metrics.queue_us for output in again) < again[0].metrics.first_token_us
    assert_idle(llm)


def test_prompts_reuse_only_the_kv_of_those_with_their_salt():
    llm = LLM(SHIPPED_MODEL, num_blocks=64, num_threads=1)
    prompt = [PROMPTS[0] * 8]
    for salt, is_hit in [("a", False), ("b", False), ("a", True), ("", False)]:
        (output,) = llm.generate(prompt, GREEDY, cache_salt=salt, use_tqdm=False)
        assert (output.metrics.num_cached_tokens > 0) == is_hit


def test_streams_and_chats_are_queued_like_prompts():
    llm = LLM(SHIPPED_MODEL, num_blocks=64, num_threads=1)
    llm.set_tenant_quota("a", 1)
    question = [{"role": "user", "content": "Tell me about a fox. " * 8}]
    calls = [
        lambda: llm.stream(messages=question, tenant="a"),
        lambda: llm.chat(question, tenant="a", use_tqdm=False),
        lambda: llm.generate(PROMPTS[0] * 8, tenant="a", use_tqdm=False),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="the quota of tenant 'a' is 1"):
            call()
    first, second = (llm.stream(PROMPTS[i], GREEDY, priority=1 - i) for i in range(2))
    texts_of = {"".join(second), "".join(first)}
    assert len(texts_of) == 2
    (answer,) = llm.chat(question, GREEDY, priority=3, cache_salt="s", use_tqdm=False)
    assert answer.outputs[0].text
    assert_idle(llm)


def test_a_full_queue_refuses_a_call_whole():
    llm = LLM(SHIPPED_MODEL, num_blocks=64, num_threads=1, max_waiting=2)
    with pytest.raises(QueueFull, match="max_waiting is 2"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert_idle(llm)
    assert len(llm.generate(PROMPTS[:2], GREEDY, use_tqdm=False)) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"priority": [1, 2]}, r"priority must be one or as many as prompts \(3\), got 2"),
        ({"priority": [1, 2, 0.5]}, r"priority\[2\] must be a whole number, got 0.5"),
        ({"priority": 2**31}, "priority must be from"),
        ({"priority": None}, "priority must be a whole number"),
        ({"tenant": ["a", "b", 3]}, r"tenant\[2\] must be a text, got 3"),
        ({"cache_salt": b"salt"}, "cache_salt must be"),
    ],
    ids=str,
)
def test_a_wrong_option_starts_no_prompt(llm, options, message):
    with pytest.raises(InvalidArgument, match=message):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False, **options)
    assert_idle(llm)


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


def test_a_turn_of_a_chat_computes_only_what_is_new():
    llm = LLM(SHIPPED_MODEL, num_blocks=64, num_threads=1)
    messages, known = [], 0
    for question in ("Tell me about a fox.", "What does it eat?", "Where does it live?"):
        messages.append({"role": "user", "content": question})
        stream = llm.stream(messages=messages, sampling_params=GREEDY)
        messages.append({"role": "assistant", "content": "".join(stream)})
        turn = stream.request.result()
        assert turn.metrics.num_cached_tokens == max(0, known - 1)  # the last one never ran
        known = len(turn.prompt_token_ids) + len(turn.outputs[0].token_ids)


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


def test_loading_copies_no_weights(folder):
    before = time.perf_counter()
    llm = LLM(folder, num_blocks=8, num_threads=1)
    assert time.perf_counter() - before < 5
    plan = llm.engine.memory_plan
    assert llm.engine.allocated_bytes == plan.total_bytes
    assert plan.kv_cache_bytes == 8 * plan.block_bytes
