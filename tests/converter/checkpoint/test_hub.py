"""Downloads through huggingface_hub's own code, each in a process of its own, from a server on this machine."""

import os
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path

import pytest

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint, CheckpointError
from gemma_edge.converter.checkpoint.hub import HubError, resolve_checkpoint
from gemma_edge.converter.models.official import OFFICIAL
from tests.converter.checkpoint.hub_server import COMMIT, Hub, serve

FIXTURE = Path(__file__).parents[2] / "fixtures" / "tiny-gemma3"
WANTED = {file.name for file in FIXTURE.iterdir()}
UNWANTED = {"gemma.gguf": b"GGUF", "original/model.safetensors": b"other", "README.md": b"#"}

SCRIPT = """
import sys
from gemma_edge.converter.checkpoint.hub import HubError, resolve_checkpoint
try:
    print("path", resolve_checkpoint(sys.argv[1] or None, sys.argv[2]))
except HubError as error:
    print("error", error)
"""


def repository(name: str = "google/gemma-3-1b-it") -> Hub:
    return Hub(name, {file.name: file.read_bytes() for file in FIXTURE.iterdir()} | UNWANTED)


def resolve(endpoint: str, home: Path, checkpoint: str = "", size: str = "1b", **environment: str) -> tuple[str, str]:
    """("path" or "error", the rest of the line), as a fresh process sees it."""
    # Nothing of this machine's login, cache or proxies may take part.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    environment = kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)} | environment
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, checkpoint, size], env=environment, capture_output=True, text=True, check=True
    )
    kind, _, rest = run.stdout.rstrip("\n").partition(" ")
    assert "\n" not in rest
    return kind, rest


def test_a_directory_is_itself() -> None:
    assert resolve_checkpoint(str(FIXTURE), "custom") == FIXTURE


def test_a_name_that_is_too_long() -> None:
    name = "x" * 300
    with pytest.raises(HubError) as caught:
        resolve_checkpoint(name, "custom")
    assert str(caught.value) == f"{name}: cannot be read (File name too long); pass another directory"


def test_official_repositories() -> None:
    assert {name: official.repository for name, official in OFFICIAL.items()} == {
        "1b": "google/gemma-3-1b-it", "e2b": "google/gemma-3n-E2B-it", "e4b": "google/gemma-3n-E4B-it",
        "gemma4-e2b": "google/gemma-4-E2B-it", "gemma4-e4b": "google/gemma-4-E4B-it",
    }  # fmt: skip


def test_custom_needs_a_checkpoint() -> None:
    with pytest.raises(HubError, match=r"^custom: has no official checkpoint; pass --checkpoint"):
        resolve_checkpoint(None, "custom")


def test_a_file_is_refused() -> None:
    with pytest.raises(HubError, match=r"model\.safetensors: is a file; expected the directory"):
        resolve_checkpoint(str(FIXTURE / "model.safetensors"), "1b")


