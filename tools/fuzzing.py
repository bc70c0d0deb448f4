"""What the fuzzers share: seeded mutations, one process a case with limits of time and memory, and what became of it.

A fuzzer imports the product once and forks for each case: a crash, a hang or a leak stays with the case, and a fork
takes milliseconds. A case is made from its seed and number alone, so `--first N --cases 1` repeats one.
"""

import faulthandler
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import click

from gemma_edge.profiles.errors import GemmaEdgeError

SPARE_BYTES = 300 << 20
"""What a case may use beyond what the fuzzer itself has, in place of a plan: the models are tiny."""
LONGEST_LINE = 2000
_REFUSED, _TRACEBACK, _LINE, _LITTER, _WRONG = 10, 11, 12, 13, 14  # exit statuses of a case


class Verdict(StrEnum):
    """What became of a case. The first two are right."""

    WORKED = "worked"
    REFUSED = "refused in one line"
    TRACEBACK = "traceback"
    CRASH = "crash"
    HANG = "hang"
    MEMORY = "too much memory"
    LINE = "refused, but not in one short line"
    LITTER = "partial output"
    WRONG = "silent wrong result"


_BY_STATUS = {
    0: Verdict.WORKED, _REFUSED: Verdict.REFUSED, _TRACEBACK: Verdict.TRACEBACK, _LINE: Verdict.LINE,
    _LITTER: Verdict.LITTER, _WRONG: Verdict.WRONG,
}  # fmt: skip
RIGHT = (Verdict.WORKED, Verdict.REFUSED)


class LitterError(Exception):
    """A case left files behind that it should not have."""


class WrongError(Exception):
    """A case gave another result than the file that was not changed."""


@dataclass(frozen=True)
class Outcome:
    """said: the refusal, or the end of what was printed. peak_bytes: more than before the case."""

    verdict: Verdict
    said: str
    seconds: float
    peak_bytes: int


def attempt(work: Callable[[], None], limit_s: float, spare_bytes: int = SPARE_BYTES) -> Outcome:
    """Run `work` in a process of its own, and its children's, and tell what became of it.

    `work` raises what the product raises, LitterError, or WrongError. A case that hangs is killed with all that it
    started.
    """
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as at_start:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            at_start.write(str(_resident_bytes()).encode())  # less than the parent's: mapped files count when touched
            at_start.flush()
            _case(work, log.fileno(), limit_s)
        status, usage = _waited(pid, started + limit_s)
        seconds = time.monotonic() - started
        log.seek(0)
        said = log.read().decode(errors="replace").strip()
        at_start.seek(0)
        before = int(at_start.read() or 0)
    peak_bytes = usage.ru_maxrss * 1024 - before
    if status is None:
        verdict = Verdict.HANG
    elif os.WIFSIGNALED(status):
        verdict = Verdict.CRASH
    else:
        verdict = _BY_STATUS.get(os.WEXITSTATUS(status), Verdict.CRASH)
    if verdict in RIGHT and peak_bytes > spare_bytes:
        verdict = Verdict.MEMORY
    shown = said if len(said) <= 4000 else f"{said[:500]} ... {said[-3500:]}"
    return Outcome(verdict, shown, seconds, peak_bytes)


def _case(work: Callable[[], None], log: int, limit_s: float) -> None:
    """The child: never returns."""
    status = _TRACEBACK
    try:
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = os.fdopen(os.dup(log), "w", errors="backslashreplace")  # also where they are captured
        faulthandler.enable(file=log)
        faulthandler.dump_traceback_later(0.9 * limit_s, file=log)  # where it hangs
        work()
        status = 0
    except GemmaEdgeError as error:
        line = str(error)
        print(line)
        status = _REFUSED if line.strip() and "\n" not in line and len(line) <= LONGEST_LINE else _LINE
    except LitterError as error:
        print(f"left behind: {error}")
        status = _LITTER
    except WrongError as error:
        print(f"wrong: {error}")
        status = _WRONG
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _waited(pid: int, deadline: float) -> "tuple[int | None, resource.struct_rusage]":
    """The child's wait status, None where it was killed at the deadline, and what it used."""
    pause_s = 0.001
    while time.monotonic() < deadline:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return status, usage
        time.sleep(pause_s)
        pause_s = min(0.05, pause_s * 1.5)
    os.killpg(pid, signal.SIGKILL)
    _, _, usage = os.wait4(pid, 0)
    return None, usage


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# ---------------------------------------------------------------- mutations

_NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0x80000000,
    0xFFFFFFFF, 0xFFFFFFF0, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four changes: bits, numbers, holes, copies, cuts, insertions."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not found:
            return bytes(found)
        at = rng.randrange(len(found))
        length = min(len(found) - at, 1 << rng.randrange(11))
        match rng.randrange(9):
            case 0 | 1:
                found[at] ^= 1 << rng.randrange(8)
            case 2 | 3:
                width = rng.choice((1, 2, 4, 8))
                at -= at % width
                number = (rng.choice(_NUMBERS) + rng.choice((0, 0, -1, 1))) % (1 << 8 * width)
                found[at : at + width] = number.to_bytes(width, "little")
            case 4:
                found[at : at + length] = bytes(length)
            case 5:
                source = rng.randrange(len(found))
                found[at : at + length] = found[source : source + length]
            case 6:
                del found[at : at + length]
            case 7:
                found[at:at] = rng.randbytes(length)
            case 8:
                del found[at:]
    return bytes(found)


def _values(rng: random.Random) -> Any:
    deep: Any = []
    for _ in range(rng.choice((3, 400))):
        deep = [deep]
    return rng.choice((
        None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.0, -0.5, 1e308, math.nan, math.inf,
        "", "x", "\x1b[2J", "\ud800", "x" * 5000, "1", [], {}, [None], [[]], {"a": {}}, [0] * 3000, ["x"] * 2000,
        {str(i): i for i in range(2000)}, deep,
    ))  # fmt: skip


def mutated_json(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three changes at random places: other values and types, keys gone or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _changed(value, rng)
    return value


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                del value[key]
            case 1:
                value[key + rng.choice(("", "_", "\n", "\x1b"))] = value.pop(key)
            case 2:
                value[rng.choice(list(value))] = value[key]
            case _:
                value[key] = _changed(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        match rng.randrange(5):
            case 0:
                del value[at]
            case 1:
                value.insert(at, value[at])
            case _:
                value[at] = _changed(value[at], rng)
        return value
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, float(value), str(value)))
    return _values(rng)


def to_json(value: Any) -> bytes:
    """As a file; lone surrogates stay what they are."""
    return json.dumps(value).encode()


# ---------------------------------------------------------------- runs


def fuzz(
    case: Callable[[random.Random, Path], Callable[[], None]],
    *,
    cases: int,
    seed: int,
    first: int = 0,
    limit_s: float = 20.0,
    show: Callable[[str], None] = click.echo,
) -> Counter[Verdict]:
    """Run many cases one after the other; tells of each that is not right, and counts them all.

    case: makes files in an empty folder, and returns what is to be done with them.
    A case that hangs is tried once more with three times the time, for a busy machine.
    """
    counts: Counter[Verdict] = Counter()
    for number in range(first, first + cases):
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            work = case(random.Random(f"{seed} {number}"), folder)
            outcome = attempt(work, limit_s)
            if outcome.verdict is Verdict.HANG:
                outcome = attempt(work, 3 * limit_s)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        counts[outcome.verdict] += 1
        if counts.total() % 100 == 0:
            click.echo(f"{counts.total()} of {cases}", err=True)
        if outcome.verdict not in RIGHT:
            last = "\n    ".join(outcome.said.splitlines()[-6:])
            mib = outcome.peak_bytes >> 20
            show(f"case {number} of seed {seed}: {outcome.verdict}, {outcome.seconds:.1f} s, {mib} MiB\n    {last}")
    return counts


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Of each fuzzer's command line."""
    for option in (
        click.option("--first", default=0, show_default=True, help="Number of the first case."),
        click.option("--seed", default=0, show_default=True),
        click.option("--cases", default=200, show_default=True, help="How many files to try."),
    ):
        command = option(command)
    return command


def report(counts: Counter[Verdict]) -> None:
    """Print how often each verdict was given; exit status 1 where one is wrong."""
    for verdict, count in counts.most_common():
        click.echo(f"{count:6} {verdict}")
    if any(verdict not in RIGHT for verdict in counts):
        raise SystemExit(1)
