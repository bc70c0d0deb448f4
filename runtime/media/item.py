"""One image or recording of a message: a file, or bytes in memory."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import unquote_to_bytes

from gemma_edge.profiles.plain_file import open_plain
from gemma_edge.runtime.media.errors import MediaError

Json: TypeAlias = Mapping[str, Any]


class MediaKind(Enum):
    """What it is for; the values are the `type` of a message's part."""

    IMAGE = "image"
    AUDIO = "audio"


@dataclass(frozen=True)
class MediaItem:
    """An encoded image or recording, not read yet. name: what to call it in a message."""

    kind: MediaKind
    data: Path | bytes
    name: str

    @classmethod
    def of(cls, kind: MediaKind, data: "Path | str | bytes") -> "MediaItem":
        """From a path, or from the bytes of such a file."""
        if isinstance(data, bytes):
            return cls(kind, data, "the image" if kind is MediaKind.IMAGE else "the recording")
        return cls(kind, Path(data), str(data))

    def open(self) -> BinaryIO:
        """The encoded bytes. Raises MediaError where there are none."""
        if isinstance(self.data, bytes):
            file: BinaryIO = io.BytesIO(self.data)
        else:
            try:
                file = open_plain(self.data)
            except OSError as error:
                raise MediaError(f"{self.name}: cannot be read ({error.strerror}); check the path") from error
        if not file.read(1):
            file.close()
            raise MediaError(f"{self.name}: has no bytes; give a file with content")
        file.seek(0)
        return file


def media_items(messages: Sequence[Json]) -> list[MediaItem]:
    """The images and recordings of messages in JSON form, in order. Raises MediaError for one without content."""
    return [item for message in messages for item in _items_of(message)]


def _items_of(message: Json) -> Iterator[MediaItem]:
    content = message.get("content")
    parts = [content] if isinstance(content, Mapping) else content
    if not isinstance(parts, Sequence) or isinstance(parts, str):
        return
    for part in parts:
        if isinstance(part, Mapping) and part.get("type") in ("image", "audio"):
            yield _item(MediaKind(part["type"]), part)


def _item(kind: MediaKind, part: Json) -> MediaItem:
    match part:
        case {"path": str(path)}:
            return MediaItem.of(kind, path)
        case {"blob": str(blob)}:
            try:
                return MediaItem.of(kind, base64_bytes(blob))
            except ValueError as error:
                raise MediaError(f"the {kind.value} of a message is no base64 ({error}); encode its bytes") from error
    raise MediaError(f"the {kind.value} of a message has {sorted(part)}, expected a path or a blob; add one")


def base64_bytes(text: str) -> bytes:
    """The bytes of base64 as it comes: with line ends, without padding, in the alphabet of URLs, or as a data: URL.

    Raises ValueError (binascii.Error) for anything else.
    """
    if text.startswith("data:"):
        header, _, text = text.partition(",")
        if not header.endswith(";base64"):
            return unquote_to_bytes(text)
    text = "".join(text.split()).translate({ord("-"): "+", ord("_"): "/"})
    return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
