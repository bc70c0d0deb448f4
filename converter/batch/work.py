"""One job, from the list to its record: nothing where nothing has changed, else a process that converts."""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from gemma_edge.converter.batch.joblist import BatchError, Job
from gemma_edge.converter.batch.memory import Budget, planned_bytes
from gemma_edge.converter.batch.record import BEGUN, Record, Seen, converter, files_of, record_path, why
from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.checkpoint.hub import resolve_checkpoint
from gemma_edge.converter.printing import printable
from gemma_edge.converter.quality.beside import report_path
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.plain_file import read_plain
from gemma_edge.runtime.formats.atomic import require_directory


class State(StrEnum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    CONVERTED = "converted"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@dataclass
class Outcome:
    """What has become of a job so far.

    reason: why it was done. planned_bytes: of memory, before it started; peak_rss_bytes: as the kernel counted, page
    cache of mapped files included; 0 where that is not known. attempts: processes started. exit_status: of the last.
    """

    name: str
    out: Path
    state: State = State.WAITING
    reason: str = ""
    error: str = ""
    attempts: int = 0
    exit_status: int | None = None
    planned_bytes: int = 0
    peak_rss_bytes: int = 0
    seconds: float = 0.0  # of the processes

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return self.__dict__ | {"out": str(self.out), "state": self.state.value, "seconds": round(self.seconds, 3)}


@dataclass
class Processes:
    """Those that run. `stop` ends them, and lets no other one start."""

    _running: set["subprocess.Popen[bytes]"] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    is_stopped: bool = False

    def start(self, command: list[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Raises BatchError once stopped."""
        with self._lock:
            if self.is_stopped:
                raise BatchError("stopped before it was done; run the list again")
            process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            self._running.add(process)
            return process

    def ended(self, process: "subprocess.Popen[bytes]") -> None:
        """It runs no more."""
        with self._lock:
            self._running.discard(process)

    def stop(self) -> None:
        """See the class."""
        with self._lock:
            self.is_stopped = True
            for process in self._running:
                with suppress(ProcessLookupError):
                    process.kill()


@dataclass(frozen=True)
class Worker:
    """What all jobs share. retries: how often one is started again that was killed; one that ends by itself is not.

    environment: of the processes. on_change: called, from the job's thread, whenever its outcome changes.
    """

    budget: Budget
    retries: int
    environment: Mapping[str, str]
    on_change: Callable[[Outcome], None]
    processes: Processes = field(default_factory=Processes)

    def do(self, job: Job) -> Outcome:
        """Never raises what a user can mend: that is the job's `error`, and no other job's affair."""
        outcome = Outcome(job.name, job.out)
        try:
            self._do(job, outcome)
        except GemmaEdgeError as error:
            outcome.state, outcome.error = State.FAILED, str(error)
        except OSError as error:  # a file that went away, or may not be read
            outcome.state, outcome.error = State.FAILED, f"{error.filename or job.out}: {error.strerror}"
        self.on_change(outcome)
        return outcome

    def _do(self, job: Job, outcome: Outcome) -> None:
        require_directory(job.out)
        checkpoint = resolve_checkpoint(job.request["checkpoint"], job.target.size)
        inputs = inputs_of(job, checkpoint)
        drafter = job.request["drafter"]
        if drafter is not None and "drafter" not in job.files:  # a repository
            found = Checkpoint.open(resolve_checkpoint(drafter, job.target.size, "--drafter")).input_files()
            inputs |= {f"drafter/{path.name}": path for path in found}
        before = Record.load(job.out)
        now = None
        if before is not None and (job.out.exists() or job.out.is_symlink()):
            now = before.again(inputs, files_of(job.out, before.outputs))
        outcome.reason = why(before, now, job.spelled)
        if not outcome.reason and now is not None:
            if now != before:
                now.save(job.out)  # with times by which it is known sooner
            outcome.state = State.UNCHANGED
            return
        outcome.planned_bytes = planned_bytes(job, checkpoint)
        with self.budget.take(outcome.planned_bytes):
            _make_room(job.out, before, now)
            if job.is_directory and not (job.out.is_dir() and any(job.out.iterdir())):
                BEGUN.save(job.out)  # what is there after a kill is ours: `convert` would not replace it
            stats = {name: path.stat() for name, path in inputs.items()}
            began_ns = time.time_ns()
            self._convert(job, outcome)
        is_merged = job.request["lora"] is not None  # the adapter's files may have the same names
        digests = {} if is_merged else _reported(job.out)
        read = {name: _seen(path, digests.get(name), stats[name]) for name, path in inputs.items()}
        written = {name: Seen.of(path) for name, path in _written(job.out, began_ns).items()}
        Record(converter(), job.spelled, read, written).save(job.out)
        outcome.state = State.CONVERTED

    def _convert(self, job: Job, outcome: Outcome) -> None:
        started = time.monotonic()
        try:
            self._try(job, outcome)
        finally:
            outcome.seconds = time.monotonic() - started

    def _try(self, job: Job, outcome: Outcome) -> None:
        command = [sys.executable, "-m", "gemma_edge.converter.batch.child", "convert", *job.arguments]
        outcome.state = State.RUNNING
        while True:
            outcome.attempts += 1
            self.on_change(outcome)
            process = self.processes.start(command, self.environment)
            peak, said = _end_of(process)
            self.processes.ended(process)
            outcome.exit_status = process.returncode
            outcome.peak_rss_bytes = max(outcome.peak_rss_bytes, peak)
            if not process.returncode:
                return
            if process.returncode > 0:
                raise BatchError(_last_line(said) or f"convert ended with status {process.returncode} and said nothing")
            if self.processes.is_stopped or outcome.attempts > self.retries:
                name = signal.Signals(-process.returncode).name
                raise BatchError(f"killed by {name}, started {outcome.attempts} times; is there memory enough?")


def _end_of(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """Wait for it: its peak of RSS, in bytes, and what it has said. 0: it was killed, or there is no /proc."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018
    said = process.stderr.read().decode(errors="replace").strip()
    peak = process.stdout.read()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    return int(peak or 0), said


def inputs_of(job: Job, checkpoint: Path) -> dict[str, Path]:
    """Every file that a job reads: of the checkpoint by name, of options by option and name. Raises CheckpointError."""
    inputs = {path.name: path for path in Checkpoint.open(checkpoint).input_files()}
    for option, place in job.files.items():
        if option != "checkpoint":
            paths = sorted(place.iterdir()) if place.is_dir() else [place]
            inputs |= {f"{option}/{path.name}": path for path in paths if path.is_file()}
    return inputs


def _reported(out: Path) -> Mapping[str, str]:
    """Digests of the checkpoint's files, which `convert` has read anyway."""
    digests: Mapping[str, str] = json.loads(read_plain(report_path(out)))["source"]["sha256"]
    return digests


def _seen(path: Path, sha256: str | None, before: os.stat_result) -> Seen:
    """An input, if it is still what it was before the conversion; else what is known of what was read then.

    sha256: of that; None: to be found now.
    """
    found = Seen.of(path, sha256)
    after = path.stat()
    is_same = (before.st_mtime_ns, before.st_size, before.st_ino) == (after.st_mtime_ns, after.st_size, after.st_ino)
    return found if is_same else Seen(sha256 or "", None)


def _written(out: Path, began_ns: int) -> dict[str, Path]:
    """The output, or its files, and what was written beside it, by name."""
    inside = sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else [out]
    beside = sorted(path for path in out.parent.glob(f"{glob.escape(out.name)}.*") if path.is_file())
    new = [path for path in beside if path.stat().st_mtime_ns >= began_ns and path != record_path(out)]
    return {path.relative_to(out.parent).as_posix(): path for path in (*inside, *new)}


def _make_room(out: Path, before: Record | None, now: Record | None) -> None:
    """A directory is not replaced by `convert`; one that is all ours, and as we left it, may go."""
    if not out.is_dir() or before is None or now is None:
        return
    if before == BEGUN:
        shutil.rmtree(out)
        return
    found = {path.relative_to(out.parent).as_posix() for path in out.rglob("*") if path.is_file()}
    digests = {name: seen.sha256 for name, seen in before.outputs.items()}
    if found <= digests.keys() and all(now.outputs[name].sha256 == digests[name] for name in found):
        shutil.rmtree(out)


def _last_line(text: str) -> str:
    """What a command says when it fails, without "error: "."""
    return printable(text.splitlines()[-1]).removeprefix("error: ") if text else ""
