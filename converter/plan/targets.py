"""`gemma-edge targets`: what can be asked for."""

from typing import Any

from rich.console import Console
from rich.table import Table

from gemma_edge.converter.checkpoint.hub import OFFICIAL
from gemma_edge.converter.plan.target import CUSTOM, SIZES
from gemma_edge.converter.quantize.recipes import NAMES, Recipe


def target_values() -> list[dict[str, Any]]:
    """Every target with the repository it downloads and the encodings of its recipe."""
    repositories = {name: OFFICIAL[name] for name in SIZES} | {CUSTOM: None}
    return [
        {
            "target": f"{size}-{precision}",
            "repository": repository,
            "encodings": {role.value: s.encoding.name for role, s in Recipe.named(precision).roles.items()},
        }
        for size, repository in repositories.items()
        for precision in NAMES
    ]


def print_targets(console: Console) -> None:
    """The same as a table."""
    table = Table("target", "repository", "encodings")
    for row in target_values():
        groups: dict[str, list[str]] = {}
        for role, encoding in row["encodings"].items():
            groups.setdefault(encoding, []).append(role)
        encodings = "; ".join(f"{encoding}: {', '.join(roles)}" for encoding, roles in groups.items())
        table.add_row(row["target"], row["repository"] or "(--checkpoint DIR)", encodings)
    console.print(table)
