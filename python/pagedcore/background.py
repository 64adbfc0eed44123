"""Work that goes on beside the caller's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """A call in a thread of its own.

    Args:
        call: Called at once.
        arguments: Given to it.
    """

    def __init__(self, call: Callable[..., T], *arguments: Any) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call, *arguments))
        self._thread.start()

    def result(self) -> T:
        """Waits for the call; gives what it gave, raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self, call: Callable[..., T], *arguments: Any) -> None:
        try:
            self._value = call(*arguments)
        except BaseException as error:
            self._error = error
