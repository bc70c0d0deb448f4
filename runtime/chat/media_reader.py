"""From a prompt with placeholders to tokens: text tokenized, images and recordings encoded in their place.

What stands around them is Hugging Face's Gemma3nProcessor: two newlines, the token that starts an image, its rows, the
token that ends it, two newlines; or Gemma4Processor: the same without newlines. All text between two of them is
tokenized together, as there. LiteRT-LM tokenizes the newlines by themselves, which differs where nothing stands between
(gemma3_data_processor.cc).

A recording that Gemma 3n hears is always as many tokens as its windows have, 188 for 30 seconds, the silence behind its
end included: so Hugging Face has it, and so the tokens of a reply agree. LiteRT-LM leaves out the rows of that silence.
"""

import hashlib
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gemma_edge.runtime.chat.text_model import TextModel
from gemma_edge.runtime.media.audio import Recording
from gemma_edge.runtime.media.encoders import Encoders, Picture
from gemma_edge.runtime.media.errors import MediaError
from gemma_edge.runtime.media.item import MediaItem, MediaKind
from gemma_edge.runtime.media.soft_tokens import SoftToken, soft_tokens
from gemma_edge.runtime.text.control_text import MEDIA_PLACES

_ENCODERS = {MediaKind.IMAGE: "vision", MediaKind.AUDIO: "audio"}


@dataclass(frozen=True)
class _Style:
    """How a family writes images and recordings, with the kind's name for "{}".

    place: what finds where one belongs. around: text on both sides. start, row, end: the tokens of one.
    """

    place: re.Pattern[str]
    around: str
    start: str
    row: str
    end: str


_GEMMA3N = _Style(re.compile("|".join(MEDIA_PLACES)), "\n\n", "<start_of_{}>", "<{}_soft_token>", "<end_of_{}>")
_GEMMA4 = _Style(
    re.compile(r"<start_of_image>|<start_of_audio>|<\|image\|>|<\|audio\|>"), "", "<|{}>", "<|{}|>", "<{}|>"
)


@dataclass(frozen=True)
class _Marks:
    """How one kind is written: the text that starts it, the ids of its rows and of its end."""

    start: str
    row_id: int
    end_id: int

    @classmethod
    def of(cls, model: TextModel, style: _Style, kind: MediaKind) -> "_Marks":
        """A tokenizer without the placeholder gives 0: the row's id only chooses the per-layer row, and that is 0's."""
        row, end = (_only_id(model, text.format(kind.value)) for text in (style.row, style.end))
        return cls(style.start.format(kind.value), row, end)


def _only_id(model: TextModel, text: str) -> int:
    ids = model.tokenizer.encode(text)
    return ids[0] if len(ids) == 1 else 0


