"""What is wrong with a bundle, from its weights, its layers and a few tokens' logits."""

from gemma_edge.converter.checkpoint.checkpoint import Checkpoint
from gemma_edge.converter.evaluate.streaming import StreamingModel
from gemma_edge.converter.progress import Stage
from gemma_edge.converter.verify.find.bundle_weights import BundleWeights
from gemma_edge.converter.verify.find.diagnose import Diagnosis
from gemma_edge.converter.verify.find.faults import Finding, known_tensors
from gemma_edge.converter.verify.find.findings import computation_findings, weight_findings
from gemma_edge.converter.verify.measure.subject import Subject
from gemma_edge.converter.verify.run import Reading


def readable_weights(model: StreamingModel, subject: Subject) -> BundleWeights | None:
    """The bundle's, or None: one of another project has weights of other names, and is judged by logits and cache."""
    stored = BundleWeights.of(subject.path, known_tensors(model.model))
    return stored if all(name in stored for name in model.graph.used) else None


def explain(
    source: Checkpoint, model: StreamingModel, stored: BundleWeights | None, reading: Reading, stage: Stage
) -> tuple[Finding, ...]:
    """The faults that the reading of a sample shows."""
    diagnosis = Diagnosis(source, stored, reading.sample)
    on_bytes = stage("faults", diagnosis.read_bytes(model.model))
    known = diagnosis.find(model.model, reading.hidden, reading.left, on_bytes)
    found = known.findings or computation_findings(reading.comparison.layers, known.left)
    return (*weight_findings(reading.comparison), *found)
