"""pagedcore chat: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from pagedcore.cli.options import (
    HelpFormatter,
    add_engine_options,
    add_sampling_options,
    load_model,
    sampling_params,
)
from pagedcore.llm import LLM
from pagedcore.sampling_params import SamplingParams

_EXAMPLES = """\
examples:
  pagedcore chat
  pagedcore chat --model Qwen/Qwen3-0.6B --system "Answer in one sentence."
  echo "Tell me about a fox." | pagedcore chat"""

_HELP = """\
/reset  forget the conversation
/help   show this
/quit   leave, like Ctrl-D
Ctrl-C ends the answer that is being written."""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "chat",
        help="talk to a model in the terminal",
        description="Talk to a model in the terminal; answers appear as they are written.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before you speak")
    add_sampling_options(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    llm = load_model(args)
    params = sampling_params(args, llm.default_sampling_params)
    conversation = Conversation(llm, params, args.system)
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() its history and line editing)
        print("Type a message, or /help.")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit leaves)")
            continue
        if line == "/quit":
            return 0
        if line == "/reset":
            conversation.reset()
        elif line.startswith("/"):
            print(_HELP)
        elif line:
            conversation.say(line)


class Conversation:
    """The messages so far, oldest first; the oldest are dropped when they no longer fit."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._system = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []
        llm.chat_prompt([*self._system, {"role": "user", "content": "Hi"}])  # fails early

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self._turns.clear()

    def say(self, text: str) -> None:
        """Adds a message, prints the answer as it is written, and keeps it."""
        self._turns.append({"role": "user", "content": text})
        self._drop_what_does_not_fit()
        messages = [*self._system, *self._turns]
        pieces = self._llm.stream(messages=messages, sampling_params=self._params)
        answer = ""
        try:
            for piece in pieces:
                answer += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pieces.close()
        print()
        self._turns.append({"role": "assistant", "content": answer})

    def _drop_what_does_not_fit(self) -> None:
        room = self._llm.engine.config.max_model_len - (self._params.max_tokens or 1)
        while len(self._turns) > 1 and self._num_tokens() > room:
            del self._turns[:2]

    def _num_tokens(self) -> int:
        text = self._llm.chat_prompt([*self._system, *self._turns])
        assert self._llm.tokenizer is not None
        return len(self._llm.tokenizer.encode([text], add_special_tokens=False)[0])
