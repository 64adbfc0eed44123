"""--watch: a live view of the engine in the terminal, drawn while it serves."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pagedcore import _core
from pagedcore._core import InvalidArgument
from pagedcore.llm import LLM

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_SECONDS_A_DRAW = 0.2
_MOST_SHARE_OF_TIME = 0.02  # that drawing may take; a large pool is drawn less often
_MAP_LINES = 8
_SEQUENCE_LINES = 8
_HELD_SHADES = "▁▂▃▄▅▆▇█"  # by how many of the blocks of one character sequences hold
_CACHED, _FREE = "░", "·"
_STYLES = {"held": "green", "shared": "bold magenta", "cached": "cyan", "free": "bright_black"}


def add_watch_option(parser: argparse.ArgumentParser) -> None:
    """Adds --watch."""
    parser.add_argument(
        "--watch",
        action="store_true",
        help="draw the KV blocks, sequences and speed while they change, on stderr",
    )


@contextlib.contextmanager
def watching(llm: LLM, wanted: bool) -> Iterator[None]:
    """Draws the model's engine after its steps until the block is left, if that is wanted.

    Raises:
        InvalidArgument: It is wanted, and rich is not installed.
    """
    if not wanted:
        yield
        return
    try:
        from rich.console import Console
    except ImportError:
        raise InvalidArgument(
            "--watch needs the package rich: pip install 'pagedcore[watch]'"
        ) from None
    with Watch(llm, Console(stderr=True)):
        yield


class Watch:
    """A live view of one model's engine, from entering it as a context until leaving it.

    On a terminal it is drawn again and again in one place; into a file or pipe, once, at the end.

    Args:
        llm: The model; its `on_step` is taken meanwhile.
        console: Where to draw.
        clock: Seconds that never go back.
    """

    def __init__(
        self, llm: LLM, console: Console, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        from rich.live import Live

        self._llm = llm
        self._console = console
        self._clock = clock
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> Watch:
        self._begin = self._before = (self._clock(), self._llm.engine.stats())
        self._next_draw = self._begin[0]
        self._live.start()
        self._llm.on_step = self.update
        return self

    def __exit__(self, *_: Any) -> None:
        self._llm.on_step = None
        self._draw(since=self._begin)
        self._live.stop()

    def update(self) -> None:
        """Draws the engine's state if it is time to; to be called after a step."""
        if self._console.is_terminal and self._clock() >= self._next_draw:
            self._draw(since=self._before)

    def _draw(self, since: tuple[float, _core.Stats]) -> None:
        now, engine = self._clock(), self._llm.engine
        stats = engine.stats()
        seconds = max(now - since[0], 1e-9)
        self._before = (now, stats)
        self._live.update(
            view(stats, since[1], seconds, engine.kv_map(), engine.backend_description, self._size),
            refresh=True,
        )
        cost = self._clock() - now
        self._next_draw = now + max(_SECONDS_A_DRAW, cost / _MOST_SHARE_OF_TIME)

    @property
    def _size(self) -> tuple[int, int]:
        return self._console.width, self._console.height


def view(
    stats: _core.Stats,
    before: _core.Stats,
    seconds: float,
    kv_map: _core.KvMap,
    backend: str,
    size: tuple[int, int],
) -> RenderableType:
    """One picture of an engine: block map, figures, sequences.

    Args:
        stats: Now.
        before: Some seconds ago; speeds are of the time between.
        seconds: That time.
        kv_map: Now.
        backend: The backend's description.
        size: Columns and lines of the terminal.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.panel import Panel

    columns, lines = size
    width = max(1, columns - 4)  # inside the panel's border and padding
    parts: list[Any] = [
        block_map(kv_map, width, max(1, min(_MAP_LINES, lines // 3))),
        _flow(_legend(stats, kv_map)),
        Padding(_flow(_figures(stats, before, seconds)), (1, 0, 0, 0)),
    ]
    room = min(_SEQUENCE_LINES, lines - _MAP_LINES - 12)
    if room > 0 and stats.num_running:
        parts.append(Padding(_sequences(kv_map, room), (1, 0, 0, 0)))
    return Panel(Group(*parts), title=backend, title_align="left", border_style="bright_black")


def block_map(kv_map: _core.KvMap, width: int, max_lines: int) -> Text:
    """All blocks in the order of their ids, as many a character as make them fit."""
    import numpy as np
    from rich.text import Text

    states, counts = kv_map.states, kv_map.ref_counts
    blocks_a_cell = -(-len(states) // (width * max_lines))
    starts = np.arange(0, len(states), blocks_a_cell)
    sizes = np.diff(starts, append=len(states))

    def share(chosen: Any) -> Any:
        return np.add.reduceat(chosen.astype(np.int64), starts) / sizes

    held = share(states == _core.BlockState.HELD.value)
    shared = share(counts > 1)
    cached = share(states == _core.BlockState.CACHED.value)
    shades = np.ceil(held * len(_HELD_SHADES)).astype(int) - 1

    def cell(i: int) -> tuple[str, str]:
        if held[i] > 0:
            return _HELD_SHADES[shades[i]], "shared" if 2 * shared[i] >= held[i] else "held"
        return (_CACHED, "cached") if cached[i] > 0 else (_FREE, "free")

    text = Text(no_wrap=True)
    for start in range(0, len(starts), width):
        cells = [cell(i) for i in range(start, min(start + width, len(starts)))]
        for kind, run in itertools.groupby(cells, lambda cell: cell[1]):
            text.append("".join(sign for sign, _ in run), _STYLES[kind])
        text.append("\n")
    text.rstrip()
    return text


def _flow(parts: list[str]) -> RenderableType:
    """Short texts side by side, on as many lines as the terminal's width makes them take."""
    from rich.columns import Columns

    return Columns(parts, padding=(0, 3))


