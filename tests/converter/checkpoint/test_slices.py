"""Slices of a checkpoint shaped like Gemma 3n E4B, against Google's rules applied to whole tensors in numpy."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import litert_lm
import numpy as np
import pytest
import sentencepiece
import transformers
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, CheckpointError
from gemma_edge.converter.checkpoint.lora import merged
from gemma_edge.converter.checkpoint.slices.view import sliced
from gemma_edge.converter.checkpoint.slices.write import write_slice
from gemma_edge.converter.cli import main
from gemma_edge.converter.convert import convert
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.models.matformer.slices import PUBLISHED, Slice, SliceError
from gemma_edge.converter.progress import silent
from gemma_edge.converter.verify.verify import verify
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.formats.litertlm import Bundle, SectionKind
from gemma_edge.runtime.formats.onnx_dir import OnnxDirectory
from tests.converter.checkpoint.adapters import write_adapter
from tests.oracles import Oracle
from tests.slots import litert_slot, onnx_slot
from tools.tiny import E4B_SHAPED, TINY, write_tiny

OWN = (
    Slice("narrow", tuple(range(4, 39))),
    Slice("without 0 and 34", (128,) * 10 + (64,) * 23, (0, 34)),
    Slice("without a block and an owner", tuple(32 + 2 * i for i in range(29)), (3, 20, 21, 22, 23, 24)),
)
SLICES = {**PUBLISHED, **{cut.name: cut for cut in OWN}}
RUN = ("e1.91", "without a block and an owner")  # all of SLICES hold; they take two minutes
OPTIONS: dict[str, Any] = {"context": 64, "prefill": (8,)}
TOLERANCE = 1e-3  # of logits that spread over about +-12, besides what float32 explains (tests/oracles.py)

Tensors = Mapping[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("e4b") / "checkpoint"
    write_tiny(E4B_SHAPED, path)
    return path


def cut_by_the_book(tensors: Tensors, widths: list[int], skipped: list[int]) -> dict[str, NDArray[np.float32]]:
    """Google's MatFormer Lab, section "slice the model": the first rows or columns, layers renumbered."""
    kept = [layer for layer in range(35) if layer not in skipped]
    sliced_tensors = {}
    for name, tensor in tensors.items():
        if name == "model.embed_tokens_per_layer.weight":
            blocks = tensor.reshape(len(tensor), 35, -1)
            sliced_tensors[name] = blocks[:, kept].reshape(len(tensor), -1)
        elif name == "model.per_layer_model_projection.weight":
            blocks = tensor.reshape(35, -1, tensor.shape[1])
            sliced_tensors[name] = blocks[kept].reshape(-1, tensor.shape[1])
        elif name.startswith("model.layers."):
            layer, rest = name.removeprefix("model.layers.").split(".", 1)
            if int(layer) in skipped:
                continue
            place = kept.index(int(layer))
            width = widths[place]
            if "mlp.gate_proj" in rest or "mlp.up_proj" in rest:
                tensor = tensor[:width]  # noqa: PLW2901
            elif "mlp.down_proj" in rest:
                tensor = tensor[:, :width]  # noqa: PLW2901
            sliced_tensors[f"model.layers.{place}.{rest}"] = tensor
        else:
            sliced_tensors[name] = tensor
    return sliced_tensors


@pytest.mark.parametrize("name", SLICES)
def test_every_value_is_the_published_rules(name: str, whole: Path, tmp_path: Path) -> None:
    cut = SLICES[name]
    out = tmp_path / "slice"
    write_slice(whole, cut, out, silent)
    config = json.loads((out / "config.json").read_text())
    expected = cut_by_the_book(load_file(whole / "model.safetensors"), config["intermediate_size"], list(cut.skipped))
    found = load_file(out / "model.safetensors")
    assert {*found} == {*expected}
    for key, values in expected.items():
        assert np.array_equal(found[key], values), key
    opened = sliced(Checkpoint.open(whole), cut)
    model = Model.from_json(opened.text_config)
    assert model.config == Model.from_json(config).config
    for spec in model.tensors.values():
        values = expected["model." + spec.source]
        assert np.array_equal(opened.read(spec.source), values), spec.source
        if values.ndim == 2:
            parts = [rows.copy() for _, rows in opened.rows(spec.source, 1024, 1, len(values) - 1)]
            assert np.array_equal(np.concatenate(parts), values[1:-1]), spec.source


def test_the_published_slices_have_the_published_sizes() -> None:
    nominal = {name: float(name[1:].partition("-")[0]) for name in PUBLISHED}
    nominal["e3.79-block"] = 3.74
    assert len(PUBLISHED) == 15
    fixed = 3.98 - 35 * 3 * 2048 * 16384 / 1e9  # what is not feed-forward, of 35 layers
    per_layer = (1.91 + 30 * -3 * 2048 * 8192 / 1e9 - fixed) / -5
    for name, cut in PUBLISHED.items():
        ffn = sum(3 * 2048 * width for width in cut.widths((16384,) * 35)) / 1e9
        assert fixed - per_layer * len(cut.skipped) + ffn == pytest.approx(nominal[name], abs=0.03), name


