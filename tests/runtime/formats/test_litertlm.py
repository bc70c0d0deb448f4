import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import litert_lm_builder
import numpy as np
import pytest
from litert_lm_builder.runtime.proto.executor_metadata_pb2 import ExecutorMetadata
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata

from gemma_edge.runtime.formats import litertlm
from gemma_edge.runtime.formats.litertlm import (
    ALIGNMENT_BYTES,
    MAGIC,
    VERSION,
    Bundle,
    BundleError,
    BundleLayout,
    ModelType,
    Section,
    SectionKind,
    SectionSpec,
)
from tests.bundles import write_bundle

METADATA: bytes = LlmMetadata(max_num_tokens=77).SerializeToString()
MODEL = bytes(range(256)) * 200  # 51,200 bytes: ends in the middle of a block
SPECS = (
    SectionSpec(SectionKind.LLM_METADATA, len(METADATA)),
    SectionSpec(SectionKind.SENTENCEPIECE_TOKENIZER, 5),
    SectionSpec(SectionKind.TFLITE_MODEL, len(MODEL), ModelType.PREFILL_DECODE, {"backend_constraint": "cpu"}),
    SectionSpec(SectionKind.TFLITE_MODEL, 3, ModelType.EMBEDDER),
)
DATA = (METADATA, b"token", MODEL, b"emb")


def write_sample(path: Path, identity: str = "digest") -> BundleLayout:
    layout = write_bundle(path, SPECS, DATA, identity, {"Authors": "gemma-edge tests"})
    assert path.stat().st_size == layout.nbytes
    return layout


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.litertlm"
    write_sample(path)
    return path


