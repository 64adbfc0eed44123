"""Drives a Decoder without an engine: sequences over a pool of permuted, poisoned blocks."""

import numpy as np

from pagedcore import _core
from pagedcore.config import model_config
from pagedcore.tensors import from_array

NUMPY_DTYPE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
POISON = {"float32": np.nan, "float16": np.nan, "bfloat16": 0x7FC0}
UNUSED_ENTRY = 2147480000


def weights(tensors):
    return _core.Weights({name: from_array(array, name) for name, array in tensors.items()})


class PagedModel:
    """Sequences by name; each step computes a span of tokens of some of them."""

    def __init__(
        self,
        config,
        tensors,
        *,
        block_size=16,
        num_blocks=128,
        cache_dtype="float32",
        max_positions=0,
        num_threads=2,
        isa="",
    ):
        self.config = model_config(config)
        self.backend = _core.make_cpu_backend(num_threads, isa)
        self.decoder = _core.Decoder(
            self.config,
            weights(tensors) if isinstance(tensors, dict) else tensors,
            self.backend,
            max_tokens=512,
            max_logit_rows=1024,
            max_positions=max_positions,
        )
        shape = (
            num_blocks,
            self.config.num_layers,
            2,
            self.config.num_kv_heads,
            block_size,
            self.config.head_dim,
        )
        self.cache = np.full(shape, POISON[cache_dtype], NUMPY_DTYPE[cache_dtype])
        self.cache_dtype = cache_dtype
        self.block_size = block_size
        self.free = np.random.default_rng(3).permutation(num_blocks).tolist()
        self.blocks = {}
        self.lengths = {}

    def step(self, spans, last=None):
        """Computes `spans` (name to new tokens) and gives each one's logits [tokens, vocab].

        `last`: of how many of its last tokens each one's logits are wanted; all by default.
        """
        tokens, positions, slots, starts, contexts = [], [], [], [0], []
        for name, span in spans.items():
            context = self.lengths.get(name, 0)
            blocks = self.blocks.setdefault(name, [])
            while len(blocks) * self.block_size < context + len(span):
                blocks.append(self.free.pop())
            for position in range(context, context + len(span)):
                positions.append(position)
                block = blocks[position // self.block_size]
                slots.append(block * self.block_size + position % self.block_size)
            tokens += span
            starts.append(len(tokens))
            contexts.append(context)
            self.lengths[name] = context + len(span)
        rows = {
            name: range(starts[i] if last is None else starts[i + 1] - last[name], starts[i + 1])
            for i, name in enumerate(spans)
        }
        tables = np.full((len(spans), max(len(self.blocks[n]) for n in spans)), UNUSED_ENTRY)
        for row, name in enumerate(spans):
            tables[row, : len(self.blocks[name])] = self.blocks[name]
        logits = self.decoder.forward(
            self.backend,
            tokens=tokens,
            positions=positions,
            slots=slots,
            query_starts=starts,
            context_lens=contexts,
            block_tables=tables,
            logit_rows=[row for name in spans for row in rows[name]],
            cache=self.cache,
            cache_dtype=self.cache_dtype,
        )
        ends = np.cumsum([len(rows[name]) for name in spans])
        return {name: logits[end - len(rows[name]) : end] for name, end in zip(spans, ends)}

    def generate(self, prompts, num_tokens, stagger=1):
        """Greedy decoding; prompt i joins at step i * stagger, beside those that decode already.

        Returns the sequences, and the logits after each of their tokens but the last.
        """
        sequences = [list(prompt) for prompt in prompts]
        logits = [[] for _ in prompts]
        step = 0
        while any(len(s) < len(p) + num_tokens for s, p in zip(sequences, prompts)):
            spans = {
                i: sequence[self.lengths.get(i, 0) :]
                for i, sequence in enumerate(sequences)
                if i * stagger <= step and len(sequence) < len(prompts[i]) + num_tokens
            }
            for i, rows in self.step(spans).items():
                logits[i].append(rows)
                sequences[i].append(int(rows[-1].argmax()))
            step += 1
        return sequences, [np.concatenate(rows) for rows in logits]
