"""A bundle, its report and its signature onto a phone: resumed where it broke off, verified by the phone's own SHA-256.

Where to: /data/local/tmp, LiteRT-LM's documented place for models pushed by a developer. adb may write there, and any
app may read what is readable by all, so the demo uses the bundle in place and no second copy is made. The app's own
folder under /sdcard/Android/data is out of reach: since Android 11 adb fails there ("fchown failed: Operation not
permitted") or leaves files that the app cannot open.

The transfer is one `cat` on the phone fed by this process, because `adb push` deletes what it has written when the
connection breaks, and 3 GB over Wi-Fi break off.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import read_plain
from gemma_edge.profiles.sizes import format_bytes
from gemma_edge.runtime.android.adb import Phone
from gemma_edge.runtime.formats.digest import sha256_of
from gemma_edge.runtime.formats.trust.signed import SIGNATURE

FOLDER = "/data/local/tmp/gemma-edge"  # android_demo lists the same folder (DemoApplication.kt)
SPARE_BYTES = 64 << 20  # left free on the phone: Android misbehaves on a full disk
PIECE_BYTES = 1 << 20

Stage = Callable[[str, int], Callable[[int], None]]
"""Announces a stage by name and total bytes; returns what to call after every n bytes."""


class PushError(GemmaEdgeError):
    """The bundle cannot be pushed, or did not arrive as it is."""


@dataclass(frozen=True)
class LocalBundle:
    """A bundle that is what its report says; `signature` is what lies beside it as NAME.sig, unread."""

    path: Path
    report_path: Path
    nbytes: int
    sha256: str
    signature: bytes | None = None

    @classmethod
    def open(cls, path: Path, stage: Stage) -> "LocalBundle":
        """Read the report and hash the bundle.

        Raises PushError: no bundle, no report beside it, a bundle that is not the one reported, or a signature that
        cannot be read.
        """
        if path.suffix != ".litertlm" or not path.is_file():
            raise PushError(f"{path}: not a .litertlm file; expected a bundle that `gemma-edge convert` wrote")
        report_path = path.with_name(path.name + ".json")
        output = _reported_output(report_path)
        signature = _read_signature(path.with_name(path.name + SIGNATURE))
        nbytes = path.stat().st_size
        if nbytes != output["bytes"]:
            raise PushError(
                f"{path}: {nbytes} bytes, expected {output['bytes']} by {report_path.name}; convert or copy it again"
            )
        with path.open("rb") as file:
            digest = sha256_of(file.fileno(), 0, nbytes, stage("hash", nbytes))
        if digest != output["sha256"]:
            raise PushError(
                f"{path}: SHA-256 {digest}, expected {output['sha256']} by {report_path.name}; convert or copy it again"
            )
        return cls(path, report_path, nbytes, digest, signature)


@dataclass(frozen=True)
class Pushed:
    """What is on the phone now."""

    path: str  # on the phone
    nbytes: int
    sha256: str
    sent_bytes: int  # 0 where it was there already


def push(bundle: LocalBundle, phone: Phone, stage: Stage) -> Pushed:
    """Make the phone hold the bundle, its report and its signature. A bundle that is there and equal is not sent again.

    Raises PushError: not enough space, or other bytes arrived; AdbError: the phone went away.
    """
    target = f"{FOLDER}/{bundle.path.name}"
    phone.read(f"mkdir -p {FOLDER} && chmod 755 {FOLDER}")
    if phone.size_bytes(target) == bundle.nbytes and phone.sha256(target) == bundle.sha256:
        _send_sidecars(bundle, phone, target)
        return Pushed(target, bundle.nbytes, bundle.sha256, sent_bytes=0)
    partial = f"{target}.partial"
    done_bytes = _resumable_bytes(bundle, phone, partial, stage)
    _check_space(bundle, phone, done_bytes)
    with bundle.path.open("rb") as file:
        file.seek(done_bytes)
        sent = phone.shell(f"cat >> {quote(partial)}", _pieces(file, stage("push", bundle.nbytes - done_bytes)))
    if sent.returncode:
        reason = " ".join(sent.stderr.split()) or f"exit status {sent.returncode}, no message"
        raise PushError(f"{phone.device}: writing {partial} failed: {reason}; free some space and run this again")
    _check_arrival(bundle, phone, partial)
    _send_sidecars(bundle, phone, target)  # first, so that no bundle is seen without them
    phone.read(f"chmod 644 {quote(partial)} && mv {quote(partial)} {quote(target)}")
    return Pushed(target, bundle.nbytes, bundle.sha256, sent_bytes=bundle.nbytes - done_bytes)


def _reported_output(report_path: Path) -> dict[str, Any]:
    """`output` of a conversion's report: file, bytes, sha256."""
    try:
        output = json.loads(read_plain(report_path))["output"]
        return {"bytes": int(output["bytes"]), "sha256": str(output["sha256"])}
    except FileNotFoundError as error:
        raise PushError(
            f"{report_path}: not found; expected the report that convert writes beside a bundle, by which the app "
            "verifies it; copy it here too"
        ) from error
    except OSError as error:
        raise PushError(f"{report_path}: cannot be read ({error.strerror}); copy it again") from error
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise PushError(
            f"{report_path}: not a report of a conversion ({type(error).__name__}: {error}); convert again"
        ) from error


