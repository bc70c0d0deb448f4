"""Plan against measurement: convert full-size models, run them, and compare peak anonymous memory with the plan's.

    python -m tools.synthetic e2b checkpoints/e2b
    python -m tools.plan_vs_measured measure --checkpoints checkpoints --work DIR e2b-int4@4096 e2b-int4@32768
    python -m tools.plan_vs_measured measure --checkpoints checkpoints --work DIR 1b-int4@4096+batch=2,4,8
    python -m tools.plan_vs_measured table

`measure` takes minutes and gigabytes of disk per case and adds to tools/plan_vs_measured.json; a bundle is deleted once
it is measured. Checkpoints need a tokenizer of full size, because it counts: tools/real_model.py fetches one. `table`
plans anew, so it shows what a change of the constants in profiles/costs.py does without measuring again.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Self

import click

from gemma_edge.converter.models.official import official_model
from gemma_edge.converter.plan.door import needs_of
from gemma_edge.converter.plan.target import Target
from gemma_edge.profiles.footprint import Footprint
from gemma_edge.runtime.memory.reading import MemoryPeak, PeakSampler, process_tree

RECORDS = Path(__file__).with_suffix(".json")
ENGINES = {"litertlm": ("litert", "litert_lm"), "onnx": ("onnx",)}
"""Of fill_context, by what they load."""
MIB = 1 << 20


@dataclass(frozen=True, order=True)
class Case:
    """A target at a context length, "e2b-int4@4096", with signatures beside those of any bundle where more is said:
    "e2b-int4@4096+batch=2,4,8", "e2b-int4@4096+draft=4,8"."""

    target: str
    context_tokens: int
    more: str = ""  # "batch=2,4,8"

    @classmethod
    def parse(cls, text: str) -> Self:
        target, _, rest = text.partition("@")
        context, _, more = rest.partition("+")
        return cls(target, int(context), more)

    @property
    def size(self) -> str:
        return self.target.partition("-")[0]

    @property
    def name(self) -> str:
        """As on the command line: "e2b-int4 --batch 2,4,8"."""
        return " ".join([self.target, *self.options])

    @property
    def options(self) -> tuple[str, ...]:
        """Those of `convert`, beside the context."""
        name, _, value = self.more.partition("=")
        return (f"--{name}", value) if name else ()

    def rows(self, option: str) -> tuple[int, ...]:
        """Those of "batch" or "draft", where it is said."""
        name, _, value = self.more.partition("=")
        return tuple(map(int, value.split(","))) if name == option else ()


@dataclass(frozen=True, order=True)
class Record:
    """One measured run: peaks of the process, sampled by its parent."""

    case: Case
    engine: str
    anon_bytes: int
    file_bytes: int


def load_records(path: Path = RECORDS) -> list[Record]:
    """Everything measured so far."""
    values: Iterable[Mapping[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return [Record(**{**value, "case": Case(**value["case"])}) for value in values]


def save_records(records: Iterable[Record], path: Path = RECORDS) -> None:
    """The newest record of a case and engine wins."""
    newest = {(record.case, record.engine): record for record in records}
    path.write_text(json.dumps([asdict(record) for record in sorted(newest.values())], indent=1) + "\n")


def measure(cases: Sequence[Case], output_format: str, checkpoint: Path, work: Path) -> list[Record]:
    """Convert once, run twice in each engine and context (the first run packs the weights), delete.

    cases: of one target; of LiteRT one, which the bundle is made for: an ONNX directory's context is chosen when it is
    loaded. litert_lm runs a bundle as if nothing more were in it.
    """
    target, context, engines = cases[0].target, max(case.context_tokens for case in cases), ENGINES[output_format]
    bundle, cache = work / f"{target}.{output_format}", work / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    convert = [sys.executable, "-m", "gemma_edge.converter", "convert", "--target", target, "--format", output_format]
    options = ["--checkpoint", str(checkpoint), "--context", str(context), "--out", str(bundle), "--no-measure"]
    subprocess.run(
        [*convert, *options, *cases[0].options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return [
            _run(case, engine, bundle, cache) for case in cases for engine in (engines[:1] if case.more else engines)
        ]
    finally:
        for path in (bundle, bundle.with_name(f"{bundle.name}.json"), cache):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _run(case: Case, engine: str, bundle: Path, cache: Path) -> Record:
    peaks = [_peak(case, engine, bundle, cache) for _ in range(2)]
    if engine == "litert_lm":  # its cache is of no use to the next
        for file in cache.glob(f"{bundle.name}*"):
            file.unlink()
    record = Record(case, engine, peaks[-1].anon_bytes, peaks[-1].file_bytes)
    click.echo(
        f"{case.name} {case.context_tokens:6} {engine:10} {record.anon_bytes / MIB:7.0f} MiB anonymous"
        f" {record.file_bytes / MIB:7.0f} MiB mapped"
    )
    return record


def _peak(case: Case, engine: str, bundle: Path, cache: Path) -> MemoryPeak:
    command = [sys.executable, "-m", "tools.fill_context", str(bundle), "--engine", engine, "--cache-dir", str(cache)]
    command += ["--context", str(case.context_tokens)]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child,
        PeakSampler(lambda: process_tree(child.pid)) as sampler,
    ):
        child.wait()
    if child.returncode:
        sys.exit(f"error: {' '.join(command)}: exit status {child.returncode}")
    return sampler.peak


def planned(case: Case, engine: str) -> Footprint:
    """What the planner says of the official model, but for what does not happen here.

    No snapshot is taken, and litert_lm runs no signature of a span. Of a batch, every conversation is there.
    """
    output_format = next(name for name, engines in ENGINES.items() if engine in engines)
    target = Target.parse(
        case.target,
        context=case.context_tokens,
        format=output_format,
        draft=case.rows("draft"),
        batch=case.rows("batch"),
    )
    needed = needs_of(official_model(case.size), target).footprint
    left_out = {"KV snapshots"} | ({"activations of spans"} if engine == "litert_lm" else set())
    slots = max(case.rows("batch"), default=1)
    return Footprint.of(
        replace(part, anon_bytes=slots * part.anon_bytes) if part.name == "KV cache" else part
        for part in needed.parts
        if part.name not in left_out
    )


def table(records: Iterable[Record]) -> str:
    """Markdown: MiB of peak anonymous memory, and how far a plan is from what it is furthest from of each format."""
    measured: dict[Case, dict[str, int]] = {}
    for record in sorted(records):
        measured.setdefault(record.case, {})[record.engine] = record.anon_bytes
    titles = ("target", "context", "planned", "`litert`", "`litert_lm`", "difference", "ONNX", "`onnx`", "difference")
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for case, by_engine in measured.items():
        row = [case.name, str(case.context_tokens)]
        for engines in ENGINES.values():
            if case.more and not {*engines} & {*by_engine}:
                row += [""] * (len(engines) + 2)
                continue
            plan = planned(case, engines[0]).anon_bytes
            differences = [
                planned(case, engine).anon_bytes / by_engine[engine] - 1 for engine in engines if engine in by_engine
            ]
            found = [f"{by_engine[engine] / MIB:.0f}" if engine in by_engine else "" for engine in engines]
            worst = f"{max(differences, key=abs):+.1%}" if differences else ""
            row += [f"{plan / MIB:.0f}", *found, worst]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


@click.group()
def main() -> None:
    """Peak anonymous memory: planned against measured."""


@main.command("measure")
@click.option("--checkpoints", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Scratch space for bundles and caches.")
@click.option(
    "--format", "formats", type=click.Choice([*map(str, ENGINES)]), multiple=True, default=[*map(str, ENGINES)]
)
@click.argument("cases", nargs=-1, required=True)
def measure_main(checkpoints: Path, work: Path, formats: tuple[str, ...], cases: tuple[str, ...]) -> None:
    """Measure CASES, such as e2b-int4@4096, with the checkpoints in DIR/1b, DIR/e2b, DIR/e4b."""
    by_target: dict[str, list[Case]] = {}
    for case in map(Case.parse, cases):
        by_target.setdefault(case.name, []).append(case)
    for output_format, wanted in product((formats or ENGINES), by_target.values()):
        for together in [wanted] if output_format == "onnx" else [[case] for case in wanted]:
            found = measure(together, output_format, checkpoints / together[0].size, work)
            save_records([*load_records(), *found])


@main.command("table")
def table_main() -> None:
    """Print the table of all measured cases, planned anew."""
    click.echo(table(load_records()))


if __name__ == "__main__":
    main()
