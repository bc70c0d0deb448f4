"""Whatever is read may be a named pipe or a device: it is refused by name, and nothing waits for it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.converter.checkpoint.checkpoint import read_json_object
from gemma_edge.converter.checkpoint.gguf.file import is_gguf, read_gguf
from gemma_edge.converter.checkpoint.safetensors_file import read_header
from gemma_edge.converter.quality.beside import quality_beside
from gemma_edge.converter.quantize.recipes import Recipe
from gemma_edge.converter.tokenizer.generation import read_object
from gemma_edge.converter.tokenizer.template_files import checkpoint_templates, special_tokens
from gemma_edge.converter.tokenizer.tokenizer import sentencepiece_model
from gemma_edge.converter.tokenizer.windows import read_text
from gemma_edge.converter.verify.measure.tasks import load_tasks
from gemma_edge.converter.verify.measure.text import file_windows
from gemma_edge.profiles.device import load_profile
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.formats.litertlm import Bundle
from gemma_edge.runtime.kv.saved import opened_state
from gemma_edge.runtime.media.item import MediaItem, MediaKind


def saved(path: Path) -> None:
    with opened_state(path, "digest"):
        pass


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": read_json_object,
    "model.safetensors": read_header,
    "model.gguf": read_gguf,
    "recipe.toml": Recipe.load,
    "generation_config.json": read_object,
    "chat_template.jinja": lambda path: checkpoint_templates(path.parent),
    "chat_template.json": lambda path: checkpoint_templates(path.parent),
    "special_tokens_map.json": lambda path: special_tokens(path.parent),
    "tokenizer.json": lambda path: sentencepiece_model(path.parent, 2048),
    "tokenizer.model": lambda path: sentencepiece_model(path.parent, 2048),
    "text.txt": read_text,
    "prompts.jsonl": load_tasks,
    "tokens.bin": lambda path: file_windows(path, 2048, 64, 8),
    "device.toml": lambda path: load_profile(str(path)),
    "model.litertlm": Bundle.open,
    "keys.npz": saved,
    "photo.jpg": lambda path: MediaItem.of(MediaKind.IMAGE, path).open(),
    "sound.wav": lambda path: MediaItem.of(MediaKind.AUDIO, path).open(),
}


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_it_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe" if kind == "link to a pipe" else path)
    if kind == "link to a pipe":
        path.symlink_to("pipe")
    with pytest.raises(GemmaEdgeError) as caught:
        READERS[name](path)
    assert str(path) in str(caught.value)
    if name != "tokenizer.model":
        assert f"a {kind.removeprefix('link to a ')}, expected a file" in str(caught.value)


def test_what_is_only_looked_at(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    os.mkfifo(tmp_path / "model.litertlm.json")
    assert not is_gguf(tmp_path / "model.gguf")
    assert quality_beside(tmp_path / "model.litertlm", 1, lambda: "")["quality"] is None