def _read_signature(path: Path) -> bytes | None:
    try:
        return read_plain(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PushError(f"{path}: cannot be read ({error.strerror}); copy it again, or remove it") from error


def _resumable_bytes(bundle: LocalBundle, phone: Phone, partial: str, stage: Stage) -> int:
    """How much of an earlier, broken transfer is the beginning of this bundle; anything else there is removed."""
    size_bytes = phone.size_bytes(partial)
    if size_bytes is None:
        return 0
    if size_bytes <= bundle.nbytes:
        with bundle.path.open("rb") as file:
            prefix = sha256_of(file.fileno(), 0, size_bytes, stage("resume", size_bytes))
        if phone.sha256(partial) == prefix:
            return size_bytes
    phone.read(f"rm {quote(partial)}")
    return 0


def _check_space(bundle: LocalBundle, phone: Phone, done_bytes: int) -> None:
    needed_bytes = bundle.nbytes - done_bytes + SPARE_BYTES
    free_bytes = phone.free_bytes(FOLDER)
    if free_bytes < needed_bytes:
        raise PushError(
            f"{phone.device}: {format_bytes(free_bytes)} free in {FOLDER}, {format_bytes(needed_bytes)} needed; delete "
            f"something there, such as an old bundle: adb shell ls -l {FOLDER}"
        )


def _check_arrival(bundle: LocalBundle, phone: Phone, partial: str) -> None:
    size_bytes = phone.size_bytes(partial)
    if size_bytes != bundle.nbytes:
        raise PushError(
            f"{phone.device}: {size_bytes} bytes of {bundle.path.name} arrived, expected {bundle.nbytes}; "
            "run the same command again to continue"
        )
    digest = phone.sha256(partial)
    if digest != bundle.sha256:
        phone.read(f"rm {quote(partial)}")
        raise PushError(
            f"{phone.device}: {bundle.path.name} arrived with SHA-256 {digest}, expected {bundle.sha256}; the copy is "
            "removed; push again, over another cable or port if this repeats"
        )


def _send_sidecars(bundle: LocalBundle, phone: Phone, target: str) -> None:
    _send_text(bundle.report_path.read_bytes(), phone, f"{target}.json")
    if bundle.signature is None:
        phone.read(f"rm -f {quote(target + SIGNATURE)}")  # of a former bundle
    else:
        _send_text(bundle.signature, phone, target + SIGNATURE)


def _send_text(text: bytes, phone: Phone, target: str) -> None:
    sent = phone.shell(f"cat > {quote(target)} && chmod 644 {quote(target)}", [text])
    if sent.returncode or phone.read(f"cat {quote(target)}").encode() != text:
        reason = " ".join(sent.stderr.split()) or "other bytes arrived"
        raise PushError(f"{phone.device}: writing {target} failed: {reason}; free some space and run this again")


def _pieces(file: BinaryIO, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece
        on_bytes(len(piece))
