"""The bundle as a machine-learning model in a CycloneDX 1.6 bill of materials (ML-BOM).

https://cyclonedx.org/docs/1.6/json/. cyclonedx-python-lib 11 has no model cards, so that this is the document itself; a
test holds it against the library's copy of the schema. Its serial number follows from the bundle, and it has no time.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from gemma_edge.converter.provenance.facts import Facts

SPEC_VERSION: Final = "1.6"
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:gemma-edge:bundle")
_FORMATS: Final = {"text": "text/plain", "vision": "image", "audio": "audio"}
_METRICS: Final = {
    "kl": "mean KL divergence from the checkpoint, nats",
    "top1": "share of tokens with the checkpoint's first choice",
    "perplexity": "perplexity",
    "reference_perplexity": "perplexity of the checkpoint",
}
_DRAFTER: Final = "drafter/"
"""Before the names of its files."""

_DIGITS: Final = 3
"""Sums of floats may come out in another order on another machine."""


def bill(facts: Facts) -> dict[str, Any]:
    """The whole document."""
    report = facts.report
    name, _, version = report["converter"].partition(" ")
    files = [{"type": "file", "name": path, "hashes": _hashes(sha256)} for path, sha256 in sorted(facts.files.items())]
    licence = {"id": facts.licence.name} if facts.licence.spdx else {"name": facts.licence.name}
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, facts.sha256)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": name, "version": version}]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "bundle",
                "name": facts.bundle.name,
                "hashes": _hashes(facts.sha256),
                "licenses": [{"license": licence | {"url": facts.licence.url}}],
                "pedigree": {"ancestors": [*_base(facts), *_checkpoints(report["source"])]},
                "modelCard": _model_card(report),
                "components": files if facts.bundle.is_dir() else [],
                "properties": _properties(report),
            },
        },
    }


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _base(facts: Facts) -> list[dict[str, Any]]:
    if not facts.base_model:
        return []
    group, _, name = facts.base_model.rpartition("/")
    purl = f"pkg:huggingface/{facts.base_model}"
    return [{"type": "machine-learning-model", "group": group, "name": name, "purl": purl}]


def _checkpoints(source: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What was converted, file by file: the model, and the drafter beside it."""
    digests = sorted(source["sha256"].items())
    yield _checkpoint("checkpoint", source, [each for each in digests if not each[0].startswith(_DRAFTER)])
    if "drafter" in source:
        drafted = [(name.removeprefix(_DRAFTER), sha256) for name, sha256 in digests if name.startswith(_DRAFTER)]
        yield _checkpoint("drafter", source["drafter"], drafted)


def _checkpoint(kind: str, source: Mapping[str, Any], digests: Iterable[tuple[str, str]]) -> dict[str, Any]:
    files = [{"type": "file", "name": name, "hashes": _hashes(sha256)} for name, sha256 in digests]
    revision = {} if source["revision"] is None else {"version": source["revision"]}
    name = kind if source["revision"] is not None else source["checkpoint"]
    return {"type": "machine-learning-model", "name": name, **revision, "components": files}


def _model_card(report: Mapping[str, Any]) -> dict[str, Any]:
    inputs = [{"format": _FORMATS[modality]} for modality in report["modalities"]]
    card: dict[str, Any] = {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": report["family"],
            "inputs": inputs,
            "outputs": [{"format": _FORMATS["text"]}],
        }
    }
    measured = [
        {"type": kind, "value": f"{report['quality'][key]:.{_DIGITS}g}"}
        for key, kind in _METRICS.items()
        if isinstance(report["quality"].get(key), float | int)
    ]
    return card | ({"quantitativeAnalysis": {"performanceMetrics": measured}} if measured else {})


def _properties(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """What has no word of its own in the format."""
    encodings = ", ".join(f"{name}: {nbytes} bytes" for name, nbytes in report["bytes_by_encoding"].items())
    values = {
        "target": report["target"],
        "recipe": report["recipe"]["name"],
        "context_tokens": str(report["context_tokens"]),
        "encodings": encodings,
        "quality": report["quality"]["verdict"],
    }
    return [{"name": f"gemma-edge:{name}", "value": value} for name, value in values.items()]
