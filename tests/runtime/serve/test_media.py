"""Images and sound from the network: bytes only, what the engine says to them, and encoded once."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
from openai import OpenAI
from PIL import Image

from gemma_edge.runtime.chat.messages import AudioBytes, Contents, ImageBytes
from gemma_edge.runtime.config import Backend
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.media.audio import wav_bytes
from gemma_edge.runtime.tasks.media import transcribe
from gemma_edge.runtime.text.sampler import SamplerConfig
from tests.media_files import photograph, speech
from tests.runtime.media.towers import Towers
from tests.runtime.serve.running import MODEL, Running, running


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, timm: None) -> Iterator[Engine]:  # noqa: ARG001  the tower is timm's
    towers = Towers.write(tmp_path_factory.mktemp("towers"))
    cache = str(tmp_path_factory.mktemp("cache"))
    with Engine(str(towers.bundle), Backend.CPU(thread_count=1), cache_dir=cache, slots=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Running]:
    with running(engine) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def clip(seconds: float = 1.0) -> bytes:
    samples, rate_hz = soundfile.read(speech(), dtype="float32")
    return wav_bytes(samples[rate_hz : rate_hz + int(rate_hz * seconds)])


def said(engine: Engine, contents: Contents) -> str:
    with engine.create_conversation(sampler_config=SamplerConfig(top_k=1)) as conversation:
        return str(conversation.send_message(contents, max_output_tokens=8))


def data_url(path: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


def test_an_image_is_seen(client: OpenAI, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = said(engine, Contents.of(ImageBytes(photograph("rocket.jpg").read_bytes()), "What is this?"))
    encoded = []
    encode = engine.media._image

    def counted(*of: Any) -> list[int]:
        encoded.append(of)
        return encode(*of)

    monkeypatch.setattr(engine.media, "_image", counted)
    image: dict[str, Any] = {
        "type": "image_url",
        "image_url": {"url": data_url(photograph("rocket.jpg")), "detail": "low"},
    }
    messages: list[Any] = [{"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]}]
    options: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    reply: Any = client.chat.completions.create(messages=messages, **options)
    assert reply.choices[0].message.content == expected
    messages += [{"role": "assistant", "content": expected}, {"role": "user", "content": "And?"}]
    again: Any = client.chat.completions.create(messages=messages, **options)
    assert again.usage.prompt_tokens_details.cached_tokens > 16
    assert len(encoded) <= 1  # it was kept from the first time
    png = {**image, "image_url": {"url": image["image_url"]["url"].replace("jpeg", "png")}}
    messages[0]["content"][0] = png
    assert client.chat.completions.create(messages=messages, **options).choices


def test_a_recording_is_heard(client: OpenAI, engine: Engine) -> None:
    expected = said(engine, Contents.of("Write down:", AudioBytes(clip())))
    sound: Any = {"type": "input_audio", "input_audio": {"data": base64.b64encode(clip()).decode(), "format": "wav"}}
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Write down:"}, sound]}],
        temperature=0,
        max_tokens=8,
    )
    assert reply.choices[0].message.content == expected


def test_a_recording_is_transcribed(client: OpenAI, engine: Engine, server: Running) -> None:
    heard = "".join(transcribe(engine, clip(3.0), "German"))
    reply = client.audio.transcriptions.create(model=MODEL, file=("a.wav", clip(3.0)), language="de")
    assert reply.text == heard
    text = client.audio.transcriptions.create(
        model=MODEL, file=("a.wav", clip(3.0)), language="German", response_format="text"
    )
    assert str(text) == heard + "\n"
    assert isinstance(client.audio.translations.create(model=MODEL, file=("a.wav", clip())).text, str)
    for form, status, message in (
        ({"prompt": "names"}, 400, "'prompt' is not supported here"),
        ({"temperature": "0.7"}, 400, "temperature is '0.7', expected 0"),
        ({"response_format": "srt"}, 422, "response_format: 'srt' is not one of"),
        ({"language": "12"}, 422, "language is '12', expected a code"),
        ({"model": "other"}, 404, "there is no model 'other'"),
    ):
        refused = httpx.post(f"{server.url}/v1/audio/transcriptions", data=form, files={"file": clip()}, timeout=300)
        assert refused.status_code == status
        assert message in refused.json()["error"]["message"]
    broken = httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": b"no sound"}, timeout=300)
    assert broken.status_code == 400
    plain = httpx.post(f"{server.url}/v1/audio/transcriptions", json={}, timeout=300)
    assert "expected multipart/form-data with a file" in plain.json()["error"]["message"]
    text_field = httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": (None, "x")}, timeout=300)
    assert "file is text, expected a recording" in text_field.json()["error"]["message"]
    twice = httpx.post(f"{server.url}/v1/audio/transcriptions", files=[("model", (None, MODEL))] * 2, timeout=300)
    assert "the form has 'model' twice" in twice.json()["error"]["message"]


def test_large_images_and_recordings_are_refused_before_they_are_decoded(engine: Engine) -> None:
    file = io.BytesIO()
    Image.new("L", (3000, 2000)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    messages: list[Any] = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    with running(engine, image_pixels=1_000_000, media_bytes=20_000, rows_bytes=1000) as server:
        large = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": messages}, timeout=300)
        assert large.status_code == 413
        assert "has 3000 x 2000 pixels, at most 1000000 are read" in large.json()["error"]["message"]
        long = httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": clip()}, timeout=300)
        assert long.status_code == 413
        assert "at most 20000 are read" in long.json()["error"]["message"]
        small = io.BytesIO()
        Image.new("L", (30, 20)).save(small, "PNG")
        url = "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
        messages[0]["content"][0]["image_url"] = {"url": url}
        many = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": messages}, timeout=300)
        assert (many.status_code, many.json()["error"]["code"]) == (413, "over_memory_budget")
        assert "the server has 1000 for them" in many.json()["error"]["message"]
    engine.media.keep(1 << 25)