def _legend(stats: _core.Stats, kv_map: _core.KvMap) -> list[str]:
    shared = int((kv_map.ref_counts > 1).sum())
    counts = {
        "held": (_HELD_SHADES[-1], stats.used_blocks - shared),  # by one sequence
        "shared": (_HELD_SHADES[-1], shared),
        "cached": (_CACHED, stats.cached_blocks),
        "free": (_FREE, stats.free_blocks),
    }
    return [
        f"[{_STYLES[kind]}]{sign}[/] {count:,} {kind}" for kind, (sign, count) in counts.items()
    ] + [f"{stats.num_blocks:,} blocks of {kv_map.block_size} tokens"]


def _figures(stats: _core.Stats, before: _core.Stats, seconds: float) -> list[str]:
    output = stats.num_output_tokens - before.num_output_tokens
    computed = stats.num_computed_tokens - before.num_computed_tokens
    steps = stats.num_steps - before.num_steps
    host_us = (stats.total_host_us - before.total_host_us) / max(1, steps)
    hits = stats.num_prefix_hit_tokens / max(1, stats.num_prefix_queried_tokens)
    return [
        f"[bold]{output / seconds:,.0f}[/] tokens/s out",
        f"[bold]{computed / seconds:,.0f}[/] tokens/s computed",
        f"[bold]{steps / seconds:,.0f}[/] steps/s",
        f"[bold]{host_us:,.0f}[/] us a step on the host",
        f"[bold]{stats.num_running:,}[/] running",
        f"[bold]{stats.num_waiting:,}[/] waiting",
        f"[bold]{stats.num_preempted:,}[/] preempted",
        f"[bold]{num_preemptions(stats):,}[/] preemptions",
        f"[bold]{stats.used_blocks / stats.num_blocks:.1%}[/] of the KV cache in use",
        f"[bold]{stats.reserved_slots:,}[/] slots without a token, {stats.waste:.1%} of that",
        f"[bold]{stats.shared_savings:.1%}[/] saved by sharing",
        f"[bold]{hits:.1%}[/] of prompt tokens found in the cache",
    ]


def num_preemptions(stats: _core.Stats) -> int:
    """Preemptions of every kind."""
    return stats.num_tail_preemptions + stats.num_recompute_preemptions + stats.num_swap_preemptions


def _sequences(kv_map: _core.KvMap, room: int) -> RenderableType:
    """A line for each of the first sequences, and one for the rest."""
    from rich.table import Table

    sequences = kv_map.sequences
    counts = kv_map.ref_counts
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bright_black")
    for title in ("request", "tokens", "computed", "blocks", "shared", "swapped"):
        table.add_column(title, justify="right")
    table.add_column("state")
    for sequence in sequences[:room]:
        blocks, swapped = sequence.table, len(sequence.host_table)
        shared = int((counts[blocks] > 1).sum()) if blocks else 0
        numbers = (sequence.request_id, sequence.num_tokens, sequence.num_computed)
        cells = [f"{number:,}" for number in (*numbers, len(blocks), shared, swapped)]
        table.add_row(*cells, sequence.state.name.lower())
    if (more := len(sequences) - room) > 0:
        table.add_row(f"+{more:,}")
    return table
