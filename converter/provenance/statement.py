"""How a bundle was made, as an in-toto statement with the provenance of SLSA 1.0.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance. It says
nothing of time and place: two conversions of the same checkpoint give the same bytes.
"""

from collections.abc import Mapping
from typing import Any, Final

from gemma_edge.converter.provenance.facts import Facts

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:gemma-edge:convert:v1"
_PARAMETERS: Final = (
    "target", "family", "context_tokens", "prefill_tokens", "spans_tokens", "modalities", "recipe", "calibration",
    "trained_grid",
)  # fmt: skip
_SOURCE: Final = ("lora", "slice", "gguf", "drafter")


def statement(facts: Facts, beside: Mapping[str, str]) -> dict[str, Any]:
    """beside: SHA-256 by name of the documents that go with the bundle."""
    report = facts.report
    name, _, version = report["converter"].partition(" ")
    parameters = {key: report[key] for key in _PARAMETERS if key in report}
    return {
        "_type": STATEMENT_TYPE,
        "subject": _descriptors(facts.files),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": parameters | {"kv": report["kv"]["type"]},
                "internalParameters": {key: report["source"][key] for key in _SOURCE if key in report["source"]},
                "resolvedDependencies": _checkpoint(report["source"]),
            },
            "runDetails": {
                "builder": {"id": f"urn:{name}:{version}", "version": {name: version}},
                "byproducts": _descriptors(beside),
            },
        },
    }


def _descriptors(files: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(files.items())]


def _checkpoint(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Its files, and a drafter's; the commit of a repository is another kind of digest of them."""

    def commit(name: str) -> dict[str, str]:
        revision = (source["drafter"] if name.startswith("drafter/") else source)["revision"]
        return {} if revision is None else {"gitCommit": revision}

    files = sorted(source["sha256"].items())
    return [{"name": name, "digest": {"sha256": sha256} | commit(name)} for name, sha256 in files]
