"""What a bundle's uuid follows from: everything that its bytes follow from, and nothing else."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from gemma_edge.converter.plan.plan import Plan


def identity(plan: Plan, inputs_sha256: Mapping[str, str], rounded: Collection[str] = ()) -> str:
    """A digest of the inputs' contents, how each tensor is stored, the graphs, the caches and the converter's version.

    How the request was spelled, which device it was for and what it was called do not count. rounded: names of tensors
    that were rounded for the text of --calibrate, which counts where there are any.
    """
    text = plan.target.calibration
    facts: dict[str, Any] = {
        "converter": version("gemma-edge"),
        "inputs": dict(inputs_sha256),
        "graphs": {name: [graph.name for graph in graphs] for name, graphs in plan.graphs.items()},
        "context_tokens": plan.context_tokens,
        "caches": [asdict(cache) for cache in plan.caches],
        "tensors": {
            name: {
                "encoding": storage.encoding.name,
                "search": storage.search.value,
                "on_grid": storage.grid is not None,
                "turned": plan.specs[name].fold.hadamard,
                "balanced": plan.specs[name].fold.rows is not None or plan.specs[name].fold.columns is not None,
            }
            for name, storage in plan.storages.items()
        },
        "calibration": text.sha256 if text is not None and rounded else None,
    }
    if plan.target.beside is not None:
        facts["parts"] = {name: spec.shape for name, spec in plan.specs.items()}
    if plan.target.slice is not None:
        shapes = {name: spec.shape for name, spec in plan.specs.items()}
        facts["slice"] = {"kept": plan.target.slice.kept, "shapes": shapes}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
