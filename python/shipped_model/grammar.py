"""The grammar of the training text: word lists, facts and a small template language.

A template draws one of ``[some|few|alternatives]``, a word of a list for ``<list>``, and the value
of a role for ``{slot}``. Everything is read from the text files of the ``grammar`` folder.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GRAMMAR_FOLDER = Path(__file__).parent / "grammar"

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_LIST_WORD = re.compile(r"<(\w+)(?::(\w+))?>")
_SLOT = re.compile(r"\{(\w+)\}")
_A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=(?!uni|use|one\b|Uni)(?:[aeiouAEIOU]|honest))")
_SAID_I = re.compile(r"\b(said|asked|called|cried|thought|shouted) I\b")
_I_AND_FRIEND = re.compile(r"\bI and (\w+)\b")

Section = list[list[str]]


def capitalize(text: str) -> str:
    """Return ``text`` with its first letter as a capital, skipping opening quotes."""
    for index, character in enumerate(text):
        if character.isalnum():
            return text[:index] + character.upper() + text[index + 1 :]
    return text


def content_lines(file_name: str) -> list[str]:
    """The lines of a grammar file, without its comments."""
    lines = (GRAMMAR_FOLDER / file_name).read_text(encoding="ascii").splitlines()
    return [line.strip() for line in lines if not line.startswith("#")]


def read_sections(file_name: str) -> dict[str, Section]:
    """Read a grammar file into its sections: lists of beats, which are lists of sentences."""
    sections: dict[str, Section] = {}
    beats: Section = []
    for line in content_lines(file_name):
        if line.startswith("== "):
            beats = sections.setdefault(line[3:], [])
        elif not line:
            beats.append([])
        else:
            if not beats:
                beats.append([])
            beats[-1].append(line)
    return {name: [beat for beat in beats if beat] for name, beats in sections.items()}


@dataclass(frozen=True)
class Place:
    """A place of the story world, such as the forest."""

    preposition: str
    name: str
    sights: str


@dataclass(frozen=True)
class Animal:
    """What the model knows about one kind of animal."""

    kind: str
    plural: str
    home: str
    food: str
    sound: str
    legs: str
    looks: str
    young: str
    habit: str


class Grammar:
    """The word lists, places and animals, and the rendering of templates."""

    def __init__(self) -> None:
        self.words: dict[str, list[str]] = {}
        for line in filter(None, content_lines("words.txt")):
            name, _, items = line.partition(": ")
            self.words.setdefault(name, []).extend(items.split(", "))
        self.words["outside"] = self.words["outside_noun"] + self.words["outside_word"]
        self.places = [Place(*row) for row in self._table("places.txt")]
        self.animals = [Animal(*row) for row in self._table("animals.txt")]

    @staticmethod
    def _table(file_name: str) -> list[list[str]]:
        return [line.split(" | ") for line in content_lines(file_name) if line]

    def render(self, template: str, rng: random.Random, roles: dict[str, str]) -> str:
        """Expand the alternatives, list words and slots of one template."""
        text, count = template, 1
        while count:
            text, count = _ALTERNATIVES.subn(lambda m: rng.choice(m[1].split("|")), text)
        text = _LIST_WORD.sub(lambda m: self._list_word(m, rng, roles), text)
        return _SLOT.sub(lambda m: self._slot(m[1], roles), text)

    def _list_word(self, match: re.Match[str], rng: random.Random, roles: dict[str, str]) -> str:
        """Draw a list word; ``<list:label>`` repeats the word drawn first under that label."""
        list_name, label = match[1], match[2]
        if not label:
            return rng.choice(self.words[list_name])
        return roles.setdefault(label, rng.choice(self.words[list_name]))

    def _slot(self, name: str, roles: dict[str, str]) -> str:
        if name[0].isupper():
            return capitalize(self._slot(name[0].lower() + name[1:], roles))
        if name == "next_day":
            days = self.words["weekday"]
            return days[(days.index(roles["day"]) + 1) % len(days)]
        return roles[name]

    def _tell(self, beat: Sequence[str], rng: random.Random, roles: dict[str, str]) -> str:
        return capitalize(self.render(rng.choice(beat), rng, roles))

    def _tell_all(self, section: Section, rng: random.Random, roles: dict[str, str]) -> list[str]:
        """Tell every beat of a section; a beat line "@slot = a | b" draws a new role."""
        told = []
        for beat in section:
            for line in beat:
                if line.startswith("@"):
                    slot, _, values = line[1:].partition(" = ")
                    roles[slot] = rng.choice(values.split(" | "))
            told.append(self._tell([line for line in beat if line[0] != "@"], rng, roles))
        return told

    @staticmethod
    def _polish(text: str) -> str:
        """Repair what templates cannot know: "a" before vowels and the word order of "I"."""
        text = _SAID_I.sub(r"I \1", text)
        text = _I_AND_FRIEND.sub(r"\1 and I", text)
        return _A_BEFORE_VOWEL.sub(r"\1n ", text)
