"""A wrong chat template, lost added tokens and wrong stop tokens are seen, whoever makes the mistake."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.litert import bundle as litert_bundle
from gemma_edge.converter.litert import metadata
from gemma_edge.converter.tokenizer import tokenizer
from gemma_edge.converter.tokenizer.chat_template import BundleTemplate, gemma_template
from gemma_edge.converter.verify.errors import VerifyError
from gemma_edge.converter.verify.find.faults import Finding
from gemma_edge.converter.verify.prompts.prompting import prompting_faults
from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.formats.litertlm import Bundle
from tests.converter.verify.prompts.tuned import CHATML, GEMMA, START, added, chatml, with_template, with_tokens, write
from tests.converter.verify.wrong import bundle_of, copied, faults, verified

ROWS = 2050


def found(checkpoint: Path, bundle: Path, rows: int = ROWS) -> list[Finding]:
    return prompting_faults(Checkpoint.open(checkpoint), rows, TextModel(Bundle.open(bundle)))


def names(checkpoint: Path, bundle: Path) -> list[str]:
    return [finding.name for finding in found(checkpoint, bundle)]


@pytest.fixture(scope="module")
def plain(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the fixture as it is."""
    return bundle_of(copied(tiny_gemma3, tmp_path_factory.mktemp("plain") / "tiny"))


