"""Chats of the training text: questions with answers, and requests for stories."""

from __future__ import annotations

import random
from collections.abc import Callable

from grammar import capitalize, content_lines
from stories import StoryRequest, Storyteller

BEGIN_TOKEN = "<|begin|>"
END_TOKEN = "<|end|>"
SYSTEM_TOKEN = "<|system|>"
USER_TOKEN = "<|user|>"
ASSISTANT_TOKEN = "<|assistant|>"


class Chatter(Storyteller):
    """Writes chats, with the role tokens of the chat template."""

    def __init__(self) -> None:
        super().__init__()
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
    def _read_fixed_chats() -> list[tuple[list[str], list[str]]]:
        lines = [line for line in content_lines("chat.txt") if line]
        options = [line[2:].split(" | ") for line in lines]
        return list(zip(options[::2], options[1::2]))

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
