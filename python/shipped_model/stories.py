"""Stories and other plain texts of the training text."""

from __future__ import annotations

import random
from dataclasses import dataclass

from grammar import Grammar, Place, capitalize, read_sections

VOWELS = "aeiou"
CONSONANTS = "bdfgklmnprstvz"


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


class Storyteller(Grammar):
    """Writes stories, letters, facts and poems."""

    WITH_FRIEND = (": friend", ": meets")

    def __init__(self) -> None:
        super().__init__()
        self.texts = read_sections("texts.txt")
        sections = read_sections("stories.txt")
        self.plots = {
            name.removeprefix("plot "): beats
            for name, beats in sections.items()
            if name.startswith("plot ")
        }
        self.story_parts = {name: beats[0] for name, beats in sections.items() if len(beats) == 1}

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
