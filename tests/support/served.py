"""What the tests of `LLM` share: prompts, short calls, and that nothing was lost."""

from pagedcore import RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=24)
PROMPTS = ["Once upon a time", "The little fox", "One day, Maya"]


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
