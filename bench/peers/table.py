"""The markdown table of a run of compare_peers.py."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from model_limits import ModelLimits

OURS = "pagedcore"
Rounds = dict[int, float]

BF16_TARGETS = {
    "S": {"prefill_512_tok_s": 1.15, "prefill_2048_tok_s": 1.15, "decode_b1_tok_s": 1.4}
    | {"decode_b8_tok_s": 1.8, "decode_b32_tok_s": 1.9}
    | {"trace_s": 1.9, "parallel_8x8_s": 2.0, "prefix_s": 2.0},
    "M": {"prefill_512_tok_s": 1.05, "prefill_2048_tok_s": 1.05, "decode_b1_tok_s": 1.05}
    | {"decode_b8_tok_s": 1.4, "decode_b32_tok_s": 1.4}
    | {"trace_s": 1.4, "parallel_8x8_s": 1.4, "prefix_s": 1.4},
}
QUANTISED_TARGETS = {
    "S": {"decode_b1_tok_s": 1.4},
    "M": {"decode_b1_tok_s": 1.05, "decode_b8_tok_s": 1.3, "decode_b32_tok_s": 1.3},
}
ABSOLUTE_TARGETS = {
    "S": {"first_token_s": "0.3 s", "trace_peak_mb": "limit + 10 %"}
    | {"step_256_host_us": "20 us", "step_1024_host_us": "80 us"},
    "M": {"first_token_s": "0.5 s"},
}


def higher_is_better(figure: str) -> bool:
    """Rates; everything else is a time or a size."""
    return figure.endswith("tok_s")


class Table:
    """Rows of one model size and width of weights.

    ``results`` are compare_peers.py's JSON lines, oldest first; of each figure those of the newest
    run count. Cells are medians over the rounds, with their range, and the share of the limits that
    were measured around the same rounds.
    """

    def __init__(self, results: list[dict], size: str, weights: str) -> None:
        self._size, self._weights = size, weights
        lines = [line for line in results if (line["size"], line["weights"]) == (size, weights)]
        newest = {line["figure"]: line["run"] for line in lines}
        self._lines = [line for line in lines if line["run"] == newest[line["figure"]]]
        self._values: dict[str, dict[str, Rounds]] = defaultdict(lambda: defaultdict(dict))
        self._over: dict[tuple[str, str], float] = {}
        self._limits: dict[str, Rounds] = defaultdict(dict)
        for line in self._lines:
            figure, engine = line["figure"], line["engine"]
            if "value" not in line:
                self._over[figure, engine] = line["over_s"]
                continue
            self._values[figure][engine][line["round"]] = line["value"]
            bounds = ModelLimits(size, weights, line["limits"]).figures()
            if figure in bounds:
                self._limits[figure][line["round"]] = bounds[figure]

    def markdown(self) -> str:
        """The whole table; commits and the machine's limits on top."""
        engines = sorted({line["engine"] for line in self._lines}, key=lambda e: (e != OURS, e))
        heads = [f"{self._size}, {self._weights}", "limit", *engines, "to best peer", "to reach"]
        rows = [heads, ["---"] * len(heads)]
        rows += [self._row(figure, engines) for figure in self._values]
        return "\n".join([*self._origin(), "", *("| " + " | ".join(row) + " |" for row in rows)])

    def _origin(self) -> Iterator[str]:
        """Commits, and median and range of the limits that were measured around the rounds."""
        yield "commit " + ", ".join(dict.fromkeys(line["commit"] for line in self._lines)) + "  "
        for limit in self._lines[0]["limits"]:
            values = [line["limits"][limit] for line in self._lines]
            middle = statistics.median(values)
            yield f"{limit} {middle:.4g} [{min(values):.4g}-{max(values):.4g}]  "

    def _row(self, figure: str, engines: list[str]) -> list[str]:
        limits = self._limits.get(figure)
        limit = f"{statistics.median(limits.values()):.4g}" if limits else ""
        cells = [self._cell(figure, engine) for engine in engines]
        return [figure, limit, *cells, self._ratio(figure), self._target(figure)]

    def _cell(self, figure: str, engine: str) -> str:
        rounds = self._values[figure].get(engine)
        if not rounds:
            over = self._over.get((figure, engine))
            return "" if over is None else f"over {over:.0f} s"
        values = list(rounds.values())
        cell = f"{statistics.median(values):.4g}"
        if len(values) > 1:
            cell += f" [{min(values):.4g}-{max(values):.4g}]"
        if limits := self._limits.get(figure):
            shares = [value / limits[i] for i, value in rounds.items()]
            share = statistics.median(shares)
            cell += f" ({100 * (share if higher_is_better(figure) else 1 / share):.0f} %)"
        return cell

    def _ratio(self, figure: str) -> str:
        """How many times better than the best peer we are, round by round."""
        by_engine = self._values[figure]
        ours = by_engine.get(OURS, {})
        peers = {name: rounds for name, rounds in by_engine.items() if name != OURS}
        if not ours or not peers:
            return ""
        choose = max if higher_is_better(figure) else min
        best = choose(peers, key=lambda name: statistics.median(peers[name].values()))
        ratios = [value / peers[best][i] for i, value in ours.items() if i in peers[best]]
        if not higher_is_better(figure):
            ratios = [1 / ratio for ratio in ratios]
        if not ratios:
            return ""
        text = f"{statistics.median(ratios):.2f}x"
        if len(ratios) > 1:
            text += f" [{min(ratios):.2f}-{max(ratios):.2f}]"
        return f"{text} {best}"

    def _target(self, figure: str) -> str:
        ratios = BF16_TARGETS if self._weights == "bf16" else QUANTISED_TARGETS
        if figure in ratios[self._size]:
            return f"{ratios[self._size][figure]}x"
        return ABSOLUTE_TARGETS[self._size].get(figure, "") if self._weights == "bf16" else ""


def write_into(document: Path, name: str, table: str) -> None:
    """Puts a table into its place in a markdown document, between two comments; ValueError: none.

    The place begins with ``<!-- table NAME -->`` and ends with ``<!-- end -->``.
    """
    before, begin, rest = document.read_text().partition(f"<!-- table {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise ValueError(f"{document} has no place for the table {name}")
    document.write_text(f"{before}{begin}{table}\n{end}{after}")
