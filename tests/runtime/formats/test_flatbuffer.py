"""The verifier and the reader against the generated schema, and against buffers that lead a reader astray."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as tflite
from litert_lm_builder import litertlm_header_schema_py_generated as header

from gemma_edge.converter.calibrate.planning import published_plan
from gemma_edge.converter.litert.lower import emit
from gemma_edge.converter.plan.target import Target
from gemma_edge.runtime.formats import flatbuffer
from gemma_edge.runtime.formats.flatbuffer import FlatbufferError, root_of, verify
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError, ModelType, SectionKind
from tests.runtime.formats.generated import compared
from tools.flatbuffer_schema import schemas

ROOT = "LiteRTLMMetaData"


def table(pairs: int = 2, sections: int = 3, shared: bool = False) -> bytes:
    """A section table. shared: every section holds one and the same pair, `pairs` times."""
    builder = flatbuffers.Builder(1024)

    def pair(key: str) -> int:
        return int(header.KeyValuePairT(key=key, valueType=9, value=header.StringValueT("x")).Pack(builder))

    def vector(offsets: list[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    items = vector([pair("k")] * pairs) if shared else vector([pair(f"k{i}") for i in range(pairs)])
    objects = []
    for number in range(1 if shared else sections):
        header.SectionObjectStart(builder)
        header.SectionObjectAddItems(builder, items)
        header.SectionObjectAddBeginOffset(builder, 16384 * (number + 1))
        header.SectionObjectAddEndOffset(builder, 16384 * (number + 1) + 8)
        header.SectionObjectAddDataType(builder, 1)
        objects.append(header.SectionObjectEnd(builder))
    every_object = vector(objects * sections if shared else objects)
    header.SectionMetadataStart(builder)
    header.SectionMetadataAddObjects(builder, every_object)
    metadata = header.SectionMetadataEnd(builder)
    header.LiteRTLMMetaDataStart(builder)
    header.LiteRTLMMetaDataAddSectionMetadata(builder, metadata)
    builder.Finish(header.LiteRTLMMetaDataEnd(builder))
    return bytes(builder.Output())


def test_the_schemas_are_the_generated_ones() -> None:
    written = (Path(flatbuffer.__file__).parent / "flatbuffer_schemas.txt").read_text()
    assert written == schemas(), "run tools/flatbuffer_schema.py"


def test_parts_are_counted_as_often_as_they_are_held() -> None:
    """A root, its sections, and of each section the pairs: three tables and strings each."""
    assert verify(table(pairs=1, sections=1), ROOT) == 2 + 1 + 4
    assert verify(table(pairs=5, sections=7), ROOT) == 2 + 7 * (1 + 5 * 4)


def test_a_table_that_expands(tmp_path: Path) -> None:
    """80 kB that a reader would make 100,000,000 pairs of."""
    bomb = table(pairs=10_000, sections=10_000, shared=True)
    assert len(bomb) < 81_000
    with pytest.raises(FlatbufferError, match="has more than 2000000 parts"):
        verify(bomb, ROOT)
    path = tmp_path / "bomb.litertlm"
    path.write_bytes(struct.pack("<8s3I4xQ", b"LITERTLM", 1, 5, 0, 32 + len(bomb)) + bomb + bytes(1 << 18))
    with pytest.raises(BundleError, match=r"its section table is corrupt \(has more than 20000 parts\); copy the file"):
        Bundle.open(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"1234567", "7 bytes, a flatbuffer has at least 8"),
        (struct.pack("<2I", 4000, 0), "LiteRTLMMetaData at byte 4000|lies at bytes 4000 to 4004 of 8"),
        (struct.pack("<Ii", 4, 400), "the vtable of LiteRTLMMetaData at byte 4 lies at bytes -396"),
        (struct.pack("<IHHi", 8, 3, 8, 4), "has 3 bytes for a table of 8"),
        (struct.pack("<IHHHHi", 12, 8, 8, 6, 0, 8), "puts slot 0 at byte 6 of 8"),
        (struct.pack("<IHHHHiI", 12, 8, 8, 4, 0, 8, 900), "SystemMetadata lies at bytes 916 to 920 of 20"),
    ],
)
def test_offsets_that_leave_the_buffer(content: bytes, reason: str) -> None:
    with pytest.raises(FlatbufferError, match=reason):
        verify(content, ROOT)


def changed(at: int, value: int, width: int = 4) -> bytes:
    """A table with one pair, and a number in another place of it."""
    good = bytearray(table(pairs=1, sections=1))
    good[at : at + width] = value.to_bytes(width, "little")
    return bytes(good)


def test_strings() -> None:
    at = table(pairs=1, sections=1).index(struct.pack("<I", 2) + b"k0\0")
    with pytest.raises(FlatbufferError, match=r"the string at byte \d+ has no end"):
        verify(changed(at + 6, ord("!"), 1), ROOT)
    with pytest.raises(FlatbufferError, match=r"the string at byte \d+ lies at bytes"):
        verify(changed(at, 5000), ROOT)


def test_a_member_that_a_union_does_not_have() -> None:
    good = table(pairs=1, sections=1)
    reasons = []
    for at in range(len(good)):
        if good[at] == 9:
            with pytest.raises(FlatbufferError) as caught:
                verify(changed(at, 77, 1), ROOT)
            reasons.append(str(caught.value))
    assert any("chooses member 77 of VData, which has 12" in reason for reason in reasons)


def test_a_long_vector() -> None:
    good = table(pairs=1, sections=1)
    reasons = set()
    for at in range(0, len(good) - 4, 4):
        for count in (100, 1 << 30):
            try:
                verify(changed(at, count), ROOT)
            except FlatbufferError as error:
                reasons.add(str(error).partition(" at byte")[0])
    assert "a vector of 1073741824" in reasons
    with pytest.raises(FlatbufferError, match=r"a vector of 9 at byte \d+, expected at most 6 more parts"):
        verify(table(pairs=9, sections=1), ROOT, most_parts=9)


def test_another_identifier() -> None:
    with pytest.raises(FlatbufferError, match=r"begins with b'.*', expected b'TFL3'"):
        verify(table(), "Model", identifier=b"TFL3")


def test_tables_that_lie_in_each_other() -> None:
    """A composite op may hold ops' options, but nothing lies deeper than a few tables."""
    depth_limit = flatbuffer._DEEPEST
    with pytest.raises(FlatbufferError, match=rf"UInt8 at byte 8 lies {depth_limit + 1} tables deep"):
        flatbuffer._Walk(bytes(64), 10).table(8, "UInt8", depth_limit + 1)


