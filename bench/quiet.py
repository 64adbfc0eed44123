"""Measuring alone on a machine that is shared."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

LONGEST_S = 60.0
PAUSE_S = 0.2


class Quiet:
    """Holds flock(2) locks that other work on the machine respects, a minute at a time.

    Without paths nothing is held, and nothing waited for.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._locks = ExitStack()
        self._since: float | None = None

    def hold(self) -> float:
        """Takes the locks in their order, anew once held for LONGEST_S; seconds waited."""
        start = time.monotonic()
        if self._since is not None and start - self._since < LONGEST_S:
            return 0.0
        if self._since is not None:
            self.release()
            time.sleep(PAUSE_S)  # others come first
        for path in self._paths:
            fcntl.flock(self._locks.enter_context(path.open("a")), fcntl.LOCK_EX)
        self._since = time.monotonic()
        return self._since - start

    def release(self) -> None:
        """Lets others work."""
        self._locks.close()
        self._since = None
