"""Images and recordings of messages in JSON form."""

import base64
from pathlib import Path
from typing import Any

import pytest

from gemma_edge.runtime.chat.messages import Content, Contents, Message
from gemma_edge.runtime.media.errors import MediaError
from gemma_edge.runtime.media.item import MediaItem, MediaKind, media_items


def test_items_are_found_in_order() -> None:
    contents = Contents.of(
        "a", Content.ImageFile("/one.png"), "b", Content.AudioBytes(b"two"), Content.ImageBytes(b"three"), "c"
    )
    message = Message.user(contents).to_json()
    assert media_items([{"role": "user", "content": "text"}, message, {"role": "user"}]) == [
        MediaItem(MediaKind.IMAGE, Path("/one.png"), "/one.png"),
        MediaItem(MediaKind.AUDIO, b"two", "the recording"),
        MediaItem(MediaKind.IMAGE, b"three", "the image"),
    ]


def test_a_single_part_and_texts_between() -> None:
    part = {"type": "audio", "path": "a.wav"}
    expected = [MediaItem(MediaKind.AUDIO, Path("a.wav"), "a.wav")]
    assert media_items([{"role": "user", "content": part}]) == expected
    assert media_items([{"role": "user", "content": ["x", part, {"type": "text", "text": "y"}]}]) == expected


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image"}, "the image of a message has ['type'], expected a path or a blob; add one"),
        (
            {"type": "audio", "path": 7},
            "the audio of a message has ['path', 'type'], expected a path or a blob; add one",
        ),
    ],
)
def test_an_item_without_content(part: dict[str, Any], message: str) -> None:
    with pytest.raises(MediaError) as caught:
        media_items([{"role": "user", "content": [part]}])
    assert str(caught.value) == message


def test_a_blob_that_is_no_base64() -> None:
    with pytest.raises(MediaError, match=r"^the image of a message is no base64 \(.*\); encode its bytes$"):
        media_items([{"content": [{"type": "image", "blob": base64.b64encode(b"abc").decode() + "!"}]}])
