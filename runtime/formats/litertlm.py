"""The .litertlm container: reader and writer.

    0   "LITERTLM"
    8   major, minor, patch          uint32 each
    24  header_end                   uint64, offset of the first byte after the section table
    32  section table                flatbuffer LiteRTLMMetaData: system items; kind, begin, end, items of sections
    n * 16 KiB                       sections, zeros between them; one may go on into the next one, see ENDS_IN

The table's schema, the version and the block size are litert_lm_builder's (github.com/google-ai-edge/LiteRT-LM,
schema/core/litertlm_header_schema.fbs); only Python, flatbuffers and protobuf are needed to read a bundle. Its writer
copies finished files and stamps a random UUID and the clock. Ours knows every offset before a byte moves, lets the
caller stream into a section, and gives the same bytes for the same inputs.
"""

import hashlib
import mmap
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from google.protobuf.message import DecodeError, Message
from litert_lm_builder.runtime.proto.executor_metadata_pb2 import ExecutorMetadata
from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import open_plain
from gemma_edge.runtime.formats.flatbuffer import FlatbufferError, Table, root_of, verify

MAGIC = b"LITERTLM"
VERSION = (1, 7, 0)
ALIGNMENT_BYTES = 16 * 1024
_PREFIX = struct.Struct("<8s3I4xQ")  # magic, version, header_end
_LARGEST_HEADER_BYTES = 1 << 24  # a table has some hundred bytes a section
_MOST_PARTS = 20_000  # tables and strings of the section table; one of six sections has 53
_UUID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "gemma-edge")

ENDS_IN = "ends_in"  # the item with the name of the next section, into which one goes on: two models read a table there

Value = str | int | float | bool


class BundleError(GemmaEdgeError, RuntimeError):
    """The file is not a bundle, is damaged, or lacks a section that was asked for."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """There is no such file. Also a FileNotFoundError, as litert_lm's ModelInfo raises."""


class SectionKind(IntEnum):
    """What a section's bytes are (schema.AnySectionDataType)."""

    GENERIC_BINARY = 1
    TFLITE_MODEL = 3
    SENTENCEPIECE_TOKENIZER = 4
    LLM_METADATA = 5
    HUGGING_FACE_TOKENIZER = 6  # uint64 size, then tokenizer.json, zlib-compressed
    TFLITE_WEIGHTS = 7
    EMBEDDING_METADATA = 8
    EXECUTOR_METADATA = 9
    TTS_METADATA = 10
    ASR_METADATA = 11


class ModelType(StrEnum):
    """The `model_type` item of the TFLite sections this project writes (litert_lm_builder.TfLiteModelType)."""

    PREFILL_DECODE = "tf_lite_prefill_decode"
    EMBEDDER = "tf_lite_embedder"
    PER_LAYER_EMBEDDER = "tf_lite_per_layer_embedder"
    VISION_ENCODER = "tf_lite_vision_encoder"
    VISION_ADAPTER = "tf_lite_vision_adapter"
    AUDIO_ENCODER = "tf_lite_audio_encoder_hw"
    AUDIO_ADAPTER = "tf_lite_audio_adapter"
    END_OF_AUDIO = "tf_lite_end_of_audio"
    END_OF_VISION = "tf_lite_end_of_vision"
    MTP_DRAFTER = "tf_lite_mtp_drafter"


@dataclass(frozen=True)
class SectionSpec:
    """A section to be written, before it has a place: its exact size is known, its bytes are not needed yet."""

    kind: SectionKind
    nbytes: int
    model_type: str | None = None
    items: Mapping[str, str] = field(default_factory=dict)  # more for the section table, "backend_constraint": "cpu"
    reach: int = 0  # bytes of the next section that belong to this one as well

    def __post_init__(self) -> None:
        if self.nbytes <= 0:
            raise ValueError(f"section {self.kind.name}: {self.nbytes} bytes, expected at least 1")
        object.__setattr__(self, "items", MappingProxyType(dict(self.items)))


