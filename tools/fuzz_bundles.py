"""Load mutated bundles and ask them something: each answers, or is refused in one line.

    python -m tools.fuzz_bundles [--cases 4000] [--seed 0] [--first 0]

Changes go where a loader looks: the header, the flatbuffer of a model, the metadata and the tokenizer, and now and then
the weights. Digests that the table records would refuse nearly all of them, so most cases record the digests of what
they hold now: as someone would who means harm. The others have to answer as the bundle that was not changed.
"""

import hashlib
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import click

from gemma_edge.converter.convert import convert
from gemma_edge.converter.litert.inspect import inspect_bundle
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.formats.litertlm import Bundle, BundleLayout, Section, SectionKind, SectionSpec
from gemma_edge.runtime.text.sampler import SamplerConfig
from tools.fuzzing import WrongError, fuzz, mutated, options, report

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
PROFILE = "raspberry-pi-4-4gb"
_PROMPT = "Once upon a time"


@cache
def originals() -> Sequence[Path]:
    """Sound bundles of both families."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-bundles-"))
    made = []
    for family, precision in (("gemma3", "int4"), ("gemma3n", "int8"), ("gemma3n", "fp32")):
        path = folder / f"{family}-{precision}.litertlm"
        convert(f"custom-{precision}", FIXTURES / f"tiny-{family}", path, measure=False, context=64, prefill=(8,))
        made.append(path)
    return made


def case(rng: random.Random, folder: Path) -> Callable[[], None]:
    """One changed bundle, and a program that inspects it and asks it something."""
    path = folder / "model.litertlm"
    source = rng.choice(originals())
    keeps_digests = rng.random() < 0.25
    path.write_bytes(_changed(source, rng) if keeps_digests else _changed_sections(source, rng))
    cache_dir = str(folder / "cache") if rng.random() < 0.5 else ":nocache"
    profile = PROFILE if rng.random() < 0.2 else None
    inspects = rng.random() < 0.3

    def work() -> None:
        if inspects:
            inspect_bundle(path)
        said = _reply(path, cache_dir, profile)
        if keeps_digests and said != (expected := _reply(source, ":nocache", None)):
            raise WrongError(f"{said!r}, expected {expected!r}")

    return work


def _reply(path: Path, cache_dir: str, profile: str | None) -> str:
    with Engine(str(path), cache_dir=cache_dir, profile=profile) as engine:
        talk = engine.create_conversation(sampler_config=SamplerConfig(top_k=1), max_output_tokens=4)
        return str(talk.send_message(_PROMPT))


def _changed(source: Path, rng: random.Random) -> bytes:
    """The header, or anything: with the digests as they were."""
    data = source.read_bytes()
    end = struct.unpack_from("<Q", data, 24)[0] if rng.random() < 0.7 else len(data)
    return mutated(data[:end], rng) + data[end:] if rng.random() < 0.5 else _same_length(data, 0, end, rng)


def _changed_sections(source: Path, rng: random.Random) -> bytes:
    """One or two sections, with the digests of what they are now."""
    data, sections = source.read_bytes(), Bundle.open(source).sections
    contents = [data[section.begin : section.end] for section in sections]
    for _ in range(rng.choice((1, 1, 2))):
        index = rng.randrange(len(sections))
        contents[index] = _changed_section(sections[index], contents[index], rng)
    if rng.random() < 0.05:
        contents[rng.randrange(len(sections))] = b""
    kept = [(section, content) for section, content in zip(sections, contents, strict=True) if content]
    return _packed(*zip(*kept, strict=True))


def _same_length(data: bytes, begin: int, end: int, rng: random.Random) -> bytes:
    changed = mutated(data[begin:end], rng)[: end - begin].ljust(end - begin, b"\0")
    return data[:begin] + changed + data[end:]


def _changed_section(section: Section, content: bytes, rng: random.Random) -> bytes:
    if section.kind is SectionKind.TFLITE_MODEL and rng.random() < 0.9:
        # The flatbuffer stands before the weights, which are most of the bytes.
        return _same_length(content, 0, min(len(content), 60_000 if rng.random() < 0.8 else 4_000), rng)
    if section.kind is SectionKind.LLM_METADATA and rng.random() < 0.3:
        return content.replace(b"{%", rng.choice(_TEMPLATES).encode() + b"{%", 1)
    return mutated(content, rng)


_TEMPLATES = (
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**10 }}", "{{ 2**10**8 }}", "{{ 1 // 0 }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "{{ ''.__class__.__mro__ }}", "{{ messages[9] }}",
    "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}", "{{ '%999999999d' % 1 }}",
    "{% if %}", "{{ '\x1b[2J' }}",
)  # fmt: skip


def _packed(sections: Sequence[Section], contents: Sequence[bytes]) -> bytes:
    specs = [
        SectionSpec(
            section.kind,
            len(content),
            section.model_type,
            {
                **{key: str(value) for key, value in section.items.items()},
                "sha256": hashlib.sha256(content).hexdigest(),
            },
        )
        for section, content in zip(sections, contents, strict=True)
    ]
    layout = BundleLayout.of(specs, "fuzz")
    data = bytearray(layout.nbytes)
    data[: len(layout.header)] = layout.header
    for section, content in zip(layout.sections, contents, strict=True):
        data[section.begin : section.end] = content
    return bytes(data)


@click.command()
@options
def main(cases: int, seed: int, first: int) -> None:
    """Try mutated bundles."""
    report(fuzz(case, cases=cases, seed=seed, first=first))


if __name__ == "__main__":
    main()
