"""What an output was made from, kept beside it as `out`.job.json: the reason why a second run does nothing.

Compared are the converter's version, the options, and the contents of every file that was read and written. A file is
not hashed again while its size, times and inode are those that were seen with its digest, as git's index does it.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from gemma_edge.profiles.plain_file import open_plain, read_plain
from gemma_edge.runtime.formats.atomic import atomic_file
from gemma_edge.runtime.formats.digest import sha256_of

SUFFIX: Final = ".job.json"
_SETTLED_NS: Final = 2_000_000_000
"""A file that is younger may change once more within one tick of its file system's clock."""


@dataclass(frozen=True)
class Seen:
    """A file's content, and by what it is known again. stat: size, both times and inode; None: hash it again."""

    sha256: str
    stat: tuple[int, ...] | None

    @classmethod
    def of(cls, path: Path, sha256: str | None = None) -> "Seen":
        """As it lies there; sha256: where it is known. Raises OSError."""
        with open_plain(path) as file:
            status = os.fstat(file.fileno())
            digest = sha256 or sha256_of(file.fileno(), 0, status.st_size)
            is_same = _stat(os.fstat(file.fileno())) == _stat(status)
        youngest = max(status.st_mtime_ns, status.st_ctime_ns)
        is_settled = is_same and time.time_ns() - youngest > _SETTLED_NS
        return cls(digest, _stat(status) if is_settled else None)

    def again(self, path: Path) -> "Seen":
        """As it is now, hashed where it may have changed. Raises OSError."""
        return self if self.stat == _stat(path.stat()) else Seen.of(path)


def _stat(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True)
class Record:
    """One finished job. converter: its version. Files by the name that their place has for the job."""

    converter: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Seen]
    outputs: Mapping[str, Seen]

    @classmethod
    def load(cls, out: Path) -> "Record | None":
        """The one beside an output; None where there is none that can be read."""
        try:
            values = json.loads(read_plain(record_path(out)))
            files = [
                {name: Seen(seen["sha256"], _tuple(seen["stat"])) for name, seen in values[key].items()}
                for key in ("inputs", "outputs")
            ]
            return cls(values["converter"], values["options"], *files)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def save(self, out: Path) -> None:
        """Raises OutputError."""
        with atomic_file(record_path(out)) as file:
            file.write(f"{json.dumps(asdict(self), indent=1)}\n".encode())

    def again(self, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> "Record":
        """With all these files as they are now. Raises OSError."""
        return replace(self, inputs=_again(self.inputs, inputs), outputs=_again(self.outputs, outputs))


BEGUN: Final = Record("", {}, {}, {})
"""Of a folder, until it is there."""


def _tuple(values: Any) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _again(before: Mapping[str, Seen], paths: Mapping[str, Path]) -> dict[str, Seen]:
    return {name: before[name].again(path) if name in before else Seen.of(path) for name, path in paths.items()}


def record_path(out: Path) -> Path:
    """model.litertlm -> model.litertlm.job.json."""
    return out.with_name(out.name + SUFFIX)


def converter() -> str:
    """As a report names it."""
    return f"gemma-edge {version('gemma-edge')}"


def why(before: Record | None, now: Record | None, options: Mapping[str, Any]) -> str:
    """Why a job has to be done, in a few words; "" where it is done. now: the same record with today's files."""
    if before is None:
        return "new"
    if before == BEGUN:
        return "not finished"
    if before.converter != converter():
        return f"made by {before.converter}"
    if before.options != json.loads(json.dumps(options)):
        return "other options"
    if now is None:
        return "output is gone"
    for kind, old, new in (("input", before.inputs, now.inputs), ("output", before.outputs, now.outputs)):
        for name in sorted(old.keys() | new.keys()):
            if name not in new:
                return f"{kind} {name} is gone"
            if name not in old or old[name].sha256 != new[name].sha256:
                return f"{kind} {name} has changed"
    return ""


def files_of(out: Path, names: Iterable[str]) -> dict[str, Path]:
    """Of names beside an output, those that are there."""
    return {name: path for name in names if (path := out.parent / name).is_file()}
