"""Chats in a folder: found by their tokens, bounded, and never another model's."""

from pathlib import Path

import numpy as np
import pytest

from gemma_edge.runtime.executors.base import SlotState, Snapshot
from gemma_edge.runtime.kv.saved import SavedCacheError
from gemma_edge.runtime.kv.store import FolderStore

DIGEST = "d" * 64


def state(first: int, length: int, *, mark: int | None = None) -> SlotState:
    token_ids = tuple(range(first, first + length))
    arrays = {"kv_cache_k_0": np.full((1, 1, length, 4), first, np.float32)}
    snapshot = None if mark is None else Snapshot(token_ids[:mark], {"kv_cache_k_0": np.ones(3, np.float32)}, mark)
    return SlotState(token_ids, length, arrays, snapshot)


def store(folder: Path, most_bytes: int = 1 << 20) -> FolderStore:
    return FolderStore(folder, DIGEST, most_bytes)


def test_what_was_kept_is_found_by_another_process(tmp_path: Path) -> None:
    assert store(tmp_path).put(state(0, 60, mark=50), earliest_rewind=55)
    again = store(tmp_path)
    found = again.best([*range(60), 7], least=0)
    assert found is not None
    assert found.reach([*range(60), 7]) == 60
    with again.opened(found) as opened:
        assert opened.token_ids == tuple(range(60))
        assert np.array_equal(opened.arrays["kv_cache_k_0"], state(0, 60).arrays["kv_cache_k_0"])
        assert opened.mark is not None
        assert opened.mark.token_ids == tuple(range(50))
        assert dict(opened.mark.rings)["kv_cache_k_0"].tolist() == [1, 1, 1]


def test_it_goes_back_as_far_as_rings_allow(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.put(state(0, 60, mark=50), earliest_rewind=55)
    [saved] = kept._saved.values()
    assert saved.reach([*range(57), 999]) == 57
    assert saved.reach([*range(52), 999]) == 50  # the mark
    assert saved.reach([*range(49), 999]) == 0
    assert kept.best([*range(52), 999], least=51) is None
    assert kept.best(list(range(100, 200)), least=0) is None


def test_a_longer_chat_takes_the_place_of_its_beginning(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.put(state(0, 40), 0)
    kept.put(state(500, 40), 0)
    kept.put(state(0, 80), 0)
    assert len(kept) == 2
    assert len(list(tmp_path.rglob("*.kv"))) == 2


def test_few_tokens_are_not_kept(tmp_path: Path) -> None:
    assert not store(tmp_path).put(state(0, 20), 0)
    assert not list(tmp_path.rglob("*.kv"))


def test_the_oldest_go_first(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.put(state(0, 40), 0)
    size = kept.nbytes
    kept = store(tmp_path, most_bytes=3 * size + 64)
    kept.put(state(1000, 40), 0)
    kept.put(state(2000, 40), 0)
    first = kept.best(list(range(40)), 0)
    assert first is not None
    with kept.opened(first):
        pass  # it is used, so the second is the oldest now
    kept.put(state(3000, 40), 0)
    assert kept.best(list(range(1000, 1040)), 0) is None
    assert kept.best(list(range(40)), 0) is not None
    assert kept.nbytes <= 3 * size + 64
    assert not store(tmp_path / "small", most_bytes=10).put(state(0, 40), 0)
    assert not list((tmp_path / "small").rglob("*.kv"))


def test_another_models_files_are_left_alone(tmp_path: Path) -> None:
    store(tmp_path).put(state(0, 40), 0)
    other = FolderStore(tmp_path, "e" * 64, 1 << 20)
    assert other.best(list(range(40)), 0) is None
    assert len(list(tmp_path.rglob("*.kv"))) == 1


def test_a_damaged_file_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path).put(state(0, 40), 0)
    [path] = tmp_path.rglob("*.kv")
    path.write_bytes(b"nothing")
    assert len(store(tmp_path)) == 0
    assert "it is removed" in caplog.text
    assert not path.exists()


def test_a_file_that_is_damaged_later_says_so(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.put(state(0, 40), 0)
    found = kept.best(list(range(40)), 0)
    assert found is not None
    found.path.write_bytes(b"nothing")
    with pytest.raises(SavedCacheError, match="holds no keys and values, or is damaged"), kept.opened(found):
        pass
    kept.drop(found)
    assert not list(tmp_path.rglob("*.kv"))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert not FolderStore(tmp_path / "file", DIGEST, 1 << 20).put(state(0, 40), 0)
    assert "a chat of 40 tokens was not saved" in caplog.text
