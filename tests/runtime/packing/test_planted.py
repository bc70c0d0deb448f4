"""A cache directory that others can write, and what they have put there: nothing outside it changes, and no logit."""

import asyncio
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gemma_edge.converter.convert import convert
from gemma_edge.runtime.cache.cli import cache_main
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.executors.base import Logits
from gemma_edge.runtime.executors.litert.decoder import DecoderSections
from gemma_edge.runtime.executors.litert.section_hash import section_sha256
from gemma_edge.runtime.executors.litert.weight_cache import WeightCacheError, weight_cache
from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.formats.litertlm import Bundle, BundleError
from gemma_edge.runtime.litert_lm_engine import LitertLmEngine
from gemma_edge.runtime.packing.folder import own_folder, place_of
from gemma_edge.runtime.serve.monitor.monitor import Monitor
from gemma_edge.runtime.serve.service import Service
from gemma_edge.runtime.serve.settings import Settings
from tests.slots import litert_slot

TinyBundle = Callable[[str, str], Path]
NOBODY = 65534
INNER = f"gemma-edge-{os.geteuid()}"
MODES = {
    "everybody's": (0, 0, 0o777),
    "sticky": (0, 0, 0o1777),
    "a group's": (0, NOBODY, 0o2775),
    "another user's": (NOBODY, NOBODY, 0o755),
    "another user's, for all": (NOBODY, NOBODY, 0o777),
}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to become another user")


def as_nobody(act: Callable[[], object]) -> None:
    """What an ordinary user may do, done by one."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that others can enter, with a file of ours in it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "mine").write_bytes(b"mine")
        yield Path(folder)


def shared(place: Path, mode: str = "everybody's") -> Path:
    """A cache directory that others can write."""
    cache = place / "cache"
    cache.mkdir()
    uid, gid, bits = MODES[mode]
    os.chown(cache, uid, gid)
    cache.chmod(bits)
    return cache


@pytest.fixture
def sections(tiny_bundle: TinyBundle) -> DecoderSections:
    return DecoderSections.of(Bundle.open(tiny_bundle("gemma3", "fp32")))


def logits_of(sections: DecoderSections, cache_dir: Path | None) -> Logits:
    slot = litert_slot(sections, 1, cache_dir)
    logits = slot.decode(2)
    slot.close()
    return logits


@pytest.fixture(scope="module")
def cache_name(tiny_bundle: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of packed weights, as the attacker knows it."""
    section = DecoderSections.of(Bundle.open(tiny_bundle("gemma3", "fp32"))).decoder
    return weight_cache(section, tmp_path_factory.mktemp("names"), 1).name


