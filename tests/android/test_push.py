"""`gemma-edge android push` against a program that answers as adb does (fake_adb.sh)."""

import hashlib
import json
import os
import random
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_edge.runtime.android import adb
from gemma_edge.runtime.android.adb import AdbError, Phone, choose_phone, find_adb
from gemma_edge.runtime.android.push import FOLDER, LocalBundle, Pushed, PushError, push

BYTES = random.Random(7).randbytes(3_500_001)  # several pieces, the last one short


def silent(_name: str, _total_bytes: int) -> Callable[[int], None]:
    return lambda _n: None


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "tiny model.litertlm"  # a blank in the name must reach the phone as one
    path.write_bytes(BYTES)
    report = {"output": {"file": path.name, "bytes": len(BYTES), "sha256": hashlib.sha256(BYTES).hexdigest()}}
    path.with_name(path.name + ".json").write_text(json.dumps(report))
    return path


@pytest.fixture
def phone(phone_folder: Path) -> Phone:
    assert phone_folder
    return choose_phone(find_adb(), None)


def pushed(bundle: Path, phone: Phone) -> Pushed:
    return push(LocalBundle.open(bundle, silent), phone, silent)


def on_phone(phone_folder: Path, bundle: Path) -> Path:
    return phone_folder / "data" / "gemma-edge" / bundle.name


