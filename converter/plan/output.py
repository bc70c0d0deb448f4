"""What a format makes of a plan, to the byte, before a weight is read; and what it says of what it has made."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from rich.console import Console

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.machine import Inputs
from gemma_edge.converter.plan.format import FORMATS, Format
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.quantize.packed_rows import StoredRows
from gemma_edge.converter.quantize.quantize import QuantError
from gemma_edge.converter.quantize.stream import NO_QUANTIZERS, Look, Quantizer
from gemma_edge.converter.tensors import TensorSpec
from gemma_edge.runtime.formats.digest import sha256_of


class Section(Protocol):
    """A section, or a file of a directory."""

    @property
    def name(self) -> str:
        """As its format calls it."""

    @property
    def nbytes(self) -> int:
        """Its exact size."""


class Bundle(Protocol):
    """An output laid out, without its weights."""

    @property
    def plan(self) -> Plan:
        """What is laid out."""

    @property
    def sections(self) -> Sequence[Section]:
        """In the order of the file."""

    @property
    def nbytes(self) -> int:
        """Of the whole output, header and padding included."""

    @property
    def tokenizer(self) -> bytes:
        """A serialised SentencePiece model."""

    @property
    def notes(self) -> Sequence[str]:
        """What whoever uses it should know, a line each."""

    def beside(self, out: Path) -> Mapping[Path, bytes]:
        """Further files that belong to the output `out`, and lie beside it."""

    def write(
        self,
        output: Any,
        source: Checkpoint,
        identity: Callable[[], str],
        on_read: Callable[[int], None],
        quantizers: Mapping[str, Quantizer] = NO_QUANTIZERS,
        look: Look | None = None,
    ) -> dict[str, QuantError]:
        """Stream the weights through. output: a file or a directory, as the format has it. Errors by tensor name."""


class Output(Protocol):
    """A module, `litert/format.py` for one. Its other half is plan/door.py's."""

    def opened(self, out: Path) -> AbstractContextManager[Any]:
        """What a bundle is written into: complete under its name when the block ends, or never there."""

    def lay_out(self, plan: Plan, source: Checkpoint) -> Bundle:
        """To the byte, without its weights."""

    def kernel_inputs(self, plan: Plan) -> Inputs:
        """What linear layers multiply where the bundle runs: inputs rounded to int8 where weights are integers."""

    def reads(self, path: Path) -> bool:
        """Whether what lies there may be of this format."""

    def inspect(self, path: Path) -> dict[str, Any]:
        """What it holds, as JSON values."""

    def stored_rows(self, path: Path, specs: Mapping[str, TensorSpec]) -> Mapping[str, Sequence[StoredRows]]:
        """The rows of those weights that are there, by name; of one in several pieces, the pieces in order."""

    def show(self, values: dict[str, Any], console: Console) -> None:
        """The same for people."""


def output_of(format: Format) -> Output:  # noqa: A002  what it is
    """Imported when it is asked for, as in plan/door.py."""
    return cast(Output, import_module(f"gemma_edge.converter.{format.room}.format"))


def format_at(path: Path) -> Format:
    """Of what lies there; the first format where none knows it, which then says so.

    The last that says it may be its own is asked: litert takes any file, what is listed behind it looks closer.
    """
    first, *others = FORMATS.values()
    return next((known for known in reversed(others) if output_of(known).reads(path)), first)


def reader_of(path: Path) -> Output:
    """For what lies there, see format_at."""
    return output_of(format_at(path))


def digest_and_sync(output: Any) -> str:
    """SHA-256 of a file; of a directory, of its files' digests and names as sha256sum prints them."""
    if not isinstance(output, Path):
        output.flush()
        with ThreadPoolExecutor(1) as pool:
            synced = pool.submit(os.fsync, output.fileno())  # part of the time that a conversion takes
            digest = sha256_of(output.fileno(), 0, os.fstat(output.fileno()).st_size)
            synced.result()
        return digest
    digests = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digests[path.relative_to(output).as_posix()] = digest_and_sync(file)
    return digest_of_files(digests)


def digest_of_files(digests: Mapping[str, str]) -> str:
    """SHA-256 of a directory, from those of its files by name, in the order of their paths."""
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()).hexdigest()
