"""A tied embedding that is read from the head's table: as many bytes as planned, once, and right for every reader."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from gemma_edge.converter.calibrate.planning import lay_out, plan_for, published_plan
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.convert import convert
from gemma_edge.converter.litert.stored import stored_rows
from gemma_edge.converter.models.family import Model
from gemma_edge.converter.plan.fit import fit_target
from gemma_edge.converter.plan.plan import make_plan
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.quantize.recipes import Recipe, RecipeError
from gemma_edge.converter.report import Report
from gemma_edge.converter.tensors import HEAD, Role
from gemma_edge.runtime.executors.base import BundleMismatchError
from gemma_edge.runtime.executors.litert.sections import section_range
from gemma_edge.runtime.executors.litert.tables import EmbeddingTable
from gemma_edge.runtime.formats import hadamard
from gemma_edge.runtime.formats.encoding import Encoding, EncodingError
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import ENDS_IN, Bundle, BundleError, ModelType, SectionKind
from tests.runtime.executors.litert.test_tables import run_section

TABLE = "embed_tokens.weight"
IDS = [0, 1, 2, 105, 1000, 2047, 2048, -1]  # the last two are no rows, which read row 0
# Of random numbers: int4 leaves an eighth of its step, uniformly, in three bits; the largest integers twice that.
LARGEST_LOSS = {"int4": 0.016, "int8": 0.01, "fp16": 5e-4, "fp32": 2e-6}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of each precision that keeps the embedding in the head."""
    folder = tmp_path_factory.mktemp("recipes")
    for name in ("int8", "fp16", "fp32"):
        roles = "".join(f'{role} = "{"fp32" if role is Role.NORM else name}"\n' for role in Role if role != "kernel")
        (folder / name).write_text("[roles]\n" + roles.replace(f'embedding = "{name}"', 'embedding = "head"'))
    return folder


@pytest.fixture(scope="module", params=[*LARGEST_LOSS])
def converted(request: pytest.FixtureRequest, tiny_gemma3: Path, recipes: Path) -> tuple[str, Path, Report]:
    precision = request.param
    options: dict[str, Any] = {} if precision == "int4" else {"recipe": str(recipes / precision)}
    out = recipes / f"{request.param}.litertlm"
    report = convert(f"custom-{precision}", tiny_gemma3, out, measure=False, context=512, **options)
    return request.param, out, report


def test_a_row_is_what_the_section_gives_and_near_the_checkpoint_s(
    converted: tuple[str, Path, Report], tiny_gemma3: Path
) -> None:
    name, out, _ = converted
    place = section_range(Bundle.open(out), ModelType.EMBEDDER)
    table = EmbeddingTable(place)
    found = np.empty((len(IDS), table.width), np.float32)
    table.lookup(IDS, found)
    for token_id, row in zip(IDS, found, strict=True):
        assert np.array_equal(run_section(place, token_id).ravel(), row)
    expected = Checkpoint.open(tiny_gemma3).read(TABLE)
    all_rows = np.empty_like(expected)
    table.lookup(range(len(expected)), all_rows)
    expected *= np.float32(expected.shape[1] ** 0.5)
    loss = float(np.linalg.norm(all_rows - expected) / np.linalg.norm(expected))
    assert loss < LARGEST_LOSS[name]


def test_what_verify_reads_is_what_is_looked_up(converted: tuple[str, Path, Report], tiny_gemma3: Path) -> None:
    name, out, _ = converted
    _, plan = plan_for(Target.parse("custom-int4"), tiny_gemma3)
    [rows] = stored_rows(out, plan.model.tensors)[TABLE]
    assert rows.encoding_name == ("head+3" if name.startswith("int4") else name)
    table = EmbeddingTable(section_range(Bundle.open(out), ModelType.EMBEDDER))
    found = np.empty((100, table.width), np.float32)
    table.lookup(range(1000, 1100), found)
    read = rows.rows(1000, 1100)
    if rows.turned:
        read = np.asarray(hadamard.turn(read), np.float32)
    assert np.allclose(read, found, rtol=1e-5, atol=1e-5)


def test_the_table_lies_there_once_and_every_byte_was_planned(
    converted: tuple[str, Path, Report], tiny_gemma3: Path
) -> None:
    _, out, report = converted
    bundle = Bundle.open(out)
    source, _ = plan_for(Target.parse("custom-int4"), tiny_gemma3)
    assert out.stat().st_size == bundle.nbytes == lay_out(report.plan, source).nbytes == bundle.sections[-1].end
    decoder = bundle.section(SectionKind.TFLITE_MODEL, ModelType.PREFILL_DECODE)
    embedder = bundle.section(SectionKind.TFLITE_MODEL, ModelType.EMBEDDER)
    assert decoder.items["ends_in"] == embedder.name
    assert embedder.begin < decoder.end <= embedder.end
    for section in (decoder, embedder):
        assert section.sha256 == bundle.sha256(section)
    head = _places(bundle, decoder, HEAD)
    table = _places(bundle, embedder, TABLE)
    assert {begin for begin, _ in table} <= {begin for begin, _ in head}
    assert max(end for _, end in head) == max(end for _, end in table)


