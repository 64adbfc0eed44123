"""Converts a model for llama.cpp beside itself: MODEL_DIR -> MODEL_DIR-{bf16,q8_0,q4_0}.gguf.

python bench/peers/export_gguf.py LLAMA_CPP_SOURCE LLAMA_CPP_BIN MODEL_DIR bf16 q8_0 q4_0

LLAMA_CPP_SOURCE holds convert_hf_to_gguf.py, LLAMA_CPP_BIN the built llama-quantize; run it with an
interpreter that has torch and transformers.
"""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
from pathlib import Path


def accept_any_tokenizer(source: Path) -> None:
    """The converter knows pre-tokenizers by checksum; make_models.py's is none of them."""
    sys.path.insert(0, str(source))
    import conversion.base

    for cls in vars(conversion.base).values():
        if isinstance(cls, type) and "get_vocab_base_pre" in vars(cls):
            cls.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("bin", type=Path)
    parser.add_argument("model_dir")
    parser.add_argument("weights", nargs="+", choices=["bf16", "q8_0", "q4_0"])
    args = parser.parse_args()
    model_dir = args.model_dir.rstrip("/")
    bf16 = f"{model_dir}-bf16.gguf"
    if not Path(bf16).exists():
        accept_any_tokenizer(args.source)
        converter = str(args.source / "convert_hf_to_gguf.py")
        sys.argv = [converter, model_dir, "--outtype", "bf16", "--outfile", bf16]
        runpy.run_path(converter, run_name="__main__")
    for weights in args.weights:
        if weights != "bf16":
            out = f"{model_dir}-{weights}.gguf"
            subprocess.run(
                [args.bin / "llama-quantize", bf16, out, weights.upper(), "2"], check=True
            )


if __name__ == "__main__":
    main()