def test_sharing_and_sparsity_follow_the_layers_that_are_kept(whole: Path) -> None:
    text = Checkpoint.open(whole).text_config
    config = SLICES["without a block and an owner"].config(text)
    assert (config["num_hidden_layers"], config["num_kv_shared_layers"]) == (29, 10)
    assert config["activation_sparsity_pattern"] == [0.95] * 9 + [0.0] * 20
    assert config["layer_types"][:4] == ["sliding_attention"] * 3 + ["full_attention"]
    assert config["intermediate_size"] == [32 + 2 * i for i in range(29)]


@pytest.mark.parametrize("name", RUN)
def test_a_slice_computes_what_transformers_does(name: str, whole: Path, tmp_path: Path) -> None:
    cut = SLICES[name]
    write_slice(whole, cut, tmp_path / "slice", silent)
    config = transformers.Gemma3nTextConfig(**json.loads((tmp_path / "slice" / "config.json").read_text()))
    config._attn_implementation = "eager"
    model = transformers.Gemma3nForCausalLM(config).float().eval()
    left = model.load_state_dict(load_torch(tmp_path / "slice" / "model.safetensors"), strict=False)
    assert left.missing_keys == ["lm_head.weight"]  # which is the embedding
    assert not left.unexpected_keys
    model.tie_weights()
    file = tmp_path / "slice.toml"
    file.write_text(f"ffn = {list(cut.widths((128,) * 35))}\nskipped = {list(cut.skipped)}\n")
    convert("custom-fp32", whole, tmp_path / "x.litertlm", slice=file, measure=False, **OPTIONS)
    convert("custom-fp32", whole, tmp_path / "onnx", slice=file, context=64, format="onnx", measure=False)
    ids = np.random.default_rng(3).integers(0, 2112, 40).tolist()  # longer than the window
    expected = Oracle(model).expected(ids).last(8)
    litert = litert_slot(DecoderSections.of(Bundle.open(tmp_path / "x.litertlm")), 2, tmp_path)
    onnx = onnx_slot(OnnxDirectory.open(tmp_path / "onnx"), 2, None, 64)
    for slot in (litert, onnx):
        slot.prefill(ids[:-8])
        expected.check(np.stack([slot.decode(token).copy() for token in ids[-8:]]), TOLERANCE)
        slot.close()
    check_litert_lm(tmp_path / "x.litertlm", Oracle(model))


def check_litert_lm(bundle: Path, oracle: Oracle) -> None:
    """Its greedy text, of tokens that text tells apart."""
    model = Bundle.open(bundle)
    pieces = sentencepiece.SentencePieceProcessor(
        model_proto=model.read(model.section(SectionKind.SENTENCEPIECE_TOKENIZER))
    )
    silent = [i for i in range(pieces.vocab_size()) if pieces.is_control(i) or pieces.is_byte(i) or pieces.is_unused(i)]
    suppressed = sorted({*silent, *range(110), *range(pieces.vocab_size(), 2112)})
    with (
        litert_lm.Engine(str(bundle), litert_lm.Backend.CPU(thread_count=2), cache_dir=":nocache") as engine,
        engine.create_conversation(sampler_config=litert_lm.SamplerConfig(top_k=1)) as conversation,
    ):
        ids = [pieces.bos_id(), *engine.tokenize(conversation.render_message_to_string("And God said"))]
        said = conversation.send_message(
            "And God said", max_output_tokens=16, suppress_tokens_config=litert_lm.SuppressTokensConfig(suppressed)
        )
    text = "".join(part["text"] for part in said["content"])
    reply = oracle.greedy(ids, 16, suppressed)
    settled = oracle.expected([*ids, *reply[:-1]]).last(16).settled(reply, TOLERANCE, suppressed)
    assert settled
    assert text.startswith(pieces.decode(reply[:settled]))


def test_a_slice_cut_while_converting_is_the_slice_written_before(whole: Path, tmp_path: Path) -> None:
    write_slice(whole, PUBLISHED["e2.54"], tmp_path / "slice", silent)
    first = convert("custom-int4", whole, tmp_path / "a.litertlm", slice="e2.54", accept_loss=True, **OPTIONS)
    second = convert("custom-int4", tmp_path / "slice", tmp_path / "b.litertlm", accept_loss=True, **OPTIONS)
    one, other = Bundle.open(tmp_path / "a.litertlm"), Bundle.open(tmp_path / "b.litertlm")
    assert [section.kind for section in one.sections] == [section.kind for section in other.sections]
    for mine, theirs in zip(one.sections, other.sections, strict=True):
        assert one.read(mine) == other.read(theirs), mine.kind
    assert first.values["quality"]["kl"] == second.values["quality"]["kl"]
    assert first.values["source"]["slice"]["name"] == "e2.54"
    assert one.system["uuid"] != other.system["uuid"]