class MediaReader:
    """Reads the prompts of one engine's conversations."""

    def __init__(
        self,
        model: TextModel,
        encoders: Encoders | None = None,
        *,
        max_num_images: int | None = None,
        keep_loaded: bool = True,
    ) -> None:
        """encoders: None where nothing but text is read.

        max_num_images: in one message. keep_loaded: otherwise an encoder is released as soon as a message is encoded.
        """
        self._kept: OrderedDict[bytes, list[int]] = OrderedDict()  # rows, by what was encoded, the last used at the end
        self._most_kept_bytes = 0
        self._model = model
        is_gemma4 = model.metadata.llm_model_type.WhichOneof("model_type") == "gemma4"
        self._style = _GEMMA4 if is_gemma4 else _GEMMA3N
        self._encoders = encoders
        self._max_num_images = max_num_images
        self._keep_loaded = keep_loaded

    def keep(self, most_bytes: int) -> None:
        """Keep the rows of so many bytes, where images and recordings come again: a server gets a chat's each time."""
        self._most_kept_bytes = most_bytes

    @property
    def kinds(self) -> Sequence[str]:
        """What the model takes beside text: image, audio."""
        found = {} if self._encoders is None else {"image": self._encoders.vision, "audio": self._encoders.audio}
        return [kind for kind, size in found.items() if size is not None]

    @property
    def audio_window_samples(self) -> int:
        """How much the audio encoder hears at once. Raises MediaError where there is none."""
        if self._encoders is None or self._encoders.audio is None:
            raise self._missing(MediaKind.AUDIO)
        return self._encoders.audio.window_samples

    def recording(self, item: MediaItem) -> Recording:
        """A recording that the model can hear. Raises MediaError: none that can be read, or no audio encoder."""
        if self._encoders is None or self._encoders.audio is None:
            raise self._missing(MediaKind.AUDIO)
        return Recording.open(item, self._encoders.audio.front_end)

    def read(self, text: str, items: Sequence[MediaItem], *, follows_media: bool = False) -> "Prompt":
        """Decide what becomes of each, opening recordings but encoding nothing.

        follows_media: whether the text goes on directly after an image or a recording.

        Raises MediaError: a kind that the model does not take, a file that cannot be read, too many images, text that
        has other placeholders than there are items.
        """
        around = self._style.around
        start = around if follows_media else ""
        if not items:  # what looks like a placeholder is text then
            return Prompt((tuple(self._model.encode_prompt(start + text)),), self)
        self._check(items)
        waiting = {kind: deque(item for item in items if item.kind is kind) for kind in MediaKind}
        marks = {kind: _Marks.of(self._model, self._style, kind) for kind in MediaKind}
        parts: list[tuple[int, ...] | _Part] = []
        pending, after = start, 0
        for found in self._style.place.finditer(text):
            kind = MediaKind.AUDIO if "audio" in found[0] else MediaKind.IMAGE
            if not waiting[kind]:
                raise self._miscounted(kind, items, text)
            before = f"{pending}{text[after : found.start()]}{around}{marks[kind].start}"
            parts += [tuple(self._model.encode_prompt(before)), self._part(waiting[kind].popleft(), marks[kind])]
            pending, after = around, found.end()
        for kind, left in waiting.items():
            if left:
                raise self._miscounted(kind, items, text)
        parts.append(tuple(self._model.encode_prompt(pending + text[after:])))
        return Prompt(tuple(parts), self, media_end=after)

    def _check(self, items: Sequence[MediaItem]) -> None:
        for kind in MediaKind:
            wanted = sum(item.kind is kind for item in items)
            if wanted and (self._encoders is None or getattr(self._encoders, _ENCODERS[kind]) is None):
                raise self._missing(kind)
            if kind is MediaKind.IMAGE and self._max_num_images is not None and wanted > self._max_num_images:
                raise MediaError(
                    f"the message has {wanted} images, max_num_images is {self._max_num_images}; send fewer"
                )

    def _missing(self, kind: MediaKind) -> MediaError:
        return MediaError(
            f"{kind.value} content was given, {self._model.origin} has no {_ENCODERS[kind]} encoder; "
            f"leave it out or convert with --modalities text,{_ENCODERS[kind]}"
        )

    def _miscounted(self, kind: MediaKind, items: Sequence[MediaItem], text: str) -> MediaError:
        placed = sum(kind.value in found for found in self._style.place.findall(text))
        given = sum(item.kind is kind for item in items)
        return MediaError(
            f"the prompt has {placed} places for {kind.value} content, the message {given}; write no "
            f"{self._style.row.format(kind.value)} into a text, and use a chat template that has them"
        )

    def _part(self, item: MediaItem, marks: _Marks) -> "_Part":
        assert self._encoders is not None
        if item.kind is MediaKind.IMAGE:
            assert self._encoders.vision is not None
            return _Part(item, marks, self._encoders.vision.tokens_of(item) + 1)
        assert self._encoders.audio is not None
        return _Part(item, marks, self._encoders.audio.tokens_of(self.recording(item).samples) + 1)

    def encode(self, parts: "Sequence[tuple[int, ...] | _Part]", check: Callable[[], None]) -> list[int]:
        """The tokens of a prompt's parts. check: called before each image and recording, may raise to stop."""
        encoded: dict[int, list[int]] = {}
        for kind in MediaKind:  # one encoder after the other: together they would need more memory
            wanted = {i: part for i, part in enumerate(parts) if isinstance(part, _Part) and part.item.kind is kind}
            known = {i: rows for i, part in wanted.items() if (rows := self._known(part.item)) is not None}
            wanted = {i: part for i, part in wanted.items() if i not in known}
            encoded |= known
            # Decoding photographs takes memory too: it ends, and damaged ones are found, before the encoder loads.
            pixels = {i: self._pixels(part) for i, part in wanted.items() if kind is MediaKind.IMAGE}
            try:
                for i, part in wanted.items():
                    check()
                    encoded[i] = self._image(part, pixels.pop(i)) if i in pixels else self._recording(part)
                    self._remember(part.item, encoded[i])
            finally:
                self._release()
        tokens = (encoded[index] if isinstance(part, _Part) else part for index, part in enumerate(parts))
        return [token for some in tokens for token in some]

    def _known(self, item: MediaItem) -> list[int] | None:
        """The tokens of what was encoded before."""
        key = _key(item) if self._kept else None
        if key is None or key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def _remember(self, item: MediaItem, tokens: list[int]) -> None:
        if not self._most_kept_bytes or (key := _key(item)) is None:
            return
        self._kept[key] = tokens
        while sum(map(_rows_bytes, self._kept.values())) > self._most_kept_bytes:
            self._kept.popitem(last=False)

    def _release(self) -> None:
        if not self._keep_loaded and self._encoders is not None:
            self._encoders.release()

    def _pixels(self, part: "_Part") -> Picture:
        assert self._encoders is not None
        assert self._encoders.vision is not None
        return self._encoders.vision.prepared(part.item)

    def _image(self, part: "_Part", picture: Picture) -> list[int]:
        assert self._encoders is not None
        rows, end = self._encoders.encode_image(picture)
        ended = [part.marks.end_id] if end is None else soft_tokens(part.marks.end_id, end)
        return [*soft_tokens(part.marks.row_id, rows), *ended]

    def _recording(self, part: "_Part") -> list[int]:
        assert self._encoders is not None
        size = self._encoders.audio
        assert size is not None
        tokens: list[SoftToken | int] = []
        for window in self.recording(part.item).windows(size.window_samples):
            tokens += soft_tokens(part.marks.row_id, self._encoders.encode_audio(size.front_end.log_mel(window)))
        end = self._encoders.end_of_audio()
        return [*tokens, *([part.marks.end_id] if end is None else soft_tokens(part.marks.end_id, end))]


