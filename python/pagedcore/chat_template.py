"""Renders a checkpoint's chat template, in a sandbox, as transformers does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pagedcore._core import InvalidArgument

Message = Mapping[str, Any]


class ChatTemplate:
    """A jinja2 template from messages to a prompt.

    Raises:
        InvalidArgument: The template is not valid jinja2.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        # Imported here: jinja2 takes a fifth of the time to import the package.
        from pagedcore.template_sandbox import compile_template

        self._special_tokens = dict(special_tokens)
        self._template = compile_template(source)

    @classmethod
    def load(
        cls, folder: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
    ) -> ChatTemplate | None:
        """A model folder's template; None where it has none.

        It is in chat_template.jinja, or else in tokenizer_config.json, there as a string or as a
        list of named templates of which "default" is taken.
        """
        path = folder / "chat_template.jinja"
        source = tokenizer_config.get("chat_template")
        if path.is_file():
            source = path.read_text(encoding="utf-8")
        elif isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        return None if source is None else cls(source, special_tokens)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text of a conversation.

        Args:
            messages: Each a mapping with "role" and "content".
            add_generation_prompt: End with what begins the assistant's answer.
            variables: More variables that the template may read, such as "tools".

        Raises:
            InvalidArgument: A message is malformed, or the template refuses the conversation.
        """
        check_messages(messages)
        variables = {"tools": None, "documents": None, **self._special_tokens, **variables}
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **variables
            )
        except Exception as error:  # a template is a program, and may fail as it likes
            raise InvalidArgument(f"the chat template refused the messages: {error}") from None


def check_messages(messages: Sequence[Message]) -> None:
    """Raises InvalidArgument unless `messages` is a conversation of at least one message."""
    is_list = isinstance(messages, Iterable) and not isinstance(messages, (str, bytes, Mapping))
    if not is_list or not messages:
        raise InvalidArgument(
            f'messages must be a list like [{{"role": "user", "content": "Hi"}}], got {messages!r}'
        )
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise InvalidArgument(f'messages[{i}] must be a mapping with a "role", got {message!r}')