@pytest.mark.parametrize("text", ["gemma", "org/name@", "org/na me", ""])
def test_neither_directory_nor_repository(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if text == "":  # Path("") is the current directory
        assert resolve_checkpoint(text, "1b") == Path()
        return
    with pytest.raises(HubError, match=r"neither a directory nor a repository org/name\[@revision\]"):
        resolve_checkpoint(text, "1b")


def test_official_checkpoint_is_downloaded_with_what_conversion_reads_and_nothing_else(tmp_path: Path) -> None:
    with serve(repository()) as hub:
        kind, path = resolve(hub.endpoint, tmp_path)
        assert kind == "path", path
        assert hub.fetched() == WANTED
        checkpoint = Checkpoint.open(Path(path))
        assert checkpoint.revision == COMMIT
        hashed: list[int] = []
        assert checkpoint.sha256(hashed.append) == Checkpoint.open(FIXTURE).sha256(hashed.append)
        hub.requests.clear()
        assert resolve(hub.endpoint, tmp_path) == ("path", path)  # from the cache
        assert hub.fetched() == set()


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_any_repository_and_revision(revision: str, tmp_path: Path) -> None:
    with serve(repository("someone/my.gemma_3")) as hub:
        kind, path = resolve(hub.endpoint, tmp_path, f"someone/my.gemma_3{revision}", "custom")
    assert kind == "path", path
    assert Path(path).name == COMMIT


def test_dropped_connection_resumes_where_it_broke(tmp_path: Path) -> None:
    weights = bytes(range(256)) * 100_000  # huggingface_hub takes 10 MB at a time, so there must be more
    hub = Hub("org/name", {"config.json": b"{}", "model.safetensors": weights}, drop_after_bytes=15_000_000)
    with serve(hub):
        kind, path = resolve(hub.endpoint, tmp_path, "org/name")
    assert kind == "path", path
    (resumed,) = {range_ for _, _, range_ in hub.requests if range_}
    assert 10_000_000 <= int(resumed.removeprefix("bytes=").removesuffix("-")) <= 15_000_000
    assert (Path(path) / "model.safetensors").read_bytes() == weights


GGUF_ONLY = {"README.md": b"#", "config.json": b"{}", "mmproj-model-f16.gguf": b"GGUF"}


def test_a_repository_with_one_gguf(tmp_path: Path) -> None:
    hub = Hub("google/gemma-3-1b-it-qat-q4_0-gguf", GGUF_ONLY | {"gemma-3-1b-it-q4_0.gguf": b"GGUF model"})
    with serve(hub):
        kind, path = resolve(hub.endpoint, tmp_path, hub.repository, "custom")
        assert kind == "path", path
        assert hub.fetched() == {"config.json", "gemma-3-1b-it-q4_0.gguf"}
    assert Path(path).name == "gemma-3-1b-it-q4_0.gguf"
    assert Path(path).read_bytes() == b"GGUF model"
    # The hub out of reach, what has been downloaded is found again.
    assert resolve(hub.endpoint, tmp_path, hub.repository, HF_HUB_OFFLINE="1") == ("path", path)


def test_a_repository_with_several_ggufs(tmp_path: Path) -> None:
    parts = {f"big-0000{i}-of-00002.gguf": b"GGUF" + bytes([i]) for i in (1, 2)}
    hub = Hub("org/many", GGUF_ONLY | {"m-Q4_0.gguf": b"GGUF4", "m-Q8_0.gguf": b"GGUF8"} | parts)
    with serve(hub):
        assert resolve(hub.endpoint, tmp_path, "org/many") == (
            "error",
            "org/many: holds 3 GGUF files (big-00001-of-00002.gguf, m-Q4_0.gguf, m-Q8_0.gguf), expected one; "
            "name it: org/many:big-00001-of-00002.gguf",
        )
        kind, path = resolve(hub.endpoint, tmp_path, "org/many@main:m-Q8_0.gguf")
        assert (kind, Path(path).read_bytes()) == ("path", b"GGUF8")
        kind, path = resolve(hub.endpoint, tmp_path, "org/many:big-00001-of-00002.gguf")
        assert (kind, Path(path).name) == ("path", "big-00001-of-00002.gguf")
        assert Path(path).with_name("big-00002-of-00002.gguf").read_bytes() == b"GGUF\2"
        assert resolve(hub.endpoint, tmp_path, "org/many:other.gguf") == (
            "error",
            "org/many: has no other.gguf, or not all its parts; found big-00001-of-00002.gguf, "
            "big-00002-of-00002.gguf, m-Q4_0.gguf and 2 more",
        )


def test_a_gguf_asked_of_a_repository_without_any(tmp_path: Path) -> None:
    with serve(Hub("org/none", {"config.json": b"{}"})) as hub:
        assert resolve(hub.endpoint, tmp_path, "org/none:a.gguf") == (
            "error", "org/none: has no a.gguf, or not all its parts; found no GGUF file",
        )  # fmt: skip


def test_a_gguf_file_or_a_directory_of_one(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert resolve_checkpoint(str(path), "custom") == path
    assert resolve_checkpoint(str(tmp_path), "custom") == path
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files \(model\.gguf, other\.gguf\), expected one"):
        resolve_checkpoint(str(tmp_path), "custom")


@pytest.mark.parametrize("text", ["org/name:weights.bin", "org/name:*.gguf", "org:model.gguf"])
def test_what_only_looks_like_a_gguf(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        HubError, match=r": neither a directory nor a repository org/name\[@revision\]\[:FILE\.gguf\], "
    ):
        resolve_checkpoint(text, "1b")


def test_gated_repository_says_where_to_accept_the_licence(tmp_path: Path) -> None:
    hub = repository()
    hub.token = "hf_accepted"
    with serve(hub):
        expected = (
            f"google/gemma-3-1b-it: needs its licence accepted; do so at {hub.endpoint}/google/gemma-3-1b-it, "
            "then `hf auth login` or set HF_TOKEN"
        )
        assert resolve(hub.endpoint, tmp_path) == ("error", expected)
        assert resolve(hub.endpoint, tmp_path, HF_TOKEN="hf_stranger") == ("error", expected)
        kind, path = resolve(hub.endpoint, tmp_path, HF_TOKEN="hf_accepted")
        assert kind == "path", path


def test_unknown_repository(tmp_path: Path) -> None:
    with serve(repository()) as hub:
        assert resolve(hub.endpoint, tmp_path, "google/gemma-9") == (
            "error",
            f"google/gemma-9: no directory of that name, and not on {hub.endpoint}, or private; check the name, or "
            "`hf auth login` or set HF_TOKEN",
        )


def test_unknown_revision(tmp_path: Path) -> None:
    with serve(repository()) as hub:
        assert resolve(hub.endpoint, tmp_path, "google/gemma-3-1b-it@v9") == (
            "error",
            f"google/gemma-3-1b-it: has no revision 'v9'; see {hub.endpoint}/google/gemma-3-1b-it/commits/main",
        )


def test_offline_without_a_copy_says_so(tmp_path: Path) -> None:
    with serve(repository()) as hub:
        endpoint = hub.endpoint
    kind, message = resolve(endpoint, tmp_path)  # nobody listens there any more
    assert kind == "error"
    assert message.startswith(
        f"google/gemma-3-1b-it: no directory of that name; as a repository, no complete copy in {tmp_path}/hub and the "
        "hub cannot be asked ("
    )
    assert message.endswith("); connect and try again, or pass --checkpoint with a directory")
    assert "HF_HUB_OFFLINE" in resolve(endpoint, tmp_path, HF_HUB_OFFLINE="1")[1]


@pytest.mark.parametrize("offline_mode", ["0", "1"])
def test_offline_uses_a_complete_copy_and_refuses_an_incomplete_one(offline_mode: str, tmp_path: Path) -> None:
    with serve(repository()) as hub:
        _, path = resolve(hub.endpoint, tmp_path)
    assert resolve(hub.endpoint, tmp_path, HF_HUB_OFFLINE=offline_mode) == ("path", path)
    (Path(path) / "model.safetensors").unlink()
    kind, message = resolve(hub.endpoint, tmp_path, HF_HUB_OFFLINE=offline_mode)
    assert kind == "error"
    assert message.startswith("google/gemma-3-1b-it: no directory of that name; as a repository, no complete copy in")


def test_hub_in_trouble(tmp_path: Path) -> None:
    hub = repository()
    hub.status = HTTPStatus.NOT_IMPLEMENTED  # a status that huggingface_hub does not retry
    with serve(hub):
        kind, message = resolve(hub.endpoint, tmp_path)
    assert kind == "error"
    assert "the hub cannot be asked (Server error '501 Not Implemented'" in message


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the cache directory should be")
    with serve(repository()) as hub:
        kind, message = resolve(hub.endpoint, tmp_path / "home")
    assert kind == "error"
    assert message.startswith("google/gemma-3-1b-it: download failed (")
    assert message.endswith("); run again to continue it")


def test_name_the_hub_does_not_allow(tmp_path: Path) -> None:
    kind, message = resolve("http://127.0.0.1:9", tmp_path, "org/name--x")
    assert kind == "error"
    assert message.startswith("org/name--x: download failed (")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: checkpoints/{e2b-it,e4b-it,notes.txt}, and nobody's hub."""
    for name in ("e2b-it", "e4b-it"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("gemma_edge.converter.checkpoint.hub._download", lambda *_: pytest.fail("asked the hub"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "checkpoints/e2b",
            "checkpoints has no e2b, but e2b-it; correct the path, or write checkpoints/e2b@main ",
        ),
        ("checkpoints/E2B-IT", "checkpoints has no E2B-IT, but e2b-it, e4b-it; "),
        ("./checkpoint/e2b-it", "the current directory has no checkpoint, but checkpoints; correct the path"),
        ("checkpoint/e2b-it/", "the current directory has no checkpoint, but checkpoints; correct the path"),
        ("checkpoints/zzz", "checkpoints has no zzz, it holds e2b-it, e4b-it, notes.txt; correct the path, or"),
        ("empty/e2b", "empty has no e2b, it is empty; correct the path, or write empty/e2b@main for the repository"),
        ("a/b/c", "the current directory has no a, it holds checkpoints, empty; correct the path"),
        ("~/checkpoints/e4b", "{home}/checkpoints has no e4b, but e4b-it; correct the path"),
        ("{home}/checkpoints/e2b_it/model", "{home}/checkpoints has no e2b_it, but e2b-it, e4b-it; correct the path"),
        ("missing/model.gguf", "the current directory has no missing, it holds checkpoints, empty; correct the path"),
        ("model.safetensors", "the current directory has no model.safetensors, it holds checkpoints, empty; correct"),
        ("/no/such/dir", "/ has no no, "),
    ],
)
def test_a_mistyped_path_is_not_looked_for_on_the_hub(text: str, found: str, shelf: Path) -> None:
    text, found = text.format(home=shelf), found.format(home=shelf)
    with pytest.raises(HubError) as caught:
        resolve_checkpoint(text, "custom")
    assert str(caught.value).startswith(f"{text}: no such directory or file: {found}")


@pytest.mark.parametrize("text", ["google/gemma-3n-E2B-it", "checkpoints/e2b@main", "checkpoints/e2b:model.gguf"])
def test_what_is_a_repository_is_looked_for_there(text: str, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(repository: str, *_: object) -> Path:
        asked.append(repository)
        (shelf / "snapshot").mkdir()
        (shelf / "snapshot" / "model.safetensors").touch()
        (shelf / "snapshot" / "model.gguf").touch()
        return shelf / "snapshot"

    monkeypatch.setattr("gemma_edge.converter.checkpoint.hub._download", download)
    resolve_checkpoint(text, "custom")
    assert asked == [text.partition("@")[0].partition(":")[0]]


def test_no_home_folder_to_download_to(tmp_path: Path) -> None:
    """huggingface_hub would make a folder that is called ~ in the current one."""
    script = f"import os, pwd\nos.chdir({str(tmp_path)!r})\n"
    script += "def nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n" + SCRIPT
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME") and not k.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", script, "google/gemma-3-1b-it", "1b"],
        env=kept, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.startswith(
        "error google/gemma-3-1b-it: there is no home folder to download it to, HOME is not set and no account says; "
        "set HF_HOME, or pass"
    )
    assert not list(tmp_path.iterdir())
