"""Every message is one line that a terminal shows, however long what it quotes."""

import pytest

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.config import ConfigError
from gemma_edge.runtime.formats.litertlm import BundleNotFoundError


@pytest.mark.parametrize("kind", [GemmaEdgeError, ConfigError, BundleNotFoundError])
def test_a_long_message_keeps_its_beginning_and_its_end(kind: type[GemmaEdgeError]) -> None:
    message = f"tokenizer.json: found {'x' * 207_000}, expected ids; download the file again"
    text = str(kind(message))
    assert len(text) < 1100
    assert text.startswith("tokenizer.json: found xxx")
    assert f"[{len(message) - 1000:,} characters]" in text
    assert text.endswith("xxx, expected ids; download the file again")


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ("a\nb\r\n", r"a\nb\r\n"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("\u2028\u2029\x00", r"\u2028\u2029\x00"),
        ("é 漢 👩‍👧", "é 漢 👩‍👧"),
    ],
)
def test_control_codes_are_spelled_out(found: str, shown: str) -> None:
    assert str(GemmaEdgeError(f"{found}: no such file; check the path")) == f"{shown}: no such file; check the path"
