"""The Android Debug Bridge, used as a program: which phones there are, and commands on one of them.

Nothing here knows what a bundle is. Shell commands need Android 7 or newer, whose `adb shell` passes on the exit
status and keeps standard error apart (the shell v2 protocol); `-T` keeps a terminal from changing bytes on the way.
"""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import IO

from gemma_edge.profiles.errors import GemmaEdgeError

ANSWER_S = 20.0
"""How long adb may take to answer; it starts its server first."""
_HASHING_S = 600.0  # of 4 GB on a slow phone
_MOST_OUTPUT = 16 << 20
_RESTART = "restart adb with: adb kill-server"
READY = "device"  # what adb calls a phone that takes commands
_WHAT_TO_DO = {
    "unauthorized": "unlock it and allow this computer's key in the USB debugging dialog",
    "authorizing": "unlock it and allow this computer's key in the USB debugging dialog",
    "offline": "unplug it and plug it in again, or restart adb with: adb kill-server",
    "no permissions": "this user may not open the USB device; Debian: apt install android-sdk-platform-tools-common",
}
_BOOT_IT = "start Android on it"
_PLUG_IN = "plug one in with USB debugging on (Settings, Developer options), or run: adb connect HOST:PORT"
# adb's own complaints begin so; a command on the phone names itself first ("cat: ...").
_ADB_COMPLAINS = re.compile(r"^(?:error|adb): (?P<reason>.*)$", re.MULTILINE)


class AdbError(GemmaEdgeError):
    """adb or the phone is not there, not ready, or refuses."""


@dataclass(frozen=True)
class Device:
    """One line of `adb devices -l`."""

    serial: str
    state: str
    model: str  # "" where adb does not know it

    @classmethod
    def parse(cls, line: str) -> "Device":
        """From `0A1B2C  device usb:1-1 product:panther model:Pixel_7 device:panther transport_id:1`."""
        serial, _, rest = line.partition("\t" if "\t" in line else " ")
        rest = rest.strip()
        # "no permissions" is the one state of two words; a reason in brackets follows it.
        state = "no permissions" if rest.startswith("no permissions") else rest.split(" ")[0]
        model = re.search(r"\bmodel:(\S+)", rest)
        return cls(serial, state, model[1] if model else "")

    def __str__(self) -> str:
        return f"{self.serial} ({self.model})" if self.model else self.serial


