"""Stop tokens and sampler: wherever a checkpoint says them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from click.testing import CliRunner
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata
from litert_lm_builder.runtime.proto.sampler_params_pb2 import SamplerParameters

from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.litert.metadata import llm_metadata
from gemma_edge.converter.tokenizer.generation import (
    MetadataError,
    repetition_penalty,
    settings_left_out,
    stop_token_ids,
)
from gemma_edge.converter.tokenizer.tokenizer import sentencepiece_model
from gemma_edge.runtime.text.sampler import SamplerConfig
from tests.converter.verify.prompts.tuned import added, with_tokens, write


@pytest.fixture
def checkpoint(tiny_gemma3: Path, tmp_path: Path) -> Path:
    """The small files of a checkpoint, without any word on how to generate."""
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_gemma3 / name, tmp_path)
    return tmp_path


def metadata(checkpoint: Path) -> LlmMetadata:
    found = LlmMetadata()
    found.ParseFromString(llm_metadata(checkpoint, "gemma3", 512, (checkpoint / "tokenizer.model").read_bytes()))
    return found


def stops(checkpoint: Path) -> list[int]:
    return [number for token in metadata(checkpoint).stop_tokens for number in token.token_ids.ids]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, [1, 11]),
        ({"generation_config.json": {"eos_token_id": 13}}, [1, 11, 13]),
        ({"generation_config.json": {"eos_token_id": [13, 1, 14]}}, [1, 11, 13, 14]),
        ({"generation_config.json": {"eos_token_id": None}, "config.json": {"eos_token_id": 15}}, [1, 11, 15]),
        ({"config.json": {"eos_token_id": [1, 16]}}, [1, 11, 16]),
        ({"config.json": {"text_config": {"eos_token_id": 17}}}, [1, 11, 17]),
        ({"config.json": {"eos_token_id": 1, "text_config": {"eos_token_id": [18, 19]}}}, [1, 11, 18, 19]),
        ({"generation_config.json": {"eos_token_id": 13}, "config.json": {"eos_token_id": [14]}}, [1, 11, 13, 14]),
        ({"tokenizer_config.json": {"eos_token": "<unused1>"}}, [1, 7, 11]),
        ({"tokenizer_config.json": {"eos_token": {"content": "<unused2>", "special": True}}}, [1, 8, 11]),
    ],
)
def test_every_file_that_names_an_end_counts(
    files: dict[str, dict[str, Any]], expected: list[int], checkpoint: Path
) -> None:
    for name, values in files.items():
        write(checkpoint / name, **values)
    assert stops(checkpoint) == expected


@pytest.mark.parametrize(
    ("end", "expected"), [("<unused0>\n", [1, 6, 11]), ("\n<start_of_image>", [1, 11, 13]), (" The end.", [1, 11])]
)
def test_what_the_chat_template_ends_a_reply_with_counts(end: str, expected: list[int], checkpoint: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    if "<start_of_image>" in end:
        expected = sorted({1, 11, pieces.piece_to_id("<start_of_image>")})
    (checkpoint / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role + ': ' + m.content + end }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'model: ' }}{% endif %}".replace("end }}", f"{end!r} }}}}")
    )
    assert stops(checkpoint) == expected


def test_a_tokenizer_that_renamed_its_ends_has_others(checkpoint: Path) -> None:
    """No <end_of_turn>, and no need for one where the template ends a turn otherwise."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    assert stop_token_ids(checkpoint, pieces, "<unused3>") == [1, 9, 11]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"eos_token_id": 2048}, "config.json: eos_token_id 2048, expected ids below 2048; correct it"),
        ("config.json", {"text_config": {"eos_token_id": [-1]}}, "config.json: eos_token_id -1, expected ids below"),
        ("generation_config.json", {"eos_token_id": ["<eos>"]}, "eos_token_id '<eos>', expected ids below 2048"),
    ],
)
def test_an_end_that_no_token_is_is_refused(name: str, values: dict[str, Any], message: str, checkpoint: Path) -> None:
    write(checkpoint / name, **values)
    with pytest.raises(MetadataError, match=message):
        stops(checkpoint)


@pytest.mark.parametrize(
    "values", [{"do_sample": False}, {"do_sample": False, "top_k": 64, "temperature": 1.0}, {"temperature": 0.0}]
)
def test_without_sampling_the_best_token_is_taken(values: dict[str, Any], checkpoint: Path) -> None:
    write(checkpoint / "generation_config.json", **values)
    parameters = metadata(checkpoint).sampler_params
    assert parameters.type == SamplerParameters.GREEDY
    assert SamplerConfig.of_bundle(parameters).top_k == 1


@pytest.mark.parametrize(("top_k", "expected"), [(0, 2048), (1, 1), (40.0, 40), (None, 64)])
def test_top_k_0_keeps_every_token(top_k: float | None, expected: int, checkpoint: Path) -> None:
    write(checkpoint / "generation_config.json", do_sample=True, top_k=top_k)
    parameters = metadata(checkpoint).sampler_params
    assert (parameters.type, parameters.k) == (SamplerParameters.TOP_P, expected)


