"""What `LLM.stream` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pagedcore.live_request import Batch


class TextPieces(Iterator[str]):
    """The text of one request, piece by piece as it comes.

    Args:
        batch: Holds the request alone.
        step: Serves a batch for one step.
        abort: Ends the requests of a batch that have not finished.

    Attributes:
        request: What is known of the request so far; `request.result()` when the text has ended.
    """

    def __init__(
        self, batch: Batch, step: Callable[[Batch], object], abort: Callable[[Batch], object]
    ) -> None:
        (self.request,) = batch.requests
        self._batch = batch
        self._step = step
        self._abort = abort
        self._position = 0

    def __next__(self) -> str:
        sequence = self.request.sequences[0]
        assert sequence.text is not None
        while True:
            piece, self._position = sequence.text.take(self._position)
            if piece:
                return piece
            if sequence.finished:
                raise StopIteration
            self._step(self._batch)

    def close(self) -> None:
        """Ends the request if it has not finished."""
        self._abort(self._batch)

    def __del__(self) -> None:
        self.close()
