"""How a request's tokens are chosen and when it stops."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pagedcore import _core
from pagedcore._core import InvalidArgument

_INT32 = range(-(2**31), 2**31)
_INT64 = range(-(2**63), 2**63)
_ANY_VOCABULARY = 2**31 - 1  # before the model is known, token ids are only checked to be natural


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Options of one request; `dataclasses.replace` makes a changed copy.

    Attributes:
        n: Sequences to return.
        best_of: Sequences to sample, of which the n most likely are returned; None: n.
        temperature: 0 takes the most likely token every time (greedy).
        top_p: Draw from the most likely tokens that together have this probability.
        top_k: Draw from so many most likely tokens; 0 or -1: from all.
        min_p: Drop tokens less likely than this share of the most likely one.
        seed: The same seed gives the same tokens in any batch; None: derived from the model's seed.
        max_tokens: Most tokens to generate; None: until max_model_len.
        min_tokens: No end before so many tokens.
        stop: Strings that end the text; they are not part of it.
        stop_token_ids: Further tokens that end the sequence, like the model's own end of text.
        ignore_eos: Go on after the model's end of text.
        logprobs: Report the token taken and so many most likely ones at each place; None: none.
        prompt_logprobs: The same for the tokens of the prompt.
        presence_penalty: From -2 to 2; lowers the logits of tokens already generated.
        frequency_penalty: From -2 to 2; the same, for each time that a token was generated.
        repetition_penalty: Above 0; divides the logits of tokens in prompt or output (1: off).
        logit_bias: Token id to what is added to its logit.
        allowed_token_ids: Only these tokens may be generated; empty: all.
        bad_token_ids: These tokens are never generated.
        beam_width: Beams of a beam search, of which the n best are returned; 0: no beam search.
        length_penalty: A beam's score is its summed logprobs / length ** length_penalty.
        early_stopping: When beam search ends: as `early_stopping` of transformers' generate.
        skip_special_tokens: Leave special tokens out of the text.
        include_stop_str_in_output: End the text with the stop string instead of before it.

    Raises:
        InvalidArgument: A value breaks its rule; the message names field, value and rule.
    """

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] = ()
    bad_token_ids: Sequence[int] = ()
    beam_width: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    stop_strings: tuple[str, ...] = field(init=False, repr=False, compare=False)
    core: _core.SamplingParams = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_strings", _stop_strings(self.stop))
        core = _core.SamplingParams()
        for name, read in _CORE_FIELDS.items():
            value = read(name, getattr(self, name))
            if value is not None or name in _MAY_BE_NONE:
                setattr(core, name, value)
        core.validate(_ANY_VOCABULARY)
        object.__setattr__(self, "core", core)
        for name in ("skip_special_tokens", "include_stop_str_in_output"):
            _flag(name, getattr(self, name))

    def __repr__(self) -> str:
        changed = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.init and getattr(self, f.name) != f.default
        )
        return f"SamplingParams({', '.join(changed)})"


def suggested_params(generation_config: Mapping[str, Any]) -> SamplingParams:
    """What a generation_config.json suggests, with the defaults for what it leaves out."""
    names = {name: name for name in ("temperature", "top_p", "top_k", "min_p")}
    names |= {"repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens"}
    found = {ours: generation_config.get(theirs) for theirs, ours in names.items()}
    return SamplingParams(**{name: value for name, value in found.items() if value is not None})


def _stop_strings(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else stop
    if isinstance(strings, (list, tuple)) and all(isinstance(s, str) and s for s in strings):
        return tuple(strings)
    raise InvalidArgument(f"stop must be a non-empty string or a list of them, got {stop!r}")


def whole_number(name: str, value: object, allowed: range = _INT32) -> int:
    """The argument `name` as an int; raises where it is none of those allowed."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgument(f"{name} must be a whole number, got {value!r}") from None
    if number not in allowed:
        raise InvalidArgument(
            f"{name} must be from {allowed.start} to {allowed.stop - 1}, got {value!r}"
        )
    return number


def utf8_text(name: str, value: object) -> str:
    """The argument `name` as a text; raises where it is none, or holds half a surrogate pair."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} must be a text, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{name} must be valid Unicode, got {value!r}") from None
    return value


def _whole_or_none(name: str, value: object) -> int | None:
    return None if value is None else whole_number(name, value)


def _seed(name: str, value: object) -> int | None:
    return None if value is None else whole_number(name, value, _INT64)


def _real(name: str, value: object) -> float:
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name} must be a number, got {value!r}") from None


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} must be True or False, got {value!r}")
    return value


def _token_ids(name: str, value: object) -> list[int]:
    if value is None:
        return []
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise InvalidArgument(f"{name} must be a list of token ids, got {value!r}")
    return [whole_number(name, token) for token in value]


def _bias(name: str, value: object) -> list[tuple[int, float]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{name} must map token ids to numbers, got {value!r}")
    return [(whole_number(name, token), _real(name, bias)) for token, bias in value.items()]


def _early_stopping(name: str, value: object) -> bool | str:
    if value is True or value is False or value == "never":
        return value
    raise InvalidArgument(f'{name} must be True, False or "never", got {value!r}')


_MAY_BE_NONE = ("seed", "max_tokens")  # for the others, None keeps the default
_CORE_FIELDS: dict[str, Any] = {
    "n": whole_number,
    "best_of": _whole_or_none,
    "temperature": _real,
    "top_p": _real,
    "top_k": whole_number,
    "min_p": _real,
    "seed": _seed,
    "max_tokens": _whole_or_none,
    "min_tokens": whole_number,
    "stop_token_ids": _token_ids,
    "ignore_eos": _flag,
    "logprobs": _whole_or_none,
    "prompt_logprobs": _whole_or_none,
    "presence_penalty": _real,
    "frequency_penalty": _real,
    "repetition_penalty": _real,
    "logit_bias": _bias,
    "allowed_token_ids": _token_ids,
    "bad_token_ids": _token_ids,
    "beam_width": whole_number,
    "length_penalty": _real,
    "early_stopping": _early_stopping,
}
