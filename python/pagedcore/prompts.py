"""Checks of what callers pass to `generate`."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pagedcore._core import InvalidArgument
from pagedcore.sampling_params import SamplingParams

Prompt = str | Sequence[int]


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


def as_params_list(
    sampling_params: SamplingParams | Sequence[SamplingParams], count: int
) -> list[SamplingParams]:
    """One SamplingParams for each of `count` prompts."""
    if isinstance(sampling_params, SamplingParams):
        return [sampling_params] * count
    params = list(sampling_params)
    if len(params) != count:
        raise InvalidArgument(
            f"sampling_params must be one or as many as prompts ({count}), got {len(params)}"
        )
    for i, one in enumerate(params):
        if not isinstance(one, SamplingParams):
            raise InvalidArgument(f"sampling_params[{i}] must be SamplingParams, got {one!r}")
    return params


def check_tokens(i: int, prompt: Any, vocab_size: int) -> list[int]:
    """The token ids of prompt `i`, as plain integers of the vocabulary."""
    tokens = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
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
