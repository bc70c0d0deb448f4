"""A model card for the hub: its metadata, and what was done to the weights.

https://huggingface.co/docs/hub/model-cards. What the model is for, and what it was tuned on, is its maker's to say.
"""

import json
from typing import Any, Final

from gemma_edge.converter.printing import printable
from gemma_edge.converter.provenance.facts import Facts
from gemma_edge.profiles.sizes import format_bytes

_LIBRARIES: Final = {".litertlm": "litert-lm", ".gguf": "gguf"}


def card(facts: Facts) -> str:
    """README.md of a repository that holds the bundle."""
    report = facts.report
    name = facts.bundle.name
    has_images = "vision" in report["modalities"]
    metadata: dict[str, Any] = {"license": facts.licence.hub, "license_link": facts.licence.url}
    if facts.base_model:
        metadata |= {"base_model": facts.base_model, "base_model_relation": "quantized"}
    if facts.bundle.suffix in _LIBRARIES:
        metadata["library_name"] = _LIBRARIES[facts.bundle.suffix]
    metadata["pipeline_tag"] = "image-text-to-text" if has_images else "text-generation"
    metadata["tags"] = ["gemma", report["family"], "quantized", "on-device"]
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in metadata.items()), "---", ""]  # JSON is YAML
    encodings = [f"| {name} | {format_bytes(nbytes)} |" for name, nbytes in report["bytes_by_encoding"].items()]
    lines += [
        f"# {printable(name)}",
        "",
        f"`{report['target']}` of a {report['family']} checkpoint, made by {report['converter']}: context of "
        f"{report['context_tokens']} tokens, {', '.join(report['modalities'])}, "
        f"recipe {printable(report['recipe']['name'])}.",
        "",
        f"SHA-256 `{facts.sha256}`. `{printable(name)}.provenance.json` names every file that it was made from.",
        "",
        "| stored as | |",
        "|---|---|",
        *encodings,
        "",
        f"Against the checkpoint: {report['quality']['verdict']}, {report['quality']['meaning']}.",
        "",
        f"Licence: [{facts.licence.name}]({facts.licence.url}).",
        "",
    ]
    return "\n".join(lines)
