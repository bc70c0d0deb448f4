"""/v1/audio/transcriptions and /v1/audio/translations: a recording of any length, heard window by window."""

import base64
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gemma_edge.runtime.media.audio import wav_bytes
from gemma_edge.runtime.media.item import MediaItem, MediaKind
from gemma_edge.runtime.serve.api import schemas
from gemma_edge.runtime.serve.api.answers import new_id
from gemma_edge.runtime.serve.api.ask import Ask
from gemma_edge.runtime.serve.api.check import Checker
from gemma_edge.runtime.serve.errors import Code, RefusedError
from gemma_edge.runtime.serve.events import Kind
from gemma_edge.runtime.serve.exchange import Exchange
from gemma_edge.runtime.serve.service import Record, Service, check_model
from gemma_edge.runtime.tasks.media import LANGUAGES, transcription_prompt, translation_prompt
from gemma_edge.runtime.text.penalties import Penalties
from gemma_edge.runtime.text.sampler import SamplerConfig

_CHECKS = {
    Kind.TRANSCRIPTION: Checker(schemas.TRANSCRIPTION_REQUEST),
    Kind.TRANSLATION: Checker(schemas.TRANSLATION_REQUEST),
}
_FIELDS = 32


async def transcription(service: Service, exchange: Exchange, record: Record) -> None:
    """Answers /v1/audio/transcriptions."""
    form = await _form(service, exchange, record.kind)
    await _answer(service, exchange, record, form, transcription_prompt(_language(form)))


async def translation(service: Service, exchange: Exchange, record: Record) -> None:
    """Answers /v1/audio/translations: into English."""
    form = await _form(service, exchange, record.kind)
    await _answer(service, exchange, record, form, translation_prompt("English"))


def _language(form: Mapping[str, Any]) -> str | None:
    said = form.get("language")
    if not said:
        return None
    name: str = LANGUAGES.get(said.lower(), said)
    if not (name.isalpha() and name.isascii() and len(name) > 2):
        message = f"language is {said[:60]!r}, expected a code such as de, or a name such as German"
        raise RefusedError(422, Code.VALIDATION_ERROR, message, param="language")
    return name


async def _form(service: Service, exchange: Exchange, kind: Kind) -> dict[str, Any]:
    """The fields of a form; of the file, its bytes. Raises RefusedError."""
    body = await exchange.body()
    content_type = exchange.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        message = f"the body is {content_type[:60]!r}, expected multipart/form-data with a file"
        raise RefusedError(400, Code.VALIDATION_ERROR, message)
    parser = MultiPartParser(
        Headers({"content-type": content_type}), _once(body), max_files=1, max_fields=_FIELDS, max_part_size=1 << 16
    )
    parser.spool_max_size = len(body)  # no file: it is in memory already
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError, ValueError) as error:
        message = f"the form cannot be read ({getattr(error, 'message', error)}); send multipart/form-data"
        raise RefusedError(400, Code.VALIDATION_ERROR, message) from error
    try:
        return await _checked(form, service, kind)
    finally:
        await form.close()


async def _checked(form: FormData, service: Service, kind: Kind) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields:
            message = f"the form has {name[:60]!r} twice; send it once"
            raise RefusedError(400, Code.VALIDATION_ERROR, message, param=name[:60])
        fields[name] = "" if isinstance(value, UploadFile) else value
    if fields.get("prompt") == "":
        del fields["prompt"]
    temperature = fields.pop("temperature", "0")
    if temperature not in ("", "0", "0.0"):
        message = f"temperature is {temperature[:20]!r}, expected 0: every reply is the likeliest one"
        raise RefusedError(400, Code.UNSUPPORTED_PARAMETER, message, param="temperature")
    checked = _CHECKS[kind].checked(fields)
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise RefusedError(422, Code.VALIDATION_ERROR, "file is text, expected a recording as a file", param="file")
    check_model(checked, service.settings)
    data = await upload.read()
    if len(data) > service.settings.media_bytes:
        message = f"the recording has {len(data)} bytes, at most {service.settings.media_bytes} are read"
        raise RefusedError(413, Code.TOO_LARGE, message, param="file")
    return {**checked, "file": data}


async def _once(body: bytes) -> Any:
    yield body
    yield b""


async def _answer(service: Service, exchange: Exchange, record: Record, form: Mapping[str, Any], prompt: str) -> None:
    record.id = new_id("audio")
    text = await exchange.while_there(_heard(service, record, form["file"], prompt))
    record.reply_text = text
    if form.get("response_format") == "text":
        await exchange.whole(200, f"{text}\n".encode(), {"content-type": "text/plain; charset=utf-8"})
    else:
        await exchange.json(200, {"text": text})


async def _heard(service: Service, record: Record, data: bytes, prompt: str) -> str:
    """Each window is a prompt of its own, so memory does not grow with the recording."""
    longest = await service.prepare(lambda _: service.engine.media.audio_window_samples)
    recording = await service.prepare(lambda _: service.engine.media.recording(MediaItem.of(MediaKind.AUDIO, data)))
    windows = recording.spoken_windows(longest)
    ask = Ask(
        sampler=SamplerConfig(top_k=1), penalties=Penalties(suppress=service.engine.text_model.suppress),
        is_passing=True,
    )  # fmt: skip
    texts = []
    while (window := await service.prepare(lambda _: next(windows, None))) is not None:
        part = {"type": "audio", "blob": base64.b64encode(wav_bytes(window)).decode()}
        messages = [{"role": "user", "content": [{"type": "text", "text": prompt}, part]}]
        prepared = await service.prepare(lambda prompter: prompter.chat(messages, (), None))  # noqa: B023  awaited
        text = ""
        async with aclosing(service.pieces(ask, [prepared], record)) as pieces:
            async for piece in pieces:
                text += piece.text
                record.finish = piece.finish or record.finish
        texts.append(_translated(text) if record.kind is Kind.TRANSLATION else text)
    return "\n".join(texts)


def _translated(text: str) -> str:
    """What follows the mark that the prompt asks for; all of it where the model wrote none."""
    _, mark, after = text.partition("English: ")
    return after if mark else text
