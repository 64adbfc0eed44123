"""Text to tokens and back: encoding, incremental decoding, stop strings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedcore._core import InvalidArgument

if TYPE_CHECKING:
    import tokenizers

_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not (yet) a character
_CONTEXT_TOKENS = 6  # of the prompt, decoded before the output so that its first space is kept
_MAX_PENDING_TOKENS = 16  # then the bytes are no character and never will be

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class Tokenizer:
    """A checkpoint's tokenizer.json with the settings beside it.

    Attributes:
        special_tokens: "bos_token" and the like to their text, as tokenizer_config.json has them.
        config: tokenizer_config.json; empty where there is none.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        self.config = dict(config)
        self.special_tokens = {
            name: _token_text(self.config[name])
            for name in SPECIAL_TOKEN_NAMES
            if self.config.get(name)
        }
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer | None:
        """Reads a model folder's tokenizer; None where it has no tokenizer.json.

        Raises:
            InvalidArgument: tokenizer.json or tokenizer_config.json is malformed.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            return None
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise InvalidArgument(f"{path} is not a valid tokenizer.json: {error}") from None
        config: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                try:
                    config |= json.loads((folder / name).read_text(encoding="utf-8"))
                except (ValueError, TypeError) as error:
                    raise InvalidArgument(f"{folder / name} is malformed: {error}") from None
        return cls(backend, config)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """The token ids of each text; special tokens are added as the post-processor says.

        Raises:
            InvalidArgument: A text holds half of a surrogate pair, as undecodable bytes leave it.
        """
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                wrong = text[error.start]
                raise InvalidArgument(
                    f"text must be valid Unicode, it holds {wrong!r} at place {error.start}"
                ) from None
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens; bytes that are no character become U+FFFD."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_id(self, text: str) -> int | None:
        """The id of a token by its text; None for an unknown one."""
        return self._backend.token_to_id(text)


def _token_text(value: Any) -> str:
    return str(value["content"] if isinstance(value, Mapping) else value)


def eos_token_ids(
    config: Mapping[str, Any], generation_config: Mapping[str, Any], tokenizer: Tokenizer | None
) -> list[int]:
    """The ids that end a sequence, ascending: of generation_config.json, else of config.json.

    The tokenizer's own eos_token is one of them.
    """
    value = generation_config.get("eos_token_id", config.get("eos_token_id"))
    ids = set() if value is None else {value} if isinstance(value, int) else set(value)
    if tokenizer and (text := tokenizer.special_tokens.get("eos_token")):
        ids.add(tokenizer.token_id(text))
    return sorted(i for i in ids if i is not None)


class Detokenizer:
    """Turns one sequence's tokens into text piece by piece, at a constant cost a token.

    The pieces joined are what decoding prompt and output at once gives after the prompt's text. A
    piece never ends inside a character: its first bytes wait for the others.
    """

    # Invariant: _window is _num_context tokens whose text, _context_text, is already out, then
    # pending tokens whose text ends inside a character.

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        for length in range(_CONTEXT_TOKENS, _CONTEXT_TOKENS + 4):  # start outside a character
            tail = prompt_token_ids[-length:]
            self._window = [token for token in tail if token not in self._skipped]
            self._context_text = self._decode(self._window)
            if not self._context_text.startswith(_REPLACEMENT):
                break
        self._num_context = len(self._window)

    def push(self, token_id: int) -> str:
        """The text that a token completes; empty while a character is incomplete."""
        if token_id in self._skipped:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        pending = len(self._window) - self._num_context
        if text.endswith(_REPLACEMENT) and pending < _MAX_PENDING_TOKENS:
            return ""
        return self._release(text)

    def flush(self) -> str:
        """The text of tokens that still wait; the sequence has ended."""
        return self._release(self._decode(self._window))

    def _release(self, text: str) -> str:
        piece = text[_common_prefix_length(text, self._context_text) :]
        self._window = self._window[self._num_context :] or self._window
        self._num_context = len(self._window)
        self._context_text = self._decode(self._window)
        return piece

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


def _common_prefix_length(a: str, b: str) -> int:
    if a.startswith(b):
        return len(b)
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


class StopFinder:
    """Passes text through until a stop string appears, however it is cut into pieces.

    Text that may be the beginning of a stop string is held back until it is known not to be.

    Attributes:
        found: The stop string seen; None so far.
    """

    def __init__(self, stops: Iterable[str], *, include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """The text that is now certain to precede every stop string."""
        if not self._stops:
            return piece
        text = self._held + piece
        hits = [(text.find(stop), i) for i, stop in enumerate(self._stops)]
        hits = [hit for hit in hits if hit[0] >= 0]
        if hits:
            begin, which = min(hits)
            self.found, self._held = self._stops[which], ""
            return text[: begin + len(self.found) if self._include_stop else begin]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def skip(self, piece: str) -> str:
        """Passes text through without looking for stop strings."""
        text, self._held = self._held + piece, ""
        return text

    def flush(self) -> str:
        """The text held back; the sequence has ended."""
        return self.skip("")


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without being all of it."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class TextStream:
    """The text of one sequence as its tokens come, cut at the first stop string.

    Attributes:
        text: All text so far that is certain.
    """

    def __init__(self, detokenizer: Detokenizer, stops: StopFinder, *, min_tokens: int = 0) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All text so far that is certain."""
        return "".join(self._pieces)

    def push(self, token_id: int) -> str | None:
        """Takes one token; gives the stop string that it completes, if any."""
        self._num_tokens += 1
        piece = self._detokenizer.push(token_id)
        if self._num_tokens < self._min_tokens:
            self._pieces.append(self._stops.skip(piece))
        else:
            self._pieces.append(self._stops.push(piece))
        return self._stops.found

    def finish(self) -> None:
        """Releases what was held back, unless a stop string was found."""
        if self._stops.found is None:
            self._pieces.append(self._stops.push(self._detokenizer.flush()))
            self._pieces.append(self._stops.flush())

    def take(self, start: int) -> tuple[str, int]:
        """The text added since piece `start`, and the piece to start from next time."""
        return "".join(self._pieces[start:]), len(self._pieces)
