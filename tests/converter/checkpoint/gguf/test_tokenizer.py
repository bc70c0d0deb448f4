"""The tokenizer of a GGUF: the one of the checkpoint it was written from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.gguf.file import read_gguf
from gemma_edge.converter.checkpoint.gguf.tokenizer import derived_template, derived_tokenizer
from gemma_edge.converter.tokenizer.tokenizer import SAMPLES, sentencepiece_model
from tests.converter.checkpoint.checkpoint_files import one_line
from tools.gguf_writer import write_gguf
from tools.script_texts import letters_by_script, texts

FILE = Path("a.gguf")
TYPE = "tokenizer.ggml.token_type"
ROWS = 2048


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of tiny-gemma3."""
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    write_gguf(Path(__file__).parents[3] / "fixtures" / "tiny-gemma3", path)
    return path


@pytest.fixture
def metadata(written: Path) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, list) else value for key, value in read_gguf(written).metadata.items()
    }


def test_texts_are_segmented_as_by_the_original(written: Path, tiny_gemma3: Path) -> None:
    source = Checkpoint.open(written)
    derived = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(source.side_path, ROWS))
    as_json = tokenizers.Tokenizer.from_file(str(source.side_path / "tokenizer.json"))
    original = sentencepiece.SentencePieceProcessor(model_file=str(tiny_gemma3 / "tokenizer.model"))
    for text in (*SAMPLES, *(text for _, text in texts(1000))):
        expected = original.encode(text.replace("\u2581", "_"))
        assert derived.encode(text.replace("\u2581", "_")) == expected
        assert as_json.encode(text.replace("\u2581", "_"), add_special_tokens=False).ids == expected
    assert as_json.encode("a").ids[0] == 2  # <bos>


def test_the_texts_are_of_many_scripts() -> None:
    assert len(letters_by_script()) >= 60
    assert len({script for script, _ in texts(len(letters_by_script()))}) == len(letters_by_script())


def test_a_derived_model_is_the_one_that_tokenizer_json_gives(tiny_gemma3: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_gemma3 / name).read_bytes())
    write_gguf(tmp_path, tmp_path / "gguf.gguf")
    source = Checkpoint.open(tmp_path / "gguf.gguf")  # whose side files are there as long as it is
    assert sentencepiece_model(source.side_path, ROWS) == sentencepiece_model(tmp_path, ROWS)


def test_unused_tokens_at_the_end_are_no_tokens(metadata: dict[str, Any]) -> None:
    expected = derived_tokenizer(FILE, metadata)
    for name, item in (("tokens", "[PAD]"), ("scores", -10000.0), ("token_type", 5)):
        metadata[f"tokenizer.ggml.{name}"] += [item] * 3
    assert derived_tokenizer(FILE, metadata) == expected


def test_turn_markers_are_tokens_whatever_their_type(metadata: dict[str, Any]) -> None:
    expected = derived_tokenizer(FILE, metadata)
    for text in ("<start_of_turn>", "<end_of_turn>"):
        metadata[TYPE][metadata["tokenizer.ggml.tokens"].index(text)] = 1
    assert derived_tokenizer(FILE, metadata) == expected


def test_without_a_start_token_nothing_is_put_before_a_text(metadata: dict[str, Any]) -> None:
    assert derived_tokenizer(FILE, metadata | {"tokenizer.ggml.add_bos_token": False})["post_processor"] is None


def _set(name: str, number: int, item: Any) -> Callable[[dict[str, Any]], object]:
    return lambda values: values[f"tokenizer.ggml.{name}"].__setitem__(number, item)


def _put(key: str, item: Any) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.update({f"tokenizer.ggml.{key}": item})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("model", "gpt2"), "tokenizer.ggml.model is 'gpt2', expected 'llama'; not a Gemma tokenizer"),
        (_put("model", None), "tokenizer.ggml.model is 'None', expected 'llama'; not a Gemma tokenizer"),
        (_put("pre", "llama-bpe"), "tokenizer.ggml.pre is 'llama-bpe', expected 'default'; not a Gemma tokenizer"),
        (_put("add_space_prefix", True), "tokenizer.ggml.add_space_prefix is 'True', expected False; not a Gemma"),
        (_put("bos_token_id", 1), "tokenizer.ggml.bos_token_id is '1', expected 2; not a Gemma tokenizer"),
        (_put("tokens", None), "tokenizer.ggml.tokens is missing, or no list of str; convert the model anew"),
        (_put("scores", [1]), "tokenizer.ggml.scores is missing, or no list of float; convert the model"),
        (lambda values: values["tokenizer.ggml.scores"].pop(), "2048 tokens, 2047 scores and 2048 types, expected as "
         "many of each; convert the model anew with llama.cpp"),
        (_set("token_type", 300, 7), "token 300 is of type 7, expected a used one of 1 to 6; not a Gemma tokenizer"),
        (_set("token_type", 300, 5), "token 300 is of type 5, expected a used one of 1 to 6; not a Gemma tokenizer"),
        (_set("tokens", 0, "<padding>"), "the id of <pad> is None, expected 0; not a Gemma tokenizer"),
        (_set("tokens", 7, "<eos>"), "the token '<eos>' is listed twice; expected different ones: correct the file"),
    ],
)  # fmt: skip
def test_another_kind_of_tokenizer(change: Callable[[dict[str, Any]], object], message: str, metadata: Any) -> None:
    change(metadata)
    assert one_line(lambda: derived_tokenizer(FILE, metadata)).startswith(f"a.gguf: {message}")


def test_two_pieces_of_one_score(metadata: dict[str, Any]) -> None:
    texts_, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    normal = [i for i, kind in enumerate(metadata[TYPE]) if kind == 1 and len(texts_[i]) > 1]
    scores[normal[5]] = scores[normal[4]]
    message = one_line(lambda: derived_tokenizer(FILE, metadata))
    assert message.startswith(f"a.gguf: the tokens {texts_[normal[4]]!r} and {texts_[normal[5]]!r} have the score ")
    assert message.endswith(", so which is merged first is unknown; expected different scores")


def test_the_chat_template(metadata: dict[str, Any], tiny_gemma3: Path, tmp_path: Path) -> None:
    assert derived_template(FILE, metadata) is None
    for file in tiny_gemma3.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}ü")
    write_gguf(tmp_path, tmp_path / "gguf.gguf")
    source = Checkpoint.open(tmp_path / "gguf.gguf")
    assert (source.side_path / "chat_template.jinja").read_text("utf-8") == "{{ messages[0].content }}ü"
    assert one_line(lambda: derived_template(FILE, {"tokenizer.chat_template": 5})) == (
        "a.gguf: tokenizer.chat_template is '5', expected a text; correct the file"
    )
