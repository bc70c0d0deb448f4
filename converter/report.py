"""What a conversion did, for people and machines alike: one dictionary, printed or stored as JSON."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.table import Table

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.plan.door import DECODER
from gemma_edge.converter.plan.output import Bundle
from gemma_edge.converter.plan.plan import Plan
from gemma_edge.converter.plan.target import Target
from gemma_edge.converter.printing import as_it_is, printable
from gemma_edge.converter.quality.beside import print_quality
from gemma_edge.converter.quantize.qat_grid import ENCODING
from gemma_edge.converter.quantize.quantize import QuantError
from gemma_edge.converter.quantize.recipes import ENCODER_ROLES, Placement
from gemma_edge.converter.tensors import Role
from gemma_edge.converter.tokenizer.generation import settings_left_out
from gemma_edge.profiles.budget import footprint_table
from gemma_edge.profiles.sizes import format_bytes

WORST_TENSORS = 10
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Source:
    """Where the weights came from."""

    checkpoint: Checkpoint
    sha256: Mapping[str, str]  # by file name


@dataclass(frozen=True)
class Report:
    """The finished conversion. `values` is what `--json` prints and what lies beside the bundle."""

    values: Mapping[str, Any]
    plan: Plan

    def save(self, file: BinaryIO) -> None:
        """Write the JSON."""
        file.write(f"{json.dumps(self.values, indent=2)}\n".encode())
        file.flush()

    def print(self, console: Console) -> None:
        """The same for people."""
        values = self.values
        console.print(f"[bold]{as_it_is(values['output']['file'])}[/]  {format_bytes(values['output']['bytes'])}")
        console.print(f"sha256 {values['output']['sha256']}", highlight=False)
        print_plan(self.plan, console)
        table = Table("tensor", "encoding", title="largest quantization errors", title_justify="left")
        table.add_column("relative RMS", justify="right")
        table.add_column("SNR, dB", justify="right")
        for row in values["worst_errors"][:5]:
            table.add_row(row["tensor"], row["encoding"], f"{row['relative_rms']:.4f}", f"{row['snr_db']:.1f}")
        if values["worst_errors"]:
            console.print(table)
        if "gguf" in values["source"]:
            console.print(quantized_line(values["source"]["gguf"]), highlight=False, markup=False)
        if "slice" in values["source"]:
            console.print(_cut(values["source"]["slice"]), highlight=False, markup=False)
        if "drafter" in values["source"]:
            console.print(_guessing(values), highlight=False, markup=False)
        if "lora" in values["source"]:
            console.print(_merged(values["source"]["lora"]), highlight=False, markup=False)
        if "trained_grid" in values:
            grid = values["trained_grid"]
            console.print(f"on their trained grid: {grid['exact_values']:,} of {grid['values']:,} values are exact")
        for note in values["notes"]:
            console.print(f"note: {printable(note)}", highlight=False, markup=False)
        if values["generation_left_out"]:
            console.print(left_out_line(values["generation_left_out"]), highlight=False, markup=False)
        print_quality(values["quality"], console)
        peak_bytes = values["peak_rss_bytes"]
        peak = "" if peak_bytes is None else f", peak RSS {format_bytes(peak_bytes)}"
        console.print(f"{values['seconds']:.1f} s{peak}")


def make_report(
    bundle: Bundle,
    source: Source,
    output: tuple[Path, str],
    errors: Mapping[str, QuantError],
    seconds: float,
    quality: Mapping[str, Any],
) -> Report:
    """Put together what is known after the last byte. output: path and SHA-256 of the finished file."""
    plan = bundle.plan
    path, sha256 = output
    values = plan_values(plan) | {
        "converter": f"gemma-edge {version('gemma-edge')}",
        "source": source.checkpoint.provenance | {"sha256": dict(source.sha256)},
        "sections": section_values(bundle),
        "notes": list(bundle.notes),
        "generation_left_out": settings_left_out(source.checkpoint.side_path),
        **_exact(plan, errors),
        "quality": dict(quality),
        "worst_errors": _worst(plan, errors),
        "output": {"file": path.name, "bytes": bundle.nbytes, "sha256": sha256},
        "seconds": round(seconds, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    return Report(values, plan)


def peak_rss_bytes() -> int | None:
    """The kernel's high-water mark, page cache of mapped files included; None on Windows, which keeps none."""
    if _STATUS.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.M)):
        return 1024 * int(found[1])
    try:
        import resource  # begins with what the parent had
    except ModuleNotFoundError:
        return None
    unit_bytes = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of macOS, of Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def plan_values(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values; sizes in bytes, lengths in tokens."""
    target, footprint = plan.target, plan.footprint
    return {
        "target": target.name,
        "family": plan.model.family,
        "context_tokens": plan.context_tokens,
        "prefill_tokens": list(target.prefill_tokens),
        "spans_tokens": list(target.spans_for(plan.model)),
        "draft_tokens": list(target.draft_tokens),
        "batch_rows": list(target.batch_rows),
        "modalities": [modality.value for modality in plan.model.modalities],
        "kv": {
            "type": target.kv.value,
            "bytes": plan.cache_bytes,
            "layers": [asdict(cache) for cache in plan.caches],
        },
        "recipe": {
            "name": target.recipe.name,
            "roles": {
                role.value: {"encoding": s.encoding.name, "search": s.search.value}
                for role, s in target.recipe_for(plan.model).roles.items()
                if plan.model.encoders or role not in ENCODER_ROLES
            },
            **_tensors(target),
        },
        **_calibration(target),
        **_trained_grid(plan),
        **_static_scales(plan),
        **_models(plan),
        **_drafter(plan),
        "bytes_by_role": plan.bytes_by("role"),
        "bytes_by_encoding": plan.bytes_by("encoding"),
        "bytes_by_section": plan.bytes_by("section"),
        "bytes_by_placement": plan.bytes_by("placement"),
        "not_converted": _not_converted(plan),
        "profile": None if target.profile is None else target.profile.name,
        "fit": plan.fitted.changes or None,
        "predicted_decode_tokens_per_s": plan.predicted_decode_tokens_per_s,
        "footprint": {
            "anon_bytes": footprint.anon_bytes,
            "file_bytes": footprint.file_bytes,
            "parts": [asdict(part) for part in footprint.parts],
        },
    }


def _models(plan: Plan) -> dict[str, Any]:
    """Both, where there are two."""
    rows = [
        asdict(model) | {"predicted_decode_tokens_per_s": plan.predicted_tokens_per_s(model)} for model in plan.models
    ]
    return {"models": rows} if rows else {}


def _drafter(plan: Plan) -> dict[str, Any]:
    """Where there is one: its bytes, and how many tokens are run at once with its guesses."""
    if plan.model.drafter is None:
        return {}
    nbytes = sum(tensor.nbytes for tensor in plan.tensors if tensor.spec.name in plan.model.drafter.tensors)
    return {"drafter": {"bytes": nbytes, "verify_tokens": plan.target.verify_tokens}}


def _trained_grid(plan: Plan) -> dict[str, Any]:
    """Matrices that were trained on a 4-bit grid, where there are any: how many stay on it, and which cannot."""
    own = [tensor for tensor in plan.tensors if tensor.storage.head is None]  # else it is the head's
    on_grid = {tensor.spec.name: tensor for tensor in own if tensor.spec.grid is not None}.values()
    kept = [tensor for tensor in on_grid if tensor.storage.grid is not None]
    values = {
        "encoding": ", ".join(sorted({tensor.storage.encoding.name for tensor in kept})) or ENCODING.name,
        "tensors": len(kept),
        "values": sum(tensor.spec.values for tensor in kept),
        "read_by_row": [
            t.spec.name for t in on_grid if t.storage.grid is None and Placement.of(t.spec.role) is Placement.OFFLOADED
        ],
    }
    return {"trained_grid": values} if on_grid else {}


def _static_scales(plan: Plan) -> dict[str, Any]:
    """Linear layers with int8 levels of the checkpoint's for both inputs and outputs, and those of integers without."""
    linears = {t.spec.name: t for t in plan.tensors if len(t.spec.shape) == 2 and t.section == DECODER}.values()
    static = [t.spec.static is not None and t.spec.static.inputs > 0 and t.spec.static.outputs > 0 for t in linears]
    dynamic = [t for t, known in zip(linears, static, strict=True) if not known and t.storage.encoding.kind == "int"]
    return {"static_scales": {"layers": sum(static), "dynamic_layers": len(dynamic)}} if any(static) else {}


def _exact(plan: Plan, errors: Mapping[str, QuantError]) -> dict[str, Any]:
    """The same, and how many values have come through to the last bit of the checkpoint's dtype."""
    grid = _trained_grid(plan)
    kept = sum(error.exact for error in errors.values())
    return {"trained_grid": grid["trained_grid"] | {"exact_values": kept}} if grid else {}


def _calibration(target: Target) -> dict[str, Any]:
    """The text that weights are rounded for, where there is one."""
    text = target.calibration
    return {} if text is None else {"calibration": {"text": text.name, "sha256": text.sha256}}


def _tensors(target: Target) -> dict[str, Any]:
    """Tensors that differ from their role, where there are any."""
    tensors = {name: storage.encoding.name for name, storage in target.recipe.tensors.items()}
    return {"tensors": tensors} if tensors else {}


def section_values(bundle: Bundle) -> list[dict[str, Any]]:
    """Name and exact size of every section."""
    return [{"name": section.name, "bytes": section.nbytes} for section in bundle.sections]


def print_sections(bundle: Bundle, console: Console) -> None:
    """Name and exact size of every section, and of the file."""
    table = Table("section")
    table.add_column("bytes", justify="right")
    for section in bundle.sections:
        table.add_row(section.name, f"{section.nbytes:,}")
    table.add_section()
    table.add_row("file, with header and padding", f"{bundle.nbytes:,}")
    console.print(table)


def print_plan(plan: Plan, console: Console) -> None:
    """Sizes by role and the footprint, as tables."""
    target = plan.target
    table = Table("role", title=f"{target.name}, context {plan.context_tokens}", title_justify="left")
    for heading in ("tensors", "values", "bytes"):
        table.add_column(heading, justify="right")
    for heading in ("stored as", "placement"):
        table.add_column(heading)
    for role, nbytes in plan.bytes_by("role").items():
        tensors = [tensor for tensor in plan.tensors if tensor.spec.role == role]
        encodings = sorted({tensor.storage.encoding.name for tensor in tensors})
        values = sum(tensor.spec.values for tensor in tensors)
        placement = Placement.of(Role(role)).value
        table.add_row(role, str(len(tensors)), f"{values:,}", format_bytes(nbytes), ", ".join(encodings), placement)
    table.add_row("KV cache", str(2 * len(plan.caches)), "", format_bytes(plan.cache_bytes), target.kv.value, "memory")
    console.print(table)
    budget = None if target.profile is None else target.profile.budget
    console.print(footprint_table(plan.footprint, budget))
    if plan.fitted.changes:
        console.print(f"chosen to fit: {plan.fitted.changes}", highlight=False)
    if target.profile is not None:
        rate = float(f"{plan.predicted_decode_tokens_per_s:.2g}")  # a bound on bandwidth: more digits would be false
        console.print(f"decode, predicted: about {rate:,g} tokens/s on {target.profile.name}", markup=False)
    for model in plan.models:
        predicted = plan.predicted_tokens_per_s(model)
        speed = "" if predicted is None else f", about {float(f'{predicted:.2g}'):,g} tokens/s predicted"
        told = f"model {model.name}: {model.layers} layers, {format_bytes(model.weight_bytes)} read a token{speed}"
        console.print(told, highlight=False, markup=False)
    for group, count in _not_converted(plan).items():
        console.print(f"not converted: {count} tensors of {group}")
    if grid := _trained_grid(plan).get("trained_grid"):
        console.print(f"trained on a grid of integers, kept as {grid['encoding']}: {grid['tensors']} matrices")
        for name in grid["read_by_row"]:
            console.print(f"trained on a 4-bit grid, re-quantized as a lookup table of another 4-bit format: {name}")
    if static := _static_scales(plan).get("static_scales"):
        console.print(
            f"inputs and outputs on the checkpoint's int8 levels: {static['layers']} layers; inputs on levels that "
            f"follow from each of them: {static['dynamic_layers']}"
        )


def quantized_line(facts: Mapping[str, Any]) -> str:
    """What a GGUF says of its weights, on one line."""
    types = ", ".join(f"{count} {kind}" for kind, count in facts["tensors_by_type"].items())
    mixed = "a mixed quantization" if facts["mixed_quantization"] else "one type of matrix"
    imatrix = facts["importance_matrix"]
    weighed = "no importance matrix named"
    if imatrix:
        weighed = f"weighed by an importance matrix ({', '.join(f'{key} {imatrix[key]}' for key in sorted(imatrix))})"
    return f"from a GGUF, {facts['file_type'] or 'type not named'}: {types} tensors, {mixed}, {weighed}"


def left_out_line(settings: Mapping[str, Any]) -> str:
    """What generation_config.json asks for and a bundle has no place for, on one line."""
    said = ", ".join(f"{printable(name)} {_short(value)}" for name, value in settings.items())
    return (
        f"generation_config.json also says {said}: LiteRT-LM and the runtime here do not apply it by themselves; "
        "ask for it with a message"
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _merged(lora: Mapping[str, Any]) -> str:
    """One line about an adapter."""
    rank, alpha = (", ".join(f"{number:g}" for number in lora[key]) for key in ("rank", "alpha"))
    return f"merged: {lora['adapter']}, rank {rank}, alpha {alpha}, into {lora['merged_tensors']} tensors"


def _guessing(values: Mapping[str, Any]) -> str:
    """One line about a drafter."""
    source, drafter = values["source"]["drafter"], values["drafter"]
    name = source["checkpoint"] if source["revision"] is None else f"revision {source['revision'][:12]}"
    return f"drafter: {name}, {format_bytes(drafter['bytes'])}, guesses {drafter['verify_tokens'] - 1} tokens at a time"


def _cut(cut: Mapping[str, Any]) -> str:
    """One line about a slice."""
    widths = cut["intermediate_size"]
    score = "" if cut["mmlu"] is None else f", MMLU {cut['mmlu']} as published for the pre-trained model"
    return (
        f"slice: {cut['name']}, {len(widths)} layers with feed-forward widths of {min(widths)} to {max(widths)}{score}"
    )


def _not_converted(plan: Plan) -> dict[str, int]:
    """How many stored tensors stay behind, by group; all that no layer reads are one group."""
    counts: dict[str, int] = {}
    for prefix, tensors in plan.unconverted.groups.items():
        group = "keys and values of layers that share KV" if prefix.startswith("layers.") else prefix
        counts[group] = counts.get(group, 0) + len(tensors)
    return counts


def _worst(plan: Plan, errors: Mapping[str, QuantError]) -> list[dict[str, Any]]:
    lossy = sorted((e for e in errors.items() if e[1].squared), key=lambda e: (-e[1].relative_rms, e[0]))
    storages = plan.storages
    return [
        {
            "tensor": name,
            "encoding": storages[name].encoding.name,
            "relative_rms": error.relative_rms,
            "snr_db": error.snr_db,
            "largest": error.largest,
        }
        for name, error in lossy[:WORST_TENSORS]
    ]
