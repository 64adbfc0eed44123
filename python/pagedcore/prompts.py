"""Checks of what callers pass to `generate`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pagedcore._core import InvalidArgument
from pagedcore.sampling_params import SamplingParams, utf8_text, whole_number

Prompt = str | Sequence[int]
T = TypeVar("T")


def as_prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts from one prompt or several."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, (bytes, Mapping)) or not hasattr(prompts, "__iter__"):
        raise InvalidArgument(
            f"prompts must be a text, a list of token ids or a list of either, got {prompts!r}"
        )
    items = list(prompts)
    one = bool(items) and not isinstance(items[0], str) and not hasattr(items[0], "__iter__")
    return [cast(Sequence[int], items)] if one else cast(list[Prompt], items)


def one_each(name: str, value: Any, check: Callable[[str, object], T], count: int) -> list[T]:
    """What argument `name` says of each of `count` prompts: the same of all, or one value each.

    `check(name, value)` gives a single value as it is to be used, or raises.
    """
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return [check(name, value)] * count
    values = list(value)
    if len(values) != count:
        raise InvalidArgument(
            f"{name} must be one or as many as prompts ({count}), got {len(values)}"
        )
    return [check(f"{name}[{i}]", one) for i, one in enumerate(values)]


@dataclass(frozen=True)
class RequestSpec:
    """What is asked of one prompt, and how it is queued."""

    params: SamplingParams
    priority: int
    tenant: str
    cache_salt: str


def as_spec_list(
    count: int, sampling_params: Any, priority: Any, tenant: Any, cache_salt: Any
) -> list[RequestSpec]:
    """One for each of `count` prompts; arguments as for `LLM.generate`."""
    return [
        RequestSpec(*spec)
        for spec in zip(
            one_each("sampling_params", sampling_params, _sampling_params, count),
            one_each("priority", priority, whole_number, count),
            one_each("tenant", tenant, utf8_text, count),
            one_each("cache_salt", cache_salt, utf8_text, count),
        )
    ]


def _sampling_params(name: str, value: object) -> SamplingParams:
    if isinstance(value, SamplingParams):
        return value
    raise InvalidArgument(f"{name} must be SamplingParams, got {value!r}")


def check_tokens(i: int, prompt: Any, vocab_size: int) -> list[int]:
    """The token ids of prompt `i`, as plain integers of the vocabulary."""
    tokens = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not hasattr(tokens, "__iter__"):
        raise InvalidArgument(f"prompts[{i}] must be a text or a list of token ids, got {prompt!r}")
    tokens = list(tokens)
    if not tokens:
        raise InvalidArgument(f"prompts[{i}] is empty; a prompt must have at least one token")
    try:
        tokens = [operator.index(token) for token in tokens]
    except TypeError:
        wrong = next(token for token in tokens if not hasattr(token, "__index__"))
        raise InvalidArgument(
            f"prompts[{i}] must be a text or a list of token ids, it holds {wrong!r}"
        ) from None
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        wrong = next(token for token in tokens if not 0 <= token < vocab_size)
        raise InvalidArgument(
            f"prompts[{i}] holds token id {wrong}; ids must be from 0 to {vocab_size - 1}"
        )
    return tokens