@pytest.fixture(scope="module")
def other_weights(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Packed weights of the same shapes, which LiteRT cannot tell from the right ones."""
    folder = tmp_path_factory.mktemp("other")
    checkpoint = Path(shutil.copytree(tiny_gemma3, folder / "checkpoint"))
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    begin = 8 + int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8:begin])
    stored = header["model.layers.0.mlp.down_proj.weight"]
    first, last = (begin + offset for offset in stored["data_offsets"])
    values = np.frombuffer(weights, {"BF16": np.uint16, "F32": np.uint32}[stored["dtype"]], offset=first)
    values = values[: (last - first) // values.itemsize]
    weights[first:last] = values[::-1].tobytes()
    (checkpoint / "model.safetensors").write_bytes(weights)
    convert("custom-fp32", checkpoint, folder / "model", context=512, prefill=(8, 32), measure=False)
    return weight_cache(DecoderSections.of(Bundle.open(folder / "model")).decoder, folder, 1).read_bytes()


def check_nothing_outside_changed(place: Path) -> None:
    assert (place / "mine").read_bytes() == b"mine"
    assert sorted(path.name for path in place.iterdir()) == ["cache", "mine"]


PLANTS: dict[str, Callable[[Path, Path, str], object]] = {
    "a link as lock": lambda cache, mine, name: (cache / f"{name}.lock").symlink_to(mine),
    "a link to a new file as lock": lambda cache, mine, name: (cache / f"{name}.lock").symlink_to(
        mine.with_name("new")
    ),
    "a pipe as lock": lambda cache, _, name: os.mkfifo(cache / f"{name}.lock"),
    "a link as weights": lambda cache, mine, name: (cache / f"{name}.xnnpack").symlink_to(mine),
    "a link to new weights": lambda cache, mine, name: (cache / f"{name}.xnnpack").symlink_to(mine.with_name("new")),
    "a link as partial weights": lambda cache, mine, name: (cache / f"{name}.partial").symlink_to(mine),
    "a folder as weights": lambda cache, _, name: (cache / f"{name}.xnnpack" / "x").mkdir(parents=True),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_links_and_other_things(plant: str, place: Path, sections: DecoderSections, cache_name: str) -> None:
    cache = shared(place)
    as_nobody(lambda: PLANTS[plant](cache, place / "mine", cache_name.removesuffix(".xnnpack")))
    np.testing.assert_array_equal(logits_of(sections, cache), logits_of(sections, None))
    check_nothing_outside_changed(place)
    assert (cache / INNER / cache_name).is_file()


@pytest.mark.parametrize("mode", MODES)
def test_weights_of_another_owner(
    mode: str, place: Path, sections: DecoderSections, cache_name: str, other_weights: bytes
) -> None:
    right = logits_of(sections, None)
    cache = shared(place, mode)
    (cache / cache_name).write_bytes(other_weights)
    os.chown(cache / cache_name, NOBODY, NOBODY)
    for _ in range(2):
        np.testing.assert_array_equal(logits_of(sections, cache), right)
    assert (cache / INNER).stat().st_mode & 0o777 == 0o700
    check_nothing_outside_changed(place)


@pytest.mark.parametrize("left", ["weights", "link", "writable weights"])
def test_a_folder_that_others_could_write_once(
    left: str, place: Path, sections: DecoderSections, cache_name: str, other_weights: bytes
) -> None:
    """It is ours alone now: what they have left is removed, and the folder used as it is."""
    cache = shared(place)
    if left == "weights":
        as_nobody(lambda: (cache / cache_name).write_bytes(other_weights))
    elif left == "link":
        as_nobody(lambda: (cache / cache_name).symlink_to(place / "mine"))
    else:
        (cache / cache_name).write_bytes(other_weights)
        (cache / cache_name).chmod(0o666)
    cache.chmod(0o755)
    np.testing.assert_array_equal(logits_of(sections, cache), logits_of(sections, None))
    assert stat.S_ISREG((cache / cache_name).lstat().st_mode)
    assert (cache / cache_name).lstat().st_uid == 0
    assert not (cache / INNER).exists()
    check_nothing_outside_changed(place)


def test_the_weights_planted_are_wrong_and_would_be_used(
    place: Path, sections: DecoderSections, cache_name: str, other_weights: bytes
) -> None:
    """Ours, they are trusted: the tests above do not pass because LiteRT refuses them."""
    cache = place / "cache"
    cache.mkdir()
    (cache / cache_name).write_bytes(other_weights)
    assert np.abs(logits_of(sections, cache) - logits_of(sections, None)).max() > 1e-3


@pytest.mark.parametrize("mode", ["everybody's", "sticky", "another user's"])
def test_a_note_that_vouches_for_a_tampered_bundle(
    mode: str, place: Path, sections: DecoderSections, tmp_path: Path
) -> None:
    cache, notes = shared(place, mode), tmp_path / "notes"
    bundle = place / "bundle"
    shutil.copy(sections.decoder.path, bundle)
    section = FileRange(bundle, sections.decoder.offset, sections.decoder.nbytes, sections.decoder.sha256)
    os.utime(bundle, ns=(0, 0))
    with bundle.open("r+b") as file:
        file.seek(section.offset + section.nbytes - 1)
        file.write(b"?")
    plain = FileRange(bundle, section.offset, section.nbytes)
    os.utime(bundle, ns=(0, 0))
    time.sleep(2.1)  # a file that was changed just now is remembered by nobody
    section_sha256(plain, notes)
    [note] = notes.glob("*.json")
    vouches = json.loads(note.read_text()) | {"sha256": section.sha256}
    bundle_path = cache / note.name
    bundle_path.write_text(json.dumps(vouches))
    os.chown(bundle_path, NOBODY, NOBODY)
    with pytest.raises(BundleError, match="the table records"):
        section_sha256(section, cache)
    note.write_text(json.dumps(vouches))
    assert section_sha256(section, notes) == section.sha256  # in a folder of ours it is believed


@pytest.mark.parametrize("plant", ["link", "folder", "file", "open folder"])
def test_the_folder_inside_is_planted(plant: str, place: Path, sections: DecoderSections) -> None:
    cache = shared(place, "sticky")
    outside = place / "outside"
    outside.mkdir()

    def act() -> None:
        if plant == "link":
            (cache / INNER).symlink_to(outside)
        elif plant == "file":
            (cache / INNER).touch()
        else:
            (cache / INNER).mkdir(mode=0o755)

    if plant == "open folder":
        (cache / INNER).mkdir()
        (cache / INNER).chmod(0o777)
    else:
        as_nobody(act)
    message = (
        rf"^{cache}: other users may write there, so what is packed goes into {INNER} in it(: |, which is to be user)"
    )
    with pytest.raises(WeightCacheError, match=message):
        logits_of(sections, cache)
    assert not list(outside.iterdir())
    if plant == "folder":
        assert not list((cache / INNER).iterdir())


def test_the_folder_inside_is_replaced_while_it_is_open(place: Path) -> None:
    cache = shared(place)

    def replace() -> None:
        (cache / INNER).rename(cache / "away")
        (cache / INNER).mkdir()
        (cache / INNER / "weights").symlink_to(place / "mine")

    with own_folder(cache) as folder:
        as_nobody(replace)
        assert folder.own("weights") is None
        (folder.anchor / "weights").write_bytes(b"packed")
    assert (cache / "away" / "weights").read_bytes() == b"packed"
    assert (place / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("plant", ["the directory", "a directory above"])
def test_a_link_of_another_user_leads_to_the_cache(plant: str, place: Path) -> None:
    cache, outside = shared(place), place / "outside"
    outside.mkdir()
    as_nobody(lambda: (cache / "link").symlink_to(outside))
    asked = cache / "link" if plant == "the directory" else cache / "link" / "cache"
    with pytest.raises(WeightCacheError) as caught:
        weight_cache(FileRange(place / "mine", 0, 4), asked, 1)
    assert str(caught.value) == f"{cache / 'link'}: a link that user {NOBODY} has made; choose another cache_dir"
    assert not list(outside.iterdir())


def test_an_onnx_directory(place: Path, tiny_gemma3: Path, tmp_path: Path) -> None:
    convert("custom-int8", tiny_gemma3, tmp_path / "onnx", format="onnx", context=256, measure=False)
    cache = shared(place)

    def reply(cache_dir: Path) -> str:
        with Engine(str(tmp_path / "onnx"), cache_dir=str(cache_dir)) as engine:
            return str(engine.create_conversation().send_message("And the LORD", max_output_tokens=12))

    right = reply(place / "own")
    [packed] = (place / "own").glob("*.onnx")
    planted = cache / packed.name
    shutil.copytree(packed, planted)
    data = bytearray((planted / "decoder.onnx_data").read_bytes())
    data[::7] = bytes(len(data[::7]))
    (planted / "decoder.onnx_data").write_bytes(data)
    for path in (planted, *planted.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    (cache / packed.with_suffix(".lock").name).symlink_to(place / "mine")
    assert reply(cache) == right
    assert (cache / INNER / packed.name).is_dir()
    shutil.rmtree(place / "own")
    check_nothing_outside_changed(place)


def test_googles_engine(place: Path, tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    bundle = str(tiny_bundle("gemma3n", "fp32"))
    with LitertLmEngine(bundle, cache_dir=str(tmp_path)):
        names = [path.name for path in tmp_path.iterdir()]
    assert names
    cache = shared(place)

    def plant() -> None:
        for name in names:
            (cache / name).symlink_to(place / "mine")

    as_nobody(plant)
    with LitertLmEngine(bundle, cache_dir=str(cache)):
        assert sorted(path.name for path in (cache / INNER).iterdir()) == sorted(names)
    check_nothing_outside_changed(place)


@pytest.mark.parametrize("mode", [None, "everybody's", "a group's", "another user's"])
def test_nothing_is_packed_or_hashed_twice(
    mode: str | None, place: Path, sections: DecoderSections, cache_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = place / "cache" if mode is None else shared(place, mode)
    os.utime(sections.decoder.path, ns=(0, 0))
    first = weight_cache(sections.decoder, cache, 1)
    assert first == (cache if mode is None else cache / INNER) / cache_name
    before = first.stat()
    monkeypatch.setattr("gemma_edge.runtime.executors.litert.weight_cache.run_child", None)
    logits_of(sections, cache)
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    names = {path.name for path in cache.rglob("*") if path.suffix not in (".json", ".xnnpack")}
    assert names <= {INNER}


def test_what_lies_there_is_listed_and_cleared_up(place: Path, sections: DecoderSections, cache_name: str) -> None:
    cache = shared(place)
    as_nobody(lambda: (cache / cache_name).write_bytes(b"theirs"))
    weight_cache(sections.decoder, cache, 1)
    assert place_of(cache) == cache / INNER
    listed = CliRunner().invoke(cache_main, ["list", "--cache-dir", str(cache), "--json"])
    assert cache_name in [entry["name"] for entry in json.loads(listed.stdout)["entries"]]
    done = CliRunner().invoke(cache_main, ["prune", "--max-bytes", "0B", "--cache-dir", str(cache)])
    assert f"from {cache / INNER}" in done.stdout
    assert not list((cache / INNER).iterdir())
    assert (cache / cache_name).read_bytes() == b"theirs"


def test_chats_of_a_server(place: Path, tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat that others have saved would be believed to be what was said."""
    cache, settings = shared(place), Settings(model_id="m", cache_dir=place / "cache")
    kept: list[Path] = []
    with Engine(str(tiny_bundle("gemma3", "int8")), cache_dir=str(place / "own")) as engine:
        monkeypatch.setattr(engine, "keep_chats", lambda folder, _: kept.append(folder.resolve()))
        asyncio.run(opened_and_closed(engine, settings))
    assert kept == [cache / INNER / "chats"]


async def opened_and_closed(engine: Engine, settings: Settings) -> None:
    await Service(engine, settings, None, Monitor("m")).close()
