"""Write the training text of the shipped model: short stories and small chats from a grammar.

The grammar lives in the text files of the ``grammar`` folder next to this script, so the training
text contains nothing that was not written for this repository. Every document is a function of
the random generator that it is given: the same seed writes the same text.

Run ``python write_stories.py --count 5 --seed 1`` to read a few documents.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

GRAMMAR_FOLDER = Path(__file__).parent / "grammar"

BEGIN_TOKEN = "<|begin|>"
END_TOKEN = "<|end|>"
SYSTEM_TOKEN = "<|system|>"
USER_TOKEN = "<|user|>"
ASSISTANT_TOKEN = "<|assistant|>"

VOWELS = "aeiou"
CONSONANTS = "bdfgklmnprstvz"

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_LIST_WORD = re.compile(r"<(\w+)(?::(\w+))?>")
_SLOT = re.compile(r"\{(\w+)\}")
_A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=(?!uni|use|one\b|Uni)(?:[aeiouAEIOU]|honest))")
_SAID_I = re.compile(r"\b(said|asked|called|cried|thought|shouted) I\b")
_I_AND_FRIEND = re.compile(r"\bI and (\w+)\b")
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")

Section = list[list[str]]


def capitalize(text: str) -> str:
    """Return ``text`` with its first letter as a capital, skipping opening quotes."""
    for index, character in enumerate(text):
        if character.isalnum():
            return text[:index] + character.upper() + text[index + 1 :]
    return text


def _content_lines(file_name: str) -> list[str]:
    lines = (GRAMMAR_FOLDER / file_name).read_text(encoding="ascii").splitlines()
    return [line.strip() for line in lines if not line.startswith("#")]


def _read_sections(file_name: str) -> dict[str, Section]:
    """Read a grammar file into its sections: lists of beats, which are lists of sentences."""
    sections: dict[str, Section] = {}
    beats: Section = []
    for line in _content_lines(file_name):
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


@dataclass(frozen=True)
class Character:
    """A character of a story; ``name`` is empty for one that is only known by its kind."""

    name: str
    kind: str
    feminine: bool
    epithet: str
    joiner: str

    @property
    def reference(self) -> str:
        """How a sentence about this character names it."""
        return self.name or f"the {self.epithet} {self.kind}"

    @property
    def plain(self) -> str:
        """The character without its name, such as "a little fox"."""
        return f"a {self.epithet} {self.kind}"

    @property
    def introduction(self) -> str:
        """The character as a story first mentions it."""
        return f"{self.plain} {self.joiner} {self.name}" if self.name else self.plain


@dataclass(frozen=True)
class StoryRequest:
    """What a story has to be about; an empty field leaves the choice to the writer."""

    kind: str = ""
    name: str = ""
    feminine: bool | None = None
    epithet: str = ""
    friend_kind: str = ""
    toy: str = ""
    place: Place | None = None
    plot: str = ""


class StoryWriter:
    """Writes documents: stories, letters, facts, poems and chats."""

    WITH_FRIEND = (": friend", ": meets")

    def __init__(self) -> None:
        self.words: dict[str, list[str]] = {}
        for line in filter(None, _content_lines("words.txt")):
            name, _, items = line.partition(": ")
            self.words.setdefault(name, []).extend(items.split(", "))
        self.words["outside"] = self.words["outside_noun"] + self.words["outside_word"]
        self.places = [Place(*row) for row in self._table("places.txt")]
        self.animals = [Animal(*row) for row in self._table("animals.txt")]
        self.texts = _read_sections("texts.txt")
        sections = _read_sections("stories.txt")
        self.plots = {
            name.removeprefix("plot "): beats
            for name, beats in sections.items()
            if name.startswith("plot ")
        }
        self.story_parts = {name: beats[0] for name, beats in sections.items() if len(beats) == 1}
        self.fixed_chats = self._read_fixed_chats()
        self.story_questions = self.texts.pop("story_question")[0]
        self.answered_questions: list[Callable[[random.Random], tuple[str, str]]] = [
            self._animal_question,
            self._animal_question,
            self._pair_question,
            self._number_question,
            self._number_question,
            self._unknown_question,
        ]

    @staticmethod
    def _table(file_name: str) -> list[list[str]]:
        return [line.split(" | ") for line in _content_lines(file_name) if line]

    @staticmethod
    def _read_fixed_chats() -> list[tuple[list[str], list[str]]]:
        lines = [line for line in _content_lines("chat.txt") if line]
        options = [line[2:].split(" | ") for line in lines]
        return list(zip(options[::2], options[1::2]))

    # Characters and the roles of a story.

    def _invented_name(self, rng: random.Random) -> str:
        syllables = rng.choice((2, 2, 3))
        letters = (rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllables))
        return capitalize("".join(letters) + rng.choice(("", "", "n", "l", "r", "s")))

    def _character(
        self, rng: random.Random, request: StoryRequest | None = None, named: bool = False
    ) -> Character:
        request = request or StoryRequest()
        feminine = rng.random() < 0.5 if request.feminine is None else request.feminine
        people = ["girl"] if feminine else ["boy"]
        roles = self.words["creature"] + self.words["woman" if feminine else "man"]
        known_animals = [animal.kind for animal in self.animals]
        kinds = rng.choices(
            (people, known_animals, self.words["wild_animal"], roles, self.words["living_thing"]),
            weights=(32, 35, 10, 18, 5),
        )[0]
        kind = request.kind or rng.choice(kinds)
        name = request.name
        if not name and (named or kind in people or rng.random() < 0.8):
            name = self._name(rng, kind, feminine)
        epithet = request.epithet or rng.choice(self.words["size"] + self.words["trait"])
        return Character(name, kind, feminine, epithet, rng.choice(("named", "named", "called")))

    def _name(self, rng: random.Random, kind: str, feminine: bool) -> str:
        if rng.random() < 0.08:
            return self._invented_name(rng)
        names = self.words["girl_name" if feminine else "boy_name"]
        if kind not in ("girl", "boy") and rng.random() < 0.6:
            names = self.words["pet_name"]
        return rng.choice(names)

    def _toy(self, rng: random.Random, color: str) -> str:
        adjective = color if rng.random() < 0.5 else rng.choice(self.words["toy_adj"])
        return f"{adjective} {rng.choice(self.words['toy_noun'])}"

    def _roles(
        self, rng: random.Random, first_person: bool, request: StoryRequest | None = None
    ) -> dict[str, str]:
        """Draw the cast, places and things of one story as the values of its slots."""
        request = request or StoryRequest()
        hero = self._character(rng, request, named=first_person)
        opposite = not hero.feminine if rng.random() < 0.85 else hero.feminine
        friend_request = StoryRequest(kind=request.friend_kind, feminine=opposite)
        friend = self._character(rng, friend_request, named=True)
        while friend.name == hero.name:
            friend = self._character(rng, friend_request, named=True)
        guest = self._character(rng, named=True)
        place, other_place = rng.sample(self.places, 2)
        if request.place:
            place = request.place
        color = rng.choice(self.words["color"])
        toy = request.toy or self._toy(rng, color)
        he, him, his = ("she", "her", "her") if hero.feminine else ("he", "him", "his")
        roles = {
            "name": hero.name or f"{hero.epithet} {hero.kind}",
            "hero": hero.reference,
            "hero_obj": hero.reference,
            "heros": f"{hero.reference}'s",
            "a_hero": hero.introduction,
            "a_plain": hero.plain,
            "kind": hero.kind,
            "he": he,
            "him": him,
            "his": his,
            "himself": f"{him}self",
            "they": "they",
            "them": "them",
            "their": "their",
        }
        if first_person:
            roles |= dict(hero="I", hero_obj="me", heros="my", he="I", him="me", his="my")
            roles |= dict(himself="myself", they="we", them="us", their="our")
        elder, feminine_elder = rng.choice(self.elders(roles["his"]))
        return roles | {
            "friend": friend.name,
            "f_name": friend.name,
            "a_friend": friend.introduction,
            "a_f_plain": friend.plain,
            "f_he": "she" if friend.feminine else "he",
            "f_him": "her" if friend.feminine else "him",
            "f_his": "her" if friend.feminine else "his",
            "a_guest": guest.introduction,
            "elder": elder,
            "elders": f"{elder}'s",
            "e_he": "she" if feminine_elder else "he",
            "place": place.name,
            "at": f"{place.preposition} {place.name}",
            "sights": place.sights,
            "place2": other_place.name,
            "at2": f"{other_place.preposition} {other_place.name}",
            "sights2": other_place.sights,
            "color": color,
            "toy": toy,
            "a_toy": f"a {toy}",
            "toy_home": rng.choice(("old hat", "warm cap", "straw basket", "wooden box")),
            "food": rng.choice(self.words["food"]),
            "soup": rng.choice(("soup", "tea", "milk", "cocoa")),
            "trait2": rng.choice(self.words["trait"]),
        }

    @staticmethod
    def elders(his: str) -> list[tuple[str, bool]]:
        """Return the elders that a story can have, each with whether it is feminine."""
        return [
            (f"{his} grandmother", True),
            (f"{his} mother", True),
            (f"{his} aunt", True),
            (f"{his} grandfather", False),
            (f"{his} father", False),
            (f"{his} uncle", False),
            ("the old owl", True),
            ("the wise old turtle", False),
            ("the baker", False),
            ("the teacher", True),
        ]

    # The template language.

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

    # Stories and other plain texts.

    def story(
        self, rng: random.Random, request: StoryRequest | None = None, brief: bool = False
    ) -> str:
        """Write one story.

        Args:
            rng: Source of every choice.
            request: What the story has to be about.
            brief: Whether to leave out descriptions and second adventures.

        Returns:
            The story as one or more paragraphs.
        """
        first_person = request is None and rng.random() < 0.15
        roles = self._roles(rng, first_person, request)
        plot_names = list(self.plots)
        plot_name = rng.choice(plot_names)
        if request and request.plot:
            plot_name = request.plot
        elif request and request.friend_kind:
            plot_name = rng.choice([name for name in plot_names if name.endswith(self.WITH_FRIEND)])
        opening = self._opening(rng, roles, first_person, plot_name)
        beginning = [opening]
        if not brief and rng.random() < 0.5:
            beginning.append(self._tell(self.story_parts["about_hero"], rng, roles))
        if request and request.toy and roles["a_toy"] not in opening:
            beginning.append(f"{capitalize(roles['he'])} had {roles['a_toy']}.")
        if plot_name.endswith(": friend") and roles["friend"] not in opening:
            beginning.append(self._tell(self.story_parts["friend_intro"], rng, roles))
        paragraphs = [beginning, self._tell_all(self.plots[plot_name], rng, roles)]
        if not brief and rng.random() < 0.12:
            alone = [name for name in plot_names if not name.endswith(self.WITH_FRIEND)]
            second = rng.choice([name for name in alone if name != plot_name])
            bridge = self._tell(self.story_parts["next_day"], rng, roles)
            paragraphs.append([bridge, *self._tell_all(self.plots[second], rng, roles)])
        for part, probability in (("ending", 0.35), ("moral", 0.2)):
            if rng.random() < probability:
                paragraphs[-1].append(self._tell(self.story_parts[part], rng, roles))
        paragraph_break = rng.choice((" ", " ", "\n\n"))
        text = paragraph_break.join(" ".join(paragraph) for paragraph in paragraphs)
        if not brief and rng.random() < 0.08:
            text = f"{self._title(text, rng, roles)}\n\n{text}"
        return self._polish(text)

    def _opening(
        self, rng: random.Random, roles: dict[str, str], first_person: bool, plot_name: str
    ) -> str:
        """Tell an opening that fits the plot and a hero without a name."""
        part = self.story_parts["me_opening" if first_person else "opening"]
        if plot_name.endswith(": meets"):
            part = [line for line in part if "friend}" not in line]
        if roles["hero"].startswith("the "):
            part = [line for line in part if "{name}" not in line and "{a_plain}" not in line]
        return self._tell(part, rng, roles)

    def _title(self, story: str, rng: random.Random, roles: dict[str, str]) -> str:
        """Make a title of the hero's name and, if it fits, something that the story is about."""
        title = roles["name"]
        role = rng.choice(("toy", "friend", "place", "place2"))
        if roles[role] in story:
            title += f" and the {roles[role]}" if role == "toy" else f" and {roles[role]}"
        words = title.split()
        return " ".join(word if word in ("and", "the") else capitalize(word) for word in words)

    def _plain_text(self, name: str, rng: random.Random) -> str:
        first_person = name in ("letter", "diary")
        roles = self._roles(rng, first_person)
        beats = self._tell_all(self.texts[name], rng, roles)
        separator = "\n" if name in ("letter", "poem") else " "
        return self._polish(separator.join(beats).replace("|", "\n"))

    def _animal_facts(self, rng: random.Random) -> str:
        animal = rng.choice(self.animals)
        facts = [
            f"{capitalize(animal.plural)} live {animal.home}.",
            f"{rng.choice(('It', f'A {animal.kind}'))} eats {animal.food}.",
            f"The {animal.kind} {animal.sound}.",
            f"It has {animal.legs} legs.",
            f"It has {animal.looks}.",
            f"A young {animal.kind} is called a {animal.young}.",
            f"The {animal.kind} {animal.habit}.",
        ]
        chosen = rng.sample(facts, rng.randint(3, len(facts)))
        opening = rng.choice(
            (
                f"The {animal.kind} is an animal.",
                f"Do you know the {animal.kind}?",
                f"{capitalize(animal.plural)} are wonderful animals.",
                f"This is what we know about the {animal.kind}.",
            )
        )
        return self._polish(" ".join([opening, *chosen]))

    def _strange_words(self, rng: random.Random) -> str:
        """Write a text that begins with words from anywhere and still leads into a story."""
        words = [
            self._invented_name(rng).lower() if rng.random() < 0.15 else word
            for word in rng.choices(self.words["outside"], k=rng.randint(1, 7))
        ]
        phrase = " ".join(words)
        phrase = capitalize(phrase) if rng.random() < 0.7 else phrase
        roles = self._roles(rng, first_person=False)
        frame = rng.choice(("{0}.", "{0}.", "{0}?", "{0}!", '"{0}," said {1}.', "{0}:", "{0} ..."))
        opening = frame.format(phrase, roles["hero"])
        told = self._tell_all(self.texts["nothing_known"], rng, roles)
        return self._polish(" ".join([opening, *told]))

    # Chats.

    def _fixed_question(self, rng: random.Random) -> tuple[str, str]:
        questions, answers = rng.choice(self.fixed_chats)
        roles: dict[str, str] = {}
        question = self.render(rng.choice(questions), rng, roles)
        return question, self.render(rng.choice(answers), rng, roles)

    def _animal_question(self, rng: random.Random) -> tuple[str, str]:
        animal = rng.choice(self.animals)
        kind, plural = animal.kind, animal.plural
        topics: list[tuple[list[str], str]] = [
            (
                [f"Where does a {kind} live?", f"Where do {plural} live?"],
                f"A {kind} lives {animal.home}.",
            ),
            (
                [f"What does a {kind} eat?", f"What do {plural} eat?"],
                f"A {kind} eats {animal.food}.",
            ),
            (
                [f"What sound does a {kind} make?", f"What does the {kind} say?"],
                f"A {kind} {animal.sound}.",
            ),
            (
                [f"How many legs does a {kind} have?", f"How many legs do {plural} have?"],
                f"A {kind} has {animal.legs} legs.",
            ),
            (
                [f"What does a {kind} look like?", f"Describe a {kind}."],
                f"A {kind} has {animal.looks}.",
            ),
            (
                [f"What is a young {kind} called?", f"What is a baby {kind} called?"],
                f"A young {kind} is called a {animal.young}.",
            ),
            (
                [f"Tell me about the {kind}.", f"What is a {kind}?", f"Tell me about {plural}."],
                f"A {kind} is an animal. It lives {animal.home} and eats {animal.food}. "
                f"It has {animal.looks}. It {animal.habit}.",
            ),
            (
                [f"What can a {kind} do?", f"Tell me something about a {kind}."],
                f"A {kind} {animal.habit}.",
            ),
        ]
        questions, answer = rng.choice(topics)
        return rng.choice(questions), answer

    def _pair_question(self, rng: random.Random) -> tuple[str, str]:
        topics = {
            "opposite": (["What is the opposite of {0}?", "The opposite of {0}?"], "{1}."),
            "color_of": (["What color is {0}?", "What colour is {0}?"], "{0} is {1}."),
            "made_of": (["What is {0} made of?", "How is {0} made?"], "{0} is made of {1}."),
            "used_for": (["What is {0} for?", "What do I need {0} for?"], "You use {0} to {1}."),
            "rhyme": (["What rhymes with {0}?", "A word that rhymes with {0}?"], "{1} does."),
        }
        name = rng.choice(list(topics))
        questions, answer = topics[name]
        left, right = rng.choice(self.words[name]).split("=")
        if name == "opposite":
            answer = rng.choice(("{1}.", "The opposite of {0} is {1}."))
            if rng.random() < 0.5:
                left, right = right, left
        return rng.choice(questions).format(left), capitalize(answer.format(left, right))

    def _number_question(self, rng: random.Random) -> tuple[str, str]:
        topic = rng.choice(("count", "count", "after", "before", "add", "add", "subtract"))
        as_digits = rng.random() < 0.4

        def written(number: int) -> str:
            return str(number) if as_digits else self.words["number_word"][number]

        if topic == "count":
            last = rng.randint(3, 20)
            numbers = ", ".join(written(number) for number in range(1, last + 1))
            verb = rng.choice(("Count to", "Can you count to", "Please count to"))
            mark = "?" if verb.startswith("Can") else "."
            return f"{verb} {written(last)}{mark}", capitalize(f"{numbers}.")
        if topic in ("after", "before"):
            number = rng.randint(1, 19)
            answer = number + 1 if topic == "after" else number - 1
            question = f"What number comes {topic} {written(number)}?"
            return question, capitalize(f"{written(answer)} comes {topic} {written(number)}.")
        first, second = rng.randint(0, 10), rng.randint(0, 10)
        sign, word, result = "+", "plus", first + second
        if topic == "subtract":
            first, second = max(first, second), min(first, second)
            sign, word, result = "-", "minus", first - second
        operator = sign if as_digits else word
        sum_text = f"{written(first)} {operator} {written(second)}"
        return f"What is {sum_text}?", capitalize(f"{sum_text} is {written(result)}.")

    def _unknown_question(self, rng: random.Random) -> tuple[str, str]:
        words = " ".join(rng.choices(self.words["outside"], k=rng.randint(1, 4)))
        noun = rng.choice(self.words["outside_noun"])
        question = rng.choice(
            (
                f"What is {noun}?",
                f"What is the {noun} of {words}?",
                f"Who is the {noun} of {noun}?",
                f"Explain {words}.",
                f"How does {noun} work?",
                f"Write {words} in {noun}.",
                f"{capitalize(words)}?",
                f"Why {words}?",
                f"{words}",
            )
        )
        answer = rng.choice(
            (
                "I do not know that. I am a very small model, but I can tell you a story.",
                "I am too small to know that. Ask me about animals, colors or numbers.",
                "That is not in my small world. I know animals, colors, numbers and stories.",
                "I am sorry, I do not know. Would you like to hear a story?",
            )
        )
        return question, answer

    def _story_request(self, rng: random.Random) -> tuple[str, str]:
        """Write a request for a story and a story that grants it."""
        feminine = rng.random() < 0.5
        kind = self._character(rng, StoryRequest(feminine=feminine)).kind
        wishes = "any any kind kind kind kind kinds name toy named_kind pair place plot plot"
        wish = rng.choice(wishes.split())
        if wish == "any":
            subject, request = "", StoryRequest()
        elif wish == "kind":
            epithet = rng.choice(("", "", "", "little", "brave", rng.choice(self.words["trait"])))
            subject = f"a {epithet} {kind}".replace("  ", " ")
            request = StoryRequest(kind=kind, epithet=epithet)
        elif wish == "kinds":
            animal = rng.choice(self.animals)
            subject, request = animal.plural, StoryRequest(kind=animal.kind)
        elif wish == "name":
            subject = self._name(rng, kind, feminine)
            request = StoryRequest(name=subject, feminine=feminine)
        elif wish == "named_kind":
            name = self._name(rng, kind, feminine)
            subject = rng.choice((f"a {kind} named {name}", f"a {kind} called {name}"))
            request = StoryRequest(kind=kind, name=name, feminine=feminine)
        elif wish == "toy":
            toy = self._toy(rng, rng.choice(self.words["color"]))
            subject, request = f"a {toy}", StoryRequest(toy=toy)
        elif wish == "pair":
            friend_kind = self._character(rng).kind
            subject = f"a {kind} and a {friend_kind}"
            request = StoryRequest(kind=kind, feminine=feminine, friend_kind=friend_kind)
        elif wish == "place":
            place = rng.choice(self.places)
            subject = rng.choice((place.name, f"a {kind} {place.preposition} {place.name}"))
            request = StoryRequest(kind=kind if kind in subject else "", place=place)
        else:
            plot = rng.choice(list(self.plots))
            topics = next(line for line in self.plots[plot][0] if line.startswith("@about = "))
            subject = rng.choice(topics.removeprefix("@about = ").split(" | "))
            request = StoryRequest(plot=plot)
        question = self.render(rng.choice(self.story_questions), rng, {})
        about = f" about {subject}" if subject else ""
        story = self.story(rng, request, brief=True)
        return self._polish(question.replace(" ABOUT", about)), story

    @staticmethod
    def _typed(question: str, rng: random.Random) -> str:
        """Return a question as somebody in a hurry may type it."""
        if rng.random() < 0.15:
            question = question.rstrip(".?!")
        return question.lower() if rng.random() < 0.15 else question

    def _exchange(self, rng: random.Random) -> tuple[str, str]:
        kind = rng.random()
        if kind < 0.25:
            question, answer = self._story_request(rng)
        elif kind < 0.55:
            question, answer = self._fixed_question(rng)
        else:
            question, answer = rng.choice(self.answered_questions)(rng)
        return self._typed(self._polish(question), rng), self._polish(answer)

    def chat(self, rng: random.Random) -> str:
        """Write a chat of one or more exchanges, with the role tokens of the chat template."""
        turns = []
        if rng.random() < 0.15:
            prompt = rng.choice(
                (
                    "You are a helpful assistant.",
                    "You are a friendly storyteller.",
                    "You are a kind teacher. Answer in short sentences.",
                    f"You are {rng.choice(self.words['boy_name'])}. Answer well.",
                    capitalize(" ".join(rng.choices(self.words["outside"], k=8))) + ".",
                )
            )
            turns.append(f"{SYSTEM_TOKEN}{prompt}")
        exchanges = [self._exchange(rng) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
        if rng.random() < 0.1:
            name = self._name(rng, "girl", rng.random() < 0.5)
            greeting = rng.choice(self.words["greeting"])
            exchanges.insert(0, (f"{greeting}, my name is {name}.", f"Nice to meet you, {name}!"))
            exchanges.append(("What is my name?", f"Your name is {name}."))
        for question, answer in exchanges:
            turns.append(f"{USER_TOKEN}{question}{ASSISTANT_TOKEN}{answer}{END_TOKEN}")
        return "".join(turns).removesuffix(END_TOKEN)

    # Documents.

    def document(self, rng: random.Random) -> str:
        """Write one document of the training text, without its begin and end tokens."""
        kind = rng.random()
        if kind < 0.5:
            return self.story(rng)
        if kind < 0.80:
            return self.chat(rng)
        if kind < 0.86:
            return self._begun_midway(self.story(rng), rng)
        if kind < 0.89:
            request, story = self._story_request(rng)
            return f"{request}{rng.choice((' ', chr(10), chr(10) * 2))}{story}"
        if kind < 0.91:
            question, answer = rng.choice(self.answered_questions)(rng)
            return self._polish(f"{question}{rng.choice((' ', chr(10)))}{answer}")
        if kind < 0.94:
            return self._strange_words(rng)
        if kind < 0.96:
            return self._animal_facts(rng)
        name = rng.choice([name for name in self.texts if name != "nothing_known"])
        return self._plain_text(name, rng)

    @staticmethod
    def _begun_midway(story: str, rng: random.Random) -> str:
        """Return the end of a story, so that a prompt may start anywhere in one."""
        boundaries = [match.end() for match in _SENTENCE_END.finditer(story)]
        if rng.random() < 0.3:
            boundaries = [match.end() for match in re.finditer(" ", story)]
        return story[rng.choice(boundaries[: max(1, 2 * len(boundaries) // 3)]) :]


def main() -> None:
    """Print documents for a reader."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", default="reader")
    arguments = parser.parse_args()
    writer = StoryWriter()
    rng = random.Random(arguments.seed)
    for _ in range(arguments.count):
        print(f"{BEGIN_TOKEN}{writer.document(rng)}{END_TOKEN}\n")


if __name__ == "__main__":
    main()
