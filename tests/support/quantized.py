"""Quantised matrices as the kernels take them, read back by outputs."""

import numpy as np


def per_output(blocks, num_outputs):
    """From [blocks, n, 16] to [n, outputs]."""
    return np.moveaxis(blocks, 0, 1).reshape(blocks.shape[1], -1)[:, :num_outputs]


def stored_numbers(data, dtype, num_outputs):
    """The signed numbers [outputs, inputs] in bytes [blocks, units, 16, 4]."""
    data = data.view(np.uint8).astype(np.int64)
    if dtype == "int4":
        data = np.concatenate([data & 15, data >> 4], axis=-1)
    rows = np.moveaxis(data, 1, 2).reshape(-1, data.shape[1] * data.shape[3])
    return rows[:num_outputs] - (8 if dtype == "int4" else 128)
