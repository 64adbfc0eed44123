"""Options that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from pagedcore.llm import LLM, SHIPPED_MODEL
from pagedcore.quantization import DEFAULT_GROUP_SIZE, QUANTIZATIONS
from pagedcore.sampling_params import SamplingParams

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows defaults, keeps the examples as they are written, and leaves room for both."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=96)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if action.default in (None, False, argparse.SUPPRESS, []) or not action.option_strings:
            return text
        return f"{text} (default: %(default)s)"


def byte_size(text: str) -> int:
    """Bytes from "512M", "2G", "1.5GiB" or a plain number; units are powers of 1024."""
    number = text.upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        return int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 512M or 2G") from None


def show_bytes(count: int) -> str:
    """A size for people: 1610612736 gives "1.5 GiB"."""
    if count < 1024:
        return f"{count} B"
    exponent = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**exponent:.1f} {'KMGT'[exponent - 1]}iB"


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """--model and the engine's settings."""
    group = parser.add_argument_group("model and engine")
    group.add_argument(
        "-m",
        "--model",
        help="folder or Hugging Face hub id (default: the small story model of the package)",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "float16", "bfloat16"],
        help="of the weights; auto: as they are",
    )
    group.add_argument(
        "--quantization", choices=QUANTIZATIONS, help="round the weights to 8 or 4 bits"
    )
    group.add_argument(
        "--quantization-group-size",
        type=int,
        metavar="N",
        help=f"inputs that share a scale (default: {DEFAULT_GROUP_SIZE})",
    )
    group.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    group.add_argument(
        "--isa", metavar="NAME", help="CPU instruction set, such as avx2 (default: the best)"
    )
    group.add_argument(
        "--kv-cache",
        type=byte_size,
        metavar="SIZE",
        help="size of the KV cache, such as 512M or 4G (default: 1G)",
    )
    group.add_argument(
        "--kv-dtype",
        choices=["float32", "float16", "bfloat16", "int8"],
        help="of the KV cache (default: the weights'); int8 on the CPU",
    )
    group.add_argument("--block-size", type=int, default=16, metavar="N", help="tokens a KV block")
    group.add_argument(
        "--max-model-len", type=int, metavar="N", help="longest sequence (default: the model's)"
    )
    group.add_argument(
        "--max-num-seqs", type=int, default=256, metavar="N", help="most sequences in a step"
    )
    group.add_argument(
        "--max-batched-tokens", type=int, default=2048, metavar="N", help="most tokens in a step"
    )
    group.add_argument(
        "--no-prefix-caching", action="store_true", help="do not reuse the KV of equal beginnings"
    )
    group.add_argument(
        "--swap-space", type=byte_size, default=0, metavar="SIZE", help="host memory for swapping"
    )
    group.add_argument(
        "--preemption-mode",
        default="recompute",
        choices=["recompute", "swap", "auto"],
        help="what happens to requests that lose their KV blocks under pressure",
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `LLM` that the options mean."""
    return {
        "dtype": args.dtype,
        "quantization": args.quantization,
        "quantization_group_size": args.quantization_group_size,
        "device": args.device,
        "num_threads": args.threads,
        "isa": args.isa,
        "kv_cache_bytes": args.kv_cache,
        "kv_dtype": args.kv_dtype,
        "block_size": args.block_size,
        "max_model_len": args.max_model_len,
        "max_num_seqs": args.max_num_seqs,
        "max_num_batched_tokens": args.max_batched_tokens,
        "enable_prefix_caching": not args.no_prefix_caching,
        "swap_space_bytes": args.swap_space,
        "preemption_mode": args.preemption_mode,
    }


def load_model(args: argparse.Namespace) -> LLM:
    """The model that --model names."""
    return LLM(args.model or SHIPPED_MODEL, **engine_options(args))


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """The options of SamplingParams; what is not given is the model's own suggestion."""
    group = parser.add_argument_group("sampling (what is not given is as the model suggests)")
    group.add_argument("--greedy", action="store_true", help="always the most likely token")
    group.add_argument(
        "-t", "--temperature", type=float, metavar="X", help="0: greedy; higher: more varied"
    )
    group.add_argument(
        "--top-p", type=float, metavar="X", help="of the likeliest with this share of probability"
    )
    group.add_argument("--top-k", type=int, metavar="N", help="of the N likeliest tokens")
    group.add_argument(
        "--min-p", type=float, metavar="X", help="of tokens at least X times as likely as the first"
    )
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument("--max-tokens", type=int, metavar="N", help="most tokens to generate")
    group.add_argument("--min-tokens", type=int, metavar="N", help="no end before N tokens")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end there; repeatable")
    group.add_argument("--ignore-eos", action="store_true", help="go on after the end of text")
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1: repeat prompt and text less"
    )
    group.add_argument(
        "--presence-penalty", type=float, metavar="X", help="above 0: repeat the text less"
    )
    group.add_argument(
        "--frequency-penalty", type=float, metavar="X", help="the same, for each time"
    )


_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens", "stop"),
    *("n", "best_of", "beam_width", "length_penalty"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


def sampling_params(args: argparse.Namespace, suggested: SamplingParams) -> SamplingParams:
    """`suggested`, changed by the options that were given."""
    given = {name: getattr(args, name, None) for name in _SAMPLING}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.ignore_eos:
        changes["ignore_eos"] = True
    if args.greedy:
        changes["temperature"] = 0.0
    return dataclasses.replace(suggested, **changes)