@dataclass(frozen=True)
class Phone:
    """A device that takes commands."""

    adb: Path
    device: Device

    def shell(
        self, command: str, standard_input: Iterable[bytes] = (), limit_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line on the phone, feeding it `standard_input`; its exit status is the caller's to judge.

        limit_s: how long it may take, by default ANSWER_S; of input, as long for each piece.
        Raises AdbError: adb lost the phone, or does not answer.
        """
        arguments = [str(self.adb), "-s", self.device.serial, "shell", "-T", command]
        limit_s = ANSWER_S if limit_s is None else limit_s
        result = _run(arguments, standard_input, limit_s, f"{self.device}, `{command}`")
        if result.returncode and (complaint := _ADB_COMPLAINS.search(result.stderr)):
            raise AdbError(
                f"adb: {self.device}: {complaint['reason'].rstrip('.')}; check the cable and run the same command again"
            )
        return result

    def read(self, command: str) -> str:
        """What a command prints. Raises AdbError where it fails."""
        return self._read(command, None)

    def _read(self, command: str, limit_s: float | None) -> str:
        result = self.shell(command, limit_s=limit_s)
        if result.returncode:
            reason = " ".join(result.stderr.split()) or f"exit status {result.returncode}"
            raise AdbError(f"{self.device}: `{command}` failed: {reason}; expected Android 8 or newer")
        return result.stdout

    def size_bytes(self, path: str) -> int | None:
        """Of a file on the phone; None where there is none."""
        command = f"stat -c %s {quote(path)}"
        result = self.shell(command)
        if result.returncode:
            return None
        if not re.fullmatch(r"\d{1,15}\s*", result.stdout, re.ASCII):
            raise self._nonsense(command, result.stdout, "a number of bytes")
        return int(result.stdout)

    def free_bytes(self, folder: str) -> int:
        """What the file system of that folder can still take."""
        # Filesystem 1024-blocks Used Available Capacity Mounted: the name may hold blanks, the end does not.
        command = f"df -kP {quote(folder)}"
        output = self.read(command)
        fields = re.search(r"\s(\d{1,15})\s+\S+\s+\S+\s*\Z", output, re.ASCII)
        if fields is None:
            raise self._nonsense(command, output, "a table of file systems")
        return int(fields[1]) * 1024

    def sha256(self, path: str) -> str:
        """Hex digest of a file on the phone, computed there."""
        command = f"sha256sum {quote(path)}"
        output = self._read(command, _HASHING_S)
        digest = re.match(r"\\?([0-9a-f]{64})\s", output)
        if digest is None:
            raise self._nonsense(command, output, "64 hexadecimal digits")
        return digest[1]

    def _nonsense(self, command: str, output: str, expected: str) -> AdbError:
        return AdbError(f"adb: {self.device}: `{command}` gave {output[:80]!r}, expected {expected}; {_RESTART}")


def _run(
    arguments: list[str], standard_input: Iterable[bytes], limit_s: float, what: str
) -> subprocess.CompletedProcess[str]:
    """Run adb; `what` is asked of it, for messages. limit_s: for each piece of input, and for the answer."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(arguments, **pipes)  # type: ignore[call-overload]
    except OSError as error:
        reason = error.strerror
        raise AdbError(f"adb: {arguments[0]} cannot be run ({reason}); install the platform tools again") from error
    ended_for: list[str] = []
    with process:
        on_endless = partial(_end, process, ended_for, "endless output")
        answer = [_Taking(stream, on_endless) for stream in (process.stdout, process.stderr)]
        try:
            for piece in standard_input:
                with _patience(limit_s, process, ended_for):
                    process.stdin.write(piece)
                    process.stdin.flush()
        except BrokenPipeError:
            pass  # the command has ended; its status and message say why
        except BaseException:
            process.kill()
            raise
        with _patience(limit_s, process, ended_for), suppress(BrokenPipeError):
            process.stdin.close()
            texts = [taking.text() for taking in answer]
    if ended_for:
        raise AdbError(f"adb: {what}: {ended_for[0]}, expected an answer; {_RESTART}")
    return subprocess.CompletedProcess(arguments, process.returncode, *texts)


def _end(process: "subprocess.Popen[bytes]", ended_for: list[str], reason: str) -> None:
    ended_for.append(reason)
    process.kill()


@contextmanager
def _patience(limit_s: float, process: "subprocess.Popen[bytes]", ended_for: list[str]) -> Iterator[None]:
    """Ends a process that does not get on."""
    timer = threading.Timer(limit_s, _end, (process, ended_for, f"nothing in {limit_s:g} s"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Taking:
    """One output, read on a thread of its own as it comes."""

    def __init__(self, stream: IO[bytes], on_endless: Callable[[], None]) -> None:
        self._stream, self._on_endless = stream, on_endless
        self._content = b""
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        self._content = self._stream.read(_MOST_OUTPUT)
        if len(self._content) == _MOST_OUTPUT:
            self._on_endless()

    def text(self) -> str:
        """All of it. "replace": what a phone says may be cut anywhere or in no encoding, and is still to be quoted."""
        self._thread.join()
        return self._content.decode(errors="replace")


def find_adb() -> Path:
    """adb from PATH, else from the SDK that ANDROID_HOME or ANDROID_SDK_ROOT names. Raises AdbError: neither."""
    if found := shutil.which("adb"):
        return Path(found)
    for variable in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        candidate = Path(os.environ.get(variable) or os.devnull) / "platform-tools" / "adb"
        if candidate.is_file():
            return candidate
    raise AdbError(
        "adb: found neither on PATH nor under ANDROID_HOME; install Android's platform tools "
        "(apt install adb, brew install android-platform-tools, or Android Studio's SDK manager)"
    )


def list_devices(adb: Path) -> list[Device]:
    """All that adb sees, in its order. Raises AdbError: adb does not answer."""
    listed = _run([str(adb), "devices", "-l"], (), ANSWER_S, "`adb devices`")
    if listed.returncode:
        reason = " ".join(listed.stderr.split()) or f"exit status {listed.returncode}"
        raise AdbError(f"{adb}: `adb devices` failed: {reason}; try: adb kill-server")
    # Lines before the heading come from a server that is just starting ("* daemon started successfully").
    _, _, lines = listed.stdout.partition("List of devices attached")
    return [Device.parse(line) for line in lines.splitlines() if line.strip()]


def choose_phone(adb: Path, serial: str | None) -> Phone:
    """The phone of that serial, or the only one.

    Raises AdbError: none is connected, none of that serial, several and no serial, or not ready (and why).
    """
    devices = list_devices(adb)
    ready = [device for device in devices if device.state == READY]
    if not devices:
        raise AdbError(f"adb: no device is connected; {_PLUG_IN}")
    if serial is not None:
        matching = [device for device in devices if device.serial == serial]
        if not matching:
            raise AdbError(f"adb: no device {serial}; connected: {_names(devices)}; give one of these to --serial")
        device = matching[0]
    elif len(ready) > 1:
        raise AdbError(
            f"adb: {len(ready)} devices are connected, expected one: {_names(ready)}; choose with --serial "
            f"{ready[0].serial}"
        )
    else:
        device = ready[0] if ready else devices[0]
    if device.state != READY:
        advice = _WHAT_TO_DO.get(device.state, _BOOT_IT)
        raise AdbError(f"adb: {device} is in state {device.state}, expected {READY}; {advice}")
    return Phone(adb, device)


def _names(devices: list[Device]) -> str:
    return ", ".join(map(str, devices))
