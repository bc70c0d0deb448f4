"""A Gemma 4's assistant as a section of the bundle: against transformers, and in Google's own engine.

Prompts are longer than the sliding window (16 tokens) and than one prefill chunk, so that rings have wrapped.
"""

import io
import json
import re
from pathlib import Path
from typing import Any

import litert_lm
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file, save_file

from gemma_edge.converter.checkpoint.checkpoint import CheckpointError, read_config
from gemma_edge.converter.checkpoint.hub import HubError
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.fields import ConfigError
from gemma_edge.converter.models.official import official_model
from gemma_edge.converter.plan.target import Target, TargetError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.formats.litertlm import Bundle, ModelType, SectionKind
from tests.converter.litert.tflite_runs import Session
from tests.drafters import DRAFTS, NAME, OPTIONS, PROMPTS, Guesses, Pair, expected, made
from tools.tiny import write_json
from tools.tiny_drafter import write_drafter

TOLERANCE = 1e-3  # of logits that spread over about +-12, as in test_parity.py; transformers' float32 is as far off


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The assistant weighs the whole vocabulary, as those of the larger models do."""
    return made(tmp_path_factory.mktemp("drafter"), None)


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The assistant weighs the tokens of 4 clusters of 64, as E2B's and E4B's do of 32 of 2048."""
    return made(tmp_path_factory.mktemp("clusters"), (64, 4))


def section(bundle: Path, model_type: ModelType) -> Session:
    opened = Bundle.open(bundle)
    return Session.of(opened.read(opened.section(SectionKind.TFLITE_MODEL, model_type)))


def guessed(pair: Pair, ids: list[int]) -> Guesses:
    """The same by the signatures of the bundle, run as LiteRT-LM runs them."""
    model, drafter = section(pair.bundle, ModelType.PREFILL_DECODE), section(pair.bundle, ModelType.MTP_DRAFTER)
    tables = {
        "embeddings": section(pair.bundle, ModelType.EMBEDDER),
        "per_layer_embeddings": section(pair.bundle, ModelType.PER_LAYER_EMBEDDER),
    }

    def rows(name: str, tokens: list[int]) -> NDArray[np.float32]:
        found = [
            tables[name].run(
                next(iter(tables[name].interpreter.get_signature_list())), {"token_ids": np.array([[t]], np.int32)}
            )
            for t in tokens
        ]
        return np.concatenate([row["embeddings"] for row in found], axis=1)

    def run(signature: str, position: int, tokens: list[int]) -> dict[str, NDArray[Any]]:
        inputs = {name: rows(name, tokens) for name in tables}
        return model.run(signature, inputs | {"input_pos": np.arange(position, position + len(tokens), dtype=np.int32)})

    past = ids[:-1]
    chunked = len(past) - 1 - (len(past) - 1) % 8
    for start in range(0, chunked, 8):
        run("prefill_8", start, past[start : start + 8])
    for position in range(chunked, len(past)):
        hidden = run("decode", position, [past[position]])["activations"]
    activations, token, logits, projected = hidden, ids[-1], [], []
    read = drafter.interpreter.get_signature_list()["mtp_drafter"]["inputs"]
    drafter.caches.update({name: cache for name, cache in model.caches.items() if name in read})
    for _ in range(DRAFTS):
        found = drafter.run(
            "mtp_drafter",
            {
                "activations": np.concatenate([rows("embeddings", [token]), hidden], -1),
                "input_pos": np.array([len(past)], np.int32),
            },
        )
        hidden, token = found["projected_activations"], int(found["logits"].argmax())
        logits.append(found["logits"][0, 0])
        projected.append(hidden[0, 0])
    return Guesses(activations, np.stack(logits), np.stack(projected))


COUNTS = pytest.mark.parametrize("count", [5, 17, 18, 71])  # within a window, at its edges, rings that have wrapped


