"""Added tokens as fine-tunes leave them; transformers' tokenizer of the same directory is what is right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers

from gemma_edge.converter.convert import convert
from gemma_edge.converter.litert.metadata import llm_metadata
from gemma_edge.converter.tokenizer.added_tokens import TokenizerError
from gemma_edge.converter.tokenizer.tokenizer import sentencepiece_model
from tests.converter.verify.prompts.tuned import added, with_tokens, write

ROWS = 2080
Change = Callable[[Path], object]


@pytest.fixture
def checkpoint(tiny_gemma3: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_gemma3 / name, directory)
    return directory


def only_model(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    write(checkpoint / "tokenizer_config.json", tokenizer_class="GemmaTokenizer", backend="sentencepiece")


def only_json(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.model").unlink()


def rename(checkpoint: Path, *pairs: tuple[str, str]) -> None:
    path = checkpoint / "tokenizer.json"
    text = path.read_text()
    for old, new in pairs:
        text = text.replace(json.dumps(old), json.dumps(new))
    path.write_text(text)


def listed_beside(checkpoint: Path) -> None:
    only_model(checkpoint)
    write(checkpoint / "added_tokens.json", **{"<call>": 2049, "<think>": 2048})


def listed_in_configuration(checkpoint: Path) -> None:
    only_model(checkpoint)
    tokens = {"2048": added("<call>", 2048), "2049": added("<think>", 2049, special=False)}
    write(checkpoint / "tokenizer_config.json", added_tokens_decoder=tokens)


def normalized(checkpoint: Path) -> None:
    only_json(checkpoint)
    flags = {"normalized": True, "special": False}
    with_tokens(
        checkpoint, added("<call>", 2048, **flags), added("<think>", 2049, **flags), added("\u732b", 2050, **flags)
    )


def with_spaces(checkpoint: Path) -> None:
    with_tokens(checkpoint, added("<call>", 2048), added("<call> <think>", 2049), added("new york", 2050))


def in_place_of_unused_ones(checkpoint: Path) -> None:
    with_tokens(checkpoint)
    rename(checkpoint, ("<unused0>", "<call>"), ("<unused3>", "<think>"))


def another_end(checkpoint: Path) -> None:
    rename(checkpoint, ("<eos>", "<call>"), ("<start_of_turn>", "<think>"))
    write(checkpoint / "tokenizer_config.json", eos_token="<call>")


def another_end_without_model(checkpoint: Path) -> None:
    another_end(checkpoint)
    only_json(checkpoint)


def another_start(checkpoint: Path) -> None:
    rename(checkpoint, ("<bos>", "<call>"))
    write(checkpoint / "tokenizer_config.json", bos_token="<call>")


CHANGES = (
    listed_beside, listed_in_configuration, normalized, with_spaces, in_place_of_unused_ones, another_end,
    another_end_without_model, another_start,
)  # fmt: skip
TEXTS = (
    "a <call> b<think>c", "<think><call>", "<call> <think> <call>", "  two  <think>\n\n  in new york.",
    "\u732b\u732b a",
    "<start_of_turn>user\nHi<end_of_turn>\n",
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_added_tokens_are_one_token_each(change: Change, checkpoint: Path) -> None:
    change(checkpoint)
    expected = transformers.AutoTokenizer.from_pretrained(checkpoint)
    found = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(checkpoint, ROWS))
    for text in TEXTS:
        assert found.encode(text) == expected.encode(text, add_special_tokens=False), text


def test_a_renamed_start_token_is_the_start_token(checkpoint: Path) -> None:
    from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata

    another_start(checkpoint)
    metadata = LlmMetadata()
    metadata.ParseFromString(llm_metadata(checkpoint, "gemma3", 512, sentencepiece_model(checkpoint, ROWS)))
    assert list(metadata.start_token.token_ids.ids) == [2]


@pytest.mark.parametrize("change", [only_model, listed_beside, listed_in_configuration])
def test_an_onnx_directory_has_a_tokenizer_json_whatever_the_checkpoint_has(
    change: Change, tiny_gemma3n: Path, tmp_path: Path
) -> None:
    """tiny-gemma3n has rows for added tokens."""
    checkpoint = Path(shutil.copytree(tiny_gemma3n, tmp_path / "checkpoint"))
    change(checkpoint)
    convert("custom-int4", checkpoint, tmp_path / "onnx", format="onnx", context=64, measure=False)
    expected = transformers.AutoTokenizer.from_pretrained(checkpoint)
    found = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "onnx" / "tokenizer.json"))
    for text in TEXTS:
        assert found.encode(text, add_special_tokens=False) == expected.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
@pytest.mark.parametrize("keep", [only_json, lambda _: None])
def test_a_token_that_takes_what_is_beside_it_is_refused(flag: str, keep: Change, checkpoint: Path) -> None:
    keep(checkpoint)
    with_tokens(checkpoint, added("<call>", 2048, **{flag: True}))
    with pytest.raises(TokenizerError) as refusal:
        sentencepiece_model(checkpoint, ROWS)
    assert str(refusal.value) == (
        f"{checkpoint / 'tokenizer.json'}: {flag} of the added token '<call>' is True, which SentencePiece cannot do; "
        "set it to false, as Gemma's own tokens have it"
    )
    sentencepiece_model(checkpoint, 2048)  # without a row, nothing is lost


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("added_tokens.json", {"<call>": "2048"}, "the id of '<call>' is '2048', expected a number; correct it"),
        (
            "added_tokens.json",
            {"<a>": 2048, "<b>": 2048},
            "token 2048 is '<b>' and '<a>'; remove the one that does",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder has 'x': {}; correct it"),
    ],
)
def test_lists_that_cannot_be(name: str, values: dict[str, Any], message: str, checkpoint: Path) -> None:
    only_model(checkpoint)
    write(checkpoint / name, **values)
    with pytest.raises(TokenizerError) as refusal:
        sentencepiece_model(checkpoint, ROWS)
    assert str(refusal.value).startswith(f"{checkpoint / name}: {message}")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "unreadable (JSONDecodeError"), ("[]", "a list, expected an object")]
)
def test_lists_that_cannot_be_read(text: str, message: str, checkpoint: Path) -> None:
    (checkpoint / "added_tokens.json").write_text(text)
    with pytest.raises(TokenizerError) as refusal:
        sentencepiece_model(checkpoint, ROWS)
    assert message in str(refusal.value)
    assert str(refusal.value).endswith("; download the file again")


def cut_short(checkpoint: Path) -> None:
    """As whoever trained with a limit saves it: transformers switches it off."""
    limit = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    pad = {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    write(checkpoint / "tokenizer.json", truncation=limit, padding={**padding, **pad})
    only_json(checkpoint)


def test_a_limit_of_training_cuts_nothing(checkpoint: Path) -> None:
    cut_short(checkpoint)
    text = "In the beginning God created the heaven and the earth."
    expected = transformers.AutoTokenizer.from_pretrained(checkpoint).encode(text, add_special_tokens=False)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(checkpoint, ROWS))
    assert pieces.encode(text) == expected
    assert len(expected) > 4
