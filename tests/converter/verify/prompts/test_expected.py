"""What verify expects of prompts is what transformers makes of the same files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from gemma_edge.converter.verify.prompts.expected_prompts import ExpectedPrompts
from gemma_edge.converter.verify.prompts.expected_tokens import CheckpointTokenizer
from gemma_edge.converter.verify.prompts.probes import TALK, TOOLS, Probe
from tests.converter.verify.prompts.tuned import CHATML, GEMMA, START, added, with_tokens, write
from tests.converter.verify.wrong import copied

TEXTS = (
    "Hello world, it was the best of times.",
    f"{START}user\nHi{START}{START} x {START}",
    "x<tool>y <tool> z <tool>",
    "<bos>a<eos> <start_of_turn>user\nHi<end_of_turn>\n",
    "  two  spaces \t\n\n\n  end",
)


def _file(name: str, content: str) -> Callable[[Path], None]:
    def put(checkpoint: Path) -> None:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text(content)

    return put


def _several(checkpoint: Path) -> None:
    named = [{"name": "default", "template": GEMMA}, {"name": "tool_use", "template": "X" + GEMMA}]
    write(checkpoint / "tokenizer_config.json", chat_template=named)


def _both(checkpoint: Path) -> None:
    _several(checkpoint)
    _file("chat_template.jinja", CHATML)(checkpoint)


def _beside(checkpoint: Path) -> None:
    _file("chat_template.jinja", GEMMA)(checkpoint)
    _file("additional_chat_templates/tool_use.jinja", "T{{ tools | tojson(indent=2) }}" + CHATML)(checkpoint)


TEMPLATES: dict[str, Callable[[Path], None]] = {
    "file": _file("chat_template.jinja", CHATML),
    "file before tokenizer_config.json": _both,
    "tokenizer_config.json": lambda path: write(path / "tokenizer_config.json", chat_template=CHATML),
    "named": _several,
    "additional": _beside,
    "generation, loop controls": _file(
        "chat_template.jinja",
        "  {% for m in messages %}\n{% if loop.index > 2 %}{% break %}{% endif %}\n"
        "  {% generation %}{{ m['role'] }}|{{ bos_token }}{{ eos_token }}\n  {% endgeneration %}\n{% endfor %}\n\n",
    ),
    "json": _file("chat_template.jinja", "{{ messages | tojson }}{{ strftime_now('%Y') }}<&>{{ tools | tojson }}"),
}


@pytest.mark.parametrize("probe", [*TALK, *TOOLS], ids=lambda probe: probe.what)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_is_the_one_of_transformers(template: str, probe: Probe, tiny_gemma3: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_gemma3, tmp_path / "a")
    TEMPLATES[template](checkpoint)
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tools: Any = None if probe.tools is None else list(probe.tools)
    messages = [dict(message) for message in probe.messages]
    try:
        expected = theirs.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    except Exception:
        expected = None
    assert ExpectedPrompts.open(checkpoint).render(probe.messages, probe.tools) == expected


def test_a_processors_template_counts_where_there_is_no_other(tiny_gemma3: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_gemma3, tmp_path / "a")
    write(checkpoint / "chat_template.json", chat_template=CHATML)
    assert (ExpectedPrompts.open(checkpoint).render(TALK[0].messages) or "").startswith("<|im_start|>user")


def test_without_a_template_gemmas_own_counts(tiny_gemma3: Path) -> None:
    prompts = ExpectedPrompts.open(tiny_gemma3)
    assert [prompts.render(probe.messages) for probe in TALK[1:4]] == [
        "<bos><start_of_turn>user\nHi,\n\nyou<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nLook.\nWell?<end_of_turn>\n<start_of_turn>model\n",
        "<bos><start_of_turn>user\nBe brief.\n\nHi,\n\nyou<end_of_turn>\n<start_of_turn>model\n",
        "<bos><start_of_turn>user\nLook.Well?<end_of_turn>\n<start_of_turn>model\n",
    ]


def _as_it_is(_checkpoint: Path) -> None:
    pass


def _cut_short(checkpoint: Path) -> None:
    """As training saved it."""
    path = checkpoint / "tokenizer.json"
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": truncation}))


def _in_its_json(checkpoint: Path) -> None:
    with_tokens(checkpoint, added(START, 2048), added("<tool>", 2049, special=False, lstrip=True, rstrip=True))


def _beside_its_json(checkpoint: Path) -> None:
    tool = added("<tool>", 2049, lstrip=True, rstrip=True)
    write(checkpoint / "tokenizer_config.json", added_tokens_decoder={"2048": added(START, 2048), "2049": tool})


@pytest.mark.parametrize("change", [_as_it_is, _cut_short, _in_its_json, _beside_its_json])
def test_tokens_are_those_of_transformers(change: Callable[[Path], None], tiny_gemma3: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_gemma3, tmp_path / "a")
    change(checkpoint)
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ours = CheckpointTokenizer.open(checkpoint, 2050)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_a_tokenizer_model_gives_the_same_tokens(tiny_gemma3: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_gemma3, tmp_path / "a")
    _beside_its_json(checkpoint)
    expected = CheckpointTokenizer.open(checkpoint, 2050)
    (checkpoint / "tokenizer.json").unlink()
    found = CheckpointTokenizer.open(checkpoint, 2050)
    assert [found.encode(text) for text in TEXTS] == [expected.encode(text) for text in TEXTS]
    assert found.added.items() >= {(START, 2048), ("<tool>", 2049), ("<end_of_turn>", 11), ("<bos>", 2)}
    assert (found.find("<unused0>"), found.find("no such token")) == (6, None)
