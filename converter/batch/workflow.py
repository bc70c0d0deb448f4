"""What the Snakefile asks of a job, in paths and units of Snakemake's."""

from pathlib import Path

from gemma_edge.converter.batch.joblist import Job
from gemma_edge.converter.batch.memory import PROCESS_BYTES, planned_bytes
from gemma_edge.converter.batch.record import record_path
from gemma_edge.converter.batch.work import inputs_of
from gemma_edge.converter.quality.beside import report_path
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.sizes import MIB

_UNKNOWN_BYTES = 4096 * MIB


def inputs_to_watch(job: Job) -> list[str]:
    """Its files; none of a checkpoint that is on the hub, or cannot be read, which the job itself then says."""
    if "checkpoint" not in job.files:
        return []
    try:
        return [str(path) for path in inputs_of(job, job.files["checkpoint"]).values()]
    except GemmaEdgeError:
        return []


def outputs_of(job: Job) -> list[str]:
    """The output first."""
    return [str(path) for path in (job.out, report_path(job.out), record_path(job.out))]


def megabytes(job: Job) -> int:
    """Memory for the job and for what watches over it, in MiB: what a cluster is asked for."""
    nbytes = job.memory_bytes or _UNKNOWN_BYTES
    checkpoint: Path | None = job.files.get("checkpoint")
    if checkpoint is not None:
        try:
            nbytes = planned_bytes(job, checkpoint)
        except GemmaEdgeError:
            pass  # the job says what is wrong
    return -(-(nbytes + PROCESS_BYTES) // MIB)