@COUNTS
def test_guesses_are_those_of_transformers(pair: Pair, count: int) -> None:
    ids = np.random.default_rng(count).integers(0, 2048, count).tolist()
    wanted, found = expected(pair, ids), guessed(pair, ids)
    for name in ("activations", "logits", "projected"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=0, atol=TOLERANCE, err_msg=name)
    assert found.tokens == wanted.tokens


@COUNTS
def test_guesses_of_clusters_are_those_of_transformers(clustered: Pair, count: int) -> None:
    ids = np.random.default_rng(count).integers(0, 2048, count).tolist()
    wanted, found = expected(clustered, ids), guessed(clustered, ids)
    weighed = wanted.logits > wanted.logits.min(1, keepdims=True)  # the others have one value, less than any of these
    assert weighed.sum(1).tolist() == [4 * 32] * DRAFTS
    np.testing.assert_allclose(found.logits[weighed], wanted.logits[weighed], rtol=0, atol=TOLERANCE)
    assert found.logits[~weighed].max() < found.logits[weighed].min()
    np.testing.assert_allclose(found.projected, wanted.projected, rtol=0, atol=TOLERANCE)
    assert found.tokens == wanted.tokens


# ---------------------------------------------------------------- in LiteRT-LM, and without it


@pytest.fixture(scope="module", params=["fp32", "int4"])
def echo(pair: Pair, request: pytest.FixtureRequest) -> Path:
    """The model with an assistant that is right now and then; in integers with one that goes by clusters."""
    clusters = (64, 48) if request.param == "int4" else None
    table = pair.model.get_input_embeddings().weight
    write_drafter(NAME, pair.folder / "echo", echoed=table, clusters=clusters)
    bundle = pair.folder / f"echo-{request.param}.litertlm"
    convert(f"custom-{request.param}", pair.folder / "model", bundle, drafter=pair.folder / "echo", **OPTIONS)
    return bundle


def replies(bundle: Path, cache: Path, is_on: bool) -> list[str]:
    """To each prompt, until the context is full: rings wrap twice, and the last rounds would pass its end."""
    backend = litert_lm.Backend.CPU(thread_count=1)
    texts = []
    with litert_lm.Engine(str(bundle), backend, cache_dir=str(cache), enable_speculative_decoding=is_on) as engine:
        for prompt in PROMPTS:
            sampler = litert_lm.SamplerConfig(top_k=1)
            with engine.create_conversation(sampler_config=sampler) as conversation:
                texts.append(conversation.send_message(prompt)["content"][0]["text"])
    return texts


def test_text_is_the_same_with_and_without(echo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.INFO)
    try:
        with_guesses = replies(echo, tmp_path, True)
        logged = capfd.readouterr().err
        without = replies(echo, tmp_path, False)
    finally:
        litert_lm.set_min_log_severity(litert_lm.LogSeverity.WARNING)
    rates = [float(rate) for rate in re.findall(r"MTP Drafter - Success rate: ([\d.e-]+)", logged)]
    print(f"{echo.name}: {rates} of the guesses were accepted")
    assert max(rates) > 0.1
    # Where a round passes the end of the context, LiteRT-LM (0.18.1) says all of it, and a character may be complete.
    for found, plain in zip(with_guesses, without, strict=True):
        assert found.startswith(plain.rstrip("\N{REPLACEMENT CHARACTER}")), (found, plain)
        assert len(found) < len(plain) + 40


def test_our_runtime_runs_such_a_bundle_as_any(echo: Path, tmp_path: Path) -> None:
    without = echo.with_name("without-" + echo.name)
    convert(f"custom-{echo.stem.removeprefix('echo-')}", echo.parent / "model", without, **OPTIONS)
    said = []
    for bundle in (echo, without):
        with Engine(str(bundle), cache_dir=str(tmp_path)) as engine, engine.create_conversation() as conversation:
            said.append(conversation.send_message(PROMPTS[0], max_output_tokens=40))
    assert said[0] == said[1]


