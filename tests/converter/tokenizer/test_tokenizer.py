import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as proto

from gemma_edge.converter.tokenizer.added_tokens import TokenizerError
from gemma_edge.converter.tokenizer.tokenizer import SAMPLES, SPACE, prove_equal, sentencepiece_model

TINY_TOKENS = 2080  # embedding rows of the tiny checkpoints; their tokenizer has 2,048 pieces
_TYPE = proto.ModelProto.SentencePiece


def parse(model: bytes) -> proto.ModelProto:
    parsed = proto.ModelProto()
    parsed.ParseFromString(model)
    return parsed


@pytest.fixture
def json_only(tiny_gemma3n: Path, tmp_path: Path) -> Path:
    """A checkpoint that has lost its tokenizer.model."""
    shutil.copy(tiny_gemma3n / "tokenizer.json", tmp_path)
    return tmp_path


def edit(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def add_token(text: str, number: int) -> Callable[[dict[str, Any]], object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return lambda content: content["added_tokens"].append({"id": number, "content": text, "special": True, **flags})


# ---------------------------------------------------------------- taken


def test_the_checkpoints_own_model_is_taken(tiny_gemma3n: Path) -> None:
    ours, original = parse(sentencepiece_model(tiny_gemma3n, TINY_TOKENS)), proto.ModelProto()
    original.ParseFromString((tiny_gemma3n / "tokenizer.model").read_bytes())
    assert list(ours.pieces) == list(original.pieces)
    assert ours.normalizer_spec == original.normalizer_spec


def test_added_tokens_behind_the_model_become_pieces(tiny_gemma3n: Path, tmp_path: Path) -> None:
    """Gemma 3n: tokenizer.model ends at 262143, <image_soft_token> is 262145, <audio_soft_token> 262273."""
    for name in ("tokenizer.model", "tokenizer.json"):
        shutil.copy(tiny_gemma3n / name, tmp_path)
    edit(tmp_path, add_token("<image_soft_token>", 2049))
    edit(tmp_path, add_token("<beyond_the_embedding>", TINY_TOKENS))
    model = sentencepiece_model(tmp_path, TINY_TOKENS)
    assert len(parse(model).pieces) == 2050
    assert parse(model).pieces[2048].type == _TYPE.UNUSED
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert processor.encode("<image_soft_token>") == [2049]
    assert max(processor.encode("<beyond_the_embedding>")) < 2048


def test_beside_a_model_the_json_only_has_to_list_the_same_tokens(tiny_gemma3n: Path, json_only: Path) -> None:
    shutil.copy(tiny_gemma3n / "tokenizer.model", json_only)
    edit(json_only, lambda content: content.update(pre_tokenizer={"type": "ByteLevel"}))
    assert sentencepiece_model(json_only, TINY_TOKENS) == sentencepiece_model(tiny_gemma3n, TINY_TOKENS)


def test_a_tokenizer_that_changes_in_place_is_read_again(tiny_gemma3n: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer.json"):
        shutil.copy(tiny_gemma3n / name, tmp_path)
    before = sentencepiece_model(tmp_path, TINY_TOKENS)
    edit(tmp_path, add_token("<new>", 2049))
    after = sentencepiece_model(tmp_path, TINY_TOKENS)
    assert len(parse(after).pieces) == 2050 > len(parse(before).pieces)


# ---------------------------------------------------------------- derived


def test_a_derived_model_segments_as_the_original(tiny_gemma3n: Path, json_only: Path) -> None:
    derived = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(json_only, TINY_TOKENS))
    original = sentencepiece.SentencePieceProcessor(model_file=str(tiny_gemma3n / "tokenizer.model"))
    for text in (*SAMPLES, "<bos>literal<eos>", f"{SPACE} {SPACE}"):
        assert derived.encode(text) == original.encode(text)


def test_a_derived_model_has_the_originals_piece_types_and_settings(tiny_gemma3n: Path, json_only: Path) -> None:
    derived = parse(sentencepiece_model(json_only, TINY_TOKENS))
    original = parse((tiny_gemma3n / "tokenizer.model").read_bytes())
    for name in ("name", "add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
        assert getattr(derived.normalizer_spec, name) == getattr(original.normalizer_spec, name)
    for name in ("model_type", "byte_fallback", "bos_id", "eos_id", "pad_id", "unk_id", "bos_piece", "vocab_size"):
        assert getattr(derived.trainer_spec, name) == getattr(original.trainer_spec, name)
    types = {(ours.piece, ours.type, theirs.type) for ours, theirs in zip(derived.pieces, original.pieces, strict=True)}
    # Runs of spaces are user-defined in this .model, and ordinary merges in its tokenizer.json.
    assert {piece for piece, ours, theirs in types if ours != theirs} == {SPACE * n for n in range(2, 9)}


def test_the_real_gemma_tokenizer(gemma_tokenizer: Path) -> None:
    """Hundreds of chunks of everything, against the unabridged original."""
    model = sentencepiece_model(gemma_tokenizer, 262_144)
    derived = sentencepiece.SentencePieceProcessor(model_proto=model)
    original = tokenizers.Tokenizer.from_file(str(gemma_tokenizer / "tokenizer.json"))
    assert derived.vocab_size() == 262_144  # <image_soft_token> has no embedding row in the text-only 1B
    assert [derived.piece_to_id(text) for text in ("<pad>", "<start_of_turn>", "<end_of_turn>")] == [0, 105, 106]
    for text in (*SAMPLES, *fuzz(original)):
        assert derived.encode(text) == original.encode(text, add_special_tokens=False).ids


def fuzz(original: tokenizers.Tokenizer) -> list[str]:
    """600 deterministic chunks of up to a few kB: tokens, characters of every plane, whitespace, repeats, markup."""
    rng = random.Random(0)
    vocabulary = sorted(original.get_vocab().items(), key=lambda item: item[1])
    pieces = [text.replace(SPACE, " ") for text, number in vocabulary if 3 < number < 262_144]
    planes = [(0, 0x7F), (0x80, 0x2FF), (0x370, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0xD7FF), (0xE000, 0x10FFFF)]
    parts: list[Callable[[], str]] = [
        lambda: rng.choice(pieces),
        lambda: chr(rng.randint(*rng.choice(planes))),
        lambda: rng.choice(" \n\t\r") * rng.randint(1, 70),
        lambda: rng.choice(pieces)[:3] * rng.randint(2, 40),
        lambda: rng.choice(["<start_of_turn>", "<end_of_turn>", "<b>", "<", ">", "<0x41>", "<unused7>", "<mask>"]),
    ]
    chunks = []
    for _ in range(600):
        weights = [rng.random() for _ in parts]
        text = "".join(part() for part in rng.choices(parts, weights, k=rng.randint(1, 200)))
        # The two known differences, see the module's first lines.
        for control in ("<bos>", "<eos>", "<pad>", "<unk>"):
            text = text.replace(control, "")
        chunks.append(text.replace(SPACE, "_"))
    return chunks


# ---------------------------------------------------------------- refused


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has neither tokenizer\.model nor tokenizer\.json; add one"):
        sentencepiece_model(tmp_path, TINY_TOKENS)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_pointer_in_place_of_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(TokenizerError, match=rf"{name}: a Git LFS pointer, expected .*; run `git lfs pull`"):
        sentencepiece_model(tmp_path, TINY_TOKENS)


def test_an_unreadable_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"version 1 of something else")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: not a SentencePiece model; download the file again"):
        sentencepiece_model(tmp_path, TINY_TOKENS)


@pytest.mark.parametrize("absent", [["<pad>"], ["<bos>"], ["<pad>", "<eos>", "<bos>"]])
def test_a_model_without_control_tokens(absent: list[str], tiny_gemma3n: Path, tmp_path: Path) -> None:
    model = proto.ModelProto.FromString((tiny_gemma3n / "tokenizer.model").read_bytes())
    for name in absent:
        setattr(model.trainer_spec, f"{name[1:-1]}_id", -1)
        setattr(model.trainer_spec, f"{name[1:-1]}_piece", "<none>")
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(TokenizerError) as caught:
        sentencepiece_model(tmp_path, TINY_TOKENS)
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer.model'}: not a Gemma tokenizer, <pad>, <eos> or <bos> is missing; "
        "use the one of the checkpoint"
    )


def test_an_empty_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"not a Gemma tokenizer, <pad>, <eos> or <bos> is missing; use the one"):
        sentencepiece_model(tmp_path, TINY_TOKENS)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"].update(vocab=[]),
        lambda content: content["model"].update(merges=5),
        lambda content: content["model"]["vocab"].update({"<bos>": "2"}),
        lambda content: content["added_tokens"][0].update(id="0"),
        lambda content: content["added_tokens"][0].update(id=None),
        lambda content: content["added_tokens"][0].update(content=5),
        lambda content: content["added_tokens"][0].update(id=-5),
        lambda content: content["added_tokens"][0].update(id=10**30),
    ],
)
def test_a_json_of_the_wrong_types(json_only: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(json_only, change)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: unreadable \(.*\); download the file again"):
        sentencepiece_model(json_only, TINY_TOKENS)


def test_an_unreadable_json(json_only: Path) -> None:
    (json_only / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: unreadable \(KeyError.*\); download the file again"):
        sentencepiece_model(json_only, TINY_TOKENS)


def test_more_pieces_than_embedding_rows(tiny_gemma3n: Path) -> None:
    with pytest.raises(
        TokenizerError, match="the tokenizer has 2048 pieces, the model 2000 embedding rows; use the tok"
    ):
        sentencepiece_model(tiny_gemma3n, 2000)


def test_two_files_that_disagree(tiny_gemma3n: Path, json_only: Path) -> None:
    shutil.copy(tiny_gemma3n / "tokenizer.model", json_only)

    def swap(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["K"], vocabulary["Z"] = vocabulary["Z"], vocabulary["K"]

    edit(json_only, swap)
    with pytest.raises(
        TokenizerError, match=r"token \d+ is 'K', in tokenizer\.json 'Z'; remove the file that does not"
    ):
        sentencepiece_model(json_only, TINY_TOKENS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(type="Unigram"), "model.type is Unigram, expected BPE"),
        (lambda c: c["model"].update(byte_fallback=False), "model.byte_fallback is False, expected True"),
        (lambda c: c["model"].update(ignore_merges=True), "model.ignore_merges is True, expected False"),
        (
            lambda c: c.update(normalizer={"type": "NFKC"}),
            "normalizer is {'type': 'NFKC'}, expected {'type': 'Replace'",
        ),
        (lambda c: c.update(pre_tokenizer={"type": "ByteLevel"}), "pre_tokenizer is {'type': 'ByteLevel'}, expected"),
        (lambda c: c["model"]["vocab"].update({"<eos>": 5000}), "the id of <eos> is 5000, expected 1"),
        (lambda c: c["model"]["vocab"].pop("<0x41>"), "the number of byte pieces is 255, expected 256"),
        (lambda c: c["model"]["vocab"].update(zzzz=5000), "the list of ids is with gaps, expected 0 to 2048"),
    ],
)
def test_another_kind_of_tokenizer(json_only: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(json_only, change)
    with pytest.raises(TokenizerError) as refusal:
        sentencepiece_model(json_only, TINY_TOKENS)
    assert f"not a Gemma tokenizer, {message}" in str(refusal.value)
    assert str(refusal.value).endswith("; add the checkpoint's tokenizer.model")


def test_merges_that_scores_cannot_express(json_only: Path) -> None:
    def interleave(content: dict[str, Any]) -> None:
        merges = content["model"]["merges"]
        at = next(i for i, (a, b) in enumerate(itertools.pairwise(merges)) if i > 99 and a[0] + a[1] == b[0] + b[1])
        merges.append(merges.pop(at))

    edit(json_only, interleave)
    with pytest.raises(
        TokenizerError, match=r"the merges that make '.*' are not consecutive \(ranks \d+ and \d+\), so no"
    ):
        sentencepiece_model(json_only, TINY_TOKENS)


def test_older_files_spell_a_merge_as_one_string(json_only: Path) -> None:
    expected = sentencepiece_model(json_only, TINY_TOKENS)
    edit(json_only, lambda content: content["model"].update(merges=[" ".join(m) for m in content["model"]["merges"]]))
    assert sentencepiece_model(json_only, TINY_TOKENS) == expected


def test_a_broken_merge(json_only: Path) -> None:
    edit(json_only, lambda content: content["model"]["merges"].append(["a", "b", "c"]))
    with pytest.raises(
        TokenizerError, match=r"merge \['a', 'b', 'c'\] is not a pair of strings; download the file again"
    ):
        sentencepiece_model(json_only, TINY_TOKENS)


def test_a_missing_merge(json_only: Path) -> None:
    edit(json_only, lambda content: content["model"]["merges"].pop(1500))
    with pytest.raises(TokenizerError, match=r"\d merges make '.*', SentencePiece would try \d; add the checkpoint's"):
        sentencepiece_model(json_only, TINY_TOKENS)


def test_a_model_that_segments_otherwise_is_caught(tiny_gemma3n: Path) -> None:
    model = parse(sentencepiece_model(tiny_gemma3n, TINY_TOKENS))
    for piece in model.pieces:
        piece.score = -piece.score
    with pytest.raises(TokenizerError, match=r"derived tokenizer differs at token \d+ of 'The quick .*, expected \["):
        prove_equal(model.SerializeToString(), tiny_gemma3n / "tokenizer.json", SAMPLES)


def test_a_model_that_spells_otherwise_is_caught(json_only: Path) -> None:
    edit(json_only, lambda content: content.update(decoder={"type": "Fuse"}))
    with pytest.raises(
        TokenizerError, match=f"derived tokenizer spells 'The quick .*, expected 'The{SPACE}quick.*; add"
    ):
        sentencepiece_model(json_only, TINY_TOKENS)