def test_what_is_verified_can_be_read() -> None:
    """2,000 changed tables: each is refused, or read to the last field as the generated accessors read it."""
    good, rng = table(pairs=3, sections=4), random.Random(14)
    refused = 0
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.choice((1, 2, 3))):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 4, 8, 127, 128, 255, rng.randrange(256)))
        try:
            verify(bytes(data), ROOT)
        except FlatbufferError:
            refused += 1
            continue
        compared(root_of(bytes(data), ROOT), header.LiteRTLMMetaData.GetRootAs(bytes(data), 0), header)
    assert 500 < refused < 2000


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_every_field_of_a_bundle(family: str, tiny_bundle: Callable[[str, str], Path]) -> None:
    bundle = Bundle.open(tiny_bundle(family, "int4"))
    for section in bundle.sections:
        if section.kind is SectionKind.TFLITE_MODEL:
            view = bundle.view(section)
            fields = compared(root_of(view, "Model"), tflite.Model.GetRootAs(view, 0), tflite)
            assert fields > (1000 if section.model_type == ModelType.PREFILL_DECODE else 100)


def test_every_field_of_a_graph_of_e2b() -> None:
    plan = published_plan(Target.parse("e2b-int4"))
    assert plan is not None
    encodings = {name: storage.encoding for name, storage in plan.storages.items()}
    decode = [graph for graph in plan.graphs["decoder"] if graph.name == "decode"]
    file = emit("e2b", decode, encodings, plan.cache_layout)
    file.lay_out()
    content = file.root()
    assert compared(root_of(content, "Model"), tflite.Model.GetRootAs(content, 0), tflite) > 100_000


def test_what_is_not_written_has_its_default() -> None:
    builder = flatbuffers.Builder(64)
    builder.Finish(tflite.ModelT(operatorCodes=[tflite.OperatorCodeT()]).Pack(builder), file_identifier=b"TFL3")
    content = bytes(builder.Output())
    verify(content, "Model", identifier=b"TFL3")
    model = root_of(content, "Model")
    assert (model.version, model.description, len(model.subgraphs), len(model.metadata_buffer)) == (0, None, 0, 0)
    assert (model.operator_codes[0].version, model.operator_codes[0].builtin_code) == (1, 0)


def test_what_a_reader_asks_for_and_is_not_there() -> None:
    root = root_of(table(sections=3), ROOT)
    with pytest.raises(AttributeError, match="a LiteRTLMMetaData has no sections, only system_metadata, section_metad"):
        _ = root.sections
    objects = root.section_metadata.objects
    assert [entry.begin_offset for entry in objects[1:]] == [objects[-2].begin_offset, objects[2].begin_offset]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"{index} of 3"):
            objects[index]


def test_a_field_behind_one_that_is_no_longer_used() -> None:
    """Slots are counted: the subgraph of a signature is the fifth, and the fourth is nothing."""
    builder = flatbuffers.Builder(64)
    builder.StartObject(5)
    builder.PrependUint32Slot(4, 7, 0)
    content = bytearray(flatbuffer_of(builder))
    assert root_of(content, "SignatureDef").subgraph_index == 7
    verify(content, "SignatureDef")
    slot = content.index(struct.pack("<5H", 0, 0, 0, 0, 4)) + 8
    content[slot] = 5  # of a table of eight bytes
    with pytest.raises(FlatbufferError, match="puts slot 4 at byte 5 of 8"):
        verify(content, "SignatureDef")


def flatbuffer_of(builder: flatbuffers.Builder) -> bytes:
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())
