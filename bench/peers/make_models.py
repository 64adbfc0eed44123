"""Writes the two random-weight models that every engine serves (bfloat16, seed 0).

    python bench/peers/make_models.py OUT_DIR [S M]

S has the shape of a 135M Llama, M that of a 1.24B Llama. Random weights cost what trained ones do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from shapes import SHAPES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer padded to the model's vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merge = (alphabet[0], alphabet[1])  # llama.cpp loads no tokenizer without merges
    words = ["<bos>", "<eos>", "<pad>", *alphabet, "".join(merge)]
    words += [f"<{i}>" for i in range(len(words), vocab_size)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [merge]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("sizes", nargs="*", default=list(SHAPES))
    args = parser.parse_args()
    for size in args.sizes:
        shape = dict(SHAPES[size])
        theta = shape.pop("rope_theta")
        config = LlamaConfig(
            **shape,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            rope_theta=theta,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(args.out_dir / size)
        byte_tokenizer(shape["vocab_size"]).save_pretrained(args.out_dir / size)
        print(size, sum(p.numel() for p in model.parameters()), "parameters")


if __name__ == "__main__":
    main()