def _key(item: MediaItem) -> bytes | None:
    """What bytes in memory are known by. A file may change."""
    if not isinstance(item.data, bytes):
        return None
    return hashlib.sha256(item.kind.value.encode() + item.data).digest()


def _rows_bytes(tokens: Sequence[int]) -> int:
    return sum(token.embedding.nbytes for token in tokens if isinstance(token, SoftToken))


@dataclass(frozen=True)
class _Part:
    """An image or a recording in its place. token_count: of its rows and its end."""

    item: MediaItem
    marks: _Marks
    token_count: int


@dataclass(frozen=True)
class Prompt:
    """A prompt whose length is known, before anything is encoded."""

    parts: tuple[tuple[int, ...] | _Part, ...]
    reader: MediaReader
    media_end: int = 0  # where the text after the last image or recording begins

    @property
    def first_text(self) -> tuple[int, ...]:
        """The tokens before the first image or recording; all of them where there is none."""
        first = self.parts[0]
        return () if isinstance(first, _Part) else first

    @property
    def last_text(self) -> tuple[int, ...]:
        """The tokens after the last image or recording."""
        last = self.parts[-1]
        return () if isinstance(last, _Part) else last

    @property
    def token_count(self) -> int:
        """Of recordings, what their headers say."""
        return sum(part.token_count if isinstance(part, _Part) else len(part) for part in self.parts)

    @property
    def media_tokens(self) -> int:
        """Of those, the rows that encoders make."""
        return sum(part.token_count for part in self.parts if isinstance(part, _Part))

    def tokens(self, check: Callable[[], None] = lambda: None) -> list[int]:
        """Encode. Raises MediaError: an image or a recording turns out to be damaged."""
        return self.reader.encode(self.parts, check)