def test_suppressed_tokens_are_suppressed(checkpoint: Path) -> None:
    write(checkpoint / "generation_config.json", suppress_tokens=[5, 6])
    assert list(metadata(checkpoint).suppress_tokens.ids) == [5, 6]


LEFT_OUT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"repetition_penalty": 1.1, "top_k": 5}, {"repetition_penalty": 1.1}),
    ({"begin_suppress_tokens": [7], "suppress_tokens": [8]}, {"begin_suppress_tokens": [7]}),
    ({"bad_words_ids": [[5, 6]], "use_cache": False}, {"bad_words_ids": [[5, 6]]}),
    ({"max_new_tokens": 100, "min_p": 0.05, "min_length": 3}, {"max_new_tokens": 100, "min_p": 0.05, "min_length": 3}),
    ({"stop_strings": ["\n\n"], "forced_bos_token_id": 0}, {"stop_strings": ["\n\n"], "forced_bos_token_id": 0}),
    ({"num_beams": 4, "length_penalty": 0.8}, {"num_beams": 4, "length_penalty": 0.8}),
    ({"a_setting_of_tomorrow": "x", "cache_implementation": "hybrid"}, {"a_setting_of_tomorrow": "x"}),
    ({"repetition_penalty": 1.0, "num_beams": 1, "length_penalty": 0.8, "no_repeat_ngram_size": 0, "min_p": None}, {}),
    ({"renormalize_logits": False, "bad_words_ids": [], "max_length": 20, "typical_p": 1.0, "bos_token_id": 2}, {}),
]


@pytest.mark.parametrize(("values", "expected"), LEFT_OUT)
def test_what_no_bundle_can_say_is_named(values: dict[str, Any], expected: dict[str, Any], checkpoint: Path) -> None:
    write(checkpoint / "generation_config.json", **values)
    assert settings_left_out(checkpoint) == expected


def test_the_report_names_what_is_left_out(tiny_gemma3: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_gemma3, tmp_path / "checkpoint"))
    write(checkpoint / "generation_config.json", begin_suppress_tokens=[7], sequence_bias=[[[5], -10.0]] * 9)
    out = tmp_path / "model.litertlm"
    arguments = [
        "convert",
        "--target",
        "custom-int8",
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(out),
        "--no-measure",
    ]
    printed = CliRunner().invoke(main, arguments, env={"COLUMNS": "400"}).output
    assert (
        "generation_config.json also says begin_suppress_tokens [7], sequence_bias [[[5], -10.0], [[5], -10.0], "
        "[[5], -1...: LiteRT-LM and the runtime here do not apply it by themselves; ask for it with a message"
    ) in printed
    report = json.loads(out.with_name("model.litertlm.json").read_text())
    assert list(report["generation_left_out"]) == ["begin_suppress_tokens", "sequence_bias"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"do_sample": True, "top_k": 64, "top_p": 0.95, "temperature": 1.0}),
        ({"do_sample": False}, {"do_sample": False, "top_k": 64, "top_p": 0.95, "temperature": 1.0}),
        ({"top_k": 0, "top_p": 0.5}, {"do_sample": True, "top_k": 2048, "top_p": 0.5, "temperature": 1.0}),
        ({"repetition_penalty": 1.2}, {"do_sample": True, "repetition_penalty": 1.2}),
    ],
)  # fmt: skip
def test_onnxruntime_genai_samples_alike(
    values: dict[str, Any], expected: dict[str, Any], tiny_gemma3: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_gemma3, tmp_path / "checkpoint"))
    (checkpoint / "generation_config.json").write_text(json.dumps(values))
    write(checkpoint / "config.json", eos_token_id=[1, 13])
    convert("custom-int4", checkpoint, tmp_path / "onnx", format="onnx", context=64, measure=False)
    genai = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())
    assert expected.items() <= genai["search"].items()
    assert genai["model"]["eos_token_id"] == [1, 11, 13]


def test_an_added_end_of_the_tokenizer_ends_replies(tiny_gemma3: Path, tmp_path: Path) -> None:
    """As transformers saves a tokenizer whose eos_token was replaced: only the tokenizer says so."""
    checkpoint = Path(shutil.copytree(tiny_gemma3, tmp_path / "checkpoint"))
    (checkpoint / "tokenizer.model").unlink()
    with_tokens(checkpoint, added("<|im_end|>", 2047 + 1))
    write(checkpoint / "tokenizer_config.json", eos_token="<|im_end|>")
    model = sentencepiece_model(checkpoint, 2080)
    found = LlmMetadata()
    found.ParseFromString(llm_metadata(checkpoint, "gemma3", 512, model))
    ids = [number for token in found.stop_tokens for number in token.token_ids.ids]
    assert transformers.AutoTokenizer.from_pretrained(checkpoint).eos_token_id == 2048
    assert ids == [1, 11, 2048]


@pytest.mark.parametrize("value", [0, -1.5])
def test_a_penalty_that_is_none_is_refused(value: float, checkpoint: Path) -> None:
    write(checkpoint / "generation_config.json", repetition_penalty=value)
    with pytest.raises(MetadataError, match=f"repetition_penalty is {value:g}, expected more than 0; correct it"):
        repetition_penalty(checkpoint)
