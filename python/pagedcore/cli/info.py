"""pagedcore info: what a model is, the memory that it takes, and what this machine offers."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pagedcore
from pagedcore import _core
from pagedcore.checkpoint import load_checkpoint
from pagedcore.cli.options import HelpFormatter, add_engine_options, engine_options, show_bytes
from pagedcore.config import model_config
from pagedcore.engine_options import engine_config, make_backend
from pagedcore.llm import SHIPPED_MODEL
from pagedcore.quantization import check_quantization, plan_weights

_EXAMPLES = """\
examples:
  pagedcore info
  pagedcore info --model ./smol --kv-cache 4G --block-size 32
  pagedcore info --model ./smol --json"""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "info",
        help="show a model, its memory plan and the backends",
        description="Show a model, the exact memory that serving it takes, and the backends."
        "\nNothing is allocated.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    facts = {"pagedcore": package_facts(), "backends": backend_facts()}
    facts |= model_facts(args)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for title, section in facts.items():
        print(title)
        for name, value in section.items():
            shown = show_bytes(value) if name.endswith("bytes") else value
            print(f"  {name.removesuffix('_bytes').replace('_', ' '):<20} {shown}")
    return 0


def package_facts() -> dict[str, Any]:
    """Version and place of the package."""
    return {"version": pagedcore.__version__, "prefix": str(Path(pagedcore.__file__).parent)}


def backend_facts() -> dict[str, str]:
    """Each backend: its description, or why it cannot be had."""
    facts = {"cpu": _core.make_cpu_backend().description}
    try:
        facts["cuda"] = _core.make_cuda_backend().description
    except pagedcore.Error as error:
        facts["cuda"] = str(error)
    return facts


def model_facts(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The model, and the memory plan of an engine with these options."""
    options = engine_options(args)
    backend = make_backend(options.pop("device"), options.pop("num_threads"), options.pop("isa"))
    rounding = (options.pop("quantization"), options.pop("quantization_group_size"))
    check_quantization(*rounding, backend)
    checkpoint = load_checkpoint(args.model or SHIPPED_MODEL, options.pop("dtype"))
    config = model_config(checkpoint.config)
    weights = plan_weights(config, checkpoint, *rounding)
    plan = _core.Engine.plan_memory(config, weights, backend, engine_config(**options))
    dtypes = {dtype for name, (dtype, _) in weights.describe().items() if name.endswith(".weight")}
    return {
        "model": {
            "folder": os.fspath(checkpoint.folder or ""),
            "architecture": config.architecture,
            "parameters": checkpoint.num_weights,
            "dtype": ", ".join(sorted(dtypes)),
            "layers": config.num_layers,
            "hidden_size": config.hidden_size,
            "heads": f"{config.num_heads} query, {config.num_kv_heads} KV, {config.head_dim} wide",
            "vocabulary": config.vocab_size,
            "longest_sequence": config.max_position_embeddings,
        },
        "memory": {
            "weights_bytes": plan.weights_bytes,
            "kv_cache_bytes": plan.kv_cache_bytes,
            "block_bytes": plan.block_bytes,
            "blocks": plan.num_blocks,
            "tokens": plan.num_blocks * args.block_size,
            "workspace_bytes": plan.workspace_bytes,
            "swap_bytes": plan.swap_bytes,
            "allocated_bytes": plan.total_bytes,
        },
    }
