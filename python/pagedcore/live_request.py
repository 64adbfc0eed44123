"""A request between add_request and its RequestOutput: gathers tokens, decodes text, stops."""

from __future__ import annotations

from collections.abc import Sequence

from pagedcore import _core
from pagedcore.outputs import CompletionOutput, FinishReason, Logprob, RequestOutput
from pagedcore.sampling_params import SamplingParams
from pagedcore.text import Detokenizer, StopFinder, TextStream, Tokenizer


class LiveSequence:
    """One sequence of a live request.

    Attributes:
        output: What is known of the result so far; its text is filled in at the end.
        text: The text so far; None without a tokenizer.
    """

    def __init__(
        self, index: int, prompt: Sequence[int], params: SamplingParams, tokenizer: Tokenizer | None
    ) -> None:
        self.output = CompletionOutput(index=index, text="", token_ids=[])
        self.text: TextStream | None = None
        self._params = params
        self._tokenizer = tokenizer
        if tokenizer is not None:
            self.text = TextStream(
                Detokenizer(tokenizer, prompt, skip_special_tokens=params.skip_special_tokens),
                StopFinder(params.stop_strings, include_stop=params.include_stop_str_in_output),
                min_tokens=params.min_tokens,
            )

    @property
    def finished(self) -> bool:
        """Whether no token will follow."""
        return self.output.finish_reason is not None

    def apply(self, update: _core.SequenceUpdate) -> bool:
        """Takes what a step added; says whether a stop string ended the sequence."""
        tokens: list[int] = update.new_tokens
        stop = self._add_text(tokens, update.stop_token)
        used = len(tokens) if stop is None else stop[1]
        output = self.output
        output.token_ids += tokens[:used]
        if update.logprobs is not None:
            output.logprobs = output.logprobs or []
            output.logprobs += logprob_dicts(update.logprobs[:used], self._tokenizer)
        if self._params.logprobs is not None or self._is_ranked():
            output.cumulative_logprob = update.cumulative_logprob
        if self._params.beam_width > 0:
            output.score = update.score
        if stop is not None:
            self.finish("stop", stop[0])
        elif update.finish_reason is not None:
            stop_token = update.stop_token
            is_own = stop_token in self._params.core.stop_token_ids
            self.finish(update.finish_reason, stop_token if is_own else update.explanation)
        return stop is not None

    def finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """Ends the sequence and settles its text."""
        self.output.finish_reason = reason
        self.output.stop_reason = stop_reason
        if self.text is not None:
            self.text.finish()
            self.output.text = self.text.text

    def _is_ranked(self) -> bool:
        return self._params.beam_width > 0 or (self._params.best_of or 0) > self._params.n

    def _add_text(self, tokens: list[int], stop_token: int | None) -> tuple[str, int] | None:
        """Decodes tokens; gives the stop string found and how many tokens were used until there."""
        if self.text is None:
            return None
        hide_last = stop_token is not None and not self._params.include_stop_str_in_output
        for used, token in enumerate(tokens[:-1] if hide_last else tokens, 1):
            if (found := self.text.push(token)) is not None:
                return found, used
        return None


class Batch:
    """The requests of one call.

    Attributes:
        requests: In the order of the prompts.
        num_open: How many of them have not finished.
    """

    def __init__(self) -> None:
        self.requests: list[LiveRequest] = []
        self.num_open = 0


class LiveRequest:
    """A request that the engine serves, one of a batch.

    Attributes:
        sequences: The n sequences that it returns.
    """

    def __init__(
        self,
        batch: Batch,
        request_id: int,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.request_id = request_id
        self.sequences = [
            LiveSequence(i, prompt_token_ids, params, tokenizer) for i in range(params.n)
        ]
        self._prompt = prompt
        self._prompt_token_ids = prompt_token_ids
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
        self._metrics: _core.RequestMetrics | None = None
        self._tokenizer = tokenizer
        self._num_open = params.n
        self._batch = batch
        batch.requests.append(self)
        batch.num_open += 1

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended."""
        return self._num_open == 0

    def apply(self, update: _core.SequenceUpdate, engine: _core.Engine) -> None:
        """Takes what a step added to one sequence; ends it in the engine on a stop string."""
        if update.prompt_logprobs is not None:
            found = logprob_dicts(update.prompt_logprobs, self._tokenizer)
            self._prompt_logprobs = [None, *found]
        if update.metrics is not None:
            self._metrics = update.metrics
        sequence = self.sequences[update.index]
        if sequence.apply(update) and update.finish_reason is None:
            self._metrics = engine.metrics(self.request_id)
            engine.finish_sequence(self.request_id, update.index)
        if sequence.finished:
            self._close(1)

    def abort(self) -> None:
        """Ends every open sequence; the engine has dropped the request."""
        for sequence in self.sequences:
            if not sequence.finished:
                sequence.finish("abort")
        self._close(self._num_open)

    def _close(self, num_sequences: int) -> None:
        self._num_open -= num_sequences
        if self._num_open == 0:
            self._batch.num_open -= 1

    def result(self) -> RequestOutput:
        """What the caller gets."""
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            outputs=[sequence.output for sequence in self.sequences],
            prompt_logprobs=self._prompt_logprobs,
            metrics=self._metrics,
        )


def logprob_dicts(
    entries: list[list[tuple[int, float, int]]], tokenizer: Tokenizer | None
) -> list[dict[int, Logprob]]:
    """One dict of token id to Logprob a place, from (token, logprob, rank) tuples."""

    def text(token: int) -> str | None:
        return None if tokenizer is None else tokenizer.decode([token], skip_special_tokens=False)

    return [
        {token: Logprob(logprob, rank, text(token)) for token, logprob, rank in place}
        for place in entries
    ]