def test_the_phone_holds_the_bundle_and_its_report(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    result = pushed(bundle, phone)
    arrived = on_phone(phone_folder, bundle)
    assert arrived.read_bytes() == BYTES
    assert arrived.stat().st_mode & 0o777 == 0o644  # any app may read it
    assert arrived.parent.stat().st_mode & 0o777 == 0o755
    report = bundle.with_name(bundle.name + ".json")
    assert arrived.with_name(report.name).read_bytes() == report.read_bytes()
    assert {path.name for path in arrived.parent.iterdir()} == {bundle.name, report.name}
    assert result == Pushed(
        f"{FOLDER}/{bundle.name}", len(BYTES), hashlib.sha256(BYTES).hexdigest(), sent_bytes=len(BYTES)
    )


def test_the_signature_goes_along(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    signature = bundle.with_name(bundle.name + ".sig")
    arrived = on_phone(phone_folder, bundle).with_name(signature.name)
    signature.write_text('{"signed": 1}')
    pushed(bundle, phone)
    assert arrived.read_text() == '{"signed": 1}'
    assert arrived.stat().st_mode & 0o777 == 0o644
    signature.write_text('{"signed": 2}')
    assert pushed(bundle, phone).sent_bytes == 0
    assert arrived.read_text() == '{"signed": 2}'  # also where the bundle is there already
    signature.unlink()
    pushed(bundle, phone)
    assert not arrived.exists()  # it was another bundle's


def test_a_signature_that_cannot_be_read_is_named(bundle: Path) -> None:
    bundle.with_name(bundle.name + ".sig").mkdir()
    with pytest.raises(
        PushError, match=r"litertlm\.sig: cannot be read \(Is a directory\); copy it again, or remove it$"
    ):
        LocalBundle.open(bundle, silent)


def test_what_is_there_is_not_sent_again(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    pushed(bundle, phone)
    before = on_phone(phone_folder, bundle).stat()
    assert pushed(bundle, phone).sent_bytes == 0
    after = on_phone(phone_folder, bundle).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_another_bundle_of_the_same_name_is_replaced(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    arrived = on_phone(phone_folder, bundle)
    arrived.parent.mkdir()
    arrived.write_bytes(bytes(len(BYTES)))  # as long, other bytes
    assert pushed(bundle, phone).sent_bytes == len(BYTES)
    assert arrived.read_bytes() == BYTES


def test_a_broken_transfer_is_continued(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    fault = phone_folder / "fault"
    fault.write_text(
        'case "$command" in "cat >>"*) head -c 2000000 | sh -c "$command"; echo "error: closed" >&2; exit 1;; esac\n'
    )
    with pytest.raises(
        AdbError, match=r"^adb: 0A1B2C \(Pixel_7\): closed; check the cable and run the same command again$"
    ):
        pushed(bundle, phone)
    assert not on_phone(phone_folder, bundle).exists()
    fault.unlink()
    assert pushed(bundle, phone).sent_bytes == len(BYTES) - 2_000_000
    assert on_phone(phone_folder, bundle).read_bytes() == BYTES


@pytest.mark.parametrize("left", [b"not the beginning", bytes(len(BYTES) + 1)], ids=["other", "longer"])
def test_a_partial_of_another_bundle_is_not_continued(
    phone_folder: Path, phone: Phone, bundle: Path, left: bytes
) -> None:
    arrived = on_phone(phone_folder, bundle)
    arrived.parent.mkdir()
    arrived.with_name(arrived.name + ".partial").write_bytes(left)
    assert pushed(bundle, phone).sent_bytes == len(BYTES)
    assert arrived.read_bytes() == BYTES


def test_bytes_changed_on_the_way_are_refused(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    (phone_folder / "fault").write_text('case "$command" in "cat >>"*) tr A B | sh -c "$command"; exit;; esac\n')
    with pytest.raises(
        PushError,
        match=r"^0A1B2C \(Pixel_7\): tiny model\.litertlm arrived with SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}; "
        "the copy is removed; push again, over another cable or port if this repeats$",
    ):
        pushed(bundle, phone)
    assert list(on_phone(phone_folder, bundle).parent.iterdir()) == []


def test_bytes_lost_without_a_word_are_noticed(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    (phone_folder / "fault").write_text('case "$command" in "cat >>"*) head -c 99 | sh -c "$command"; exit 0;; esac\n')
    with pytest.raises(
        PushError,
        match=r"^0A1B2C \(Pixel_7\): 99 bytes of tiny model\.litertlm arrived, expected 3500001; run the same command "
        "again to continue$",
    ):
        pushed(bundle, phone)


def test_too_little_space_is_said_before_the_first_byte(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    heading = "Filesystem 1024-blocks Used Available Capacity Mounted on"
    line = "/dev/block/dm 5 110000000 108900000 2048 99% /data/user/0"
    (phone_folder / "fault").write_text(f'case "$command" in df*) echo "{heading}"; echo "{line}"; exit;; esac\n')
    with pytest.raises(
        PushError,
        match=r"^0A1B2C \(Pixel_7\): 2 MiB free in /data/local/tmp/gemma-edge, 67 MiB needed; delete something there, "
        "such as an old bundle: adb shell ls -l /data/local/tmp/gemma-edge$",
    ):
        pushed(bundle, phone)
    assert list(on_phone(phone_folder, bundle).parent.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_named(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    (phone_folder / "fault").write_text('case "$command" in "cat >>"*) command="cat > /dev/full";; esac\n')
    with pytest.raises(
        PushError,
        match=r"writing /data/local/tmp/gemma-edge/tiny model\.litertlm\.partial failed: .*No space left on device; "
        "free some space and run this again$",
    ):
        pushed(bundle, phone)


def test_a_failure_without_a_word_or_in_no_encoding_is_quoted(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    fault = phone_folder / "fault"
    fault.write_text('case "$command" in "cat >>"*) cat > /dev/null; exit 9;; esac\n')
    with pytest.raises(PushError, match=r"\.partial failed: exit status 9, no message; free some space and run this"):
        pushed(bundle, phone)
    fault.write_text('case "$command" in "cat >>"*) cat > /dev/null; printf "cat: \\377" >&2; exit 1;; esac\n')
    with pytest.raises(PushError, match=r"\.partial failed: cat: \ufffd; free some space and run this again$"):
        pushed(bundle, phone)


def test_a_report_that_does_not_arrive_is_named(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    (phone_folder / "fault").write_text('case "$command" in "cat > "*) command="cat > /dev/null";; esac\n')
    with pytest.raises(AdbError, match="No such file or directory"):
        pushed(bundle, phone)
    on_phone(phone_folder, bundle).with_name(bundle.name + ".json").write_text("another report")
    with pytest.raises(
        PushError,
        match=r"writing /data/local/tmp/gemma-edge/tiny model\.litertlm\.json failed: other bytes arrived; free",
    ):
        pushed(bundle, phone)
    assert not on_phone(phone_folder, bundle).exists()


def test_a_phone_that_refuses_is_quoted(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    (phone_folder / "fault").write_text('case "$command" in mkdir*) echo "mkdir: nope" >&2; exit 1;; esac\n')
    with pytest.raises(
        AdbError, match=r"^0A1B2C \(Pixel_7\): `mkdir -p .*` failed: mkdir: nope; expected Android 8 or newer$"
    ):
        pushed(bundle, phone)


def test_a_phone_unplugged_meanwhile_is_named(phone_folder: Path, phone: Phone, bundle: Path) -> None:
    (phone_folder / "devices").write_text("")
    with pytest.raises(AdbError, match=r"^adb: 0A1B2C \(Pixel_7\): device '0A1B2C' not found; check the cable"):
        pushed(bundle, phone)


def test_only_a_bundle_that_is_what_its_report_says_is_sent(bundle: Path) -> None:
    report = bundle.with_name(bundle.name + ".json")
    good = report.read_text()
    with pytest.raises(
        PushError, match=r"x\.gguf: not a \.litertlm file; expected a bundle that `gemma-edge convert` wrote"
    ):
        LocalBundle.open(bundle.with_name("x.gguf"), silent)
    report.unlink()
    with pytest.raises(
        PushError, match=r"litertlm\.json: not found; expected the report that convert writes beside a bundle"
    ):
        LocalBundle.open(bundle, silent)
    report.write_text("{}")
    with pytest.raises(PushError, match=r"not a report of a conversion \(KeyError: 'output'\); convert again"):
        LocalBundle.open(bundle, silent)
    report.write_text(good)
    bundle.write_bytes(BYTES[:-1])
    with pytest.raises(
        PushError, match=r"3500000 bytes, expected 3500001 by tiny model\.litertlm\.json; convert or copy"
    ):
        LocalBundle.open(bundle, silent)
    bundle.write_bytes(BYTES[:-1] + bytes([BYTES[-1] ^ 1]))
    with pytest.raises(
        PushError, match=r"SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64} by .*json; convert or copy it again"
    ):
        LocalBundle.open(bundle, silent)


def gemma_edge(*arguments: object) -> subprocess.CompletedProcess[str]:
    """In this environment, installed or not: the group's error lines are part of what is tested."""
    program = """
from gemma_edge.converter.cli import Commands
from gemma_edge.runtime.android.cli import android_main
Commands("gemma-edge", commands={"android": android_main})()
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command(phone_folder: Path, bundle: Path) -> None:
    done = gemma_edge("android", "push", bundle)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(BYTES).hexdigest()
    assert done.stdout == (
        "/data/local/tmp/gemma-edge/tiny model.litertlm on 0A1B2C (Pixel_7): 3 MiB, sent 3 MiB\n"
        f"sha256 {digest}, the same on the phone\n"
    )
    assert done.stderr == ""
    assert "3 MiB, was there already\n" in gemma_edge("android", "push", bundle, "--serial", "0A1B2C").stdout
    (phone_folder / "devices").write_text("")
    failed = gemma_edge("android", "push", bundle)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: adb: no device is connected; ")
    assert failed.stderr.count("\n") == 1


def test_the_command_is_registered(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["gemma_edge.commands"]["android"] == "gemma_edge.runtime.android.cli:android_main"


# ---------------------------------------------------------------- an adb that does not answer, or not as adb does


def test_devices_are_never_listed(phone_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "ANSWER_S", 0.3)
    find_adb().write_text("#!/bin/sh\nexec sleep 60\n")
    assert phone_folder
    with pytest.raises(AdbError, match=r"adb: `adb devices`: nothing in 0.3 s, expected an answer; restart adb with"):
        choose_phone(find_adb(), None)


@pytest.mark.parametrize("fault", ["exec sleep 60", "cat > /dev/null; exec sleep 60", "exec sleep 60 > /dev/null 2>&1"])
def test_a_phone_that_falls_silent(
    phone_folder: Path, phone: Phone, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Before it takes all that is sent, and after."""
    monkeypatch.setattr(adb, "ANSWER_S", 0.3)
    (phone_folder / "fault").write_text(fault)
    with pytest.raises(AdbError, match=r"adb: 0A1B2C \(Pixel_7\), `cat`: nothing in 0.3 s, expected an answer"):
        phone.shell("cat", [BYTES])


@pytest.mark.parametrize("stream", [1, 2])
def test_a_phone_that_never_stops(
    phone_folder: Path, phone: Phone, monkeypatch: pytest.MonkeyPatch, stream: int
) -> None:
    monkeypatch.setattr(adb, "_MOST_OUTPUT", 1 << 20)
    (phone_folder / "fault").write_text(f"exec yes >&{stream}")
    with pytest.raises(AdbError, match=r"`ls`: endless output, expected an answer; restart adb with"):
        phone.shell("ls")


def test_an_adb_that_cannot_be_run(phone_folder: Path) -> None:
    find_adb().write_bytes(b"\x7fELF of another machine")
    assert phone_folder
    with pytest.raises(AdbError, match=r"adb cannot be run \(Exec format error\); install the platform tools again"):
        choose_phone(find_adb(), None)


@pytest.mark.parametrize("answer", ["", "\\n\\n", "-5", "12 apples", "9" * 19, "\\377\\376", "a b c d e f"])
def test_answers_that_make_no_sense(phone_folder: Path, phone: Phone, answer: str) -> None:
    (phone_folder / "fault").write_text(f"printf '{answer}'; exit 0")
    with pytest.raises(AdbError, match=r"`stat -c %s x` gave '.*', expected a number of bytes; restart adb"):
        phone.size_bytes("x")
    with pytest.raises(AdbError, match=r"`df -kP x` gave '.*', expected a table of file systems; restart adb"):
        phone.free_bytes("x")
    with pytest.raises(AdbError, match=r"`sha256sum x` gave '.*', expected 64 hexadecimal digits; restart adb"):
        phone.sha256("x")


@pytest.mark.parametrize("report", ["[]", '{"output": {"bytes": 1e999, "sha256": 1}}', "[" * 100_000, "null"])
def test_reports_that_make_no_sense(bundle: Path, report: str) -> None:
    bundle.with_name(bundle.name + ".json").write_text(report)
    with pytest.raises(PushError, match=r"not a report of a conversion \(.*\); convert again"):
        LocalBundle.open(bundle, silent)


def test_a_report_that_is_a_pipe(bundle: Path) -> None:
    (report := bundle.with_name(bundle.name + ".json")).unlink()
    os.mkfifo(report)
    with pytest.raises(PushError, match=r"cannot be read \(a pipe, expected a file\); copy it again"):
        LocalBundle.open(bundle, silent)
