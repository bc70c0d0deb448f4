import json
import shutil
from pathlib import Path
from typing import Literal

import litert_lm
import pytest
from litert_lm_builder.runtime.proto.executor_metadata_pb2 import ExecutorMetadata, StateBuffer
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata
from litert_lm_builder.runtime.proto.sampler_params_pb2 import SamplerParameters
from sentencepiece import sentencepiece_model_pb2 as proto

from gemma_edge.converter.convert import convert
from gemma_edge.converter.litert.metadata import (
    CacheBuffer,
    MetadataError,
    SamplerDefaults,
    executor_metadata,
    llm_metadata,
)
from gemma_edge.converter.tokenizer.chat_template import gemma_template
from gemma_edge.runtime.formats.litertlm import Bundle


def tokenizer(checkpoint: Path) -> bytes:
    return (checkpoint / "tokenizer.model").read_bytes()


def parse(data: bytes) -> LlmMetadata:
    metadata = LlmMetadata()
    metadata.ParseFromString(data)
    return metadata


def build(checkpoint: Path, generation: object) -> LlmMetadata:
    """Metadata of a checkpoint with that generation_config.json."""
    (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    return parse(llm_metadata(checkpoint, "gemma3", 512, tokenizer(checkpoint)))


@pytest.fixture
def checkpoint(tiny_gemma3: Path, tmp_path: Path) -> Path:
    shutil.copy(tiny_gemma3 / "tokenizer.model", tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_what_a_bundle_says(tiny_gemma3n: Path, family: Literal["gemma3", "gemma3n"]) -> None:
    metadata = parse(llm_metadata(tiny_gemma3n, family, 4096, tokenizer(tiny_gemma3n)))
    assert metadata.llm_model_type.WhichOneof("model_type") == family
    assert metadata.max_num_tokens == 4096
    assert list(metadata.start_token.token_ids.ids) == [2]
    assert list(metadata.pad_token.token_ids.ids) == [0]
    assert [list(stop.token_ids.ids) for stop in metadata.stop_tokens] == [[1], [11]]  # <eos>, <end_of_turn>
    assert metadata.jinja_prompt_template == gemma_template()
    assert metadata.prompt_templates.user.prefix == "<start_of_turn>user\n"
    assert metadata.prompt_templates.model.suffix == "<end_of_turn>\n"
    assert metadata.supports_function_calling
    assert not metadata.supports_thinking


def test_the_sampler_follows_the_checkpoint(checkpoint: Path) -> None:
    sampler = build(checkpoint, {"top_k": 40, "top_p": 0.5, "temperature": 0.25}).sampler_params
    assert (sampler.type, sampler.k, sampler.p, sampler.temperature) == (SamplerParameters.TOP_P, 40, 0.5, 0.25)


def test_the_sampler_is_gemmas_without_a_word_from_the_checkpoint(checkpoint: Path) -> None:
    sampler = parse(llm_metadata(checkpoint, "gemma3", 512, tokenizer(checkpoint))).sampler_params
    assert (sampler.k, round(sampler.p, 4), sampler.temperature) == (64, 0.95, 1.0)


def test_temperature_zero_is_greedy(checkpoint: Path) -> None:
    assert build(checkpoint, {"temperature": 0}).sampler_params.type == SamplerParameters.GREEDY


def test_stop_tokens_of_the_checkpoint_are_added_once(checkpoint: Path) -> None:
    stops = build(checkpoint, {"eos_token_id": [11, 13, 1]}).stop_tokens
    assert [list(stop.token_ids.ids) for stop in stops] == [[1], [11], [13]]


def test_null_lists_no_stop_tokens(checkpoint: Path) -> None:
    assert build(checkpoint, {"eos_token_id": None}).stop_tokens == build(checkpoint, {}).stop_tokens


def test_executor_metadata_tells_rings_from_full_caches() -> None:
    metadata = ExecutorMetadata()
    metadata.ParseFromString(executor_metadata([CacheBuffer(0, True, 640), CacheBuffer(4, False, 4096)], 4096))
    executor = metadata.llm_executor_metadata
    assert executor.max_history_size == 4096
    assert [
        (b.decode_input_name, b.type, b.sequence_axis, b.maximum_sequence_length) for b in executor.state_buffers
    ] == [
        ("kv_cache_k_0", StateBuffer.TYPE_LOCAL_KEY_CACHE, 2, 640),
        ("kv_cache_v_0", StateBuffer.TYPE_LOCAL_VALUE_CACHE, 3, 640),
        ("kv_cache_k_4", StateBuffer.TYPE_GLOBAL_KEY_CACHE, 2, 4096),
        ("kv_cache_v_4", StateBuffer.TYPE_GLOBAL_VALUE_CACHE, 3, 4096),
    ]


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_litert_lm_understands_all_of_it(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A turn behind the ring's length proves the executor metadata, a chat the tokens and the template."""
    bundle = tmp_path / "tiny.litertlm"
    convert("custom-fp32", request.getfixturevalue(f"tiny_{family}"), bundle, context=256, prefill=(16,))
    buffers = Bundle.open(bundle).executor_metadata()
    assert buffers is not None
    slots = {buffer.maximum_sequence_length for buffer in buffers.llm_executor_metadata.state_buffers}
    assert min(slots) < 100 < max(slots)
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    with litert_lm.Engine(str(bundle), litert_lm.Backend.CPU()) as engine:
        assert engine.bos_token_id == 2
        assert engine.eos_token_ids == [[1], [11]]
        with engine.create_conversation(system_message="Be brief.") as conversation:
            assert conversation.render_message_to_string("Hello") == (
                "<start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\n"
            )
            conversation.send_message("And God said unto Moses, " * 12, max_output_tokens=8)
            conversation.send_message("And he went out.", max_output_tokens=8)
            assert conversation.token_count > max(100, min(slots))


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"eos_token_id": 2048}, "eos_token_id 2048, expected ids below 2048; correct it"),
        ({"eos_token_id": [1, "</s>"]}, "eos_token_id '</s>', expected ids below 2048; correct it"),
        ({"top_k": 0}, "top_k is 0, expected at least 1; correct it"),
        ({"top_p": 1.5}, "top_p is 1.5, expected 0 < top_p <= 1; correct it"),
        ({"temperature": -1}, "temperature is -1, expected 0 or more; correct it"),
        ({"top_k": "many"}, "top_k is 'many', expected a number; correct it"),
        ({"top_k": 10**12}, "top_k is 1000000000000, expected at most 2147483647; correct it"),
        ({"top_k": float("inf")}, "top_k is inf, expected at most 2147483647; correct it"),
        ({"top_k": float("nan")}, "top_k is nan, expected at most 2147483647; correct it"),
        ({"eos_token_id": True}, "eos_token_id True, expected ids below 2048; correct it"),
        ([], "generation_config.json: a list, expected an object; download the file again"),
    ],
)
def test_impossible_generation_settings(checkpoint: Path, generation: object, message: str) -> None:
    with pytest.raises(MetadataError) as refusal:
        build(checkpoint, generation)
    assert str(refusal.value).endswith(message)
    assert "generation_config.json" in str(refusal.value)


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_an_unreadable_generation_config(checkpoint: Path, text: str) -> None:
    (checkpoint / "generation_config.json").write_text(text)
    with pytest.raises(MetadataError, match=r"generation_config\.json: unreadable \(.*\); download the file again"):
        llm_metadata(checkpoint, "gemma3", 512, tokenizer(checkpoint))


def test_a_tokenizer_without_turns(checkpoint: Path) -> None:
    model = proto.ModelProto()
    model.ParseFromString(tokenizer(checkpoint))
    model.pieces[11].piece = "<other>"
    with pytest.raises(
        MetadataError, match="has no piece <end_of_turn>; use the tokenizer of an instruction-tuned Gemma"
    ):
        llm_metadata(checkpoint, "gemma3", 512, model.SerializeToString())


def test_sampler_defaults_are_valid_from_birth() -> None:
    with pytest.raises(MetadataError, match="temperature is nan"):
        SamplerDefaults(temperature=float("nan"))