def _places(bundle: Bundle, section: Any, name: str) -> list[tuple[int, int]]:
    """Bytes of the file in which a weight lies, from and to."""
    model = schema.Model.GetRootAs(bundle.view(section), 0)
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    buffers = [model.Buffers(t.Buffer()) for t in tensors if t.Name().decode().removesuffix(".hadamard") == name]
    return [(section.begin + b.Offset(), section.begin + b.Offset() + b.Size()) for b in buffers]


def test_a_head_of_its_own_leaves_the_embedding_in_int8(tiny_gemma3: Path) -> None:
    config = json.loads((tiny_gemma3 / "config.json").read_text())
    for is_tied, expected in ((True, "head+3"), (False, "int8")):
        model = Model.from_json(config | {"tie_word_embeddings": is_tied})
        plan = make_plan(fit_target(Target.parse("custom-int4"), model))
        assert plan.storages[TABLE].encoding.name == expected


def test_rows_of_images_and_audio_leave_it_in_int8() -> None:
    for modalities, expected in ((["text"], "head+3"), (["text", "vision"], "int8")):
        plan = published_plan(Target.parse("e2b-int4", modalities=modalities))
        assert plan is not None
        assert plan.storages[TABLE].encoding.name == expected


def test_calibration_leaves_it_in_int8(tiny_gemma3: Path) -> None:
    _, plan = plan_for(Target.parse("custom-int4", calibrate="built-in"), tiny_gemma3)
    assert plan.storages[TABLE].encoding.name == "int8"


def test_other_formats_have_a_table_of_their_own(tiny_gemma3: Path) -> None:
    _, plan = plan_for(Target.parse("custom-int4", format="onnx"), tiny_gemma3)
    assert plan.storages[TABLE].encoding.name == "int8"


def test_the_plan_counts_the_table_once(tiny_gemma3: Path) -> None:
    source, plan = plan_for(Target.parse("custom-int4"), tiny_gemma3)
    assert plan.bytes_by("role")["embedding"] == 2048 * 128 * 3 // 8
    own = replace(plan.target, recipe=plan.target.recipe.overridden("embedding=int8"))
    _, other = plan_for(own, tiny_gemma3)
    saved = lay_out(other, source).nbytes - lay_out(plan, source).nbytes
    assert saved == pytest.approx(2048 * 128 * 5 / 8, abs=32768)


@pytest.mark.parametrize("text", ["ffn=head+3", "head=head"])
def test_no_other_role_is_kept_in_the_head(text: str) -> None:
    role = text.partition("=")[0]
    with pytest.raises(RecipeError, match=rf"roles.{role}: found head(\+3)?, expected an encoding of its own; only"):
        Recipe.named("int4").overridden(text)


@pytest.fixture
def shared(tiny_gemma3: Path, tmp_path: Path) -> Path:
    out = tmp_path / "shared.litertlm"
    convert("custom-int4", tiny_gemma3, out, measure=False, context=64, prefill=(16,))
    return out


def test_an_overlap_that_is_not_declared_is_refused(shared: Path) -> None:
    content = shared.read_bytes()
    shared.write_bytes(content.replace(ENDS_IN.encode(), b"begin_s", 1))
    with pytest.raises(BundleError, match=r"section tf_lite_embedder at bytes .*: overlaps tf_lite_prefill_decode"):
        Bundle.open(shared)


def test_rests_of_other_rows_are_refused(shared: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(shared)
    section = bundle.read(bundle.section(SectionKind.TFLITE_MODEL, ModelType.EMBEDDER))
    model = schema.ModelT.InitFromPackedBuf(section, 0)
    buffer = {tensor.name.decode().rpartition(".")[2]: tensor.buffer for tensor in model.subgraphs[0].tensors}
    [rests] = [tensor for tensor in model.subgraphs[0].tensors if tensor.name.decode().endswith(".rests")]
    rests.buffer, rests.shape = buffer["factor"], np.array([2, 4], np.int32)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    root = bytes(builder.Output())
    path = tmp_path / "section"
    path.write_bytes(root + section[len(root) :])
    with pytest.raises(BundleMismatchError, match=r"\(4 bytes of rests for 2048 rows of 128\); convert"):
        EmbeddingTable(FileRange.whole(path))


def test_rests_have_three_bits() -> None:
    with pytest.raises(EncodingError, match="rests from 0 to 9 do not fit three bits; expected 0 to 7"):
        Encoding.parse("head+3").pack(np.array([[0, 9, 0, 0, 0, 0, 0, 0]], np.int8))
