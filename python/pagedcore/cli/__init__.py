"""The command `pagedcore`: generate, chat, bench, info."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pagedcore
from pagedcore.cli import bench, chat, generate, info
from pagedcore.cli.options import HelpFormatter

_EXAMPLES = """\
examples:
  pagedcore generate "Once upon a time"           text from the model that comes with the package
  pagedcore generate "The sky is" --model ./smol  from a Hugging Face folder or hub id
  pagedcore chat --model Qwen/Qwen3-0.6B          a conversation in the terminal
  pagedcore info --model ./smol                   what the model is and the memory that it takes

'pagedcore COMMAND --help' explains each command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0; 2 for a mistake of the caller; 1 for any other error; 130 for Ctrl-C.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.prefix:
        print(Path(pagedcore.__file__).parent)
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except pagedcore.Error as error:
        print(f"pagedcore {args.command}: error: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, pagedcore.InvalidArgument) else 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader went away, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="pagedcore",
        description="Serve language models with a paged KV cache.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pagedcore {pagedcore.__version__}")
    parser.add_argument(
        "--prefix",
        action="store_true",
        help="print the CMake prefix, for -DCMAKE_PREFIX_PATH=$(pagedcore --prefix)",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in (generate, chat, bench, info):
        command.add_parser(commands)
    return parser


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
