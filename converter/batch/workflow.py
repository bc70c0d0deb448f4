"""What the Snakefile asks of a job, in paths and units of Snakemake's."""

import shlex
from contextlib import suppress
from typing import Final

from gemma_edge.converter.batch.joblist import Job
from gemma_edge.converter.batch.memory import PROCESS_BYTES, planned_bytes
from gemma_edge.converter.batch.record import record_path
from gemma_edge.converter.batch.work import inputs_of
from gemma_edge.converter.quality.beside import report_path
from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.profiles.sizes import GIB, UNIT_BYTES

_UNKNOWN_BYTES: Final = 4 * GIB
"""Of a checkpoint that is still on the hub."""


def inputs_to_watch(job: Job) -> list[str]:
    """Its files; none of a checkpoint that is on the hub, or cannot be read, which the job itself then says."""
    if "checkpoint" not in job.files:
        return []
    try:
        return [str(path) for path in inputs_of(job, job.files["checkpoint"]).values()]
    except GemmaEdgeError:
        return []


def outputs_of(job: Job) -> list[str]:
    """A folder is not among them: Snakemake would leave a file of its own in it, which no reader expects."""
    output = [] if job.is_directory else [job.out]
    return [str(path) for path in (*output, report_path(job.out), record_path(job.out))]


def before(job: Job) -> str:
    """What a shell does first: a folder goes, as Snakemake removes files before it makes them again."""
    return f"rm -rf {shlex.quote(str(job.out))} &&" if job.is_directory else ""


def megabytes(job: Job) -> int:
    """Memory for the job and for what watches over it, in MB: what a cluster is asked for."""
    nbytes = job.memory_bytes or _UNKNOWN_BYTES
    if "checkpoint" in job.files:
        with suppress(GemmaEdgeError):  # the job says what is wrong
            nbytes = planned_bytes(job, job.files["checkpoint"])
    return -(-(nbytes + PROCESS_BYTES) // UNIT_BYTES["MB"])