def test_plan_report_and_inspection_name_it(pair: Pair) -> None:
    run = CliRunner().invoke(
        main,
        ["plan", "--target", "custom-int4", "--checkpoint", str(pair.folder / "model"), "--context", "128",
         "--prefill", "8,32", "--drafter", str(pair.folder / "assistant"), "--json"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    planned = json.loads(run.stdout)
    names = [section["name"] for section in planned["sections"]]
    assert "tf_lite_mtp_drafter" in names
    [part] = [part for part in planned["footprint"]["parts"] if part["name"] == "drafter"]
    assert part["file_bytes"] == planned["bytes_by_section"]["mtp_drafter"]
    assert planned["drafter"] == {"bytes": part["file_bytes"], "verify_tokens": 4}
    report = json.loads(pair.bundle.with_name(pair.bundle.name + ".json").read_text())
    assert report["source"]["drafter"]["checkpoint"] == "assistant"
    assert "drafter/model.safetensors" in report["source"]["sha256"]
    shown = CliRunner().invoke(main, ["inspect", str(pair.bundle), "--json"])
    signatures = {
        signature["name"]: signature
        for section in json.loads(shown.stdout)["sections"]
        for signature in section.get("signatures", ())
    }
    assert [tensor["name"] for tensor in signatures["mtp_drafter"]["outputs"]] == ["logits", "projected_activations"]
    shapes = {tensor["name"]: tensor["shape"] for tensor in signatures["verify"]["outputs"]}
    assert (shapes["logits"], shapes["activations"]) == ([1, 4, 2048], [1, 4, 96])


def test_verify_is_as_long_as_asked_for_and_no_longer_than_a_prefill(pair: Pair) -> None:
    drafter = pair.folder / "assistant"
    assert Target.parse("custom-int4", drafter=drafter).verify_tokens == 4
    assert Target.parse("custom-int4", drafter=drafter, draft=(2, 6)).verify_tokens == 6
    assert Target.parse("custom-int4", drafter=drafter, prefill=(3,)).verify_tokens == 3
    assert Target.parse("custom-int4").verify_tokens is None
    signatures = section(pair.bundle, ModelType.PREFILL_DECODE).interpreter.get_signature_list()
    assert signatures.keys() == {"decode", "prefill_8", "prefill_32", "verify"}  # no second one of 4 tokens


@pytest.mark.parametrize(
    ("size", "width", "kv_heads", "owners"), [("gemma4-e2b", 1536, 1, (13, 14)), ("gemma4-e4b", 2560, 2, (22, 23))]
)
def test_published_assistants_read_the_last_owner_of_each_kind(
    size: str, width: int, kv_heads: int, owners: tuple[int, int]
) -> None:
    """With the numbers that are known of them."""
    text = {
        "model_type": "gemma4_text", "vocab_size": 262_144, "hidden_size": 256, "intermediate_size": 2048,
        "num_hidden_layers": 4, "num_kv_shared_layers": 4, "num_attention_heads": 4, "num_key_value_heads": kv_heads,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0, "sliding_window": 512, "head_dim": 256, "global_head_dim": 512,
    }  # fmt: skip
    config = {"model_type": "gemma4_assistant", "text_config": text, "backbone_hidden_size": width}
    drafter = official_model(size).with_drafter(config | {"use_ordered_embeddings": True}).drafter
    assert drafter is not None
    assert [past.layer for past in drafter.pasts] == [owners[0]] * 3 + [owners[1]]
    assert (drafter.config.clusters, drafter.config.chosen) == (2048, 32)
    assert 77e6 < sum(spec.values for spec in drafter.tensors.values()) < 80e6  # 78 M, as published


# ---------------------------------------------------------------- refusals


def refusal(error: type[Exception], model: Path, drafter: Path, tmp_path: Path, **options: Any) -> str:
    out = tmp_path / "out"
    with pytest.raises(error) as caught:
        convert("custom-int4", model, out, drafter=drafter, **options)
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 1024}, "made for a model with a vocabulary of 1024, expected 2048"),
        ({"head_dim": 64}, "layer 0 reads 1 KV heads of 64 with Rope.*, expected those of the model's layer 2, 1 KV h"),
        ({"sliding_window": 24}, "layer 0 reads keys and values of a window of 24, expected one of the model's, 16, N"),
    ],
)
def test_an_assistant_of_another_model_is_refused(
    pair: Pair, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_drafter(NAME, tmp_path / "other", **changes)
    found = refusal(ConfigError, pair.folder / "model", tmp_path / "other", tmp_path)
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "gemma4", "model_type is 'gemma4', expected gemma4_assistant; give the checkpoint whose name"),
        ("backbone_hidden_size", 64, "made for a model with hidden states of 64, expected 96; give the assistant of"),
    ],
)
def test_what_is_no_assistant_of_this_model_is_refused(
    pair: Pair, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_json(other / "config.json", {**read_config(pair.folder / "assistant"), key: value})
    assert message in refusal(ConfigError, pair.folder / "model", other, tmp_path)


def test_an_incomplete_assistant_is_refused(pair: Pair, tmp_path: Path) -> None:
    nowhere = refusal(HubError, pair.folder / "model", tmp_path / "nowhere", tmp_path)
    assert "nowhere: no such directory or file" in nowhere
    write_drafter(NAME, tmp_path / "other")
    config = read_config(tmp_path / "other")
    config["text_config"]["intermediate_size"] = 64
    write_json(tmp_path / "other" / "config.json", config)
    found = refusal(CheckpointError, pair.folder / "model", tmp_path / "other", tmp_path)
    assert "layers.0.mlp.gate_proj.weight: shape [128, 64], expected [64, 64] by config.json" in found


def test_only_a_gemma4_has_an_assistant(pair: Pair, tiny_gemma3: Path, tmp_path: Path) -> None:
    found = refusal(ConfigError, tiny_gemma3, pair.folder / "assistant", tmp_path)
    assert found == "drafter: made for gemma4, the model is a gemma3; leave --drafter out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onnx"}, "onnx has no place for one; use --format litertlm, or leave --drafter out"),
        ({"prefill": (1,)}, "its guesses need a prefill chunk of at least 2; give a longer --prefill"),
        ({"with_slice": "e2b"}, "expected one model beside it, found two; leave one of them out"),
    ],
)
def test_a_bundle_without_a_place_for_it_is_refused(
    pair: Pair, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    assert message in refusal(TargetError, pair.folder / "model", pair.folder / "assistant", tmp_path, **options)


def test_a_printed_report_names_it(pair: Pair, tmp_path: Path) -> None:
    options: Any = OPTIONS | {"format": "litertlm"}
    report = convert("custom-int4", pair.folder / "model", tmp_path / "x", drafter=pair.folder / "assistant", **options)
    printed = Console(record=True, width=200, file=io.StringIO())
    report.print(printed)
    assert re.search(r"drafter: assistant, [\d.]+ [KM]iB, guesses 3 tokens at a time", printed.export_text())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (None, "masked_embedding.token_ordering is nothing, expected I64 [2048]; the checkpoint is incomplete, get it"),
        (torch.zeros(2048, dtype=torch.long), "does not name each of 2048 tokens once; the checkpoint is damaged, get"),
    ],
)
def test_clusters_without_their_tokens_are_refused(
    clustered: Pair, tmp_path: Path, order: torch.Tensor | None, message: str
) -> None:
    stored = load_file(clustered.folder / "assistant" / "model.safetensors")
    del stored["masked_embedding.token_ordering"]
    other = tmp_path / "other"
    other.mkdir()
    save_file(
        stored | ({} if order is None else {"masked_embedding.token_ordering": order}), other / "model.safetensors"
    )
    write_json(other / "config.json", read_config(clustered.folder / "assistant"))
    assert message in refusal(CheckpointError, clustered.folder / "model", other, tmp_path)


def test_clusters_of_unequal_sizes_are_refused(clustered: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_json(other / "config.json", {**read_config(clustered.folder / "assistant"), "num_centroids": 60})
    found = refusal(ConfigError, clustered.folder / "model", other, tmp_path)
    assert "4 of 60 clusters of 2048 tokens, expected equal ones, and no more than there are; fix" in found