def test_round_trip(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    assert bundle.sections == BundleLayout.of(SPECS, "digest").sections
    assert [bundle.read(section) for section in bundle.sections] == list(DATA)
    decoder = bundle.section(SectionKind.TFLITE_MODEL, ModelType.PREFILL_DECODE)
    assert decoder.items == {"backend_constraint": "cpu"}
    assert bundle.system["Authors"] == "gemma-edge tests"
    assert bundle.sha256(decoder) == hashlib.sha256(MODEL).hexdigest()
    assert bundle.metadata().max_num_tokens == 77
    assert bundle.executor_metadata() is None
    assert bundle.find(SectionKind.TFLITE_MODEL, ModelType.PER_LAYER_EMBEDDER) is None


def test_a_view_is_a_read_only_map_that_numpy_can_use(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    view = bundle.view(bundle.section(SectionKind.TFLITE_MODEL, ModelType.PREFILL_DECODE))
    assert view.readonly
    values = np.frombuffer(view, np.uint8)
    del view  # the array keeps the map open
    assert values.tobytes() == MODEL


def test_sections_are_aligned_and_in_order() -> None:
    layout = BundleLayout.of(SPECS, "digest")
    assert all(section.begin % ALIGNMENT_BYTES == 0 for section in layout.sections)
    assert [section.nbytes for section in layout.sections] == [spec.nbytes for spec in SPECS]
    assert layout.sections[0].begin == ALIGNMENT_BYTES


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    write_sample(tmp_path / "a")
    write_sample(tmp_path / "b")
    write_sample(tmp_path / "c", identity="another digest")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert Bundle.open(tmp_path / "a").system["uuid"] != Bundle.open(tmp_path / "c").system["uuid"]


def test_googles_reader_unpacks_ours(bundle_path: Path, tmp_path: Path) -> None:
    listing = io.StringIO()
    litert_lm_builder.peek_litertlm_file(str(bundle_path), str(tmp_path / "unpacked"), listing)
    assert "gemma-edge tests" in listing.getvalue()
    unpacked = {path.name: path for path in (tmp_path / "unpacked").iterdir()}
    assert unpacked["Section2_TFLiteModel_tf_lite_prefill_decode.tflite"].read_bytes() == MODEL
    assert unpacked["Section1_SP_Tokenizer.spiece"].read_bytes() == b"token"
    assert unpacked["Section3_TFLiteModel_tf_lite_embedder.tflite"].read_bytes() == b"emb"


def test_our_reader_reads_googles(tmp_path: Path) -> None:
    executor = ExecutorMetadata()
    executor.llm_executor_metadata.max_history_size = 9
    for name, data in {"meta.pb": METADATA, "x.pb": executor.SerializeToString(), "m.tflite": MODEL}.items():
        (tmp_path / name).write_bytes(data)
    builder = litert_lm_builder.LitertLmFileBuilder()
    builder.add_system_metadata(litert_lm_builder.Metadata("count", 3, litert_lm_builder.DType.UINT16))
    builder.add_llm_metadata(
        str(tmp_path / "meta.pb"),
        additional_metadata=[litert_lm_builder.Metadata("flag", True, litert_lm_builder.DType.BOOL)],
    )
    builder.add_executor_metadata(str(tmp_path / "x.pb"))
    builder.add_tflite_model(str(tmp_path / "m.tflite"), litert_lm_builder.TfLiteModelType.PREFILL_DECODE)
    with (tmp_path / "google.litertlm").open("wb") as file:
        builder.build(file, validate_metadata=False)

    bundle = Bundle.open(tmp_path / "google.litertlm")
    assert bundle.system["count"] == 3
    assert bundle.section(SectionKind.LLM_METADATA).items == {"flag": True}
    assert bundle.read(bundle.section(SectionKind.TFLITE_MODEL, ModelType.PREFILL_DECODE)) == MODEL
    read_back = bundle.executor_metadata()
    assert read_back is not None
    assert read_back.llm_executor_metadata.max_history_size == 9


def test_the_container_is_that_of_litert_lm_builder() -> None:
    core = litert_lm_builder.litertlm_core
    assert (MAGIC, ALIGNMENT_BYTES) == (core.HEADER_MAGIC_BYTES, core.BLOCK_SIZE)
    assert VERSION == (core.LITERTLM_MAJOR_VERSION, core.LITERTLM_MINOR_VERSION, core.LITERTLM_PATCH_VERSION)


def test_every_kind_of_the_schema_has_a_name() -> None:
    known = vars(litert_lm_builder.litertlm_builder.schema.AnySectionDataType)
    numbers = {value for name, value in known.items() if not name.startswith("_")}
    unused = {known["NONE"], known["Deprecated"]}
    assert numbers - unused == {int(kind) for kind in SectionKind}
    assert {str(kind) for kind in ModelType} <= {kind.value for kind in litert_lm_builder.TfLiteModelType}


def test_empty_sections_and_bundles_are_refused() -> None:
    with pytest.raises(ValueError, match="GENERIC_BINARY: 0 bytes, expected at least 1"):
        SectionSpec(SectionKind.GENERIC_BINARY, 0)
    with pytest.raises(ValueError, match="at least one section"):
        BundleLayout.of((), "digest")


# ---------------------------------------------------------------- bad input


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read \(No such file or directory\); check the path"):
        Bundle.open(tmp_path / "absent.litertlm")


@pytest.mark.parametrize("content", [b"", b"LITERTL", b"PK\x03\x04" + bytes(100)])
def test_not_a_bundle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.litertlm"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"not a \.litertlm bundle \(starts with .*, expected b'LITERTLM'\)"):
        Bundle.open(path)


@pytest.mark.parametrize("nbytes", [8, 31])
def test_less_than_a_header(bundle_path: Path, nbytes: int) -> None:
    bundle_path.write_bytes(bundle_path.read_bytes()[:nbytes])
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle_path)
    assert str(caught.value) == (
        f"{bundle_path}: truncated, {nbytes} bytes, its header alone has 32; copy the file again"
    )


def test_another_major_version(bundle_path: Path) -> None:
    content = bytearray(bundle_path.read_bytes())
    struct.pack_into("<I", content, 8, 2)
    bundle_path.write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle version 2\.\d+\.\d+, expected 1\.x; convert the model again"):
        Bundle.open(bundle_path)


def test_truncated_anywhere(bundle_path: Path) -> None:
    content = bundle_path.read_bytes()
    for size in (40, 500, ALIGNMENT_BYTES, len(content) // 2, len(content) - 1):
        bundle_path.write_bytes(content[:size])
        with pytest.raises(BundleError, match=r"truncated, .* copy the file again"):
            Bundle.open(bundle_path)


@pytest.mark.parametrize("header_end", [0, 32, (1 << 24) + 1])
def test_a_header_of_an_impossible_size(tmp_path: Path, header_end: int) -> None:
    path = tmp_path / "model.litertlm"
    with path.open("wb") as file:
        file.write(struct.pack("<8s3I4xQ", b"LITERTLM", *litertlm.VERSION, header_end))
        file.truncate(1 << 25)
    with pytest.raises(BundleError, match=f"its header cannot end at byte {header_end}; copy the file again"):
        Bundle.open(path)


def test_a_corrupt_table_never_escapes_as_another_error(bundle_path: Path) -> None:
    content = bundle_path.read_bytes()
    header = BundleLayout.of(SPECS, "digest", {"Authors": "gemma-edge tests"}).header
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(content)
        for place in rng.integers(32, len(header), 3):
            broken[place] = rng.integers(256)
        bundle_path.write_bytes(broken)
        try:
            Bundle.open(bundle_path)
        except BundleError:
            refused += 1
    assert refused > 50


def test_corrupt_table(bundle_path: Path) -> None:
    content = bytearray(bundle_path.read_bytes())
    content[32:36] = b"\xff\xff\xff\x7f"
    bundle_path.write_bytes(content)
    with pytest.raises(BundleError, match=r"section table is corrupt \(LiteRTLMMetaData lies at .*\); copy the file"):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((16384, 16380), "has no bytes"),
        ((16385, 16390), "not aligned to 16384 bytes; convert the model again"),
        ((32768, 49153), "overlaps sentencepiece_tokenizer, which ends at 32773"),
        ((0, 5), "overlaps the header"),
    ],
)
def test_sections_in_impossible_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[int, int], message: str
) -> None:
    layout = BundleLayout.of(SPECS, "digest")
    broken = [*layout.sections[:2], Section(SectionKind.TFLITE_MODEL, "broken", *place, {}), *layout.sections[3:]]
    monkeypatch.setattr(litertlm, "_place", lambda spec, _after, **_: broken[SPECS.index(spec)])
    header = BundleLayout.of(SPECS, "digest").header
    path = tmp_path / "model.litertlm"
    path.write_bytes(header.ljust(layout.nbytes, b"\0"))
    with pytest.raises(BundleError, match=f"section .* at bytes .*: {message}"):
        Bundle.open(path)


def test_missing_section(bundle_path: Path) -> None:
    with pytest.raises(
        BundleError,
        match="has no tf_lite_per_layer_embedder section, only llm_metadata, sentencepiece_tokenizer, tf_lite_prefill",
    ):
        Bundle.open(bundle_path).section(SectionKind.TFLITE_MODEL, ModelType.PER_LAYER_EMBEDDER)


def test_corrupt_metadata(bundle_path: Path) -> None:
    content = bytearray(bundle_path.read_bytes())
    content[ALIGNMENT_BYTES : ALIGNMENT_BYTES + len(METADATA)] = b"\xff" * len(METADATA)
    bundle_path.write_bytes(content)
    with pytest.raises(BundleError, match="its llm_metadata section is corrupt; copy the file again"):
        Bundle.open(bundle_path).metadata()


def test_a_kind_of_section_that_came_later(tmp_path: Path) -> None:
    later: Any = 12
    path = tmp_path / "model.litertlm"
    write_bundle(path, (*SPECS, SectionSpec(later, 3)), (*DATA, b"new"), "digest", {})
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert str(caught.value) == (
        f"{path}: found a section of kind 12, this version knows kinds up to 11; upgrade gemma-edge, "
        "or copy the file again if it is older"
    )
