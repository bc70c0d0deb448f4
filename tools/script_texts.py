"""Texts in many scripts, the same ones every time, to compare two tokenizers on."""

import random
import sys
import unicodedata
from collections.abc import Iterator

_FEWEST_LETTERS = 20
_BETWEEN = (
    " ", " ", " ", " ", "  ", "\n", "\n\n", "\t", ", ", ". ", "! ", "? ", "-", "'", "1", " 42 ", "…", "。", "(", ") ",
    "👍🏽 ", "\u200d",
)  # fmt: skip


def letters_by_script() -> dict[str, list[str]]:
    """Letters and marks of every script that has some, by the first word of their names ("CYRILLIC")."""
    scripts: dict[str, list[str]] = {}
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.category(character)[0] in "LM":
            name = unicodedata.name(character, "")
            scripts.setdefault(name.split()[0].split("-")[0] if name else "", []).append(character)
    return {script: found for script, found in sorted(scripts.items()) if len(found) >= _FEWEST_LETTERS and script}


def texts(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """`count` pairs of (script, text of up to 25 words), the scripts in turn."""
    rng = random.Random(seed)
    scripts = list(letters_by_script().items())
    for i in range(count):
        script, letters = scripts[i % len(scripts)]
        common = rng.sample(letters, min(len(letters), 40))  # words of a language use few
        count_of_words = rng.randint(1, 25)
        words = [
            "".join(rng.choices(rng.choice((common, letters)), k=rng.randint(1, 9))) for _ in range(count_of_words)
        ]
        yield script, "".join(word + rng.choice(_BETWEEN) for word in words)
