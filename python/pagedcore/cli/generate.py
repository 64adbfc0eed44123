"""pagedcore generate: completes prompts."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from pagedcore._core import InvalidArgument
from pagedcore.cli.options import (
    HelpFormatter,
    add_engine_options,
    add_sampling_options,
    load_model,
    sampling_params,
)
from pagedcore.cli.watch import add_watch_option, watching
from pagedcore.llm import LLM
from pagedcore.outputs import RequestOutput
from pagedcore.sampling_params import SamplingParams

_EXAMPLES = """\
examples:
  pagedcore generate "Once upon a time"
  pagedcore generate "Once upon a time" --seed 7 --max-tokens 60
  pagedcore generate "One" "Two" --model ./smol --greedy --json
  pagedcore generate --model ./smol < prompt.txt"""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "generate",
        help="complete prompts",
        description="Complete prompts, all in one batch, and print each with its text.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="none: read one from stdin")
    parser.add_argument("--lines", action="store_true", help="every line of stdin is a prompt")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print text as it comes (default: for a single prompt)",
    )
    parser.add_argument("--no-echo", action="store_true", help="print the text without the prompt")
    parser.add_argument("--json", action="store_true", help="print one JSON object a prompt")
    parser.add_argument("--stats", action="store_true", help="print tokens and speed to stderr")
    add_watch_option(parser)
    parser.add_argument("-n", type=int, metavar="N", help="texts a prompt")
    parser.add_argument(
        "--best-of", type=int, metavar="N", help="sample N texts and print the likeliest of them"
    )
    parser.add_argument("--beam-width", type=int, metavar="N", help="beam search with N beams")
    parser.add_argument(
        "--length-penalty", type=float, metavar="X", help="of beams; above 1 prefers longer texts"
    )
    add_sampling_options(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    prompts = _read_prompts(args)
    llm = load_model(args)
    params = sampling_params(args, llm.default_sampling_params)
    ranked = params.beam_width > 0 or (params.best_of or 0) > params.n
    single = len(prompts) == 1 and params.n == 1 and not ranked and not args.json
    if args.stream and (not single or args.watch):
        raise InvalidArgument(
            "--stream needs one prompt and one text as it comes, without --json and --watch"
        )
    begin = time.perf_counter()
    if single and args.stream is not False and not args.watch:
        num_tokens = _stream(llm, prompts[0], params, echo=not args.no_echo)
    else:
        with watching(llm, args.watch):
            show_progress = sys.stderr.isatty() and not args.watch
            outputs = llm.generate(prompts, params, use_tqdm=show_progress)
        _print(outputs, args)
        num_tokens = sum(len(o.token_ids) for output in outputs for o in output.outputs)
    if args.stats:
        seconds = time.perf_counter() - begin
        rate = num_tokens / seconds
        print(f"{num_tokens} tokens in {seconds:.2f} s, {rate:.1f} tok/s", file=sys.stderr)
    return 0


def _read_prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts:
        if args.lines:
            raise InvalidArgument("--lines reads prompts from stdin, so it takes no PROMPT")
        return list(args.prompts)
    if sys.stdin.isatty():
        raise InvalidArgument('give a prompt, as in: pagedcore generate "Once upon a time"')
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"stdin must be text: {error}") from None
    prompts = [line for line in text.splitlines() if line] if args.lines else [text.rstrip("\n")]
    if not any(prompts):
        raise InvalidArgument("stdin is empty; a prompt must have at least one token")
    return prompts


def _stream(llm: LLM, prompt: str, params: SamplingParams, *, echo: bool) -> int:
    pieces = llm.stream(prompt, params)
    if echo:
        print(prompt, end="", flush=True)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        pieces.close()
        print(flush=True)
    return len(pieces.request.sequences[0].output.token_ids)


def _print(outputs: list[RequestOutput], args: argparse.Namespace) -> None:
    for i, output in enumerate(outputs):
        if args.json:
            print(json.dumps(_as_json(output), ensure_ascii=False))
            continue
        for j, completion in enumerate(output.outputs):
            if i or j:
                print("---")
            print(completion.text if args.no_echo else f"{output.prompt}{completion.text}")


def _as_json(output: RequestOutput) -> dict[str, Any]:
    return {
        "prompt": output.prompt,
        "outputs": [
            {
                "text": completion.text,
                "token_ids": completion.token_ids,
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
            }
            for completion in output.outputs
        ],
    }