@dataclass(frozen=True)
class Section:
    """A section in its place. Offsets count from the start of the file; `begin` is a multiple of 16 KiB."""

    kind: SectionKind
    model_type: str | None
    begin: int
    end: int
    items: Mapping[str, Value]  # without model_type

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def sha256(self) -> str | None:
        """The digest that the table records; None where the bundle is not ours."""
        recorded = self.items.get("sha256")
        return None if recorded is None else str(recorded)

    @property
    def name(self) -> str:
        """What to call it in a message: "tf_lite_embedder", "llm_metadata"."""
        return self.model_type or self.kind.name.lower()


@dataclass(frozen=True)
class BundleLayout:
    """Where everything will be. `header` is the file's first bytes, `sections` are in the order given."""

    header: bytes
    sections: tuple[Section, ...]

    @property
    def nbytes(self) -> int:
        return self.sections[-1].end

    @classmethod
    def of(cls, specs: Sequence[SectionSpec], identity: str, system: Mapping[str, str] | None = None) -> "BundleLayout":
        """Places the sections one after the other.

        identity: a digest of everything the content depends on (inputs, recipe, converter version). The bundle's
            `uuid` is derived from it, where litert_lm_builder draws a random one; there is no creation_timestamp.
        system: further system metadata, such as {"Authors": "..."}.
        """
        if not specs:
            raise ValueError("a bundle needs at least one section")
        system = {**(system or {}), "uuid": str(uuid.uuid5(_UUID_NAMESPACE, identity))}
        # The table's size does not depend on the offsets in it as long as none is 0, flatbuffers' default value.
        following = [*specs[1:], None]
        unplaced = [_place(spec, after, begin=1) for spec, after in zip(specs, following, strict=True)]
        header_end = _PREFIX.size + len(_pack_table(system, unplaced))
        sections: list[Section] = []
        offset = header_end
        for spec, after in zip(specs, following, strict=True):
            sections.append(_place(spec, after, begin=section_begin(offset)))
            offset = sections[-1].begin + spec.nbytes
        header = _PREFIX.pack(MAGIC, *VERSION, header_end) + _pack_table(system, sections)
        assert len(header) == header_end
        return cls(header, tuple(sections))


def section_begin(offset: int) -> int:
    """Where a section begins, if the one before ends at `offset`."""
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _place(spec: SectionSpec, after: SectionSpec | None, begin: int) -> Section:
    end, items = begin + spec.nbytes, dict(spec.items)
    if spec.reach:
        assert after is not None
        end, items[ENDS_IN] = section_begin(end) + spec.reach, after.model_type or after.kind.name.lower()
    return Section(spec.kind, spec.model_type, begin, end, items)


