"""Kill conversions and the packing of weights at random points, and look at what is left.

    python -m tools.fuzz_kills --convert 150 --pack 50 --seed 1

After each kill: under a final name there is nothing, or what was there before, or the whole new output; a report that
is another bundle's is known to be. The next run then succeeds, gives the bytes and logits of an undisturbed run,
and leaves no file beside them. Where to kill is drawn from the seed: half of it at the n-th thing a process does with
files (an audit event of Python, just before it happens), half after a time.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_edge.converter.convert import convert
from gemma_edge.converter.litert.bundle import LitertBundle
from gemma_edge.converter.onnx.bundle import OnnxBundle
from gemma_edge.converter.plan.output import reader_of
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.engine import Engine

FIXTURE = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "tiny-gemma3"
LIMIT_S = 300.0
SETTLED_S = 2.5  # a file younger than that is hashed at every start, and none of its digests kept
_REFUSED = 3
_EVENTS = ("open", "os.", "fcntl.", "shutil.", "tempfile.", "subprocess.")
_LOADED = (LitertBundle, OnnxBundle)  # imported once, before the forks


class WrongError(Exception):
    """What a run left behind that it should not have."""


def forked(act: Callable[[], None], kill_at: int = 0, kill_after_s: float = 0.0, whom: str = "all") -> tuple[int, int]:
    """Run `act` in a child of its own session; its status, and how many audit events it has seen.

    kill_at: before that event. kill_after_s: then `whom`, "all", "self" or "children". 0: never.
    """
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        os.close(read)
        status = 0
        try:
            events = _count_events(kill_at)
            act()
            os.write(write, str(events()).encode())
        except GemmaEdgeError:
            status = _REFUSED
        except BaseException as error:
            traceback.print_exception(error)
            status = 1
        finally:
            os._exit(status)
    os.close(write)
    started = time.monotonic()
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        elapsed_s = time.monotonic() - started
        if kill_after_s and elapsed_s > kill_after_s:
            _kill(pid, whom)
            kill_after_s = 0.0
        if elapsed_s > LIMIT_S:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise WrongError(f"hangs: nothing in {LIMIT_S:.0f} s")
        time.sleep(0.002)
    with os.fdopen(read) as pipe:
        seen = pipe.read()
    status = os.waitstatus_to_exitcode(found[1])
    if status not in (0, _REFUSED, -signal.SIGKILL):
        raise WrongError(f"ends with status {status}")
    return status, int(seen or 0)


def _count_events(kill_at: int) -> Callable[[], int]:
    count = 0

    def hook(event: str, _arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event.startswith(_EVENTS):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def _kill(pid: int, whom: str) -> None:
    if whom == "all":
        os.killpg(pid, signal.SIGKILL)
    elif whom == "self":
        os.kill(pid, signal.SIGKILL)
    else:
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)


def digest(path: Path) -> str:
    """Of a file, or of all files in a folder with their names."""
    parts = sorted(path.rglob("*")) if path.is_dir() else [path]
    lines = [f"{p.relative_to(path)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in parts if p.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass
class Tally:
    """What became of the runs that were to be killed."""

    killed: int = 0
    too_late: int = 0
    found: dict[str, int] = field(default_factory=dict)

    def note(self, what: str) -> None:
        """Count what a kill has left."""
        self.found[what] = self.found.get(what, 0) + 1


@dataclass(frozen=True)
class Conversion:
    """One kind of conversion; what it gives, and how long it takes, undisturbed."""

    container: str
    options: dict[str, Any]
    sha256: str
    events: int
    seconds: float

    @classmethod
    def of(cls, work: Path, container: str, **options: Any) -> "Conversion":
        """Run it once."""
        out = work / "reference" / "model"
        out.parent.mkdir()
        request = {"format": container, "context": 256, "prefill": (8, 32), "measure": False, **options}
        started = time.monotonic()
        status, events = forked(lambda: _convert(out, request))
        if status:
            raise WrongError("fails undisturbed")
        found = cls(container, request, digest(out), events, time.monotonic() - started)
        shutil.rmtree(out.parent)
        return found

    def run(self, out: Path, **kill: Any) -> int:
        """To `out`; its status."""
        return forked(lambda: _convert(out, self.options), **kill)[0]


def _convert(out: Path, options: dict[str, Any]) -> None:
    convert("custom-int4" if options["format"] == "litertlm" else "custom-int8", FIXTURE, out, **options)


def fuzz_convert(count: int, seed: int, work: Path) -> Tally:
    """Raises WrongError."""
    rng, tally = random.Random(seed), Tally()
    new, old = Conversion.of(work, "litertlm"), Conversion.of(work, "litertlm", context=512)
    directory = Conversion.of(work, "onnx")
    for number in range(count):
        conversion, before = rng.choice(((new, None), (new, old), (directory, None)))
        folder = work / f"convert-{number}"
        folder.mkdir()
        out = folder / "model"
        if before is not None and before.run(out):
            raise WrongError(f"{number}: the run before fails")
        kill = drawn(rng, conversion.events, conversion.seconds)
        if conversion.run(out, **kill) == -signal.SIGKILL:
            tally.killed += 1
        else:
            tally.too_late += 1
        allowed = {conversion.sha256: "new"} | ({} if before is None else {before.sha256: "old"})
        tally.note(left(out, allowed, f"{number}: {conversion.container}, {kill}"))
        if conversion.container == "onnx" and out.exists():  # complete: a directory is not replaced
            shutil.rmtree(out)
        if conversion.run(out):
            raise WrongError(f"{number}: {kill}: the next run fails")
        if digest(out) != conversion.sha256:
            raise WrongError(f"{number}: {kill}: the next run gives other bytes")
        names = sorted(path.name for path in folder.iterdir())
        if names != ["model", "model.json"]:
            raise WrongError(f"{number}: {kill}: {names} are left")
        if "report" in reader_of(out).inspect(out):
            raise WrongError(f"{number}: {kill}: the report is another bundle's")
        shutil.rmtree(folder)
    return tally


def left(out: Path, allowed: dict[str, str], what: str) -> str:
    """What a killed run has left under the final names, in a word or two."""
    report = out.with_name("model.json")
    if report.exists():
        json.loads(report.read_bytes())  # whole
    if not out.exists():
        return "a report alone" if report.exists() else "nothing"
    found = allowed.get(digest(out))
    if found is None:
        raise WrongError(f"{what}: neither the old output nor the new one lies there")
    if not report.exists():
        raise WrongError(f"{what}: a bundle without its report")
    if "report" in reader_of(out).inspect(out):
        return f"the {found} one, another's report known as such"
    return f"the {found} one"


def drawn(rng: random.Random, events: int, seconds: float) -> dict[str, Any]:
    """When to kill."""
    if rng.random() < 0.5:
        return {"kill_at": rng.randrange(1, events + 1)}
    return {"kill_after_s": rng.uniform(0.001, 1.1 * seconds)}


def fuzz_pack(count: int, seed: int, work: Path) -> Tally:
    """Raises WrongError."""
    rng, tally = random.Random(seed), Tally()
    models = {}
    for container in ("litertlm", "onnx"):
        models[container] = work / container
        if forked(lambda: _convert(work / container, {"format": container, "context": 256, "measure": False}))[0]:  # noqa: B023
            raise WrongError("the model cannot be converted")
    time.sleep(SETTLED_S)
    undisturbed = {container: _packed(model, work / f"cache-{container}") for container, model in models.items()}
    for number in range(count):
        container = rng.choice(("litertlm", "onnx"))
        logits, names, events, seconds = undisturbed[container]
        cache = work / f"cache-{number}"
        kill = drawn(rng, events, seconds)
        if "kill_after_s" in kill:
            kill["whom"] = rng.choice(("all", "self", "children"))
        status, _ = forked(lambda: _logits(models[container], cache, work / "killed"), **kill)  # noqa: B023
        if status == 0:
            tally.too_late += 1
        else:
            tally.killed += 1
        present = {path.name for path in cache.iterdir()} if cache.exists() else set()
        tally.note("packed" if names & present - {n for n in names if n.endswith(".json")} else "nothing")
        found = _packed(models[container], cache)
        if found[0] != logits:
            raise WrongError(f"{number}: {container}, {kill}: other logits")
        if found[1] != names:
            raise WrongError(f"{number}: {container}, {kill}: {sorted(found[1] ^ names)} is left, or is missing")
        shutil.rmtree(cache)
    return tally


def _packed(model: Path, cache: Path) -> tuple[str, frozenset[str], int, float]:
    """An undisturbed run: its logits, the cache's names, its events and seconds."""
    out = cache.with_suffix(".logits")
    started = time.monotonic()
    status, events = forked(lambda: _logits(model, cache, out))
    if status:
        raise WrongError(f"{model.name}: cannot be run")
    names = frozenset(path.relative_to(cache).as_posix() for path in cache.rglob("*"))
    return out.read_text(), frozenset(name.partition("/")[0] for name in names), events, time.monotonic() - started


def _logits(model: Path, cache: Path, out: Path) -> None:
    with Engine(str(model), cache_dir=str(cache)) as engine:
        sequence = engine.new_sequence()
        sequence.append([2, 5, 7])
        out.write_text(hashlib.sha256(sequence.logits().tobytes()).hexdigest())


def fuzz(converts: int, packs: int, seed: int) -> dict[str, Tally]:
    """Both. Raises WrongError with what to look at."""
    with tempfile.TemporaryDirectory(prefix="fuzz-kills-") as folder:
        return {"convert": fuzz_convert(converts, seed, Path(folder)), "pack": fuzz_pack(packs, seed, Path(folder))}


def main() -> None:
    """Prints what the kills have left; exit status 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convert", type=int, default=150, help="conversions to kill")
    parser.add_argument("--pack", type=int, default=50, help="processes to kill that pack weights")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        for name, tally in fuzz(options.convert, options.pack, options.seed).items():
            print(f"{name}: {tally.killed} killed, {tally.too_late} had ended; left: {tally.found}")
    except WrongError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
