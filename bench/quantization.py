"""What rounding weights and KV cache costs the shipped model: its perplexity on unseen text.

    python bench/quantization.py --documents 200

The documents come from the generator of its training text; they are of the classes that training
held out. Loss is the mean over all their tokens, from prompt_logprobs; every form of the weights
reads the same documents, so that differences are far more exact than the losses. Prints JSON lines
on stdout and a table on stderr.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np

from pagedcore import LLM, SHIPPED_MODEL, SamplingParams

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python" / "shipped_model"))
from train import documents

FORMS = [
    {"dtype": "float32"},
    {},
    {"quantization": "int8", "quantization_group_size": 32},
    {"quantization": "int8", "quantization_group_size": 128},
    {"quantization": "int4", "quantization_group_size": 32},
    {"quantization": "int4", "quantization_group_size": 128},
    {"kv_dtype": "int8"},
]


def losses(llm: LLM, texts: list[str]) -> np.ndarray:
    """Mean nats a token of each document."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    outputs = llm.generate(texts, params, use_tqdm=False)
    return np.array(
        [
            -np.mean(
                [
                    place[token].logprob
                    for token, place in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:])
                ]
            )
            for output in outputs
        ]
    )


def name_of(form: dict[str, object]) -> str:
    if "quantization" in form:
        return f"{form['quantization']}, groups of {form['quantization_group_size']}"
    if "kv_dtype" in form:
        return "bfloat16, int8 KV"
    return "float32" if form else "bfloat16, as shipped"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--seed", default="perplexity")
    args = parser.parse_args()
    texts = list(itertools.islice(documents(args.seed, held_out=True), args.documents))
    plain = None
    for form in FORMS:
        llm = LLM(SHIPPED_MODEL, **form)
        found = losses(llm, texts)
        plain = found if plain is None else plain
        change = found - plain
        facts = {
            "weights": name_of(form),
            "weight_bytes": llm.weight_bytes,
            "loss": float(found.mean()),
            "perplexity": math.exp(found.mean()),
            "perplexity_change_percent": 100 * math.expm1(change.mean()),
            "standard_error_percent": 100 * float(change.std() / math.sqrt(len(change))),
            "documents": len(texts),
        }
        print(json.dumps(facts), flush=True)
        print(
            f"{facts['weights']:<24} loss {facts['loss']:.4f}  perplexity "
            f"{facts['perplexity']:.4f}  change {facts['perplexity_change_percent']:+.3f} % "
            f"+- {facts['standard_error_percent']:.3f}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
