"""A bundle taken apart over a few tokens: its weights, its layers, and which fault explains what it does."""

from dataclasses import dataclass

from gemma_edge.converter.checkpoint import Checkpoint
from gemma_edge.converter.evaluate import StreamingModel
from gemma_edge.converter.progress import Stage
from gemma_edge.converter.verify.diagnose import Diagnosis
from gemma_edge.converter.verify.faults import Finding, known_tensors
from gemma_edge.converter.verify.findings import computation_findings, weight_findings
from gemma_edge.converter.verify.layers import Comparison, compare_layers
from gemma_edge.converter.verify.run import Reading
from gemma_edge.converter.verify.stored import StoredWeights
from gemma_edge.converter.verify.subject import Subject


@dataclass(frozen=True)
class Dissection:
    """What its weights and layers are like, and the faults that this shows."""

    comparison: Comparison
    findings: tuple[Finding, ...]


def dissect(source: Checkpoint, model: StreamingModel, subject: Subject, reading: Reading, stage: Stage) -> Dissection:
    """Over the sample that was kept from reading.

    A bundle of another project has weights of other names: it is judged by its logits and its cache alone.
    """
    sample = reading.sample
    stored = _readable(StoredWeights.of(subject.bundle, known_tensors(model.model)), model)
    diagnosis = Diagnosis(source, stored, sample)
    walks = model.body_bytes if stored is None else 2 * model.read_bytes(len(sample.tokens))
    on_bytes = stage("layers", walks + diagnosis.read_bytes(model.model))
    comparison = compare_layers(model, stored, sample.tokens, reading.cached, on_bytes)
    findings = list(weight_findings(comparison))
    known = diagnosis.find(model.model, comparison.hidden, on_bytes)
    findings += known.findings or computation_findings(comparison.layers, known.left)
    return Dissection(comparison, tuple(findings))


def _readable(stored: StoredWeights, model: StreamingModel) -> StoredWeights | None:
    return stored if all(name in stored for name in model.graph.used) else None
