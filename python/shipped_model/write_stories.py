"""Write the training text of the shipped model: short stories and small chats from a grammar.

The grammar lives in the text files of the ``grammar`` folder next to this script, so the training
text contains nothing that was not written for this repository: ``grammar.py`` reads it,
``stories.py`` and ``chats.py`` write with it. Every document is a function of the random generator
that it is given: the same seed writes the same text.

Run ``python write_stories.py --count 5 --seed 1`` to read a few documents.
"""

from __future__ import annotations

import argparse
import random
import re

from chats import BEGIN_TOKEN, END_TOKEN, Chatter

_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")


class StoryWriter(Chatter):
    """Writes documents: stories, letters, facts, poems and chats."""

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
