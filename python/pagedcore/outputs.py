"""What a request gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pagedcore import _core

FinishReason = Literal["stop", "length", "capacity", "abort"]


class Logprob(NamedTuple):
    """One token's place in the model's distribution.

    Attributes:
        logprob: Natural logarithm of the model's own probability, before penalties and temperature.
        rank: 1 for the most likely token.
        decoded_token: The token's text alone; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One generated sequence.

    Attributes:
        index: Of the sequence in its request; the best first where they are ranked.
        text: The generated text; empty without a tokenizer.
        token_ids: The generated tokens, with the one that ended the sequence.
        cumulative_logprob: Sum of the tokens' logprobs; None unless logprobs or a ranking need it.
        logprobs: Token id to `Logprob` for each token; None where not asked for.
        finish_reason: "stop" (end of text, a stop token or string), "length" (max_tokens or
            max_model_len), "capacity" (alone it needs more KV cache than there is), "abort".
        stop_reason: The stop string or stop token that ended the sequence; None for the model's own
            end of text. For "capacity", the numbers.
        score: A beam's length-penalised score; None without beam search.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    score: float | None = None


@dataclass
class RequestOutput:
    """A finished request.

    Attributes:
        request_id: Of this engine.
        prompt: The prompt's text; None where it was given as tokens.
        prompt_token_ids: The prompt's tokens, special ones included.
        outputs: The generated sequences.
        prompt_logprobs: As `CompletionOutput.logprobs`, with None for the first token.
        metrics: Times, cached tokens, preemptions.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    metrics: _core.RequestMetrics | None = None
