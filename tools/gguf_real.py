"""Convert a real GGUF directly, and by way of a Hugging Face directory of the same values; say whether they are one.

    python -m tools.gguf_real MODEL.gguf DIRECTORY WORK [--target custom-int4] [--texts 20000]

DIRECTORY has the model's own config.json, generation_config.json and tokenizer.json. The values come from gguf's reader
and dequantizer, as float32, so that nothing is rounded. The two bundles must be equal to the byte but for the uuid in
their headers, which follows from the inputs' digests; the bundle's tokenizer must give the ids of tokenizer.json on
texts of every script that Unicode has letters of. Exits with 1 where they differ.
"""

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import sentencepiece
import tokenizers

from gemma_edge.converter.convert import convert
from gemma_edge.converter.tokenizer.tokenizer import SPACE
from gemma_edge.runtime.formats.litertlm import Bundle, SectionKind
from tools.gguf_oracle import write_float32_directory
from tools.script_texts import texts


def different_bytes(one: Path, other: Path) -> dict[str, int]:
    """How many bytes differ, by section, the header without its uuid included; {} where all are equal."""
    found: dict[str, int] = {}
    if one.stat().st_size != other.stat().st_size:
        return {"file size": abs(one.stat().st_size - other.stat().st_size)}
    bundles = Bundle.open(one), Bundle.open(other)
    places = {"header": (0, bundles[0].sections[0].begin)}
    places |= {section.name: (section.begin, section.end) for section in bundles[0].sections}
    uuids = [str(bundle.system["uuid"]).encode() for bundle in bundles]
    left, right = np.memmap(one, np.uint8, "r"), np.memmap(other, np.uint8, "r")
    for name, (begin, end) in places.items():
        parts = [bytes(left[begin:end]), bytes(right[begin:end])]
        if name == "header":
            parts = [part.replace(uuid, b"") for part, uuid in zip(parts, uuids, strict=True)]
        differing = int(np.count_nonzero(np.frombuffer(parts[0], np.uint8) != np.frombuffer(parts[1], np.uint8)))
        if differing:
            found[name] = differing
    return found


def different_texts(bundle: Path, tokenizer_json: Path, count: int) -> dict[str, Any]:
    """How many of `count` texts, of how many scripts, the bundle's tokenizer and tokenizer.json give other ids for."""
    section = Bundle.open(bundle).section(SectionKind.SENTENCEPIECE_TOKENIZER)
    derived = sentencepiece.SentencePieceProcessor(model_proto=bundle.read_bytes()[section.begin : section.end])
    original = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    wrong, scripts, tokens = [], set(), 0
    for script, drawn in texts(count):
        text = drawn.replace(SPACE, "_")  # the known difference, see converter/tokenizer/tokenizer.py
        expected = original.encode(text, add_special_tokens=False).ids
        scripts.add(script)
        tokens += len(expected)
        if derived.encode(text) != expected:
            wrong.append((script, text))
    return {"texts": count, "scripts": len(scripts), "tokens": tokens, "different": len(wrong), "first": wrong[:3]}


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--target", default="custom-int4", show_default=True)
@click.option("--texts", default=20_000, show_default=True, help="How many texts are tokenized by both.")
def main(model: Path, directory: Path, work: Path, target: str, texts: int) -> None:
    """Convert MODEL, and DIRECTORY with its values, in WORK; print figures and differences as JSON."""
    copy = work / "float32"
    if not (copy / "model.safetensors").exists():
        write_float32_directory(model, directory, copy)
    reports = {}
    for name, source in (("gguf", model), ("directory", copy)):
        reports[name] = convert(target, source, work / f"{name}.litertlm").values
    values = {
        "seconds": {name: report["seconds"] for name, report in reports.items()},
        "peak_rss_bytes": {name: report["peak_rss_bytes"] for name, report in reports.items()},
        "bundle_bytes": reports["gguf"]["output"]["bytes"],
        "different_bytes": different_bytes(work / "gguf.litertlm", work / "directory.litertlm"),
        "tokenizer": different_texts(work / "gguf.litertlm", copy / "tokenizer.json", texts),
    }
    click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    sys.exit(bool(values["different_bytes"] or values["tokenizer"]["different"]))


if __name__ == "__main__":
    main()
