"""What a slot holds, as a file: a prompt or a conversation that goes on in another process without prefill.

The file is numpy's .npz, not compressed: one array a cache, token ids, and the rows of images and recordings. Each
array has a checksum, and the whole names the model it belongs to; the values also depend on the kernels of the CPU, but
another CPU's are as good.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import require_plain
from gemma_edge.runtime.executors.base import SlotState, Snapshot
from gemma_edge.runtime.formats.atomic import atomic_file
from gemma_edge.runtime.media.soft_tokens import SoftToken

_FORMAT = "gemma-edge keys and values 1"
_CACHE = "cache/"
_MARK = "mark/"


class SavedCacheError(GemmaEdgeError):
    """The file holds no keys and values, is damaged, or is another model's."""


def save_state(state: SlotState, digest: str, path: Path) -> None:
    """Write it to `path`, complete or not at all. digest: the decoder's. Raises OutputError."""
    soft = [(at, token) for at, token in enumerate(state.token_ids) if isinstance(token, SoftToken)]
    rows = [token.embedding for _, token in soft]
    content: dict[str, NDArray[Any]] = {
        "format": np.array(_FORMAT),
        "digest": np.array(digest),
        "high_water": np.array(state.high_water),
        "token_ids": np.array([int(token) for token in state.token_ids], np.int64),
        "soft_at": np.array([at for at, _ in soft], np.int64),
        "soft_origins": np.array([token.origin[0] for _, token in soft], np.str_),
        "soft_rows_of_origins": np.array([token.origin[1] for _, token in soft], np.int64),
        "soft_embeddings": np.stack(rows) if rows else np.zeros((0, 0), np.float32),
    }
    with atomic_file(path) as file:
        caches = {f"{_CACHE}{name}": array for name, array in state.arrays.items()}
        if state.mark is not None:
            content["mark"] = np.array([len(state.mark.token_ids), state.mark.high_water], np.int64)
            caches |= {f"{_MARK}{name}": ring for name, ring in state.mark.rings.items()}
        np.savez(file, allow_pickle=False, **content, **caches)


@contextmanager
def opened_state(path: Path, digest: str) -> Iterator[SlotState]:
    """What was saved, while the file is open: each array is read when it is asked for.

    Raises SavedCacheError: missing, damaged, not such a file, or not of the decoder with this digest.
    """
    try:
        require_plain(path)
        with np.load(path, allow_pickle=False) as saved:
            if str(saved["format"]) != _FORMAT:
                raise SavedCacheError(f"{path}: found {saved['format']}, expected {_FORMAT}; save it again")
            found = str(saved["digest"])
            if found != digest:
                raise SavedCacheError(
                    f"{path}: was saved with the model {found[:12]}, this one is {digest[:12]}; load it with the model "
                    "that saved it, or save it again"
                )
            token_ids = _token_ids(saved)
            yield SlotState(token_ids, int(saved["high_water"]), _Arrays(saved, _CACHE), _mark(saved, token_ids))
    except OSError as error:
        raise SavedCacheError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, AttributeError) as error:
        raise SavedCacheError(f"{path}: holds no keys and values, or is damaged ({error}); save it again") from error


def _token_ids(saved: Mapping[str, NDArray[Any]]) -> tuple[int, ...]:
    token_ids: list[int] = saved["token_ids"].tolist()
    origins = zip(saved["soft_origins"].tolist(), saved["soft_rows_of_origins"].tolist(), strict=True)
    for at, origin, row in zip(saved["soft_at"].tolist(), origins, saved["soft_embeddings"], strict=True):
        token_ids[at] = SoftToken(token_ids[at], row, origin)
    return tuple(token_ids)


def _mark(saved: Mapping[str, NDArray[Any]], token_ids: tuple[int, ...]) -> Snapshot | None:
    if "mark" not in saved:
        return None
    length, high_water = saved["mark"].tolist()
    return Snapshot(token_ids[:length], _Arrays(saved, _MARK), high_water)


class _Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of a file whose names begin alike."""

    def __init__(self, saved: Mapping[str, NDArray[Any]], beginning: str) -> None:
        self._saved = saved
        self._beginning = beginning

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._saved[f"{self._beginning}{name}"]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._beginning) for name in self._saved if name.startswith(self._beginning))

    def __len__(self) -> int:
        return sum(1 for _ in self)