def _pack_table(system: Mapping[str, str], sections: Sequence[Section]) -> bytes:
    import flatbuffers
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    def pack_items(items: Mapping[str, Value]) -> list[Any]:
        return [
            schema.KeyValuePairT(key=key, valueType=schema.VData.StringValue, value=schema.StringValueT(value))
            for key, value in items.items()
        ]

    objects = []
    for section in sections:
        model_type = {} if section.model_type is None else {"model_type": section.model_type}
        objects.append(
            schema.SectionObjectT(
                items=pack_items({**model_type, **section.items}),
                beginOffset=section.begin,
                endOffset=section.end,
                dataType=int(section.kind),
            )
        )
    table = schema.LiteRTLMMetaDataT(
        systemMetadata=schema.SystemMetadataT(entries=pack_items(system)),
        sectionMetadata=schema.SectionMetadataT(objects=objects),
    )
    builder = flatbuffers.Builder(ALIGNMENT_BYTES)
    builder.Finish(table.Pack(builder))
    return bytes(builder.Output())


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose table is known to be sound. Holds no file open and no section in memory."""

    path: Path
    nbytes: int
    version: tuple[int, int, int]
    system: Mapping[str, Value]
    sections: tuple[Section, ...]

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Reads and checks the header; touches nothing else.

        Raises BundleError: no such file, not a bundle, another major version, truncated, a table that cannot be true.
        """
        path = Path(path)
        try:
            with open_plain(path) as file:
                nbytes = file.seek(0, 2)
                file.seek(0)
                prefix = file.read(_PREFIX.size)
                if not prefix.startswith(MAGIC):
                    raise BundleError(
                        f"{path}: not a .litertlm bundle (starts with {prefix[:8]!r}, expected {MAGIC!r}); "
                        "give the path of a converted model"
                    )
                if len(prefix) < _PREFIX.size:
                    raise BundleError(
                        f"{path}: truncated, {nbytes} bytes, its header alone has {_PREFIX.size}; copy the file again"
                    )
                _, *version, header_end = _PREFIX.unpack(prefix)
                if version[0] != VERSION[0]:
                    raise BundleError(
                        f"{path}: bundle version {'.'.join(map(str, version))}, expected {VERSION[0]}.x; "
                        "convert the model again"
                    )
                if header_end > nbytes:
                    raise BundleError(
                        f"{path}: truncated, its header ends at byte {header_end} of {nbytes}; copy the file again"
                    )
                if not _PREFIX.size < header_end <= _LARGEST_HEADER_BYTES:
                    raise BundleError(f"{path}: its header cannot end at byte {header_end}; copy the file again")
                table = file.read(header_end - _PREFIX.size)
        except OSError as error:
            kind = BundleNotFoundError if isinstance(error, FileNotFoundError) else BundleError
            raise kind(f"{path}: cannot read ({error.strerror}); check the path") from error
        try:
            verify(table, "LiteRTLMMetaData", most_parts=_MOST_PARTS)
            system, sections = _parse_table(path, table)
        except BundleError:
            raise
        except FlatbufferError as error:
            raise BundleError(f"{path}: its section table is corrupt ({error}); copy the file again") from error
        except Exception as error:  # a kind of section that is not known, names that are no text
            raise BundleError(f"{path}: its section table is corrupt; copy the file again") from error
        _check_places(path, sections, header_end, nbytes)
        return cls(path, nbytes, (version[0], version[1], version[2]), system, sections)

    def find(self, kind: SectionKind, model_type: str | None = None) -> Section | None:
        """The first section of that kind (and model type, if given), or None."""
        for section in self.sections:
            if section.kind == kind and model_type in (None, section.model_type):
                return section
        return None

    def section(self, kind: SectionKind, model_type: str | None = None) -> Section:
        """As `find`, but raises BundleError where there is none."""
        section = self.find(kind, model_type)
        if section is None:
            raise BundleError(
                f"{self.path}: has no {model_type or kind.name.lower()} section, only "
                f"{', '.join(s.name for s in self.sections)}; convert the model again"
            )
        return section

    def view(self, section: Section) -> memoryview:
        """The section's bytes as a read-only map of the file: nothing is resident until it is touched.

        The map stays open as long as the view. `view.obj` is the mmap, for madvise.
        """
        slack = section.begin % mmap.ALLOCATIONGRANULARITY  # 0 unless pages are larger than 16 KiB
        with self.path.open("rb") as file:
            mapped = mmap.mmap(
                file.fileno(), section.nbytes + slack, access=mmap.ACCESS_READ, offset=section.begin - slack
            )
        return memoryview(mapped)[slack:]

    def read(self, section: Section) -> bytes:
        """The section's bytes, copied into memory: for metadata and tokenizers.

        Raises BundleError where they do not have the digest that the table records.
        """
        with self.path.open("rb") as file:
            file.seek(section.begin)
            content = file.read(section.nbytes)
        if section.sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise BundleError(
                f"{self.path}: section {section.name} does not match the SHA-256 in its table; copy the file again"
            )
        return content

    def sha256(self, section: Section) -> str:
        """The hex digest of a section, read through the map."""
        return hashlib.sha256(self.view(section)).hexdigest()

    @property
    def decoder_bytes(self) -> int:
        """Of the decoder's weights: what one token reads. Raises BundleError where there are none."""
        return self.section(SectionKind.TFLITE_MODEL, ModelType.PREFILL_DECODE).nbytes

    def sentencepiece_model(self) -> bytes:
        """The tokenizer. Raises BundleError where it is a Hugging Face tokenizer.json or missing."""
        section = self.find(SectionKind.SENTENCEPIECE_TOKENIZER)
        if section is None:
            raise BundleError(
                f"{self.path}: found sections {', '.join(s.name for s in self.sections)}, expected "
                "sentencepiece_tokenizer; convert the checkpoint with gemma-edge, which derives one from tokenizer.json"
            )
        return self.read(section)

    def metadata(self) -> LlmMetadata:
        """The model's metadata: tokens, template, sampler, context (LiteRT-LM's llm_metadata.proto)."""
        message = LlmMetadata()
        self._parse(self.section(SectionKind.LLM_METADATA), message)
        return message

    def executor_metadata(self) -> ExecutorMetadata | None:
        """The cache description that ring caches need; None where a bundle has none."""
        section = self.find(SectionKind.EXECUTOR_METADATA)
        if section is None:
            return None
        message = ExecutorMetadata()
        self._parse(section, message)
        return message

    def _parse(self, section: Section, message: Message) -> None:
        try:
            message.ParseFromString(self.read(section))
        except DecodeError as error:
            raise BundleError(f"{self.path}: its {section.name} section is corrupt; copy the file again") from error