@pytest.fixture(scope="module")
def tuned(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was taught ChatML."""
    return chatml(tiny_gemma3, tmp_path_factory.mktemp("tuned") / "tuned")


# ------------------------------------------------------------ mistakes of a converter, built into bundles


def test_a_right_conversion_of_a_tuned_checkpoint_has_no_fault(tuned: Path, val_bin: Path, tmp_path: Path) -> None:
    bundle = bundle_of(tuned).rename(tmp_path / "right.litertlm")
    assert faults(verified(bundle, tuned, val_bin)) == []


def _packs(patch: pytest.MonkeyPatch, source: str, is_gemmas: bool = False) -> None:
    """The converter packs this template, whatever the checkpoint has."""
    patch.setattr(litert_bundle, "bundle_template", lambda *_: BundleTemplate(source, is_gemmas))


def _our_template(patch: pytest.MonkeyPatch) -> None:
    _packs(patch, gemma_template(), is_gemmas=True)


def _no_added_tokens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tokenizer, "_place_added", lambda *_: None)
    patch.setattr(tokenizer, "_made", tokenizer._made.__wrapped__)  # nothing is remembered from before, or for later
    patch.setattr(metadata, "stop_token_ids", lambda *_: [1, 11, 2049])


def _gemmas_stops(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(metadata, "stop_token_ids", lambda *_: [1, 11])


def _stop_at_a_word(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(metadata, "stop_token_ids", lambda *_: [1, 11, 433, 2049])


@pytest.mark.parametrize(
    ("mistake", "named", "evidence"),
    [
        (
            _our_template,
            ["wrong chat template", "wrong start token"],
            "for one turn, after '<' the bundle writes 'start_of_turn>user\\n",
        ),
        (
            _no_added_tokens,
            ["lost added tokens", "wrong chat template"],
            "'<|im_start|>' is [87, 151, 339, 2039], not 2048; '<|im_end|>' is [",
        ),
        (
            _gemmas_stops,
            ["wrong stop tokens"],
            "the bundle lacks 2049 (<|im_end|>), asked for by generation_config.json",
        ),
        (_stop_at_a_word, ["wrong stop tokens"], "the bundle has besides 433 ("),
    ],
)
def test_a_converters_mistake_is_named(
    mistake: Callable[[pytest.MonkeyPatch], None],
    named: list[str],
    evidence: str,
    tuned: Path,
    val_bin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is right is worked out without the converter: its own functions being wrong changes nothing."""
    mistake(monkeypatch)
    bundle = bundle_of(tuned).rename(tmp_path / "wrong.litertlm")
    report = verified(bundle, tuned, val_bin)
    assert faults(report) == named
    assert evidence in report.findings[0].evidence
    assert not report.passed


# ------------------------------------------------------------ added tokens


def test_an_added_token_is_missed_wherever_the_checkpoint_lists_it(
    tiny_gemma3: Path, plain: Path, tmp_path: Path
) -> None:
    in_json = with_tokens(copied(tiny_gemma3, tmp_path / "a"), added(START, 2048, special=False))
    in_list = copied(tiny_gemma3, tmp_path / "b")
    write(in_list / "added_tokens.json", **{START: 2048})
    in_config = copied(tiny_gemma3, tmp_path / "c")
    write(in_config / "tokenizer_config.json", added_tokens_decoder={"2048": added(START, 2048)})
    without_json = copied(in_config, tmp_path / "d")
    (without_json / "tokenizer.json").unlink()
    for checkpoint in (in_json, in_list, in_config, without_json):
        [finding] = found(checkpoint, plain)
        assert finding.name == "lost added tokens"
        assert finding.evidence == f"{START!r} is [87, 151, 339, 2039], not 2048"


def test_a_token_without_a_row_of_the_table_is_no_loss(tiny_gemma3: Path, plain: Path, tmp_path: Path) -> None:
    """Gemma 3 1B lists <image_soft_token> and has no row for it."""
    checkpoint = with_tokens(copied(tiny_gemma3, tmp_path / "a"), added("<image_soft_token>", 2048))
    assert found(checkpoint, plain, rows=2048) == []


def test_many_lost_tokens_are_counted(tiny_gemma3: Path, plain: Path, tmp_path: Path) -> None:
    write(copied(tiny_gemma3, tmp_path / "a") / "added_tokens.json", **{f"<t{i}>": 40 + i for i in range(5)})
    [finding] = found(tmp_path / "a", plain)
    assert finding.evidence.startswith("'<t0>' is [")
    assert finding.evidence.endswith("; and 2 more")


def test_a_token_that_takes_the_spaces_beside_it_is_another(tiny_gemma3: Path, tmp_path: Path) -> None:
    checkpoint = with_tokens(copied(tiny_gemma3, tmp_path / "a", vocab_size=2048))
    bundle = bundle_of(checkpoint)
    write(checkpoint / "tokenizer_config.json", added_tokens_decoder={"6": added("<unused0>", 6, lstrip=True)})
    path = checkpoint / "tokenizer.json"
    text = path.read_text().replace('"content": "<unused0>", "single_word": false, "lstrip": false', "@")
    assert "@" in text
    path.write_text(text.replace("@", '"content": "<unused0>", "single_word": false, "lstrip": true'))
    [finding] = found(checkpoint, bundle)
    assert finding.name == "wrong tokenizer"
    assert finding.evidence.startswith("'a <unused0> b' is [1979, 1976, 6, ")


# ------------------------------------------------------------ chat templates


@pytest.mark.parametrize(
    ("template", "evidence"),
    [
        (CHATML, "for one turn, after '<' the bundle writes"),
        (
            GEMMA.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"),
            "for one turn, after '<' the bundle writes 'start_of_turn>user",
        ),
        (GEMMA.replace("<end_of_turn>\n{% endfor", "<end_of_turn>{{ eos_token }}\n{% endfor"), "for one turn, after "),
        (
            GEMMA + "{{ '<think>' if messages | length > 1 }}",
            "for several turns, after 'n>\\n<start_of_turn>model\\n' the bundle writes '', the checkpoint '<think>'",
        ),
    ],
)
def test_another_template_is_named(
    template: str, evidence: str, tiny_gemma3: Path, plain: Path, tmp_path: Path
) -> None:
    [finding, *_] = found(with_template(tiny_gemma3, tmp_path / "a", template), plain)
    assert finding.name == "wrong chat template"
    assert evidence in finding.evidence


@pytest.mark.parametrize(
    ("template", "evidence"),
    [
        # the runtime gives content in parts, whatever the user gave: such templates must be changed when packed
        ("{% for m in messages %}{{ '<start_of_turn>' + m['content'] }}{% endfor %}", "the bundle writes nothing (the"),
        ("{% for m in messages %}<start_of_turn>{{ m['content'] }}{% endfor %}", 'the bundle writes \'[{"type": "text'),
        # to LiteRT-LM's tokenizer it is text, and the start token comes before it
        (GEMMA.replace("{{ bos_token }}", "<bos>"), "after '<' the bundle writes 'bos><start_of_turn>user"),
    ],
)
def test_a_checkpoints_own_template_that_the_runtime_renders_otherwise_is_named(
    template: str, evidence: str, tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _packs(monkeypatch, template)
    checkpoint = with_template(tiny_gemma3, tmp_path / "a", template)
    [finding, *_] = found(checkpoint, bundle_of(checkpoint))
    assert finding.name == "wrong chat template"
    assert evidence in finding.evidence


def test_a_template_that_rewrites_the_past_is_named(
    tiny_gemma3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime adds to a prompt; it cannot take back what a longer conversation renders otherwise."""
    template = GEMMA.replace("{{ bos_token }}", "{{ messages | length }}")
    _packs(monkeypatch, template)
    checkpoint = with_template(tiny_gemma3, tmp_path / "a", template)
    [finding, _] = found(checkpoint, bundle_of(checkpoint))
    assert "for several turns the bundle writes nothing (the chat template changes what it" in finding.evidence


def test_tools_are_tried_where_the_template_has_them(tiny_gemma3: Path, plain: Path, tmp_path: Path) -> None:
    tools = "{% for t in tools or [] %}{{ t['function']['name'] }}\n{% endfor %}" + GEMMA
    [*_, finding] = found(with_template(tiny_gemma3, tmp_path / "a", tools), plain)
    assert finding.name == "wrong tool prompts"
    assert finding.evidence.startswith(
        "for tools, after '' the bundle writes '<start_of_turn>system\\ndef get_ti', the c"
    )
    assert "wrong tool prompts" not in names(with_template(tiny_gemma3, tmp_path / "b", GEMMA), plain)


# ------------------------------------------------------------ stop tokens


@pytest.mark.parametrize(
    ("file", "values", "source"),
    [
        ("generation_config.json", {"eos_token_id": [1, 433]}, "generation_config.json"),
        ("generation_config.json", {"eos_token_id": 433}, "generation_config.json"),
        ("config.json", {"eos_token_id": [1, 433]}, "config.json"),
        ("config.json", {"eos_token_id": None, "text_config": {"eos_token_id": 433}}, "config.json"),
        ("tokenizer_config.json", {"eos_token": "<unused0>"}, "the tokenizer's eos_token"),
        ("special_tokens_map.json", {"eos_token": {"content": "<unused0>"}}, "the tokenizer's eos_token"),
        (
            "tokenizer_config.json",
            {"chat_template": GEMMA.replace("<end_of_turn>\n", "\n<unused0>\n")},
            "the chat template, after a reply",
        ),
    ],
)
def test_a_missing_stop_token_is_named_with_its_source(
    file: str, values: dict[str, object], source: str, tiny_gemma3: Path, plain: Path, tmp_path: Path
) -> None:
    checkpoint = copied(tiny_gemma3, tmp_path / "a")
    if file != "generation_config.json":
        write(checkpoint / "generation_config.json", eos_token_id=None)
    if file == "special_tokens_map.json":
        write(checkpoint / "tokenizer_config.json", eos_token=None)
    write(checkpoint / file, **values)
    [finding] = [finding for finding in found(checkpoint, plain) if finding.name == "wrong stop tokens"]
    number = "6 (<unused0>)" if "<unused0>" in str(values) else "433 ("
    assert finding.evidence.startswith(f"the bundle lacks {number}")
    assert finding.evidence.endswith(f", asked for by {source}")


def test_generation_config_wins_and_ids_without_a_row_never_come(
    tiny_gemma3: Path, plain: Path, tmp_path: Path
) -> None:
    checkpoint = copied(tiny_gemma3, tmp_path / "a", eos_token_id=433)
    write(checkpoint / "generation_config.json", eos_token_id=[1, 262145])
    assert names(checkpoint, plain) == []


# ------------------------------------------------------------ files that cannot be read


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        (
            "tokenizer_config.json",
            b"{",
            r"tokenizer_config\.json: cannot be read as JSON \(.*\); download the file again",
        ),
        ("added_tokens.json", b"[]", r"added_tokens\.json: found a list, expected an object; download the file again"),
        ("tokenizer.json", b"{}", r"tokenizer\.json: cannot be read as a tokenizer \(.*\); download the file again"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja: cannot be read as UTF-8 text \(.*\); download the"),
        ("chat_template.jinja", b"{% for", r"tiny: its chat template has an error in line 1: .*; correct it"),
        (
            "tokenizer_config.json",
            b'{"chat_template": 7}',
            r"tokenizer_config\.json: chat_template is '7', expected a text or a list of named ones; download the file",
        ),
        (
            "tokenizer_config.json",
            b'{"chat_template": [{"name": "rag", "template": "x"}]}',
            r"tiny: found the chat templates rag, expected one named default; name it so",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_told(
    file: str, content: bytes, told: str, tiny_gemma3: Path, plain: Path, tmp_path: Path
) -> None:
    checkpoint = copied(tiny_gemma3, tmp_path / "tiny")
    (checkpoint / file).write_bytes(content)
    with pytest.raises(VerifyError, match=told):
        found(checkpoint, plain)


def test_a_checkpoint_without_a_tokenizer_is_told(tiny_gemma3: Path, plain: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_gemma3, tmp_path / "tiny")
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(VerifyError, match=r"tokenizer\.model: cannot be read as a SentencePiece model; download the"):
        found(checkpoint, plain)
    (checkpoint / "tokenizer.model").unlink()
    with pytest.raises(VerifyError, match=r"tiny: has neither tokenizer\.json nor tokenizer\.model; add one of them"):
        found(checkpoint, plain)
