"""`--slice`: a published name, a TOML file, or a row of Google's table (google/gemma3n-slicing-configs) as CSV.

TOML:  name = "mine"   ffn = [8192, 16384, ...]   skipped = [20, 21, 22, 23, 24]
CSV:   columns "name", "FFN Hidden Dims" and "Layers Skipped"; lists as there, "[2_048 * 8, ...]"; FILE.csv:NAME chooses
       one of several rows.
"""

import csv
import io
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gemma_edge.converter.models.matformer.slices import Slice, SliceError, published

_LARGEST_FILE: Final = 1 << 20
_NAME, _FFN, _SKIPPED = "name", "FFN Hidden Dims", "Layers Skipped"
_KEYS: Final = {"name", "ffn", "skipped"}


def slice_of(choice: str | Path) -> Slice:
    """The slice that was asked for. Raises SliceError naming the file or the names there are."""
    text = str(choice)
    file, _, row = text.partition(".csv:")
    if row:
        return _of_csv(Path(f"{file}.csv"), row)
    path = Path(text)
    if path.suffix == ".csv":
        return _of_csv(path, None)
    return _of_toml(path) if path.suffix == ".toml" else published(text)


def _of_toml(path: Path) -> Slice:
    try:
        values = tomllib.loads(_read(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SliceError(f"{path}: not TOML ({error}); correct the file") from None
    if unknown := sorted({*values} - _KEYS):
        raise SliceError(f"{path}: has {unknown[0]!r}; expected {', '.join(sorted(_KEYS))}")
    ffn, skipped = _numbers(path, values, "ffn", 1), _numbers(path, values, "skipped", 0)
    name = values.get("name", path.stem)
    if not isinstance(name, str):
        raise SliceError(f"{path}: name is {name!r}, expected a text")
    return _slice(path, name, ffn, skipped)


def _numbers(path: Path, values: Mapping[str, Any], key: str, least: int) -> tuple[int, ...]:
    found = values.get(key, [])
    if not isinstance(found, list) or not all(
        isinstance(n, int) and not isinstance(n, bool) and n >= least for n in found
    ):
        raise SliceError(f"{path}: {key} is not a list of whole numbers from {least} on; correct the file")
    return tuple(found)


def _of_csv(path: Path, name: str | None) -> Slice:
    rows = list(csv.DictReader(io.StringIO(_read(path))))
    if not rows or not {_NAME, _FFN, _SKIPPED} <= {*rows[0]}:
        raise SliceError(f'{path}: expected rows with the columns "{_NAME}", "{_FFN}" and "{_SKIPPED}"')
    names = [str(row[_NAME]) for row in rows]
    if name is None and len(rows) > 1:
        raise SliceError(f"{path}: holds {len(rows)} slices; name one as {path}:NAME, such as {path}:{names[-1]}")
    if name is not None and name not in names:
        raise SliceError(f"{path}: has no slice {name!r}; it has {', '.join(names)[:500]}")
    row = rows[0 if name is None else names.index(name)]
    return _slice(path, str(row[_NAME]), _listed(path, row[_FFN]), _listed(path, row[_SKIPPED]))


def _listed(path: Path, text: str | None) -> tuple[int, ...]:
    """Of "[2_048 * 8, 2_048 * 4]"; an empty cell is an empty list."""
    inner = (text or "").strip().removeprefix("[").removesuffix("]")
    if not inner.strip():
        return ()
    items = [item.strip() for item in inner.split(",")]
    if not all(re.fullmatch(r"\d[\d_]{0,9}( ?\* ?\d[\d_]{0,9}){0,3}", item) for item in items):
        raise SliceError(f"{path}: {(text or '')[:60]!r} is not a list of whole numbers such as [2_048 * 8, 2_048 * 4]")
    return tuple(math.prod(int(factor.strip().replace("_", "") or 0) for factor in item.split("*")) for item in items)


def _slice(path: Path, name: str, ffn: tuple[int, ...], skipped: tuple[int, ...]) -> Slice:
    if not ffn:
        raise SliceError(f"{path}: keeps no layer; give the feed-forward width of each layer that is kept")
    if len({*skipped}) != len(skipped):
        raise SliceError(f"{path}: leaves a layer out twice; name each once")
    return Slice(name, ffn, tuple(sorted(skipped)))


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            raise SliceError(f"{path}: no such file; give a TOML or CSV file, or the name of a published slice")
        if path.stat().st_size > _LARGEST_FILE:
            raise SliceError(f"{path}: larger than {_LARGEST_FILE >> 20} MiB; expected the description of a slice")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SliceError(f"{path}: cannot be read ({error}); check it") from None