def _parse_table(path: Path, table: bytes) -> tuple[Mapping[str, Value], tuple[Section, ...]]:
    root = root_of(table, "LiteRTLMMetaData")
    sections = []
    for entry in _items_of(root.section_metadata, "objects"):
        if entry.data_type > max(SectionKind):
            raise BundleError(
                f"{path}: found a section of kind {entry.data_type}, this version knows kinds up to "
                f"{max(SectionKind)}; upgrade gemma-edge, or copy the file again if it is older"
            )
        items = _values(entry.items)
        model_type = items.pop("model_type", None)
        sections.append(
            Section(
                SectionKind(entry.data_type),
                None if model_type is None else str(model_type),
                entry.begin_offset,
                entry.end_offset,
                MappingProxyType(items),
            )
        )
    return MappingProxyType(_values(_items_of(root.system_metadata, "entries"))), tuple(sections)


def _items_of(table: Table | None, field: str) -> Sequence[Table]:
    """A vector of tables; empty where what holds it is absent."""
    return () if table is None else getattr(table, field)


def _values(pairs: Sequence[Table]) -> dict[str, Value]:
    return {pair.key.decode(): _value(pair.value) for pair in pairs}


def _value(member: Table | None) -> Any:
    value = None if member is None else member.value
    return value.decode() if isinstance(value, bytes) else value


def _check_places(path: Path, sections: Sequence[Section], header_end: int, nbytes: int) -> None:
    previous_end, previous_name, ends_in = header_end, "the header", None
    for section in sorted(sections, key=lambda s: s.begin):
        where = f"{path}: section {section.name} at bytes {section.begin} to {section.end}"
        if section.end > nbytes:
            raise BundleError(f"{where}: truncated, the file has {nbytes} bytes; copy the file again")
        if section.begin >= section.end:
            raise BundleError(f"{where}: has no bytes; copy the file again")
        if section.begin % ALIGNMENT_BYTES:
            raise BundleError(f"{where}: not aligned to {ALIGNMENT_BYTES} bytes; convert the model again")
        if section.begin < previous_end and (ends_in != section.name or previous_end > section.end):
            raise BundleError(f"{where}: overlaps {previous_name}, which ends at {previous_end}; copy the file again")
        previous_end, previous_name, ends_in = section.end, section.name, section.items.get(ENDS_IN)
