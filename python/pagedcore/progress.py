"""A bar that grows as prompts are finished."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from pagedcore.live_request import Batch


def serve_with_bar(batch: Batch, step: Callable[[Batch], object]) -> None:
    """Steps until a batch is finished, and shows how many of its prompts are."""
    with tqdm(total=batch.num_open, desc="Generating", unit="prompt") as progress:
        while batch.num_open:
            before = batch.num_open
            step(batch)
            progress.update(before - batch.num_open)
