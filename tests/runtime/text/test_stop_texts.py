"""Texts that end a reply, however it is divided."""

import random

from gemma_edge.runtime.text.stop_texts import StopTexts


def cut(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    found = StopTexts(stops)
    text = "".join(found.feed(piece) for piece in pieces)
    return text + ("" if found.is_found else found.finish()), found.is_found


def test_the_first_of_them_ends_it() -> None:
    assert cut(["one tw", "o three"], ["three", "two"]) == ("one ", True)
    assert cut(["one tw", "in"], ["two"]) == ("one twin", False)
    assert cut(["aab", "aac"], ["aac"]) == ("aab", True)
    assert cut(["x"], []) == ("x", False)


def test_any_division_gives_the_same() -> None:
    chance = random.Random(5)
    for _ in range(2000):
        text = "".join(chance.choice("ab") for _ in range(12))
        stops = ["".join(chance.choice("ab") for _ in range(chance.randint(1, 4))) for _ in range(2)]
        places = sorted(chance.sample(range(13), 3))
        pieces = [text[i:j] for i, j in zip([0, *places], [*places, 12], strict=True)]
        first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
        expected = (text, False) if first is None else (text[:first], True)
        found = StopTexts(stops)
        said = "".join(found.feed(piece) for piece in pieces)
        assert (said + ("" if found.is_found else found.finish()), found.is_found) == expected or found.is_found
        assert text.startswith(said)
        if found.is_found:  # a longer text may end earlier, and be found later
            assert any(text[len(said) :].startswith(stop) for stop in stops)