def test_slices_of_one_checkpoint_have_identities_of_their_own(whole: Path, tmp_path: Path) -> None:
    uuids = []
    for i, name in enumerate(("e2.98-layer", "e2.98-block")):
        convert("custom-int8", whole, tmp_path / f"{i}.litertlm", slice=name, measure=False, **OPTIONS)
        uuids.append(Bundle.open(tmp_path / f"{i}.litertlm").system["uuid"])
    assert uuids[0] != uuids[1]


def test_verify_compares_with_the_slice(whole: Path, tmp_path: Path) -> None:
    convert("custom-fp32", whole, tmp_path / "x.litertlm", slice="e3.39", measure=False, **OPTIONS)
    report = verify(tmp_path / "x.litertlm", whole, slice="e3.39", limit=64, window=32, cache_dir=str(tmp_path))
    assert report.bundle.metrics["kl"].value < 1e-4
    other = verify(tmp_path / "x.litertlm", whole, slice="e3.18", limit=64, window=32, cache_dir=str(tmp_path))
    assert other.bundle.metrics["kl"].value > 100 * report.bundle.metrics["kl"].value
    assert any("weight" in finding.meaning for finding in other.findings)


def test_an_adapter_of_the_whole_is_cut_with_it(whole: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(whole)
    tuned = merged(base, write_adapter(tmp_path / "adapter", whole))
    cut = PUBLISHED["e1.96"]
    whole_tensors = {name: tuned.read(name.removeprefix("model.")) for name in base.tensors}
    expected = cut_by_the_book(whole_tensors, list(cut.widths((128,) * 35)), list(cut.skipped))
    opened = sliced(tuned, cut)
    changed = 0
    for name, values in expected.items():
        assert np.array_equal(opened.read(name.removeprefix("model.")), values), name
        changed += not np.array_equal(values, sliced(base, cut).read(name.removeprefix("model.")))
    assert changed == 2 * 30  # q_proj and up_proj of the layers that are kept
    options = {**OPTIONS, "lora": tmp_path / "adapter", "slice": "e1.96"}
    report = convert("custom-int8", whole, tmp_path / "x.litertlm", measure=False, **options)
    assert report.values["source"]["lora"]["merged_tensors"] == 70


def test_a_slice_is_written_once_and_whole(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "slice"
    arguments = ["slice", "--checkpoint", str(whole), "--slice", "e2.69", "--out", str(out)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"slice"}
    assert {"config.json", "tokenizer.model", "tokenizer.json", "model.safetensors"} <= {p.name for p in out.iterdir()}
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert again.stderr == f"error: {out}: exists already; name a new directory\n"
    with pytest.raises(SliceError, match=r"no: its parent directory does not exist; create it|does not exist"):
        write_slice(whole, PUBLISHED["e2.69"], tmp_path / "no" / "slice", silent)


def test_what_is_left_out_must_be_right_as_well(whole: Path) -> None:
    base = Checkpoint.open(whole)
    missing = {name: t for name, t in base.tensors.items() if name != "model.layers.22.mlp.up_proj.weight"}
    opened = sliced(Checkpoint(base.path, base.config, missing, base.prefix), PUBLISHED["e1.91"])
    specs = Model.from_json(opened.text_config)
    with pytest.raises(CheckpointError, match=r"layers\.22\.mlp\.up_proj\.weight is missing"):
        opened.match(specs.tensors.values(), specs.config.unused_tensors())


def test_only_plain_floats_are_written(whole: Path, tmp_path: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    header, values = _header(whole / "model.safetensors")
    header["model.norm.weight"]["dtype"] = "I32"
    broken = tmp_path / "checkpoint"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps(config))
    text = json.dumps(header).encode()
    (broken / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values)
    with pytest.raises(SliceError, match=r"norm\.weight: dtype I32, expected BF16, F16, F32; slice what is not"):
        write_slice(broken, PUBLISHED["e1.91"], tmp_path / "out", silent)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_gemma_3_has_no_slices(tmp_path: Path) -> None:
    write_tiny(next(name for name in TINY if name.startswith("gemma3-")), tmp_path / "g3")
    with pytest.raises(SliceError, match=r"e3\.39: cut from Gemma 3n, the checkpoint's model_type is 'gemma3_text'"):
        convert("custom-int8", tmp_path / "g3", tmp_path / "x.litertlm", slice="e3.39")
    assert {path.name for path in tmp_path.iterdir()} == {"g3"}
